"""Calibrated quantization: block after block, each seeing what the quantized blocks before it put out.

The model keeps its own weights throughout: a block's are replaced only while its outputs under the quantized ones are
computed. Whatever happens, nothing has to be undone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from potq.config import Effort
from potq.data.ranks import ALONE, Ranks
from potq.nn.parts import bring, parts_of
from potq.nn.plan import WeightPlan
from potq.nn.properties import evaluation_mode
from potq.nn.report import Progress
from potq.nn.weights import Place, linear_weight, matrix_of
from potq.numerics.scheme import QuantScheme
from potq.numerics.tensor import QuantizedWeight
from potq.ptq.algorithms.hessian import Hessian
from potq.ptq.algorithms.rounding import Rounded, SchemeRounding
from potq.ptq.blocks import CACHE_BYTES, Chain, HiddenStates, Keeper, merge, shared_inputs, text_chain
from potq.ptq.experts import Moments, experts_apart, is_weighed, joined, together
from potq.ptq.kept import block_part, stored_weight, weight_tensors
from potq.ptq.layer import Found, Layer, quantize_layer, rounded_layer, rounded_only
from potq.ptq.refinement import Refinement, refine_block, refine_model
from potq.ptq.sensitivity import TokenWeights, token_weights
from potq.ptq.share import Share
from potq.ptq.substitute import frozen, substituted
from potq.ptq.weight import whole_weight
from potq.resume import WorkFolder


@dataclass
class SequentialCalibration:
    """One calibrated run over a model's blocks.

    Attributes:
        targets: the layers to be quantized; those outside the blocks are left to the caller.
        batches: token batches ``(batch, length)``, of all processes; not used where there is a chain.
        chain: the blocks with their calls, recorded before; None: a language model's on the batches.
        fixed: weights outside the blocks that are quantized already, for a refinement of the whole model to reckon with.
        seed: of the order of batches in refinement, and of the gradients that tokens are weighed by.
        cache_bytes: hidden states beyond this go to files.
        folder: where finished blocks are kept for a run that is killed, or None.
        progress: called with the weights done, those of ``fixed`` among them, of all, and the name of the next layer.
        rounding: makes a scheme known to the algorithms; another one compares them on formats that potq does not store.
        ranks: the processes that share the text, and every layer's rows.
    """

    model: nn.Module
    targets: Sequence[WeightPlan]
    effort: Effort
    batches: Sequence[Tensor] = ()
    chain: Chain | None = None
    fixed: dict[str, QuantizedWeight] = field(default_factory=dict)
    seed: int = 0
    cache_bytes: int = CACHE_BYTES
    folder: WorkFolder | None = None
    progress: Progress | None = None
    rounding: Callable[[Tensor, QuantScheme, Tensor], SchemeRounding] = SchemeRounding.of
    ranks: Ranks = ALONE

    def run(self) -> dict[str, Layer]:
        """Quantize the targets that are in blocks, by name.

        Raises:
            ModelError: no blocks, or not one after another; NaN activations; a refinement that diverges; a full disk.
            DistributedError: another process stopped.
        """
        if self.chain is None:
            share = Share.of(self.batches, self.ranks, refined=self.effort.scope != "none")
        else:
            share = Share.whole([], len(self.chain.calls))
        with evaluation_mode(self.model), frozen(self.model), ExitStack() as stack:
            layers = self._blocks(share, stack)
            if self.effort.scope == "model" and layers:
                refine_model(
                    self.model, layers, self.fixed, share, self.effort, self.seed, progress=self.progress, folder=self.folder
                )
        return layers

    def _blocks(self, share: Share, stack: ExitStack) -> dict[str, Layer]:
        keep = Keeper(self.cache_bytes, stack)
        chain = self.chain or text_chain(self.model, share.batches, keep)
        weights = self._token_weights(chain, share.batches or merge(self.batches))
        seen = HiddenStates(chain.calls)
        exact = seen.copy(keep) if self.effort.scope == "block" else None  # as the full-precision model has them
        layers: dict[str, Layer] = {}
        count = sum(weight.shape[0] * weight.shape[1] for weight in self.fixed.values())
        starts = [f"{name}." if name else "" for name in chain.names]
        total = count + sum(target.weights for target in self.targets if target.name.startswith(tuple(starts)))
        for index, (start, block) in enumerate(zip(starts, chain.blocks, strict=True)):
            inside = {t.name.removeprefix(start): t for t in self.targets if t.name.startswith(start)}
            bring(self.model, start)
            if exact is not None:
                exact.advance(block)
            done = self._load(chain.first + index, block, inside)
            if done is None:
                report = self._reporter(count, total, start)
                refinement = Refinement(exact, share, self.seed + index) if exact is not None else None
                done = self._quantize_experts_too(block, start, inside, seen, refinement, report, weights)
                self._save(chain.first + index, done)
            if index + 1 < len(starts):
                with substituted(block, {name: layer.weight.dequantize() for name, layer in done.items()}):
                    seen.advance(block)
            if parts_of(self.model) is not None:
                done = self._load(chain.first + index, block, inside) or done  # mapped: memory is free for the next block
            layers |= {start + name: layer for name, layer in done.items()}
            count += sum(target.weights for target in inside.values())
        return layers

    def _token_weights(self, chain: Chain, batches: Sequence[Tensor]) -> TokenWeights:
        """Of this process's tokens, if they are weighed; what a killed run found is taken from the work folder."""
        if not self.effort.weigh_tokens or not batches:
            return {}
        start = f"{self.ranks.rank} "
        kept = self.folder.load("tokens") if self.folder is not None else None
        if kept is not None:
            return {name.removeprefix(start): weights for name, weights in kept.items() if name.startswith(start)}
        starts = tuple(f"{name}." for name in chain.names)
        names = [target.name for target in self.targets if target.name.startswith(starts) and not target.experts]
        cache_bytes = max(0, self.cache_bytes - HiddenStates(chain.calls).nbytes)
        found = token_weights(self.model, chain, batches, names, seed=self.seed, cache_bytes=cache_bytes, ranks=self.ranks)
        if self.folder is not None:
            parts = {name: self.ranks.parts(weights) for name, weights in found.items()}
            self.folder.save("tokens", {f"{rank} {name}": part for name in parts for rank, part in enumerate(parts[name])})
        return found

    def _reporter(self, done: int, total: int, prefix: str) -> Callable[[int, str], None]:
        def report(more: int, name: str) -> None:
            if self.progress is not None:
                self.progress(done + more, total, prefix + name)

        return report

    def _load(self, index: int, block: nn.Module, inside: dict[str, WeightPlan]) -> dict[str, Layer] | None:
        found = self.folder.load(block_part(index)) if self.folder is not None else None
        if found is None:
            return None
        layers = {}
        for name, target in inside.items():
            device = Place.of(block, name).parameter.device
            label = bytes(found[f"{name}.algorithm"].tolist()).decode()
            stored = {
                key: found[key].to(device) for key in found if key.startswith(f"{name}.") and not key.endswith(".algorithm")
            }
            weight, latent = stored_weight(stored, name, target), stored.get(f"{name}.latent")
            rounding = None if latent is None else SchemeRounding(weight.scheme, weight.row_scale, device)
            layers[name] = Layer(weight, label, rounding, latent)
        return layers

    def _save(self, index: int, layers: dict[str, Layer]) -> None:
        if self.folder is None:
            return
        tensors: dict[str, Tensor] = {}
        for name, layer in layers.items():
            tensors |= weight_tensors(name, layer.weight)
            tensors[f"{name}.algorithm"] = torch.tensor(list(layer.algorithm.encode()), dtype=torch.uint8)
            if layer.latent is not None:
                tensors[f"{name}.latent"] = layer.latent
        self.folder.save(block_part(index), tensors)

    def _quantize_experts_too(
        self, block: nn.Module, prefix: str, inside: dict[str, WeightPlan], *rest: Any
    ) -> dict[str, Layer]:
        """:meth:`_quantize_block` with the matrices of each stack of experts one by one."""
        with experts_apart(block, inside) as experts:
            layers = self._quantize_block(block, prefix, experts.apart, *rest)
        for name, parts in experts.stacks.items():
            found = [layers.pop(part) for part in parts]
            layers[name] = Layer(*joined([each.weight for each in found], [each.algorithm for each in found]))
        for name in experts.whole:
            layers[name] = rounded_layer(matrix_of(block, name), inside[name].scheme, "one scale for all rows")
        return layers

    def _quantize_block(
        self,
        block: nn.Module,
        prefix: str,
        inside: dict[str, WeightPlan],
        seen: HiddenStates,
        refinement: Refinement | None,
        report: Callable[[int, str], None],
        weights: TokenWeights,
    ) -> dict[str, Layer]:
        """Layer group by layer group, each seeing the effect of those before it; then the block as a whole, if asked."""
        found: Found = {}
        layers: dict[str, Layer] = {}
        groups = together(shared_inputs(block, list(inside), seen, self.ranks))
        moments = Moments(block, groups, seen, prefix, self.ranks, weights)
        with substituted(block, {}) as substitute:

            def round_only(name: str, reason: str) -> None:
                weight = linear_weight(block.get_submodule(name))
                layers[name] = rounded_layer(weight, inside[name].scheme, reason)
                substitute(name, layers[name].weight.dequantize())

            for name in sorted(set(inside) - {name for group in groups for name in group}):
                round_only(name, "no text reaches it" if self.batches else "no input reaches it")
            for group in groups:
                hessian: Hessian | None = None
                apart = is_weighed((prefix + name for name in group), weights)
                for name in group:
                    report(sum(inside[done].weights for done in {*found, *layers}), name)
                    module, scheme = block.get_submodule(name), inside[name].scheme
                    if reason := rounded_only(module, scheme):
                        round_only(name, reason)
                        continue
                    if hessian is None or apart:
                        hessian = Hessian(moments(name), self.effort.damping)
                    result = self._quantize_layer(linear_weight(module).detach(), scheme, hessian)
                    substitute(name, result[0].values)
                    if refinement is None:
                        layers[name] = self._packed(*result)
                    else:
                        found[name] = result
            if refinement is not None:
                found = refine_block(block, found, seen, refinement, self.effort)
        return layers | {name: self._packed(*result) for name, result in found.items()}

    def _packed(self, rounded: Rounded, rounding: SchemeRounding, label: str) -> Layer:
        """A layer that is done, but for a refinement of the whole model, which starts from its latent weights."""
        latent = rounded.latent if self.effort.scope == "model" else None
        return Layer(rounding.pack(rounded), label, rounding, latent)

    def _quantize_layer(self, weight: Tensor, scheme: QuantScheme, hessian: Hessian) -> tuple[Rounded, SchemeRounding, str]:
        """A layer's weight ``(out, in)``: given the second moments no row depends on another, so processes share them."""
        part = weight[self.ranks.rows(len(weight))]
        rounding = self.rounding(part, scheme, hessian.moments)
        rounded, rounding, label = quantize_layer(part, hessian, rounding, self.effort)
        if self.ranks.size == 1:
            return rounded, rounding, label
        packed = whole_weight(rounding.pack(rounded), len(weight), self.ranks)  # far less to send than what it is worth
        rounding = SchemeRounding(scheme, packed.row_scale, weight.device)
        latent = rounded.latent
        rounded = rounding.unpack(packed)
        if self.effort.scope != "none":
            rounded = replace(rounded, latent=self.ranks.whole(latent, len(weight)))
        return rounded, rounding, label
