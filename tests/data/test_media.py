"""Images and recordings: found in folders, read, refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import class_models
from potq.data.media import media_files, read_image, read_recording
from potq.errors import DataError, MissingDependencyError

SOUND = torch.sin(torch.arange(2000) * 0.05) * 0.9


def test_files_are_found_by_name_in_every_folder(tmp_path: Path) -> None:
    class_models.images(tmp_path / "images", 3)
    (tmp_path / "images" / "labels.txt").write_text("cat")
    (tmp_path / "images" / "4.JPG").write_bytes((tmp_path / "images" / "1.png").read_bytes())
    assert [file.name for file in media_files(tmp_path / "images", "images")] == ["1.png", "2.png", "4.JPG", "0.png"]
    assert read_image(tmp_path / "images" / "4.JPG").size == (24, 20)
    with pytest.raises(DataError, match=r"images holds no audio \(\.wav\); convert some, or give another folder"):
        media_files(tmp_path / "images", "audio")
    with pytest.raises(DataError, match=r"none is no folder here; the model takes images: give a folder of images \(\.png"):
        media_files(tmp_path / "none", "images")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"no image at all" * 9])
def test_a_damaged_image(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.png is no image that can be read \(.*\); copy it again"):
        read_image(tmp_path / "bad.png")


def test_an_image_of_another_mode_is_rgb(tmp_path: Path) -> None:
    from PIL import Image

    for mode in ("L", "RGBA", "P", "1"):
        Image.new(mode, (4, 3)).save(tmp_path / "image.png")
        assert read_image(tmp_path / "image.png").mode == "RGB"


def test_images_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"images need Pillow: pip install 'potq\[vision\]'"):
        read_image(tmp_path / "image.png")


@pytest.mark.parametrize(("width", "error"), [(1, 2**-7), (2, 2**-15), (4, 2**-23)])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_of_the_file(width: int, error: float, channels: int, tmp_path: Path) -> None:
    class_models.wave_of(tmp_path / "a.wav", SOUND, 8000, width, channels)
    found = read_recording(tmp_path / "a.wav", 8000)
    assert (found.dtype, found.shape) == (torch.float32, SOUND.shape)
    torch.testing.assert_close(found, SOUND, rtol=0, atol=2 * error)


def test_channels_become_one(tmp_path: Path) -> None:
    class_models.wave_of(tmp_path / "a.wav", torch.tensor([0.5, -0.5] * 4), channels=1)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[22:24], content[32:34] = (2).to_bytes(2, "little"), (4).to_bytes(2, "little")  # two channels, four bytes a frame
    (tmp_path / "b.wav").write_bytes(content)
    assert torch.equal(read_recording(tmp_path / "b.wav", 16000), torch.zeros(4))


def test_recordings_that_cannot_be_used(tmp_path: Path) -> None:
    class_models.wave_of(tmp_path / "a.wav", SOUND, 8000)
    with pytest.raises(DataError, match=r"a\.wav has 8000 samples a second, the model takes 16000; convert it: ffmpeg -i a"):
        read_recording(tmp_path / "a.wav", 16000)
    class_models.wave_of(tmp_path / "empty.wav", torch.empty(0))
    with pytest.raises(DataError, match=r"empty\.wav holds no sound"):
        read_recording(tmp_path / "empty.wav", 16000)
    for name, content in {"none": b"", "header": (tmp_path / "a.wav").read_bytes()[:20], "mp3": b"ID3" * 50}.items():
        (tmp_path / f"{name}.wav").write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}\.wav is no WAV file that can be read"):
            read_recording(tmp_path / f"{name}.wav", 16000)
