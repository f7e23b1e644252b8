"""The integer model: what a packed checkpoint computes on a processor without floating point, to the bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from potq.errors import DataError
from potq.hardware.fixed_point import FRACTION, Integers, saturate
from potq.hardware.layers import IntegerBlock, IntegerNorm
from potq.hardware.matrix import IntegerLinear, IntegerMatrix

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from potq.evaluate.perplexity import Perplexity


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """A packed Llama or GPT-2 in integers of 32 bits: the reference of the C program that ``potq export --to c`` writes.

    Inputs of products have 8 bits and a power of two for every group of the weight. Everything between products is
    fixed-point with 16 bits behind the point. Softmax, activation functions and rotations come from small tables.

    Attributes:
        embedding: of tokens.
        positions: GPT-2's, else None.
        blocks: the layers.
        norm: the last.
        head: gives logits; its matrix is the embedding's where the two are tied.
        rotation: cosines and sines ``(context, head_dim / 2)``, or None.
        context: the longest text in tokens, which attention's sums are made for.

    Example:
        >>> import potq
        >>> from potq.hardware import IntegerModel
        >>> model = IntegerModel.from_packed(potq.load("packed"), context=64)
        >>> model.logits([5, 6, 7]).shape
        (3, 260)
        >>> len(list(model.generate([5, 6, 7], 4)))
        4
    """

    embedding: IntegerMatrix
    positions: IntegerMatrix | None
    blocks: tuple[IntegerBlock, ...]
    norm: IntegerNorm
    head: IntegerLinear
    rotation: tuple[Integers, Integers] | None
    context: int

    @classmethod
    def from_packed(cls, model: PreTrainedModel, *, context: int | None = None) -> IntegerModel:
        """Of a model quantized by potq.

        Args:
            model: a Llama, Mistral, Qwen2 or GPT-2 whose matrices are all packed, embedding and head too.
            context: the longest text in tokens; by default as long as the model's positions.

        Raises:
            ModelError: another family, settings that are not built, or a matrix that is not packed.
            DataError: a context beyond the model's.
        """
        from potq.hardware.families import read

        return cls(**read(model, context))

    @property
    def vocabulary(self) -> int:
        """Logits of a position."""
        return self.head.matrix.shape[0]

    def logits(self, tokens: Sequence[int]) -> Integers:
        """Fixed-point logits ``(tokens, vocabulary)``, 16 bits behind the point.

        Raises:
            DataError: no tokens, more than the context, or some that the model does not know.
        """
        return self.head(self._hidden(tokens))

    def generate(self, tokens: Sequence[int], count: int, end: Sequence[int] = ()) -> Iterator[int]:
        """The likeliest token again and again: ``count`` of them, up to the first of ``end`` or the context's end.

        Raises:
            DataError: see :meth:`logits`.
        """
        known = list(tokens)
        for _ in range(count):
            if len(known) > self.context:
                return
            known.append(int(self.head(self._hidden(known)[-1:])[0].argmax()))
            yield known[-1]
            if known[-1] in end:
                return

    def perplexity(self, tokens: Tensor, *, window: int | None = None, max_windows: int | None = None) -> Perplexity:
        """Perplexity by the protocol of :func:`potq.evaluate.perplexity.perplexity`; the softmax of logits alone has floats.

        Args:
            tokens: the whole text's token ids, 1-D.
            window: tokens per window; the context by default.
            max_windows: stop after the first so many windows.

        Raises:
            DataError: the text is shorter than one window, or the window than 2 or longer than the context.
        """
        from potq.evaluate.perplexity import windows_perplexity

        window = self.context if window is None else window
        if not 2 <= window <= self.context:
            raise DataError(f"invalid window {window}; the integer model's context allows 2 to {self.context} tokens")
        return windows_perplexity(self._nll, tokens, window=window, max_windows=max_windows)

    def _nll(self, window: Tensor) -> float:
        tokens = window.tolist()
        logits = self.logits(tokens)[:-1] / 2.0**FRACTION
        largest = logits.max(-1)
        sums = np.log(np.exp(logits - largest[:, None]).sum(-1)) + largest
        return math.fsum(sums - logits[np.arange(len(logits)), tokens[1:]])

    def _hidden(self, tokens: Sequence[int]) -> Integers:
        ids = np.asarray(tokens, np.int64)
        if not 0 < len(ids) <= self.context:
            raise DataError(f"{len(ids)} tokens; the integer model takes 1 to {self.context}")
        if ids.min() < 0 or ids.max() >= self.embedding.shape[0]:
            raise DataError(f"token ids {ids.min()}..{ids.max()}; the model knows 0..{self.embedding.shape[0] - 1}")
        hidden = self.embedding.rows(ids)
        if self.positions is not None:
            hidden = saturate(hidden + self.positions.rows(np.arange(len(ids))))
        rotation = None if self.rotation is None else (self.rotation[0][: len(ids)], self.rotation[1][: len(ids)])
        for block in self.blocks:
            hidden = block(hidden, rotation)
        return self.norm(hidden)
