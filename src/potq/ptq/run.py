"""One run over a model: every target to the nearest level, or the blocks by the steps of an effort."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from potq.config import Effort, PoTConfig
from potq.data.ranks import Ranks, SharedFolder
from potq.errors import ConfigError
from potq.nn.convolution import is_grouped
from potq.nn.parts import bring, parts_of, stored
from potq.nn.plain import is_plain
from potq.nn.plan import Plan, WeightPlan
from potq.nn.properties import evaluation_mode
from potq.nn.report import ModuleReport, Progress
from potq.nn.weights import matrix_of
from potq.numerics.tensor import QuantizedWeight
from potq.ptq import calibration as calib
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.blocks import Chain, Keeper, find_blocks, first_tokens, merge
from potq.ptq.chain import Blocks, agreed_lists, find_lists, record_chain
from potq.ptq.ends import ENOUGH, calibrated_ends, end_moments
from potq.ptq.feed import Feed
from potq.ptq.kept import Reader, block_part, in_folder, in_memory, weight_tensors
from potq.ptq.layer import calibrated_layer, rounded_layer, rounded_only
from potq.ptq.sequential import SequentialCalibration
from potq.ptq.streaming import chain_in_parts
from potq.ptq.substitute import substituted
from potq.ptq.weight import describe_weight, quantize_weight
from potq.resume import WorkFolder, fingerprint
from potq.version import __version__

REPORTED = 8  # inputs of a plain module that output errors are measured on
REPORTED_TOKENS = 1024  # of a text: of a large model they take minutes

Source = list[Tensor] | Feed
"""Token batches, or what runs any other module."""

Done = dict[str, tuple[Reader, ModuleReport]]
"""What gives each packed weight, and its report."""


@dataclass(frozen=True)
class Run:
    """One call of :func:`potq.quantize`."""

    model: nn.Module
    config: PoTConfig
    effort: Effort
    todo: Plan
    source: Source
    blocks: Blocks | None
    seed: int
    cache_bytes: int
    progress: Progress | None
    ranks: Ranks
    remarks: list[str] = field(default_factory=list)

    def rounded(self, targets: Sequence[WeightPlan]) -> Done:
        """Every target by itself, to the nearest level."""
        importance = _importance(self.model, self.config, targets, self.source)
        done: Done = {}
        count, total = 0, sum(target.weights for target in self.todo.targets)
        for target in targets:
            if self.progress is not None:
                self.progress(count, total, target.name)
            count += target.weights
            bring(self.model, target.name)
            weight = matrix_of(self.model, target.name)
            quantized, entry = quantize_weight(weight, target, self.config, importance.get(target.name), self.ranks)
            done[target.name] = in_memory(quantized), entry
        return done

    def calibrated(self, folder: WorkFolder | None) -> Done:
        """What is outside the blocks, by itself; then the blocks by the steps of the effort."""
        if isinstance(self.source, Feed):
            return self._in_chains(self.source, folder)
        inside, outside = self._divided((find_blocks(self.model)[0],))
        ends = calibrated_ends(self.model, outside, self.effort)
        done = self.rounded([target for target in outside if target not in ends]) | self._ends(ends, self.source)
        if folder is not None and parts_of(self.model) is not None:
            done = _moved(folder, outside, done)  # and memory is free for the blocks
            return self._in_parts(inside, done, self.source, folder)
        return done | self._in_blocks(inside, done, self.source, None, folder, self.progress)

    def _ends(self, targets: Sequence[WeightPlan], batches: list[Tensor]) -> Done:
        """Embedding and head, each by itself on the gradients of the model in full precision."""
        if not targets:
            return {}
        some = merge(self.ranks.share(first_tokens(batches, ENOUGH)))
        moments = end_moments(self.model, targets, some, seed=self.seed, cache_bytes=self.cache_bytes, ranks=self.ranks)
        unseen = "the loss does not show what it is worth"
        return {target.name: self._alone(target, moments.pop(target.name, None), unseen) for target in targets}

    def _alone(self, target: WeightPlan, moments: Tensor | None, reason: str) -> tuple[Reader, ModuleReport]:
        """One target by itself: by its second moments, or rounded for a ``reason`` where there are none."""
        bring(self.model, target.name)
        weight = matrix_of(self.model, target.name)
        if moments is None:
            layer = rounded_layer(weight, target.scheme, reason)
        else:
            layer = calibrated_layer(weight, Hessian(moments, self.effort.damping), target.scheme, self.effort)
        entry = describe_weight(weight, target, layer.weight, layer.algorithm, self.ranks)
        return in_memory(layer.weight), entry

    def _in_parts(self, inside: list[WeightPlan], done: Done, batches: list[Tensor], folder: WorkFolder) -> Done:
        """The blocks of a model that is read in parts; each leaves memory when it is done."""
        with evaluation_mode(self.model), ExitStack() as stack:
            chain, remarks = chain_in_parts(self.model, merge(batches), Keeper(self.cache_bytes, stack))
            self.remarks.extend(remarks)
            return done | self._in_blocks(inside, done, batches, chain, folder, self.progress)

    def _in_chains(self, feed: Feed, folder: WorkFolder | None) -> Done:
        """One list of blocks after another: those of a decoder see what the quantized encoder puts out."""
        with evaluation_mode(self.model), ExitStack() as stack:
            keep, feed = Keeper(self.cache_bytes, stack), feed.share(self.ranks)
            lists, remarks = agreed_lists(find_lists(self.model, feed, self.todo, self.blocks), self.ranks)
            self.remarks.extend(remarks)
            done = self._outside(self._divided([name for names in lists for name in names])[1], feed)
            before: dict[str, Tensor] = {}
            for number, names in enumerate(lists):
                inside = self._divided(names)[0]
                with substituted(self.model, before):
                    chain = record_chain(self.model, feed, names, keep, first=sum(map(len, lists[:number])))
                    done |= self._in_blocks(inside, done, [], chain, folder, self._of_all)
                if number + 1 < len(lists):
                    before |= {target.name: done[target.name][0]().dequantize() for target in inside}
        return done

    def _of_all(self, count: int, _: int, name: str) -> None:
        """Progress of one list of blocks, as a part of all."""
        if self.progress is not None:
            self.progress(count, sum(target.weights for target in self.todo.targets), name)

    def _divided(self, names: Sequence[str]) -> tuple[list[WeightPlan], list[WeightPlan]]:
        """The targets in the modules of these names, but for embeddings; and all others. The model's own name is ``""``."""
        starts = tuple(f"{name}." if name else "" for name in names)
        inside = [t for t in self.todo.targets if t.kind != "embedding" and t.name.startswith(starts)]
        return inside, [target for target in self.todo.targets if target not in inside]

    def _in_blocks(
        self,
        inside: list[WeightPlan],
        done: Done,
        batches: list[Tensor],
        chain: Chain | None,
        folder: WorkFolder | None,
        progress: Progress | None,
    ) -> Done:
        """The targets ``inside`` a list of blocks by the steps of the effort, after those that are ``done``."""
        calibrated = SequentialCalibration(
            self.model,
            inside,
            self.effort,
            batches,
            chain,
            fixed={name: quantized() for name, (quantized, _) in done.items()},
            seed=self.seed,
            cache_bytes=self.cache_bytes,
            folder=folder,
            progress=progress,
            ranks=self.ranks,
        )
        layers = calibrated.run()
        found: Done = {}
        for target in inside:
            bring(self.model, target.name)
            weight, layer = matrix_of(self.model, target.name), layers.pop(target.name)
            entry = describe_weight(weight, target, layer.weight, layer.algorithm, self.ranks)
            found[target.name] = self._reader(target, layer.weight, chain, folder), entry
        return found

    def _reader(
        self, target: WeightPlan, quantized: QuantizedWeight, chain: Chain | None, folder: WorkFolder | None
    ) -> Reader:
        """What gives a weight that is done; of a model in parts, from its block's file."""
        if chain is None or folder is None or parts_of(self.model) is None:
            return in_memory(quantized)
        index, name = next((i, n) for i, n in enumerate(chain.names) if target.name.startswith(f"{n}."))
        return in_folder(folder, block_part(index), target.name.removeprefix(f"{name}."), target)

    def _outside(self, targets: Sequence[WeightPlan], feed: Feed) -> Done:
        """Layers outside the blocks, each by itself on what the module in full precision gives it."""
        alone = [target for target in targets if target.kind in ("embedding", "experts")]
        done = self.rounded(alone)
        layers = {target: self.model.get_submodule(target.name) for target in targets if target not in alone}
        reasons = {target.name: rounded_only(module, target.scheme) for target, module in layers.items()}
        able = [name for name, reason in reasons.items() if not reason]
        moments = calib.second_moments(self.model, able, feed, self.ranks) if able else {}
        for target in layers:
            reason = reasons[target.name] or "no input reaches it"
            done[target.name] = self._alone(target, moments.pop(target.name, None), reason)
        return done

    def folder(self, path: str | os.PathLike[str] | None) -> WorkFolder | None:
        """The work folder of this run.

        Raises:
            ModelError: the model has no blocks, so that there is nothing to be kept.
        """
        if not isinstance(self.source, Feed):
            find_blocks(self.model)
        if path is None:
            return None
        inputs = self.source.tensors() if isinstance(self.source, Feed) else self.source
        kind = type(self.model).__qualname__ if is_plain(self.model) else repr(self.model.config)
        settings = [__version__, kind, self.config.model_dump_json(), str(self.seed)]
        settings += [repr(list(self.blocks))] if self.blocks is not None else []
        settings += [f"{self.ranks.size} processes"] if self.ranks.size > 1 else []  # other sums, other bits
        weights = stored(self.model) if parts_of(self.model) is not None else None
        mark = fingerprint(self.model, inputs, settings, weights) if self.ranks.leads else ""
        return SharedFolder(Path(path), mark, self.ranks)


def _moved(folder: WorkFolder, targets: Sequence[WeightPlan], done: Done) -> Done:
    """``done``, but the weights of ``targets`` lie in ``folder``."""
    tensors = {key: tensor for name, (weight, _) in done.items() for key, tensor in weight_tensors(name, weight()).items()}
    folder.save("outside", tensors)
    return {target.name: (in_folder(folder, "outside", target.name, target), done[target.name][1]) for target in targets}


def _importance(model: nn.Module, config: PoTConfig, targets: Sequence[WeightPlan], source: Source) -> dict[str, Tensor]:
    kinds = ("linear", "convolution")
    names = [each.name for each in targets if each.kind in kinds and not is_grouped(model.get_submodule(each.name))]
    if config.scale_method == "weighted" and names:
        return calib.input_mean_squares(model, names, source)
    if config.scale_method == "fisher" and names and parts_of(model) is not None:
        raise ConfigError(f"scale_method='fisher' for {names[0]} needs the whole model in memory; use 'weighted' or 'mse'")
    if config.scale_method == "fisher" and names and not isinstance(source, Feed):
        names += [target.name for target in targets if target.experts]
        found = calib.mean_squared_gradients(model, names, source)
        return {name: each.where(each.any(1, keepdim=True), 1) for name, each in found.items()}  # experts without tokens
    return {}


def add_output_errors(model: nn.Module, todo: Plan, done: Done, source: Source, ranks: Ranks) -> None:
    """Fill in ``output_snr_db``, of the first inputs that ``source`` gives to all processes.

    An embedding class with a forward of its own has no plain output to compare.
    """
    plain = {
        target.name: done[target.name][0]
        for target in todo.targets
        if target.kind != "embedding" or type(model.get_submodule(target.name)) is nn.Embedding
    }
    some: Source
    if isinstance(source, Feed):
        some = source.first(REPORTED).share(ranks)
    else:
        some = merge(ranks.share(first_tokens(source, REPORTED_TOKENS)))
    ratios = calib.output_snr(model, plain, some, ranks)
    for name, (_, entry) in done.items():
        entry.output_snr_db = ratios.get(name)
