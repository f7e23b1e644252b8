"""A teacher's predictions, computed once and kept on disk: several epochs of training then cost one pass of the teacher."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from potq.data.tokens import choose_window, require_own_tokens
from potq.errors import CheckpointError, ConfigError, DataError, ModelError
from potq.nn.losses import TopK
from potq.nn.properties import evaluation_mode, vocabulary
from potq.nn.report import Progress
from potq.qat.text import Meter
from potq.resume import WorkFolder, fingerprint
from potq.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PART_BYTES, _PART_ROWS = 128 << 20, 256  # a file's limits: it is in memory as a whole while it is computed
_HEADER_BYTES = 400
_KEYS = ("index", "log_prob", "tail")
_SUMMARY = "summary"


@dataclass(frozen=True)
class TeacherCache:
    """What a teacher predicts for every token of some sequences, of one length, on disk.

    Made by :meth:`write`, or by :meth:`open` from what that has finished. ``cache[i]`` is that of one sequence.

    Attributes:
        part: sequences a file.
    """

    folder: Path
    sequences: int
    length: int
    top_k: int
    temperature: float
    part: int

    @classmethod
    def write(
        cls,
        teacher: PreTrainedModel,
        sequences: Tensor,
        folder: Path,
        *,
        top_k: int,
        temperature: float,
        batch: int,
        progress: Progress | None = None,
    ) -> TeacherCache:
        """Compute what is not in ``folder`` yet; a run that was killed goes on at its first missing file.

        Args:
            teacher: computes in evaluation mode, on its own device, in its own dtype or under the caller's autocast.
            sequences: int64 ``(n, length)``.
            top_k: likeliest tokens to keep for each token, 6 bytes each.
            temperature: of the probabilities, as :func:`~potq.nn.losses.sparse_divergence` is to use them.
            batch: sequences at a time.
            progress: called after each batch with tokens done, those found in ``folder`` among them, in all, and speed.

        Raises:
            CheckpointError: not enough room on the disk; nothing was done yet.
            ConfigError: a setting that cannot be, or ``folder`` holds something else.
            DataError: ``sequences`` that the teacher cannot read.
            ModelError: the teacher's output is NaN.
        """
        _check_settings(teacher, top_k, temperature, batch)
        _check_sequences(teacher, sequences)
        folder, (count, length) = Path(folder), sequences.shape
        _require_room(folder, cls.estimate_bytes(count, length, top_k))
        settings = ("teacher", __version__, repr(teacher.config), repr((top_k, temperature)))
        kept = WorkFolder(folder, fingerprint(teacher, [sequences], settings))
        cache = cls(folder, count, length, top_k, temperature, _part_rows(length, top_k))
        meter = Meter(sequences.numel(), progress)
        with torch.no_grad(), evaluation_mode(teacher):
            for number, rows in enumerate(sequences.split(cache.part)):
                before = number * cache.part * length
                if cache._has(number):
                    meter.found(rows.numel(), before + rows.numel())
                else:
                    kept.save(_name(number), _predict(teacher, rows, cache, batch, meter.within(before)))
        kept.save(_SUMMARY, cache._summary(sequences))
        return cache

    @classmethod
    def open(cls, folder: Path, sequences: Tensor) -> TeacherCache:
        """What :meth:`write` has finished for these ``sequences`` ``(n, length)``; the teacher itself is not needed.

        Raises:
            CheckpointError: it is missing, unfinished, damaged, or of other sequences.
        """
        file = Path(folder) / f"{_SUMMARY}.safetensors"
        with _reading(file):
            found = load_file(file)
        count, length, top_k, part = found["sizes"].tolist()
        cache = cls(Path(folder), count, length, top_k, float(found["temperature"]), part)
        if not torch.equal(found["sequences"], cache._summary(sequences)["sequences"]):
            raise CheckpointError(f"{folder} holds predictions for other sequences; call TeacherCache.write for these")
        for number in range(-(-cache.sequences // cache.part)):
            if not cache._has(number):
                raise _damaged(cache._file(number), "missing or incomplete")
        return cache

    @staticmethod
    def estimate_bytes(n: int, length: int, top_k: int) -> int:
        """What ``n`` sequences will take on the disk, to within some kilobytes."""
        return n * _row_bytes(length, top_k) + _HEADER_BYTES * (1 + -(-n // _part_rows(length, top_k)))

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return _bytes_in(self.folder)

    def __len__(self) -> int:
        return self.sequences

    def __getitem__(self, index: int) -> TopK:
        """The predictions for one sequence: ``(length, top_k)``."""
        return self.rows(torch.tensor([index]))

    def rows(self, indices: Tensor) -> TopK:
        """The predictions for the sequences ``indices`` (1-D, any order), ``(len(indices) * length, top_k)`` on the CPU.

        ``index`` is int32, ``log_prob`` and ``tail`` are float16. Nothing else is read.

        Raises:
            CheckpointError: a file is missing or damaged.
            IndexError: an index beyond the last sequence.
        """
        found = [self._read(index) for index in indices.tolist()]
        return TopK(*(torch.cat(tensors) for tensors in zip(*found, strict=True)))

    def _read(self, sequence: int) -> list[Tensor]:
        if not 0 <= sequence < self.sequences:
            raise IndexError(f"sequence {sequence} of {self.sequences}")
        number, row = divmod(sequence, self.part)
        with _opened(self._file(number)) as file:
            return [file.get_slice(key)[row] for key in _KEYS]

    def _has(self, number: int) -> bool:
        """Whether a file is there, as long as it should be (which is what opening it checks)."""
        shape = [min(self.part, self.sequences - number * self.part), self.length, self.top_k]
        try:
            with _opened(self._file(number)) as file:
                return set(file.keys()) == set(_KEYS) and file.get_slice("index").get_shape() == shape
        except CheckpointError:
            return False

    def _file(self, number: int) -> Path:
        return self.folder / f"{_name(number)}.safetensors"

    def _summary(self, sequences: Tensor) -> dict[str, Tensor]:
        """What :meth:`open` needs to know; written last."""
        text = fingerprint(nn.Module(), [sequences.long()], ())
        return {
            "sizes": torch.tensor([self.sequences, self.length, self.top_k, self.part]),
            "temperature": torch.tensor(self.temperature, dtype=torch.float64),
            "sequences": torch.tensor(list(text.encode()), dtype=torch.uint8),
        }


def check_teacher(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a ``teacher`` that predicts other tokens than ``student``, as far as sizes tell.

    Raises:
        ModelError: their vocabularies differ in size.
    """
    own, other = vocabulary(student), vocabulary(teacher)
    if own != other:
        raise ModelError(
            f"the student's vocabulary has {own} tokens, the teacher's {other}; use a teacher with the student's tokenizer "
            "and vocabulary size, such as its own full-precision model"
        )


def _predict(teacher: PreTrainedModel, rows: Tensor, cache: TeacherCache, batch: int, tell: Progress) -> dict[str, Tensor]:
    """The tensors of a file, for sequences ``rows`` ``(n, length)``: ``(n, length, top_k)``, the tail ``(n, length)``."""
    found: list[tuple[Tensor, ...]] = []
    for number, ids in enumerate(rows.split(batch)):
        top = TopK.of(teacher(ids.to(teacher.device), use_cache=False).logits, cache.top_k, cache.temperature)
        if top.log_prob.isnan().any():
            raise ModelError("the teacher's output is NaN; try dtype float32")
        found.append((top.index.cpu(), top.log_prob.half().cpu(), top.tail.half().cpu()))
        tell(number * batch * cache.length + ids.numel(), rows.numel(), "")
    with torch.autocast("cpu", enabled=False):  # autocast knows no concatenation of float16
        whole = [torch.cat(parts) for parts in zip(*found, strict=True)]
    return {key: tensor.unflatten(0, tuple(rows.shape)) for key, tensor in zip(_KEYS, whole, strict=True)}


def check_top_k(teacher: nn.Module, top_k: int) -> None:
    """Refuse to keep more predictions than ``teacher`` makes.

    Raises:
        ConfigError: says how many there are.
    """
    size = vocabulary(teacher) or top_k
    if not 1 <= top_k <= size:
        raise ConfigError(f"invalid top_k {top_k} for a vocabulary of {size} tokens; use 1..{size}, for example 64")


def _check_settings(teacher: nn.Module, top_k: int, temperature: float, batch: int) -> None:
    check_top_k(teacher, top_k)
    if not 0.0 < temperature < math.inf:
        raise ConfigError(f"invalid temperature {temperature}; use a positive number, such as 1.0")
    if batch < 1:
        raise ConfigError(f"invalid batch size {batch}; use at least 1")


def _check_sequences(teacher: PreTrainedModel, sequences: Tensor) -> None:
    if sequences.ndim != 2 or sequences.dtype not in (torch.int32, torch.int64) or not sequences.numel():
        raise DataError("sequences must be an (n, length) integer tensor of token ids, as potq.data.sequences.pack makes it")
    choose_window(teacher, sequences.shape[1], sequences.shape[1])
    require_own_tokens(teacher, sequences, "the text")


def _require_room(folder: Path, needed: int) -> None:
    """What is in the folder already is either a part of it, or another run's and will be deleted."""
    place = folder.absolute()
    missing = needed - _bytes_in(folder)
    free = shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.exists())).free
    if free < missing:
        raise CheckpointError(
            f"no room for the teacher's predictions in {folder}: they need about {missing / 1e6:.1f} MB, "
            f"{free / 1e6:.1f} MB are free; use another disk, a smaller top_k or less text"
        )


def _bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _row_bytes(length: int, top_k: int) -> int:
    return length * (top_k * (4 + 2) + 2)


def _part_rows(length: int, top_k: int) -> int:
    return max(1, min(_PART_ROWS, _PART_BYTES // _row_bytes(length, top_k)))


def _name(number: int) -> str:
    return f"teacher-{number:05}"


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    with _reading(file), safe_open(file, framework="pt") as opened:
        yield opened


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _damaged(file, str(error)) from error


def _damaged(file: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{file} cannot be read ({reason}); TeacherCache.write computes again what is not whole")
