"""Mistakes are told before torch is loaded, whose import takes seconds: in every command, the right message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from potq.cli.app import app
from potq.errors import PotqError

told = []
for words in json.loads(sys.argv[1]):
    try:
        app(words, standalone_mode=False)
        message = "no error"
    except PotqError as error:
        message = str(error)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    told.append([message, sorted(sys.modules.keys() & {"torch", "transformers"})])
print(json.dumps(told))
"""

GONE = "does not exist"
CASES: list[tuple[str, str]] = [  # a command line, what its message says; MODEL, PACKED, TEXT and OUT stand for paths
    ("quantize ./none OUT", GONE),
    ("quantize PACKED OUT", "is quantized already"),
    ("quantize MODEL PACKED", "exists; choose another output folder"),
    ("quantize MODEL OUT --scheme pot33", "unknown preset 'pot33'; the presets are"),
    ("quantize MODEL OUT --scheme apot44", "did you mean 'apot4'?"),
    ("quantize MODEL OUT --effort balancd", "did you mean 'balanced'?"),
    ("quantize MODEL OUT --dtype int4", "invalid dtype 'int4'"),
    ("quantize MODEL OUT --max-shard-size 5XB", "invalid max_shard_size '5XB'"),
    ("quantize MODEL OUT --calibration none.txt", "cannot read the text none.txt"),
    ("quantize MODEL OUT --effort gptq --candidates pot3,pot3", "holds pot3-g64 twice"),
    ("quantize MODEL OUT sead=1", "sead: unknown key (found 1); did you mean 'seed'?"),
    ("quantize MODEL OUT quantization.grup_size=32", "did you mean 'group_size'?"),
    ("quantize MODEL OUT quantization.ignored=head", "did you mean 'ignore'?"),
    ("quantize MODEL OUT --seed 1", "seed has no effect without calibration text"),
    ("quantize MODEL OUT --scale-method weighted", "scale method weighted needs calibration text: --calibration self"),
    ("quantize MODEL OUT --calibration wikitext2", "train on Salesforce/wikitext:wikitext-2-raw-v1:train"),
    ("quantize no-such-hub-name OUT", "no-such-hub-name is not here, and the hub cannot be reached"),
    ("quantize -c none.yaml", "cannot read the recipe none.yaml"),
    ("train -c none.yaml", "cannot read the recipe none.yaml"),
    ("train model=MODEL output=OUT data.text=pydoc quantisation.preset=pot3", "did you mean 'quantization'?"),
    ("train model=MODEL output=OUT data.text=pydoc data.lenght=8", "lenght: unknown key (found 8); did you mean 'length'?"),
    ("train model=MODEL output=OUT data.text=pydoc quantization.preset=apot", "unknown preset 'apot'"),
    ("train model=./none output=OUT data.text=pydoc", GONE),
    ("train model=MODEL output=OUT data.text=pydoc teacher=./none", GONE),
    ("train model=MODEL output=OUT data.text=pydoc start=./none", GONE),
    ("train model=MODEL output=PACKED data.text=pydoc", "exists; choose another output folder"),
    ("train model=MODEL output=OUT data.text=none.txt", "cannot read the text none.txt"),
    ("train model=MODEL output=OUT data.text=pydoc data.evaluation=none.txt", "cannot read the text none.txt"),
    (
        "train model=MODEL output=OUT data.text=pydoc teacher=MODEL loss.distillation=0 loss.hidden=0 loss.next_token=1",
        "no effect",
    ),
    (
        "train model=MODEL output=OUT data.text=pydoc loss.distillation=0 loss.next_token=1 loss.top_k=4",
        "top_k has no effect",
    ),
    ("train model=MODEL output=OUT data.text=wikitext2", "wikitext2 is the split that models are measured on"),
    ("train model=MODEL output=OUT data.text=no/such:config:train", "no/such:config:train"),  # a dataset of the hub
    ("chat ./none", GONE),
    ("chat MODEL", "the tokenizer has no chat template"),
    ("chat GGUF", "the tokenizer has no chat template"),
    ("chat MODEL --top-p 0.5", "top_p has no effect at temperature 0"),
    ("chat MODEL --dtype int4", "invalid dtype 'int4'"),
    ("generate ./none the", GONE),
    ("generate MODEL the --chat", "no chat template"),
    ("generate GGUF the --chat", "no chat template"),
    ("generate MODEL the --seed 1", "seed has no effect at temperature 0"),
    ("generate MODEL the --dtype int4", "invalid dtype 'int4'"),
    ("generate MODEL --prompt-file none.txt", "cannot read the prompt none.txt"),
    ("generate no-such-hub-name the", "no-such-hub-name is not here, and the hub cannot be reached"),
    ("generate OUT the", "OUT"),
    ("hardware rtl --scheme pot33 -o OUT", "unknown preset 'pot33'; the presets are"),
    ("hardware rtl --scheme pot4:group_size=row -o OUT", "the accumulator's width follows from the group"),
    ("hardware rtl --scheme pot4 --lanes 5 -o OUT", "5 lanes do not divide a group of 64"),
    ("hardware rtl --scheme pot4 -o PACKED", "is not an empty folder"),
    ("hardware report MODEL --text TEXT --activation-bits 8,x", "invalid --activation-bits 8,x"),
    ("hardware report MODEL --text TEXT --schemes pot33", "unknown preset 'pot33'"),
    ("eval MODEL", "give one of --text FILE, for perplexity, and --tasks NAMES"),
    ("eval MODEL --text pydoc --tasks a", "give one of --text FILE, for perplexity, and --tasks NAMES"),
    ("eval MODEL --text pydoc --limit 3", "--limit: for tasks alone; pass --tasks NAMES in place of --text"),
    ("eval MODEL --tasks a --window 3", "--window: for --text alone; leave it out"),
    ("eval MODEL --tasks ,", "--tasks names no task"),
    ("eval ./none --tasks a", GONE),
    ("compare MODEL --schemes pot3", "MissingParameter: Missing parameter: text"),
    ("eval ./none --text pydoc", GONE),
    ("eval MODEL --text none.txt", "cannot read the text none.txt"),
    ("eval MODEL --text pydoc --dtype int4", "invalid dtype 'int4'"),
    ("eval MODEL --text pydoc --layer 3", "pass --bertscore ENCODER too"),
    ("eval MODEL --text pydoc --prompts 3", "pass --bertscore ENCODER too"),
    ("eval MODEL --text pydoc --bertscore MODEL --reference ./none", GONE),
    ("eval MODEL --text pydoc --bertscore ./none", GONE),
    ("compare ./none --schemes pot3 --text pydoc", GONE),
    ("compare MODEL --schemes pot33 --text pydoc", "unknown preset 'pot33'"),
    ("compare MODEL --schemes pot3 --efforts fast,bset --text pydoc", "did you mean 'best'?"),
    ("compare MODEL --schemes pot3 --text none.txt", "cannot read the text none.txt"),
    ("compare MODEL --schemes pot3 --text pydoc --efforts gptq --calibration none.txt", "cannot read the text none.txt"),
    ("compare MODEL --schemes pot3 --text pydoc --resume none/rows.json", "cannot keep rows in none/rows.json"),
    ("compare MODEL --schemes pot3 --text pydoc --plot none/plot.png", "cannot write the plot none/plot.png"),
    ("compare MODEL --schemes pot3 --text pydoc --html none/a.html", "cannot write the page none/a.html"),
    ("compare MODEL --schemes pot3 --text pydoc --calibration self", "are for efforts beyond fast"),
    ("compare MODEL --schemes pot3 --text pydoc --efforts gptq --calibration tinystories", "roneneldan/TinyStories::train"),
    ("compare MODEL --schemes pot3 --text pydoc --seed 1", "are for efforts beyond fast"),
    ("inspect ./none", GONE),
    ("inspect .", "config.json is missing"),
    ("inspect PACKED --scheme pot3", "is quantized already; --scheme shows"),
    ("inspect MODEL --plot levels.png", "is not quantized by potq, so that no levels are used"),
    ("inspect PACKED --plot none/plot.png", "cannot write the plot none/plot.png"),
    ("export ./none OUT.gguf --to gguf", GONE),
    ("export MODEL OUT.gguf --to gguf", "is not quantized by potq"),
    ("export PACKED OUT --to gguf", "does not end in .gguf"),
    ("export PACKED MODEL --to compressed-tensors", "exists; choose another output folder"),
    ("export --list --to gguf", "--list shows every format"),
    ("export --list --allow-8bit", "--list shows every format"),
    ("export --list --schemes pot33", "unknown preset 'pot33'"),
]


@pytest.mark.parametrize(
    "command", ["quantize", "train", "generate", "chat", "eval", "compare", "inspect", "export", "hardware"]
)
def test_mistakes_are_told_before_torch_is_loaded(
    command: str, tiny_folder: Path, packed_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "base.gguf").write_bytes(b"GGUF, and no template")
    paths = {"GGUF": tmp_path / "base.gguf", "MODEL": tiny_folder, "PACKED": packed_folder, "OUT": tmp_path / "out"}
    chosen = [(words.split(), message) for words, message in CASES if words.split()[0] == command]
    filled = [[_filled(word, paths) for word in words] for words, _ in chosen]
    run = [sys.executable, "-c", SCRIPT, json.dumps(filled)]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    for (words, message), (told, loaded) in zip(chosen, json.loads(done.stdout), strict=True):
        assert _filled(message, paths) in told, words
        assert loaded == [], words
    assert not (tmp_path / "out").exists()


def _filled(word: str, paths: dict[str, Path]) -> str:
    for name, path in paths.items():
        word = word.replace(name, str(path))
    return word
