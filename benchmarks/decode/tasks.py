"""What rounded activations cost in tasks: ``python -m benchmarks.decode.tasks --work DIR [--data DIR]``

SmolLM2-135M in apot4 throughout, rounded to nearest, asked by lm-evaluation-harness through the engine with float and with
int8 activations, and through transformers' modules with float ones by the harness's own HFLM. The tasks are made of
WikiText-2 test: which of four continuations is a paragraph's own, and whole paragraphs. Wants ``pip install 'potq[eval]'``.
Rows are kept as they come; a killed run resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import potq
from benchmarks.common.goals import Row
from benchmarks.decode.files import Ours
from benchmarks.decode.goals import TASKS
from potq import kernels
from potq.evaluate.harness import EngineLM
from potq.evaluate.tasks import modules_model, run_tasks, task_manager

QUESTIONS, CHOICES, TEXTS = 100, 4, 20
CONTEXT_WORDS, ANSWER_WORDS = 24, 10
PROTOCOL = {
    "model": "SmolLM2-135M, apot4 throughout, effort fast",
    "continuations": f"{QUESTIONS} paragraphs of WikiText-2 test: {CONTEXT_WORDS} words, then which {ANSWER_WORDS} go on; "
    f"{CHOICES} answers, all but one of other paragraphs",
    "paragraphs": f"the likelihood of {TEXTS} paragraphs",
}
_CONTINUATIONS = """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
"""
_PARAGRAPHS = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
"""


def documents(data: Path) -> dict[str, tuple[str, list[Row]]]:
    """The tasks by name: their settings, and their documents."""
    text = (data / "wikitext2" / "hf_joined_test.txt").read_text(encoding="utf-8")
    least = CONTEXT_WORDS + ANSWER_WORDS
    paragraphs = [line.split() for line in text.splitlines() if len(line.split()) >= least and not line.startswith(" =")]
    chosen = random.Random(0)
    chosen.shuffle(paragraphs)
    asked, rest = paragraphs[:QUESTIONS], paragraphs[QUESTIONS:]
    answers = [[" ".join(words[CONTEXT_WORDS:least]) for words in (own, *chosen.sample(rest, CHOICES - 1))] for own in asked]
    questions: list[Row] = []
    for words, choices in zip(asked, answers, strict=True):
        mixed = chosen.sample(choices, CHOICES)
        question = " ".join(words[:CONTEXT_WORDS])
        questions.append({"question": question, "choices": mixed, "label": mixed.index(choices[0])})
    texts = [{"text": " ".join(words)} for words in rest[:TEXTS]]
    return {"continuations": (_CONTINUATIONS, questions), "paragraphs": (_PARAGRAPHS, texts)}


def write_tasks(tasks: Mapping[str, tuple[str, list[Row]]], folder: Path) -> None:
    """The harness's files of ``tasks``."""
    for name, (settings, listed) in tasks.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(document)}\n" for document in listed), encoding="utf-8")
        where = f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {file}}}\n"
        (folder / f"{name}.yaml").write_text(
            f"{where}  cache_dir: {folder / 'cache'}\ntest_split: test\n{settings}", encoding="utf-8"
        )


def runs(folder: Path) -> dict[str, Callable[[Callable[[Any], list[Row]]], list[Row]]]:
    """What answers, by name; each is loaded when it is asked."""

    def by_engine(activations: kernels.Activations) -> Callable[[Callable[[Any], list[Row]]], list[Row]]:
        def run(ask: Callable[[Any], list[Row]]) -> list[Row]:
            with potq.Engine(folder, activations=activations, context=2048) as engine:
                return ask(EngineLM(engine))

        return run

    def by_modules(ask: Callable[[Any], list[Row]]) -> list[Row]:
        model = potq.load(folder, dtype="float32").eval()
        kernels.set_activations(model, "float")
        return ask(modules_model(model, potq.load_tokenizer(folder)))

    return {"modules, float": by_modules, "engine, float": by_engine("float"), "engine, int8": by_engine("int8")}


def measure(data: Path, work: Path, known: set[str]) -> Iterator[list[Row]]:
    tasks = documents(data)
    with tempfile.TemporaryDirectory() as place:
        write_tasks(tasks, Path(place))
        manager = task_manager(list(tasks), Path(place))
        for name, run in runs(Ours("apot4", "apot4", "apot4").folder(work)).items():

            def ask(model: Any, name: str = name) -> list[Row]:
                scores = run_tasks(model, list(tasks), manager)
                return [{"run": name, "task": each.task, "metric": each.metric, "score": each.value} for each in scores]

            if name not in known:
                yield run(ask)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the packed model")
    parser.add_argument("--data", type=Path, default=os.environ.get("POTQ_DATA"), help="folder of texts")
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data DIR or set POTQ_DATA")
    options.work.mkdir(parents=True, exist_ok=True)
    rows = TASKS.load(PROTOCOL)
    for found in measure(Path(options.data), options.work, {row["run"] for row in rows}):
        rows += found
        TASKS.write(PROTOCOL, rows)
        print(*found, sep="\n", flush=True)


if __name__ == "__main__":
    main()
