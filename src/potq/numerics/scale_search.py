"""Choosing a group's scale: from its largest weight, or the one of least (weighted) squared error.

The search is step 1 of PoTPTQ (2507.11959, sec. 3.2): data-free, every group on its own. Grids of up to 4 bits get the exact
optimum over all stored scales (:func:`best_scale`): by the compiled library (``csrc/fit/search.cpp`` has the mathematics),
or by torch without it. Wider grids, which gain nothing by it, and ``rounding="log"`` try some candidates: by the library too
(``csrc/fit/candidates.cpp``), or by torch, which finds the same scales. With a trellis a group's best scale depends on
its path; :mod:`potq.numerics.path_scale` searches both. Torch works on cache-sized blocks and needs a few
passes per candidate, never a weights-by-levels distance matrix. Its block is below its threshold for splitting an operation
over threads: splitting gains little at this size, and on a busy machine every operation would wait for the slowest thread.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from potq import native
from potq.errors import ConfigError, ModelError
from potq.numerics.functional import codebook, decode_scale, encode_scale, in_level_units, nearest_level, split_groups
from potq.numerics.grid import Grid
from potq.numerics.path_scale import path_scale
from potq.numerics.scheme import QuantScheme, ScaleDtype, ScaleMethod

CANDIDATES = 16
_BLOCK = 1 << 15  # weights per block of torch's: its temporaries stay in the second-level cache
_NATIVE_BLOCK = 1 << 20  # the same for the library, which needs none: what a copy may take where groups are not contiguous
_CHUNK = 64  # errors of a group that are added up by halves: kChunk of csrc/fit/chunk.h
_REFERENCE_GROUP = 1 << 17  # weights of a group whose breakpoints torch sorts in some 100 MB
_OUTLIER = 3  # times the root mean square: weights beyond count more under "magnitude"
_EQUAL = 1e-12  # of what a scale gains over none: errors that differ by less are equal


def choose_scale(
    weight: Tensor,
    scheme: QuantScheme,
    method: ScaleMethod = "mse",
    candidates: int | None = None,
    importance: Tensor | None = None,
) -> Tensor:
    """Stored scales for ``weight``, shape ``scheme.scale_shape(out, in)``, dtype float16 or uint8.

    Args:
        weight: ``(out, in)``, any float dtype, finite.
        method: ``"absmax"`` maps the group's largest magnitude to the grid's largest level; ``"mse"`` takes the scale of
            least squared error; ``"magnitude"`` weighs errors of outliers more (:func:`magnitude_importance`);
            ``"weighted"`` weighs by ``importance``.
        candidates: how many scales around the absmax one are tried. None is the exact optimum where :func:`is_exact`, else
            16. (Without the compiled library, groups of more than 131072 weights are searched by candidates too.)
        importance: non-negative weights of the errors: ``(in,)``, e.g. the mean square of each input, or ``(out, in)``.

    Raises:
        ModelError: a weight is NaN or infinite, or the matrix is empty.
        ConfigError: ``method="weighted"`` without ``importance`` (or the reverse); or it has the wrong shape, or negative,
            NaN or infinite entries.
    """
    _check_importance(weight, method, importance)
    if not weight.numel():
        raise ModelError(f"a weight of shape {tuple(weight.shape)} is empty")
    weight = weight.detach()
    parts = split_groups(weight, scheme)
    matrix = importance.to(weight.device).expand_as(weight) if importance is not None else None
    weights = split_groups(matrix, scheme) if matrix is not None else [None] * len(parts)
    tried = 1 if method == "absmax" else candidates
    by_magnitude = method == "magnitude"
    scales = [_search_part(part, w, scheme, tried, by_magnitude) for part, w in zip(parts, weights, strict=True)]
    return torch.cat(scales, dim=1)


def magnitude_importance(groups: Tensor) -> Tensor:
    """What ``"magnitude"`` weighs errors by: ``m``, the mean square of the weight's group, and ``w**2 - 9 m`` of an outlier.

    Least squared error clips a group's largest weights wherever that pays for the many small ones. Here weights up to three
    times the root mean square count alike. Beyond, an error of one of four times it counts 8 times as much, of five times it
    17 times. Gaussian groups have few such weights and hardly change. docs/ptq.md compares ("Scales without text").

    Args:
        groups: weights ``(..., size)``, float32, whose squares float32 holds; the last dimension is a group.

    Returns:
        Weights of the errors, of the same shape, float32; all zero for a zero group.

    Example:
        >>> import torch
        >>> from potq.numerics.scale_search import magnitude_importance
        >>> magnitude_importance(torch.tensor([1.0] * 15 + [7.0]))[-2:]
        tensor([ 4., 17.])
    """
    squares = groups.square()
    mean = squares.mean(-1, keepdim=True)
    return mean + (squares - _OUTLIER**2 * mean).clamp(min=0)


def is_exact(scheme: QuantScheme, candidates: int | None) -> bool:
    """Whether :func:`choose_scale` finds the exact optimum: no ``candidates``, up to 4 bits, rounding to nearest."""
    return candidates is None and scheme.grid.bits <= 4 and scheme.rounding == "nearest" and not scheme.trellis


def _search_part(
    part: Tensor, importance: Tensor | None, scheme: QuantScheme, candidates: int | None, by_magnitude: bool
) -> Tensor:
    """Stored scales ``(out, groups)`` of one part ``(out, groups, size)``, block of rows by block of rows."""
    rows, groups, size = part.shape
    compiled = native.serves(part.device)
    exact = is_exact(scheme, candidates) and (compiled or size <= _REFERENCE_GROUP)
    multipliers = [] if exact else scale_multipliers(scheme, candidates or CANDIDATES)
    step = max(1, (_NATIVE_BLOCK if compiled else _BLOCK) // (groups * size))
    levels = codebook(scheme, part.device)[0]
    stored = torch.float16 if scheme.scale_dtype == "float16" else torch.uint8
    scales = torch.empty(rows, groups, dtype=stored, device=part.device)  # a list would pin the heap between temporaries
    for start in range(0, rows, step):
        block = part[start : start + step].reshape(-1, size).float()
        weights = None if importance is None else importance[start : start + step].reshape(-1, size).float()
        weights = magnitude_importance(_in_units_of_the_largest(block)) if by_magnitude else weights
        if scheme.trellis and candidates != 1:
            found = encode_scale(path_scale(block, levels, weights, candidates), scheme.scale_dtype)
        elif exact:
            found = best_scale(block, levels, weights, scheme.scale_dtype, signed=scheme.signed_scale)
        else:
            found = _search_block(block, weights, scheme, multipliers)
        scales[start : start + step] = found.view(-1, groups)
    return scales


def _in_units_of_the_largest(block: Tensor) -> Tensor:
    """``(groups, size)`` of magnitudes up to 1, whose squares are in float32's range."""
    return block / block.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


# ---- the exact optimum ---------------------------------------------------------------------------------------------


def best_scale(
    block: Tensor, levels: Tensor, importance: Tensor | None, scale_dtype: ScaleDtype, *, signed: bool = False
) -> Tensor:
    """Of all stored scales the one under which rounding to the nearest level has the least squared error, for every group.

    Errors that differ by less than 1e-12 of what the scales gain over none count as equal, and the largest scale is taken, a
    positive one if there is one. A group that is zero, or that no scale brings closer than zeros are, gets float16 zero or
    the E8M0 byte 0. A group that has no importance where it has weights is searched without.

    Args:
        block: weights ``(groups, size)``, any float dtype, finite.
        levels: what a weight can become, in units of the scale: 2 to 256 of them, ascending.
        importance: non-negative weights of the errors, ``(size,)`` or ``(groups, size)``.
        signed: negative scales too, which turn the levels around; float16 only.

    Returns:
        Stored scales ``(groups,)``, float16 or uint8.

    Raises:
        ModelError: a weight is NaN or infinite.
        ConfigError: ``levels`` or ``importance`` are not as described.
    """
    block = block.detach().float()
    if not bool(torch.stack(torch.aminmax(block)).isfinite().all()):
        raise ModelError("the weight has NaN or infinite entries")
    levels = levels.detach().to(block.device, torch.float32).contiguous()
    if not 2 <= len(levels) <= 256 or not bool((levels.diff() > 0).all() and levels.isfinite().all()):
        raise ConfigError(f"levels must be 2 to 256 ascending numbers, found {levels.tolist()}")
    if importance is not None:
        importance = importance.detach().to(block.device, torch.float32)
        if importance.shape not in (block.shape, block.shape[1:]):
            raise ConfigError(f"importance has shape {tuple(importance.shape)}, the weights {tuple(block.shape)}")
        _check_importance_values(importance)
        importance = importance.expand_as(block)
    if native.serves(block.device):
        return _best_scale_compiled(block, levels, importance, scale_dtype, signed)
    return _best_scale_torch(block, levels, importance, scale_dtype, signed)


def _best_scale_compiled(
    block: Tensor, levels: Tensor, importance: Tensor | None, scale_dtype: ScaleDtype, signed: bool = False
) -> Tensor:
    is_half = scale_dtype == "float16"
    found = torch.empty(len(block), dtype=torch.float16 if is_half else torch.uint8, device=block.device)
    block = block.contiguous()
    importance = None if importance is None else importance.contiguous()
    failed = native.library().potq_best_scales(
        levels.data_ptr(),
        len(levels),
        block.data_ptr(),
        None if importance is None else importance.data_ptr(),
        *block.shape,
        0 if is_half else 1,
        signed,
        found.data_ptr(),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError("no memory for the scale search")
    return found


def _best_scale_torch(
    block: Tensor, levels: Tensor, importance: Tensor | None, scale_dtype: ScaleDtype, signed: bool = False
) -> Tensor:
    """A negative scale is a positive one under the levels' mirror image."""
    scale, gain = _best_positive_scale(block, levels, importance, scale_dtype)
    if signed:
        mirrored, more = _best_positive_scale(block, -levels.flip(0), importance, scale_dtype)
        scale = torch.where(more * (1 - _EQUAL) > gain, -mirrored, scale)
    return scale


def _best_positive_scale(
    block: Tensor, levels: Tensor, importance: Tensor | None, scale_dtype: ScaleDtype
) -> tuple[Tensor, Tensor]:
    """The least parabola of all pieces, each taken at the two stored scales around its vertex; see ``csrc/fit/search.cpp``.

    Returns the scales, and what they save of the groups' energies (float64).
    """
    w, levels = block.double(), levels.double()
    h = torch.ones_like(w) if importance is None else importance.double()
    h = torch.where((h * w.square()).sum(1, keepdim=True) > 0, h, 1.0)
    b, c = _pieces(w, h, levels)
    stored = _positive_scales(scale_dtype, block.device)
    below = torch.searchsorted(stored, (b / c).nan_to_num_(0.0), right=True) - 1
    index = torch.cat([below, below + 1], dim=1).clamp_(0, len(stored) - 1)
    scale = stored[index]
    gain = scale * (2 * b.repeat(1, 2) - scale * c.repeat(1, 2))  # what a scale saves of the energy
    most = gain.amax(1, keepdim=True)
    best = torch.where(gain >= most * (1 - _EQUAL), index, 0).amax(1)
    code = torch.where((most > 0).squeeze(1), best + (1 if scale_dtype == "float16" else 0), 0)
    found = code.to(torch.int16).view(torch.float16) if scale_dtype == "float16" else code.to(torch.uint8)
    return found, most.squeeze(1).clamp(min=0)


def _pieces(w: Tensor, h: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """``sum h w l`` and ``sum h l**2`` ``(groups, pieces)`` of every assignment of levels from infinite scales downwards."""
    middle = (levels[1:] + levels[:-1]) / 2
    innermost = torch.where(w < 0, levels[(middle < 0).sum()], levels[(middle <= 0).sum()])
    crossed = middle != 0
    outwards = middle.sign()
    b = outwards * levels.diff() * (h * w).unsqueeze(2)
    c = outwards * levels.square().diff() * h.unsqueeze(2)
    breakpoint_ = w.unsqueeze(2) / middle.where(crossed, 1.0)
    happens = crossed & (breakpoint_ > 0)
    order = breakpoint_.where(happens, 0.0).flatten(1).argsort(dim=1, descending=True)
    start = (h * w * innermost).sum(1, keepdim=True), (h * innermost.square()).sum(1, keepdim=True)
    steps = ((x * happens).flatten(1).gather(1, order) for x in (b, c))
    sums = [torch.cat([first, step], dim=1).cumsum(1) for first, step in zip(start, steps, strict=True)]
    return sums[0], sums[1]


@lru_cache(maxsize=8)
def _positive_scales(scale_dtype: ScaleDtype, device: torch.device) -> Tensor:
    """All stored scales above zero, ascending, float64; their codes count from 1 (float16's bits) or 0 (E8M0)."""
    if scale_dtype == "float16":
        codes = torch.arange(1, 0x7C00, dtype=torch.int16, device=device).view(torch.float16)
    else:
        codes = torch.arange(255, dtype=torch.uint8, device=device)
    return decode_scale(codes).double()


# ---- the best of some candidates -----------------------------------------------------------------------------------


def scale_multipliers(scheme: QuantScheme, candidates: int) -> list[float]:
    """Multiples of the absmax scale to try, the absmax scale itself first.

    Above 1 the largest weight rounds *up* to the top level: no further than where it would fall to the level below. Below
    1 it is clipped; the fewer the levels, the more clipping pays. E8M0 scales have few distinct neighbours: three octaves
    down, one up.
    """
    if candidates == 1:
        return [1.0]
    if scheme.scale_dtype == "e8m0":
        return [2.0**k for k in (0, -1, 1, -2, -3)][:candidates]
    low, high = _search_range(scheme.grid)
    ratio = (high / low) ** (1 / max(candidates - 2, 1))
    return [1.0] + [low * ratio**i for i in range(candidates - 1)]


def _search_range(grid: Grid) -> tuple[float, float]:
    top = sorted({abs(level) for level in grid.levels})[-2:]
    high = top[1] / (sum(top) / 2) if len(top) == 2 else 1.0
    # a dense search over Gaussian and Laplace groups of 64 finds at most 0.05 dB more than 16 points in these ranges
    return {2: 0.3, 3: 0.55, 8: 0.92}.get(grid.bits, 0.7), high


def _search_block(block: Tensor, importance: Tensor | None, scheme: QuantScheme, multipliers: list[float]) -> Tensor:
    """Stored scales ``(groups,)`` of ``(groups, size)``."""
    base = absmax_scale(block, scheme)
    if len(multipliers) == 1:
        return encode_scale(base, scheme.scale_dtype).squeeze(1)
    if scheme.signed_scale:
        multipliers = [*multipliers, *(-multiplier for multiplier in multipliers)]
    tried = encode_scale(base * base.new_tensor(multipliers), scheme.scale_dtype)
    find = _best_candidate_compiled if native.serves(block.device) else _best_candidate_torch
    return tried.gather(1, find(block, tried, importance, scheme)).squeeze(1)


def _best_candidate_compiled(block: Tensor, tried: Tensor, importance: Tensor | None, scheme: QuantScheme) -> Tensor:
    levels, boundaries = (each * scheme.grid.reference for each in codebook(scheme, block.device))
    block, scales = block.contiguous(), decode_scale(tried).contiguous()
    importance = None if importance is None else importance.contiguous()
    best = torch.empty(len(block), 1, dtype=torch.int64, device=block.device)
    native.library().potq_best_candidates(
        levels.data_ptr(),
        boundaries.data_ptr(),
        len(levels),
        scheme.grid.reference,
        block.data_ptr(),
        None if importance is None else importance.data_ptr(),
        *block.shape,
        scales.data_ptr(),
        scales.shape[1],
        best.data_ptr(),
        torch.get_num_threads(),
    )
    return best


def _best_candidate_torch(block: Tensor, tried: Tensor, importance: Tensor | None, scheme: QuantScheme) -> Tensor:
    """Position ``(groups, 1)`` in ``tried`` ``(groups, candidates)`` of the first scale of least squared error."""
    best = torch.zeros(len(block), 1, dtype=torch.int64, device=block.device)
    least = _squared_error(block, tried[:, :1], importance, scheme)
    for position in range(1, tried.shape[1]):
        error = _squared_error(block, tried[:, position : position + 1], importance, scheme)
        better = error < least
        least = torch.where(better, error, least)
        best.masked_fill_(better, position)
    return best


def absmax_scale(block: Tensor, scheme: QuantScheme) -> Tensor:
    """Scale (float32, ``(groups, 1)``) that maps each group's largest magnitude to the grid's largest positive level.

    Scales that have a sign map the weight of largest magnitude to the level of largest magnitude.

    Raises:
        ModelError: a weight is NaN or infinite.
    """
    grid = scheme.grid
    largest = block.abs().amax(dim=1, keepdim=True)
    if not largest.isfinite().all():
        raise ModelError("the weight has NaN or infinite entries")
    if not scheme.signed_scale:
        return largest * (grid.reference / max(grid.levels))
    extreme = block.gather(1, block.abs().argmax(dim=1, keepdim=True))
    return extreme * (grid.reference / max(grid.levels, key=lambda level: (abs(level), level)))


def _squared_error(block: Tensor, stored: Tensor, importance: Tensor | None, scheme: QuantScheme) -> Tensor:
    """Squared error (float64, ``(groups, 1)``) of rounding ``block`` under ``stored`` scales ``(groups, 1)``."""
    scale = decode_scale(stored)
    x = in_level_units(block, scale, scheme.grid)
    error = (nearest_level(x, scheme) - x).mul_(1 / scheme.grid.reference).square_()
    total = _sum(error, importance) * scale.double().square()
    if bool((scale != 0).all()):
        return total
    return torch.where(scale != 0, total, _sum(block.square(), importance))  # a zero scale loses the whole group


def _sum(error: Tensor, importance: Tensor | None) -> Tensor:
    """Sums of the (weighted) rows in the library's order: chunks by halves, then one after another in float64."""
    if importance is not None:
        error = error * importance
    chunks: Tensor = torch.nn.functional.pad(error, (0, -error.shape[1] % _CHUNK)).unflatten(1, (-1, _CHUNK))
    while chunks.shape[2] > 1:
        first, second = chunks.chunk(2, dim=2)
        chunks = first + second
    return chunks.squeeze(2).cumsum(1, dtype=torch.float64)[:, -1:]


def _check_importance(weight: Tensor, method: ScaleMethod, importance: Tensor | None) -> None:
    if (method == "weighted") != (importance is not None):
        raise ConfigError("scale_method='weighted' needs calibration statistics, and only it takes them; pass calibration=")
    if importance is None:
        return
    rows, columns = weight.shape
    if importance.shape not in ((columns,), (rows, columns)):
        raise ConfigError(f"importance has shape {tuple(importance.shape)}, expected ({columns},) or ({rows}, {columns})")
    _check_importance_values(importance)


def _check_importance_values(importance: Tensor) -> None:
    least, largest = torch.aminmax(importance)
    if not (bool(least >= 0) and bool(largest.isfinite())):
        raise ConfigError("importance has negative, NaN or infinite entries")
