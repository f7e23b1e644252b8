"""Checkpoint folders: written whole or not at all, read back bit for bit, and the layout on disk pinned by golden files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import potq
from potq import native
from potq.checkpoint.files import read_json, weight_files
from potq.checkpoint.folder import REPORT_FILE, read_headers
from potq.errors import CheckpointError, ModelError
from potq.files import check_destination
from potq.nn.packed_model import packed_modules
from potq.nn.report import QuantReport
from potq.nn.weights import Place
from potq.numerics.features import FEATURES

GOLDEN = Path(__file__).parents[1] / "golden"
OLD = ["apot4_g64", "int8_row", "pot2_e8m0", "pot3_g32", "pot3s_g32", "pot4_g64", "pot4_row_scale"]  # of potq 0.1
EXPERTS = {"features_expert_stacks": "source_experts", "transposed_experts": "source_transposed_experts"}
VARIANTS = OLD + sorted({f"features_{name.replace('-', '_')}" for name in ("none", *FEATURES)} | EXPERTS.keys())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def leftovers(folder: Path) -> list[str]:
    """What an interrupted save could have left beside the checkpoints in ``folder``."""
    return [file.name for file in folder.iterdir() if file.name.startswith(".")]


# ---- round trips


def test_save_then_load_is_identical(packed_model: Any, tokens: torch.Tensor, tmp_path: Path) -> None:
    potq.save(packed_model, tmp_path / "again")
    again = potq.load(tmp_path / "again")
    assert torch.equal(again(tokens).logits, packed_model(tokens).logits)
    before, after = packed_model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert again.config.quantization_config == packed_model.config.quantization_config
    assert leftovers(tmp_path) == []


def test_the_first_of_overlapping_targets_still_wins_when_loaded(tiny_model: Any, tmp_path: Path) -> None:
    config = potq.PoTConfig("pot4", targets={"mlp.*": "pot3", "down_proj": "int8"})  # not in alphabetical order
    potq.quantize(tiny_model, config)
    potq.save(tiny_model, tmp_path / "out")
    loaded: Any = potq.load(tmp_path / "out")
    assert loaded.model.layers[0].mlp.down_proj.scheme == potq.PRESETS["pot3"]
    assert list(loaded.config.quantization_config.targets) == ["mlp.*", "down_proj"]


def test_quantized_in_memory_equals_loaded(tiny_model: Any, tokens: torch.Tensor, tmp_path: Path) -> None:
    report = potq.quantize(tiny_model, potq.PoTConfig("apot4", group_size=32))
    potq.save(tiny_model, tmp_path / "out")
    loaded = potq.load(tmp_path / "out")
    assert torch.equal(loaded(tokens).logits, tiny_model(tokens).logits)
    assert loaded.quant_report == report
    assert QuantReport.from_json((tmp_path / "out" / REPORT_FILE).read_text()) == report


def test_shards_load_back_bit_for_bit(packed_model: Any, tokens: torch.Tensor, tmp_path: Path) -> None:
    potq.save(packed_model, tmp_path / "out", max_shard_size="20KB")
    files = weight_files(tmp_path / "out")
    assert len(files) > 2
    assert set(read_headers(files)) == set(
        json.loads((tmp_path / "out/model.safetensors.index.json").read_text())["weight_map"]
    )
    assert torch.equal(potq.load(tmp_path / "out")(tokens).logits, packed_model(tokens).logits)


def test_tied_weight_is_stored_once(packed_folder: Path) -> None:
    stored = read_headers(weight_files(packed_folder))
    assert "model.embed_tokens.weight_packed" in stored
    assert not [key for key in stored if "lm_head" in key]
    assert not [key for key in stored if key.endswith("_proj.weight")]


def test_headers_tell_dtype_and_shape(packed_folder: Path) -> None:
    stored = read_headers(weight_files(packed_folder))["model.layers.0.self_attn.q_proj.weight_packed"]
    assert (stored.file.name, stored.dtype, stored.shape) == ("model.safetensors", "U8", (64, 32))
    assert read_headers([]) == {}


def test_tokenizer_is_saved_with_the_model(packed_model: Any, packed_folder: Path, tmp_path: Path) -> None:
    tokenizer = potq.load_tokenizer(packed_folder)
    potq.save(packed_model, tmp_path / "out", tokenizer)
    text = "the cat, grüßend\n"
    assert potq.load_tokenizer(tmp_path / "out")(text)["input_ids"] == tokenizer(text)["input_ids"]


# ---- what save refuses


def test_save_refuses_a_model_that_is_not_quantized(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not quantized; call potq\.quantize"):
        potq.save(tiny_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_folder_needs_force(packed_model: Any, packed_folder: Path) -> None:
    (packed_folder / "notes.txt").write_text("mine")
    before = contents(packed_folder)
    with pytest.raises(CheckpointError, match="exists; choose another output folder, or pass --force") as caught:
        potq.save(packed_model, packed_folder)
    assert str(packed_folder) in str(caught.value)
    assert contents(packed_folder) == before
    potq.save(packed_model, packed_folder, force=True)
    assert not (packed_folder / "notes.txt").exists()
    assert potq.load(packed_folder).quant_report == packed_model.quant_report
    assert leftovers(packed_folder.parent) == []


def test_replacing_a_folder_leaves_no_tokenizer_of_another_model(packed_model: Any, packed_folder: Path) -> None:
    (packed_folder / "chat_template.jinja").write_text("of another model")
    assert list(packed_folder.glob("tokenizer*"))
    potq.save(packed_model, packed_folder, force=True)
    assert sorted(file.name for file in packed_folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "quant_report.json",
    ]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_model_is_never_replaced(packed_model: Any, tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter1.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="thesis"):
        potq.save(packed_model, tmp_path / "thesis", force=force)
    assert (tmp_path / "thesis/chapter1.tex").read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_way_is_never_replaced(packed_model: Any, tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CheckpointError, match="out exists and is a file; choose another output folder"):
        potq.save(packed_model, tmp_path / "out", force=force)
    assert (tmp_path / "out").read_text() == "a file"


def test_a_file_in_place_of_the_parent_folder(packed_model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(CheckpointError, match="file"):
        potq.save(packed_model, tmp_path / "file" / "out")


def test_empty_and_new_folders_are_welcome(packed_model: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty", force=False)
    potq.save(packed_model, tmp_path / "empty")
    potq.save(packed_model, str(tmp_path / "a/b/c"))
    assert (tmp_path / "empty/config.json").exists()
    assert (tmp_path / "a/b/c/config.json").exists()


# ---- interruptions


@pytest.fixture
def half_writing(packed_model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes the model's ``save_pretrained`` write something and then raise what it is given."""

    def arm(error: BaseException) -> Any:
        def save_pretrained(folder: Path, **kwargs: Any) -> None:
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise error

        monkeypatch.setattr(packed_model, "save_pretrained", save_pretrained)
        return packed_model

    return arm


def test_ctrl_c_while_saving_changes_nothing(half_writing: Any, packed_folder: Path) -> None:
    before = contents(packed_folder)
    with pytest.raises(KeyboardInterrupt):
        potq.save(half_writing(KeyboardInterrupt()), packed_folder, force=True)
    assert contents(packed_folder) == before
    assert leftovers(packed_folder.parent) == []


def test_ctrl_c_while_saving_anew_leaves_nothing(half_writing: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        potq.save(half_writing(KeyboardInterrupt()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"no room for .*packed: it needs about .* MB are free"),
        (OSError(errno.EIO, "Input/output error"), r"writing .*packed failed \(.*Input/output error\); nothing was changed"),
    ],
)
def test_a_disk_error_changes_nothing(half_writing: Any, packed_folder: Path, error: OSError, message: str) -> None:
    before = contents(packed_folder)
    with pytest.raises(CheckpointError, match=message):
        potq.save(half_writing(error), packed_folder, force=True)
    assert contents(packed_folder) == before
    assert leftovers(packed_folder.parent) == []


def test_a_full_disk_is_seen_before_anything_is_written(
    packed_model: Any, packed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(packed_folder)
    monkeypatch.setattr(packed_model, "save_pretrained", lambda *args, **kwargs: pytest.fail("it wrote"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(10**9, 10**9, 1000))
    with pytest.raises(
        CheckpointError, match=r"no room for .*: it needs about 0\.[1-9] MB, 0\.0 MB are free; nothing was changed"
    ):
        potq.save(packed_model, packed_folder, force=True)
    assert contents(packed_folder) == before
    assert leftovers(packed_folder.parent) == []


def test_an_interrupt_between_the_two_renames_keeps_the_old_folder(
    packed_model: Any, packed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(packed_folder)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        potq.save(packed_model, packed_folder, force=True)
    assert packed_folder.exists(), f"the old checkpoint is only to be found as {leftovers(packed_folder.parent)}"
    assert contents(packed_folder) == before


def run(script: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, args)], capture_output=True, text=True, check=False, timeout=300
    )


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import potq
from potq.errors import CheckpointError
source, target = map(Path, sys.argv[1:])
model, tokenizer = potq.load(source), potq.load_tokenizer(source)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def attempt(what):
    try:
        potq.save(model, target, tokenizer, force=True)
    except CheckpointError as error:
        print(what, "refused:", error)
    except BaseException as error:
        print(what, "raised", type(error).__name__, error)
    finally:
        limit(resource.RLIM_INFINITY)
    print(what, "beside:", sorted(file.name for file in target.parent.iterdir()))

limit(10_000)
attempt("weights")
write = model.save_pretrained
model.save_pretrained = lambda *args, **kwargs: (write(*args, **kwargs), limit(100))
attempt("tokenizer")
"""


def test_a_disk_that_fills_up_while_writing(packed_folder: Path, tmp_path: Path) -> None:
    target = shutil.copytree(packed_folder, tmp_path / "results" / "out")
    (target / "notes.txt").write_text("the old result")
    before = contents(target)
    result = run(_FULL_DISK, packed_folder, target)
    for what in ("weights", "tokenizer"):
        assert f"{what} refused: writing {target} failed" in result.stdout, result.stdout + result.stderr
        assert f"{what} beside: ['out']" in result.stdout, result.stdout
    assert contents(target) == before


_KILLED = """
import os, signal, sys
from pathlib import Path
import potq
source, target = map(Path, sys.argv[1:])
model = potq.load(source)

def save_pretrained(folder, **kwargs):
    (Path(folder) / "model.safetensors").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

model.save_pretrained = save_pretrained
potq.save(model, target, force=True)
"""


def test_kill_9_while_saving_changes_nothing(packed_model: Any, packed_folder: Path, tmp_path: Path) -> None:
    target = shutil.copytree(packed_folder, tmp_path / "results" / "out")
    before = contents(target)
    result = run(_KILLED, packed_folder, target)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert leftovers(target.parent), "it was killed before it wrote anything; the test shows nothing"
    assert contents(target) == before
    potq.load(target)
    potq.save(packed_model, target, force=True)
    assert leftovers(target.parent) == []
    assert set(contents(target)) < set(before)  # the new one has no tokenizer


# ---- damaged folders


def test_weight_files_wants_safetensors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors: the folder is incomplete"):
        weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(
        CheckpointError, match=r"only pickled weights \(\.bin\), which potq never opens; convert to safetensors"
    ):
        weight_files(tmp_path)


@pytest.mark.parametrize("index", ['{"weight_map": {}}', "{}"])
def test_an_index_that_names_no_shard(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index\.json names no shard"):
        weight_files(tmp_path)


@pytest.mark.parametrize("index", ['{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}', '{"weight_map": null}'])
def test_an_index_of_the_wrong_form(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"model_type": "lla', "cannot be read"),
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[1, 2]", "holds no JSON object"),
    ],
)
def test_json_that_is_none(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json {problem}.*copy it again"):
        read_json(tmp_path / "config.json")


# ---- the layout on disk, read by a decoder of its own (from the documentation, not from potq's functions)


class Raw:
    """A safetensors file parsed by hand: 8 bytes header length, the JSON header, the data."""

    def __init__(self, file: Path) -> None:
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        self.header = json.loads(data[8 : 8 + length])
        self.header.pop("__metadata__", None)
        self._data = data[8 + length :]

    def bytes(self, key: str) -> bytes:
        start, end = self.header[key]["data_offsets"]
        return self._data[start:end]

    def array(self, key: str) -> np.ndarray[Any, Any]:
        dtype = {"U8": np.uint8, "F16": np.float16}[self.header[key]["dtype"]]
        return np.frombuffer(self.bytes(key), dtype).reshape(self.header[key]["shape"])


def decoded_codes(row: bytes, bits: int, columns: int) -> list[int]:
    """Codes of one packed row: planes, each padded to a whole byte, lowest code and lowest bit first."""
    widths = {2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 1, 1], 7: [4, 1, 1, 1], 8: [8]}[bits]
    codes, shift, start = [0] * columns, 0, 0
    for width in widths:
        size = (columns * width + 7) // 8
        plane = int.from_bytes(row[start : start + size], "little")
        for i in range(columns):
            codes[i] |= ((plane >> (i * width)) & (2**width - 1)) << shift
        assert plane >> (columns * width) == 0, "padding"
        shift, start = shift + width, start + size
    assert start == len(row)
    return codes


def decoded_level(code: int, grid: dict[str, Any]) -> int:
    bits = grid["bits"]
    if grid["encoding"] == "twos-complement":
        return code - 2**bits if code >= 2 ** (bits - 1) else code
    if grid["encoding"] == "table":
        return int(grid["table"][code])
    sign, index = divmod(code, 2 ** (bits - 1))
    magnitude = int(grid["magnitudes"][index])
    return -magnitude if sign else magnitude


def numbers_along_a_path(codes: list[int]) -> list[int]:
    """Of codes with a trellis, the numbers of the levels in ascending order."""
    bits = [0, 0, 0, *(code & 1 for code in codes)]  # 0 before the row begins
    return [4 * (code >> 1) + 2 * (bits[t + 3] ^ bits[t + 1] ^ bits[t]) + bits[t + 2] for t, code in enumerate(codes)]


def decoded(raw: Raw, name: str, scheme: dict[str, Any], columns: int) -> np.ndarray[Any, Any]:
    """The weight ``name`` as float64, computed without rounding."""
    grid = scheme["grid"]
    levels = [decoded_level(code, grid) for code in range(2 ** grid["bits"])]
    trellis = scheme.get("trellis", False)  # other schemes do not have the key
    reference = 2 ** (max(map(abs, levels)).bit_length() - 1)
    packed, scale = raw.array(f"{name}.weight_packed"), raw.array(f"{name}.weight_scale")
    if scheme["scale_dtype"] == "e8m0":
        assert scale.dtype == np.uint8
        scales = np.ldexp(1.0, scale.astype(np.int64) - 127)
    else:
        assert scale.dtype == np.float16
        scales = scale.astype(np.float64)
    rows = np.ones((len(packed), 1), np.float16)
    if scheme.get("row_scale"):  # folders from before there were row scales do not have the key
        rows = raw.array(f"{name}.weight_row_scale")
        assert (rows.shape, rows.dtype) == ((len(packed), 1), np.float16)
    weight = np.empty((len(packed), columns))
    for i, row in enumerate(packed):
        codes = decoded_codes(row.tobytes(), grid["bits"] - trellis, columns)
        found = [sorted(levels)[k] for k in numbers_along_a_path(codes)] if trellis else [levels[code] for code in codes]
        for j, level in enumerate(found):
            group = 0 if scheme["group_size"] in ("row", "tensor") else j // min(scheme["group_size"], columns)
            factor = float(rows[i, 0]) * scales[i if len(scales) > 1 else 0, group]
            weight[i, j] = factor * level / reference
    return weight


def scheme_of(name: str, config: dict[str, Any]) -> dict[str, Any]:
    for suffix, scheme in dict(config["targets"]).items():  # a mapping in older folders, pairs in newer ones
        if name.endswith(f".{suffix}"):
            return dict(scheme)
    return dict(config["embedding"] if name.endswith(("embed_tokens", "lm_head")) else config["scheme"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_files_decode_to_exactly_what_is_documented(variant: str) -> None:
    raw = Raw(GOLDEN / variant / "model.safetensors")
    config = json.loads((GOLDEN / variant / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["version"]) == ("potq", 1)
    model = potq.load(GOLDEN / variant, dtype=torch.float32)
    names = sorted(key.removesuffix(".weight_packed") for key in raw.header if key.endswith(".weight_packed"))
    assert len(names) == 8 if variant in EXPERTS else 7 + (config["embedding"] is not None)
    for name in names:
        read: Any = model.get_submodule(name)
        planned = name.replace(".stacked_", ".")
        exact = decoded(raw, name, scheme_of(planned, config), read.quantized.shape[1])
        assert np.array_equal(exact, exact.astype(np.float32)), "the format promises weights that are exact in float32"
        assert np.array_equal(read.quantized.dequantize().numpy(), exact), name
        if planned != name:  # row e * out + o is output o of expert e
            exact = exact.reshape(3, -1, exact.shape[1])
            exact = exact.transpose(0, 2, 1) if variant == "transposed_experts" else exact
        assert np.array_equal(read.weight.numpy(), exact), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_files_are_near_their_source(variant: str) -> None:
    source = potq.load(GOLDEN / EXPERTS.get(variant, "source"), dtype=torch.float32)
    for name, module in packed_modules(potq.load(GOLDEN / variant, dtype=torch.float32)).items():
        exact = Place.of(source, name).parameter.detach()
        least = 0.4 if variant.startswith("pot2") or variant == "features_trellis" else 0.25
        assert float((module.weight - exact).norm() / exact.norm()) < least, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_quantizing_the_source_again_writes_the_golden_bytes(variant: str, tmp_path: Path) -> None:
    config = potq.PoTConfig.from_dict(read_json(GOLDEN / variant / "config.json")["quantization_config"])
    potq.save(potq.load(GOLDEN / EXPERTS.get(variant, "source"), config), tmp_path / "out")
    golden, again = Raw(GOLDEN / variant / "model.safetensors"), Raw(tmp_path / "out" / "model.safetensors")
    assert again.header == golden.header
    for key in golden.header:
        assert again.bytes(key) == golden.bytes(key), key
    assert read_json(tmp_path / "out/config.json")["quantization_config"] == config.to_dict()


def test_a_report_of_version_0_1_is_read() -> None:
    """Without the number of weights, which the model tells."""
    text = (GOLDEN / "pot4_g64" / "quant_report.json").read_text()
    assert QuantReport.from_json(text).bits_per_weight is None
    report = potq.load(GOLDEN / "pot4_g64").quant_report
    assert report.modules == QuantReport.from_json(text).modules
    assert report.weights == sum(p.numel() for p in potq.load(GOLDEN / "source").parameters())
    assert report.bits_per_weight == 8 * report.bytes_after / report.weights


def test_every_golden_folder_is_tested() -> None:
    sources = ["source", *EXPERTS.values()]
    assert sorted(file.parent.name for file in GOLDEN.glob("*/model.safetensors")) == sorted([*VARIANTS, *sources, "module"])


def test_a_link_is_followed_and_stays_a_link(packed_model: Any, packed_folder: Path) -> None:
    link = packed_folder.with_name("link")
    link.symlink_to(packed_folder, target_is_directory=True)
    for _ in range(2):
        potq.save(packed_model, link, force=True)
    assert link.is_symlink()
    assert leftovers(packed_folder.parent) == []
    potq.load(link)


def test_the_current_directory_is_not_replaced(
    packed_model: Any, packed_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packed_folder)
    for path in (".", ".."):
        with pytest.raises(CheckpointError, match="current directory"):
            potq.save(packed_model, path, force=True)


def test_home_is_expanded(packed_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    potq.save(packed_model, "~/out")
    assert (tmp_path / "out" / "config.json").is_file()
    potq.load("~/out")


@pytest.mark.parametrize("size", ["banana", "", "0", "-5GB", "5 parsecs", 0])
def test_a_shard_size_that_is_none(packed_model: Any, tmp_path: Path, size: str | int) -> None:
    with pytest.raises(potq.PotqError, match="max_shard_size"):
        potq.save(packed_model, tmp_path / "out", max_shard_size=size)
    assert not (tmp_path / "out").exists()


def test_a_save_killed_between_its_renames_is_mended_by_the_next(packed_model: Any, packed_folder: Path) -> None:
    before = contents(packed_folder)
    packed_folder.rename(packed_folder.with_name(".packed.replaced"))
    with pytest.raises(CheckpointError, match=r"the old one is .*\.packed\.replaced"):
        potq.load(packed_folder)
    with pytest.raises(CheckpointError, match="exists"):  # put back, hence in the way again
        potq.save(packed_model, packed_folder)
    assert contents(packed_folder) == before


def test_a_model_changed_since_is_not_saved(packed_model: Any, tmp_path: Path) -> None:
    mlp = packed_model.model.layers[0].mlp
    mlp.up_proj = torch.nn.Linear(mlp.up_proj.in_features, mlp.up_proj.out_features, bias=False)
    with pytest.raises(potq.PotqError, match=r"layers\.0\.mlp\.up_proj changed since the model was quantized"):
        potq.save(packed_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_from_elsewhere_does_not_replace_the_fresh_one(tiny_folder: Path, packed_folder: Path) -> None:
    (tiny_folder / "quant_report.json").write_bytes((packed_folder / "quant_report.json").read_bytes())
    report = potq.load(tiny_folder, potq.PoTConfig("pot3")).quant_report
    assert {entry.scheme for entry in report.modules} == {"pot3-g64", "int8-g64"}


# ---- as others do it -----------------------------------------------------------------------------------------------


def test_a_stale_index_is_not_read(packed_folder: Path, tokens: torch.Tensor) -> None:
    """All three readers take a whole file before an index beside it: ours, transformers' and the engine's."""
    expected = potq.load(packed_folder)(tokens).logits
    (packed_folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}')
    assert weight_files(packed_folder) == [packed_folder / "model.safetensors"]
    assert torch.equal(potq.load(packed_folder)(tokens).logits, expected)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(packed_folder)(tokens).logits, expected)
    if native.missing() is None:
        with potq.Engine(packed_folder) as engine:
            assert engine.logits(tokens[0]).shape == expected[0].shape


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_follow_the_umask(packed_model: Any, packed_folder: Path, tmp_path: Path, umask: int, mode: int) -> None:
    """safetensors writes files that nobody but their owner can read."""
    before = os.umask(umask)
    try:
        potq.save(packed_model, tmp_path / "out", potq.load_tokenizer(packed_folder))
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in modes
    assert set(modes.values()) == {mode}, modes
