"""What the comparison of recipes computes from its runs. The runs themselves take minutes."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.curve import Curve, draw
from bench.recipes import (
    EVERY,
    NAMED,
    ORIGINAL,
    SEQ_LEN,
    SMOLLM2,
    STEPS,
    Corpus,
    Results,
    Run,
    spread,
    train,
)


def run(*losses: float) -> Run:
    return Run(ORIGINAL, 1, losses, 1.0)


def test_steps_to_a_loss_lie_on_the_line_between_two_evaluations() -> None:
    assert run(6.0, 5.0, 4.0).steps_to(4.5) == pytest.approx(2.5 * EVERY)
    assert run(6.0, 5.0, 5.5, 4.0).steps_to(5.0) == pytest.approx(2 * EVERY)
    assert run(6.0, 5.0).steps_to(6.5) == EVERY
    assert run(6.0, 5.0).steps_to(4.9) is None


def test_a_spread_is_the_median_and_the_range() -> None:
    assert spread([3.0, 1.0, 2.0], 1) == "2.0 (1.0 to 3.0)"
    assert spread([], 1) == "never"


def test_the_original_recipe_is_the_jobs_default() -> None:
    from app.settings.variables import OptimizerSettings

    changed = ORIGINAL.settings.model_dump().items() - OptimizerSettings().model_dump().items()
    assert {name for name, _ in changed} == {"warmup_steps"}
    assert {recipe.init for recipe in NAMED.values()} == {"normal", "scaled"}


def test_a_run_learns_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 4, "EVERY": 2, "VALIDATION_SEQUENCES": 8}.items():
        monkeypatch.setattr(f"bench.recipes.{name}", value)
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{n} and {n * 7} make {n * 8}.\n" for n in range(4000)))
    corpus, results = Corpus(text), Results(tmp_path / "runs.jsonl")
    results.make(SMOLLM2, 1, corpus)
    results.make(SMOLLM2, 1, corpus)
    (made,) = results.of(SMOLLM2)
    assert len(made.losses) == 2 and made.losses[1] < made.losses[0] < 7.0
    assert train(SMOLLM2, 1, corpus).losses == made.losses
    assert corpus.batch(0, 1).shape[1] == SEQ_LEN + 1


def test_the_curve_is_an_svg_with_a_line_for_each_recipe() -> None:
    points = [(step, 3.0, 4.0, 5.0) for step in range(EVERY, STEPS + 1, EVERY)]
    root = ET.fromstring(draw([Curve("a < b", points), Curve("c", points)], [3.5]))
    lines = [child for child in root if child.tag.endswith("polyline")]
    assert [len(line.attrib["points"].split()) for line in lines] == [len(points)] * 2
    assert {"a < b", "c"} <= {child.text for child in root}
