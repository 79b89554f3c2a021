"""A task of lm-evaluation-harness whose questions lie in a file beside it."""

import json
from pathlib import Path

_WORDS = ["return", "import", "yield", "lambda", "argument", "parser"]
ANSWERS = [number % 3 for number in range(12)]
CHOICES = [[_WORDS[(number + place) % 6] for place in range(3)] for number in range(12)]
QUESTIONS = [f"Question {number}: which word is it?" for number in range(12)]

_TASK = """\
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""


def save_local_task(folder: Path) -> None:
    """Make the task `local_choice` of 12 questions in `folder`."""
    rows = zip(QUESTIONS, CHOICES, ANSWERS, strict=True)
    keys = ("question", "choices", "answer")
    questions = folder / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows)
    )
    (folder / "local_choice.yaml").write_text(_TASK.format(questions=questions))
