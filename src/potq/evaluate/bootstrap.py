"""How sure a difference of two perplexities is: the paired bootstrap over windows of text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from potq.errors import DataError

DRAWS = 10_000
_AT_ONCE = 1 << 22  # drawn windows that are held at a time


def paired_bootstrap(
    nll_a: Sequence[float], nll_b: Sequence[float], predicted: int, seed: int = 0, draws: int = DRAWS
) -> tuple[float, float]:
    """95% interval of ``perplexity(a) - perplexity(b)``, both measured on the same windows.

    A draw takes as many windows as there are, with replacement, the same for both; the interval holds the middle 95% of the
    draws' differences. The text's windows stand for all text that is like it; nothing is said of other text.

    Args:
        nll_a, nll_b: summed negative log-likelihood (nats) of each window (``Perplexity.window_nll``).
        predicted: tokens predicted in all windows together (``Perplexity.predicted_tokens``).

    Raises:
        DataError: other windows for ``a`` than for ``b``, fewer than two, or NaN among them.
    """
    if len(nll_a) != len(nll_b):
        raise DataError(f"{len(nll_a)} windows against {len(nll_b)}: a paired bootstrap needs both on the same windows")
    if len(nll_a) < 2:
        raise DataError(f"a bootstrap needs at least 2 windows, found {len(nll_a)}")
    if predicted < len(nll_a) or draws < 1:
        raise DataError(f"invalid bootstrap: {predicted} predicted tokens in {len(nll_a)} windows, {draws} draws")
    pair = torch.tensor([nll_a, nll_b], dtype=torch.float64)
    if not bool(pair.isfinite().all()):
        raise DataError("a window's negative log-likelihood is NaN or infinite")
    a, b = resampled(pair, predicted, seed, draws)
    return middle(a - b)


def resampled(nll: Tensor, predicted: int, seed: int = 0, draws: int = DRAWS) -> Tensor:
    """Perplexities ``(models, draws)`` on windows drawn with replacement, the same for all models.

    Args:
        nll: summed negative log-likelihood (nats) of each window, ``(models, windows)``.
        predicted: tokens predicted in all windows together.
    """
    count = nll.shape[1]
    generator = torch.Generator().manual_seed(seed)
    perplexities = []
    for some in torch.arange(draws).split(max(1, _AT_ONCE // count)):
        drawn = torch.randint(count, (len(some), count), generator=generator)
        perplexities.append((nll[:, drawn].sum(-1) / predicted).exp())
    return torch.cat(perplexities, dim=1)


def middle(values: Tensor) -> tuple[float, float]:
    """The ends of the middle 95% of float64 ``values``."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
