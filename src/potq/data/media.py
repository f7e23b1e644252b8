"""Images and recordings in a folder."""

from __future__ import annotations

import os
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from potq.errors import DataError, MissingDependencyError, listed
from potq.nn.classes import Reads

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES: dict[Reads, tuple[str, ...]] = {
    "images": (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "audio": (".wav",),
}
_WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # bytes of a sample


def media_files(source: str | os.PathLike[str], what: Reads) -> list[Path]:
    """The images, or the recordings, in a folder and the folders in it, by name; files of other kinds do not count.

    Raises:
        DataError: no such folder, or none of them in it.
    """
    folder, kinds = Path(source).expanduser(), SUFFIXES[what]
    wanted = f"{what} ({listed(kinds, len(kinds))})"
    if not folder.is_dir():
        raise DataError(f"{source} is no folder here; the model takes {what}: give a folder of {wanted}")
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in kinds and file.is_file())
    if not found:
        raise DataError(f"{source} holds no {wanted}; convert some, or give another folder")
    return found


def read_image(file: Path) -> Any:
    """An image of Pillow's, in RGB.

    Raises:
        DataError: it is damaged.
        MissingDependencyError: Pillow is not installed; names the pip line.
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError("images need Pillow: pip install 'potq[vision]'") from None
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        raise DataError(f"{file} is no image that can be read ({error}); copy it again, or take it out") from None


def read_recording(file: Path, rate: int) -> Tensor:
    """The samples of a WAV file, float32 ``(samples,)`` between -1 and 1, the mean of its channels.

    Args:
        rate: samples a second, which the file must have.

    Raises:
        DataError: it is damaged, empty, of another rate, or of samples other than 8-, 16- and 32-bit integers.
    """
    convert = f"convert it: ffmpeg -i {file.name} -ar {rate} -sample_fmt s16 converted.wav"
    try:
        with wave.open(str(file)) as opened:
            found, channels, width = opened.getframerate(), opened.getnchannels(), opened.getsampwidth()
            content = bytearray(opened.readframes(opened.getnframes()))
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"{file} is no WAV file that can be read ({error or 'it ends too soon'}); {convert}") from None
    if width not in _WIDTHS:
        raise DataError(f"{file} has {8 * width}-bit samples; {convert}")
    if found != rate:
        raise DataError(f"{file} has {found} samples a second, the model takes {rate}; {convert}")
    frames = len(content) // (width * channels)
    if not frames:
        raise DataError(f"{file} holds no sound; take it out")
    samples = torch.frombuffer(content, dtype=_WIDTHS[width], count=frames * channels).float()
    samples = samples / 128 - 1 if width == 1 else samples / 2 ** (8 * width - 1)
    return samples.view(frames, channels).mean(1)
