"""What a killed or interrupted run left in its work folder, told to the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from potq.cli import console
from potq.errors import CheckpointError, PotqError


class UnfinishedBlocks:
    """Blocks that are done in a work folder."""

    def __init__(self, folder: Path, total: int | None) -> None:
        self._folder, self._total, self._noticed = folder, total, False

    @property
    def _done(self) -> str:
        """How many blocks, in words; empty if none."""
        done = len(list(self._folder.glob("block-*.safetensors")))
        of_all = f" of {self._total}" if self._total is not None else ""
        return f"{done}{of_all} blocks" if done else ""

    def notice(self) -> None:
        """Say once that work goes on. An unusable folder is cleared before the first weight."""
        if not self._noticed:
            self._noticed = True
            if self._done:
                console.note(f"resuming: {self._done} done")

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Say what an interrupted run leaves behind; a folder that cannot be written is potq's own error."""
        try:
            yield
        except KeyboardInterrupt:
            if self._done:
                console.note(f"{self._done} are kept in {self._folder}; the same command goes on from there")
            raise
        except PotqError:
            raise
        except OSError as error:
            raise CheckpointError(f"cannot keep unfinished work in {self._folder} ({error.strerror or error})") from error
