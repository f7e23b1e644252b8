"""Small tasks of lm-evaluation-harness whose data lie beside them."""

from __future__ import annotations

import json
from pathlib import Path

NAMES = ("tiny_choice", "tiny_rolling", "tiny_writing")

_CHOICES = [
    {"question": "the cat sat on", "choices": [" the mat", " the other cat", "!"], "label": 0},
    {"question": "the mat, then the", "choices": [" other cat", " zwölf"], "label": 0},
    {"question": "", "choices": ["cat", "mat", "hat"], "label": 2},
    {"question": "one two three four " * 9, "choices": ["five", " six"], "label": 1},
]
_TEXTS = [{"text": "the cat sat on the mat, then the other cat. " * 7}, {"text": "zwölf Boxkämpfer"}, {"text": "a"}]
_PROMPTS = [{"question": "the cat", "answer": "x"}, {"question": "the mat on the mat", "answer": "y"}]

_CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""
_ROLLING = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: byte_perplexity
"""
_WRITING = """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n\\n"]
  max_gen_toks: 12
  do_sample: false
  temperature: 0.0
metric_list:
  - metric: exact_match
"""


def write_tasks(folder: Path) -> Path:
    """Task files in ``folder``, for :data:`NAMES`."""
    for name, rows, settings in zip(NAMES, (_CHOICES, _TEXTS, _PROMPTS), (_CHOICE, _ROLLING, _WRITING), strict=True):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        where = f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\n"
        (folder / f"{name}.yaml").write_text(f"{where}  cache_dir: {folder / 'cache'}\ntest_split: test\n{settings}")
    return folder
