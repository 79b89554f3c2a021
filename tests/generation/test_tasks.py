"""Tasks of lm-evaluation-harness, on questions that lie in a local file."""

import json
import re
from pathlib import Path

import pytest
import torch

from app.errors import ConfigError, NotFound
from app.generation.evaluated import Evaluated, evaluated_directory
from app.generation.tasks import (
    TaskResult,
    TaskSettings,
    arc_average,
    check_installed,
    run_tasks,
    task_names,
    transformers_model,
)
from app.observe.published import published
from tests.support.local_task import ANSWERS, CHOICES, QUESTIONS, save_local_task
from tests.support.small_model import save_small_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def evaluated(small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    directory = tmp_path_factory.mktemp("models") / "small"
    save_small_model(directory, small_tokenizer)
    # What a checkpoint may hold besides: a program that must never be run.
    (directory / "evil.py").write_text("raise SystemExit('executed')")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["evil.Tokenizer", None]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return evaluated_directory(str(directory))


@torch.inference_mode()
def plainly_right(evaluated: Evaluated, model: torch.nn.Module, question: int) -> bool:
    """Whether our own model finds the right answer the likeliest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(evaluated.directory / "tokenizer.json"))
    asked = tokenizer.encode(QUESTIONS[question]).ids
    likely = []
    for choice in CHOICES[question]:
        ids = tokenizer.encode(f"{QUESTIONS[question]} {choice}").ids
        logits = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        places = range(len(asked), len(ids))
        likely.append(sum(logits[place - 1, ids[place]].item() for place in places))
    return max(range(len(likely)), key=likely.__getitem__) == ANSWERS[question]


def test_the_accuracy_is_that_of_our_own_model_question_by_question(
    evaluated: Evaluated, tmp_path: Path
) -> None:
    save_local_task(tmp_path)
    begun: list[int] = []
    found = run_tasks(
        evaluated, CPU, TaskSettings(["local_choice"], tmp_path, batch_size=3), begun.append
    )
    by_metric = {one.metric: one for one in found}
    right = [plainly_right(evaluated, evaluated.model(CPU), n) for n in range(len(QUESTIONS))]
    assert 0 < sum(right) < len(right)
    accuracy = by_metric["acc"]
    assert accuracy.value == sum(right) / len(right)
    assert (accuracy.samples, accuracy.fewshot, begun) == (12, 0, [12])
    assert accuracy.stderr is not None and 0 < accuracy.stderr < 0.5
    assert set(by_metric) == {"acc", "acc_norm"}
    limited = run_tasks(evaluated, CPU, TaskSettings(["local_choice"], tmp_path, limit=4))
    assert {one.samples for one in limited} == {4}
    assert limited[0].value == sum(right[:4]) / 4


def test_the_model_of_transformers_says_what_ours_says(evaluated: Evaluated) -> None:
    ids = torch.arange(32)[None]
    with torch.inference_mode():
        theirs, ours = transformers_model(evaluated, CPU)(ids).logits, evaluated.model(CPU)(ids)
    assert torch.allclose(theirs, ours, rtol=1e-4, atol=1e-4)


def test_a_task_that_nobody_knows_is_refused_by_name(evaluated: Evaluated, tmp_path: Path) -> None:
    save_local_task(tmp_path)
    with pytest.raises(NotFound, match=r"knows a task 'nonsense'") as error:
        run_tasks(evaluated, CPU, TaskSettings(["nonsense"], tmp_path))
    assert str(tmp_path) in str(error.value)


def test_short_names_are_those_that_the_harness_knows() -> None:
    named = task_names("HellaSwag, arc,piqa,lambada,arc_easy")
    assert named == ["hellaswag", "arc_easy", "arc_challenge", "piqa", "lambada_openai"]
    from lm_eval.tasks import TaskManager

    assert set(named) <= set(TaskManager().all_tasks)
    with pytest.raises(ConfigError, match="commas"):
        task_names("piqa,,arc")


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_installed("unused")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    says = re.escape("pip install -r requirements-evaluation.txt")
    with pytest.raises(ConfigError, match=rf"lm_eval, which is not installed: {says}"):
        check_installed("pip install -r requirements-evaluation.txt")


def test_both_parts_of_arc_have_the_mean_that_is_published() -> None:
    easy = TaskResult("arc_easy", "acc_norm", 0.5, 0.03, 100, 0, "1.0")
    hard = TaskResult("arc_challenge", "acc_norm", 0.25, 0.04, 50, 0, "1.0")
    mean = arc_average([easy, hard])
    assert mean is not None
    assert (mean.value, mean.samples) == (0.375, 150)
    assert mean.stderr == pytest.approx(0.025)
    assert published(mean.task, mean.metric) == 0.439
    assert arc_average([easy]) is None
    assert published("lambada_openai", "acc") is None
