"""A decoder as a list of blocks, and the hidden states that run through it one block at a time.

Nothing here knows an architecture: the blocks are the items of the ``nn.ModuleList`` with the most parameters, what they are
called with is recorded from the model itself, and layers that read the same tensor are found by its identity.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from potq.data.ranks import ALONE, Ranks
from potq.errors import ModelError
from potq.nn.convolution import reading, rows
from potq.nn.language import language_prefixes
from potq.nn.parts import input_device
from potq.nn.precision import mixed_precision
from potq.nn.weights import linear_weight
from potq.numerics.functional import all_finite

CACHE_BYTES = 4 << 30  # of hidden states that are kept in memory, by default
TOKENS = 1024  # at a time through a block, and in a step of refinement: windows of equal length are put together


@dataclass(frozen=True)
class Call:
    """One pass through the blocks: hidden states ``(batch, length, dim)``, and whatever else the model gives each block.

    What else differs from block to block: masks of sliding and of full attention, say. With ``text`` it
    is a language model's on text: products may be in bfloat16 (if its code can do with them), and a layer runs once.
    Blocks compute on ``device``; hidden states may be kept elsewhere.
    """

    hidden: Tensor
    others: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]]
    text: bool = True
    device: torch.device | None = None

    def __call__(self, block: nn.Module) -> Tensor:
        args, kwargs = self.others[block]
        return _hidden(block(self.hidden.to(self.device), *args, **kwargs))

    def precision(self) -> AbstractContextManager[object]:
        """What the blocks' products are computed in."""
        return mixed_precision(self.device or self.hidden.device) if self.text else nullcontext()


@dataclass(frozen=True)
class Chain:
    """Blocks that run one after another, their names in the model, and what they are called with.

    ``first`` is the number of blocks in other chains before them.
    """

    names: Sequence[str]
    blocks: Sequence[nn.Module]
    calls: Sequence[Call]
    first: int = 0


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder's blocks; of a multimodal model, those of the language model.

    Raises:
        ModelError: the model has no list of modules.
    """
    inside = language_prefixes(model) or ("",)
    modules = [(name, module) for name, module in model.named_modules() if name.startswith(inside)]
    lists = [(name, module) for name, module in modules if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise ModelError(f"{type(model).__name__} has no list of blocks to calibrate one by one; use effort='fast'")
    return max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))


def text_chain(model: nn.Module, batches: Sequence[Tensor], keep: Callable[[Tensor], Tensor]) -> Chain:
    """The blocks of a language model, and their calls on token batches.

    Raises:
        ModelError: as :func:`find_blocks` and :func:`record_calls`.
    """
    prefix, blocks = find_blocks(model)
    names = [f"{prefix}.{index}" for index in range(len(blocks))]
    return Chain(names, list(blocks), record_calls(model, list(blocks), batches, keep))


def merge(batches: Sequence[Tensor], processes: int = 1) -> list[Tensor]:
    """Token batches put together while they have the same length, up to some thousand tokens each for every process."""
    merged: list[Tensor] = []
    for batch in batches:
        fits = merged and merged[-1].shape[1] == batch.shape[1] and merged[-1].numel() + batch.numel() <= processes * TOKENS
        if fits:
            merged[-1] = torch.cat([merged[-1], batch])
        else:
            merged.append(batch)
    return merged


def first_tokens(batches: Sequence[Tensor], enough: int) -> list[Tensor]:
    """The first windows of batches ``(windows, length)`` that have ``enough`` tokens together, or all."""
    found: list[Tensor] = []
    for batch in batches:
        windows = -(-enough // max(1, batch.shape[1]))
        if windows > 0:
            found.append(batch[:windows])
            enough -= found[-1].numel()
    return found


@torch.no_grad()
def record_calls(
    model: nn.Module, blocks: Sequence[nn.Module], batches: Sequence[Tensor], keep: Callable[[Tensor], Tensor] = torch.clone
) -> list[Call]:
    """What the blocks are called with for every token batch: hidden states of the first, all other arguments of each.

    Args:
        keep: makes the copy of the hidden states that is returned, e.g. a :class:`Keeper`.

    Raises:
        ModelError: a block does not run, runs twice, or gets something else than the block before it puts out.
    """
    calls: list[Call] = []
    states: list[tuple[Tensor, torch.device]] = []
    others: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    output: Tensor | None = None

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept = {name: without_cache(value) for name, value in kwargs.items()}
        hidden = args[0] if args else kept.pop("hidden_states")
        if module is blocks[0]:
            states.append((keep(hidden), hidden.device))
        chained = module is blocks[0] or (output is not None and (hidden is output or torch.equal(hidden, output)))
        if module in others or not chained:
            raise ModelError(
                f"{type(model).__name__} does not hand its hidden states from block to block as they are, so that blocks "
                f"cannot be calibrated one by one (block {len(others)} of {len(blocks)}); use effort='fast'"
            )
        others[module] = tuple(map(without_cache, args[1:])), kept
        if module is blocks[-1]:
            raise Reached

    def put_out(module: nn.Module, args: tuple[Any, ...], found: Any) -> None:
        nonlocal output
        output = _hidden(found)

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(record, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(put_out).remove)
        for batch in batches:
            others, output = {}, None
            with suppress(Reached):
                model(batch.to(input_device(model)), use_cache=False)
            if missed := [index for index, block in enumerate(blocks) if block not in others]:
                raise ModelError(f"the model never runs block {missed[0]} of {len(blocks)}; use effort='fast'")
            kept, device = states.pop()
            calls.append(Call(kept, others, device=device))
    mixed = all(_stands_mixed(block, calls[0]) for block in dict.fromkeys((blocks[0], blocks[-1])) if calls)
    return calls if mixed else [replace(call, text=False) for call in calls]


def _stands_mixed(block: nn.Module, call: Call) -> bool:
    """Whether a block computes in mixed precision: the code of some (DBRX's) then adds tensors of two dtypes, an error."""
    try:
        with call.precision():
            if torch.is_autocast_enabled((call.device or call.hidden.device).type):
                call(block)
    except RuntimeError:
        return False
    return True


def without_cache(value: Any) -> Any:
    """``value``, but no key-value cache, which would grow with every pass."""
    return None if hasattr(value, "get_seq_length") else value


class Reached(Exception):  # noqa: N818  # not an error
    """Ends a pass where all that it was for has been seen."""


class Keeper:
    """Keeps copies of tensors: in memory while they fit in ``cache_bytes``, beyond it in files, until ``stack`` is left."""

    def __init__(self, cache_bytes: int, stack: ExitStack) -> None:
        self._left, self._stack, self._files = cache_bytes, stack, 0
        self._folder: Path | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        """The copy.

        Raises:
            ModelError: the disk is full; names the folder.
        """
        if tensor.nbytes <= self._left:
            self._left -= tensor.nbytes
            return tensor.clone()
        if self._folder is None:
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="potq-")))
        self._files += 1
        return _in_file(tensor, self._folder / f"{self._files:06}.bin")


def _in_file(tensor: Tensor, file: Path) -> Tensor:
    """A copy that lies in ``file``, mapped. It is written beforehand: a full disk is an error there, and a signal later."""
    try:
        tensor.contiguous().view(torch.uint8).numpy(force=True).tofile(file)
    except OSError as error:
        raise ModelError(
            f"no room for the hidden states of the calibration text in {file.parent} ({error}); set TMPDIR to a folder on a "
            "larger disk, or use fewer windows"
        ) from error
    return torch.from_file(str(file), shared=True, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)


class HiddenStates:
    """The inputs of the current block for every call, advanced in place."""

    def __init__(self, calls: Sequence[Call]) -> None:
        self.calls = list(calls)

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def copy(self, keep: Callable[[Tensor], Tensor]) -> HiddenStates:
        """Others with the same content, copied by ``keep``."""
        return HiddenStates([replace(call, hidden=keep(call.hidden)) for call in self.calls])

    @torch.no_grad()
    def advance(self, block: nn.Module) -> None:
        """Replace every input by the block's output."""
        for index, call in enumerate(self.calls):
            with call.precision():
                output = call(block)
            if output.shape == call.hidden.shape:
                call.hidden.copy_(output)
            else:
                self.calls[index] = replace(call, hidden=output.clone())

    @property
    def nbytes(self) -> int:
        return sum(call.hidden.nbytes for call in self.calls)


@torch.no_grad()
def shared_inputs(block: nn.Module, names: Sequence[str], calls: Iterable[Call], ranks: Ranks = ALONE) -> list[list[str]]:
    """The named layers of ``block`` in the order they run, those that read the same tensor together.

    Layers that no call reaches, in no process, are left out: experts that no token is sent to, a matrix that is read without
    a call. A layer that runs more than once is alone, at its first place.
    """
    found: list[list[str]] = []
    missed = list(names)
    for call in calls:
        if not missed:
            break
        found += _shared_inputs(block, missed, call)
        missed = [name for name in missed if not any(name in group for group in found)]
    first, *others = ranks.values(found)
    for group in (group for groups in others for group in groups):
        first += [new] if (new := [name for name in group if not any(name in known for known in first)]) else []
    return cast(list[list[str]], first)


def _shared_inputs(block: nn.Module, names: Sequence[str], call: Call) -> list[list[str]]:
    groups: dict[Hashable, list[str]] = {}
    alive: list[Tensor] = []  # an id is unique while its tensor lives
    runs: Counter[str] = Counter()

    def note(name: str, input: Tensor) -> None:
        alive.append(input)
        version = 0 if input.is_inference() else input._version  # somebody may write into it in between
        groups.setdefault((id(input), version, reading(block.get_submodule(name))), []).append(name)
        runs[name] += 1

    with _inputs_seen(block, names, note), call.precision():
        call(block)
    found: list[list[str]] = []
    for group in groups.values():
        found += [[name] for name in group if runs[name] > 1 and [name] not in found]
        found += [once] if (once := [name for name in group if runs[name] == 1]) else []
    return found


@torch.no_grad()
def second_moments(
    block: nn.Module,
    names: Sequence[str],
    calls: HiddenStates,
    prefix: str = "",
    ranks: Ranks = ALONE,
    weights: Mapping[str, Tensor] | None = None,
) -> list[Tensor]:
    """Means of ``x^T x`` over the tokens (of a convolution, the patches) that enter layers of ``block``, by one pass.

    Float32 ``(in, in)`` for each of ``names``, all of them in memory. The tokens are those of all processes. Without any
    they are zero. ``weights`` of a layer's tokens, float32 ``(tokens,)`` of a mean of 1, call after call, by its name in the
    model: ``x^T diag(weights) x``. Where all are 1, no bit differs.

    Raises:
        ModelError: inputs that are NaN, infinite or empty; names the layer, with the ``prefix`` that the block's layers have
            in the model.
    """
    total: dict[str, Tensor] = {}
    count, runs = Counter[str](), Counter[str]()

    def add(name: str, input: Tensor) -> None:
        runs[name] += 1
        weight = (weights or {}).get(prefix + name)
        for plain in map(Tensor.float, rows(block.get_submodule(name), input)):
            tokens = slice(count[name], count[name] + len(plain))
            x = plain if weight is None else plain * weight[tokens, None].to(plain.device).sqrt()
            count[name] += len(x)
            if name in total:
                total[name].addmm_(x.t(), x)
            else:
                total[name] = x.t() @ x

    for done, call in enumerate(calls):
        once = call.text or 0 < done >= runs[names[0]]  # what has run no more than once in every pass so far
        with _inputs_seen(block, names, add, stop=once and len(names) == 1), suppress(Reached), call.precision():
            call(block)
    return [_mean(block, name, total.get(name), (runs[name], count[name]), prefix, ranks) for name in names]


def _mean(block: nn.Module, name: str, total: Tensor | None, passes: tuple[int, int], prefix: str, ranks: Ranks) -> Tensor:
    """The second moments of one layer, of all processes. ``passes``: how often it ran in this one, on how many tokens."""
    runs, count = map(sum, zip(*ranks.values(passes), strict=True))
    name_in_model = prefix + name
    if runs and not count:
        raise ModelError(f"{name_in_model}: its inputs on the calibration are empty")
    moments = ranks.sum(no_moments(block.get_submodule(name)) if total is None else total)
    if not runs:  # an expert whose tokens go elsewhere since the layers before it are quantized
        return moments
    if not all_finite(moments):
        problem = "its inputs on the calibration text are NaN or infinite; load the model in float32"
        raise ModelError(f"{name_in_model}: {problem}")
    return moments.div_(count)


def no_moments(module: nn.Module) -> Tensor:
    """Of a layer that no token of this process enters."""
    weight = linear_weight(module)
    return torch.zeros(weight.shape[1], weight.shape[1], device=weight.device)


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a linear, an embedding or a convolution was called with."""
    found: Tensor = args[0] if args else kwargs["input"]
    return found


@contextmanager
def _inputs_seen(
    block: nn.Module, names: Sequence[str], see: Callable[[str, Tensor], None], *, stop: bool = False
) -> Iterator[None]:
    """Calls ``see`` with the input of each named layer; with ``stop`` the block's pass ends there."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def seen(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            input = layer_input(args, kwargs)
            with torch.autocast(input.device.type, enabled=False):
                see(name, input)
            if stop:
                raise Reached

        return seen

    handles = [block.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
