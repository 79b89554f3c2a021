"""What changed in a run's data is said file by file; old and damaged source.json do no harm."""

import json
from pathlib import Path

import pytest

from app.recorded_source import SOURCE, difference, remember_parts
from app.stores import Store, open_store
from tests.test_start import Train, assert_refused, train

__all__ = ["train"]

PARTS = {"a.txt": "1", "b.txt": "2", "c.txt": "3"}


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}", "run")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (PARTS, ""),
        ({**PARTS, "b.txt": "9"}, "changed: b.txt"),
        (
            {"a.txt": "1", "d.txt": "3", "c.txt": "4"},
            "changed: c.txt; added: d.txt; removed: b.txt",
        ),
        (
            PARTS | {f"{n}.txt": "0" for n in range(8)},
            "added: 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 3 more",
        ),
        ({"builtin": "1"}, ""),
        (dict.fromkeys(map(str, range(6000)), ""), "3 parts before, 6,000 now"),
    ],
)
def test_the_difference_names_the_first_few_of_each_kind(
    folder: Store, now: dict[str, str], said: str
) -> None:
    remember_parts(folder, PARTS)
    assert difference(folder, now) == said


def test_what_was_kept_first_stays(folder: Store) -> None:
    remember_parts(folder, PARTS)
    remember_parts(folder, {"other": "1"})
    assert difference(folder, PARTS) == ""


def test_of_very_many_parts_the_number_is_kept(folder: Store) -> None:
    remember_parts(folder, dict.fromkeys(map(str, range(100_000)), "0" * 16))
    content, _ = folder.get(SOURCE)
    assert len(content) < 100
    assert difference(folder, PARTS) == "100,000 parts before, 3 now"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"count": 1, "parts": {"a": 3}}',
        b'{"count": "many", "parts": null}',
    ],
)
def test_a_damaged_file_explains_nothing_and_stops_nothing(folder: Store, content: bytes) -> None:
    folder.put(SOURCE, [content])
    assert difference(folder, PARTS) == ""


def test_a_run_whose_files_changed_is_refused_with_their_names(
    train: Train, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("one", "two", "three"):
        (corpus / f"{name}.txt").write_text(f"{name} word after word\n" * 150)
    assert train(DATASET=str(corpus))[0] == 0
    (corpus / "two.txt").write_text("other words\n" * 300)
    (corpus / "one.txt").rename(corpus / "four.txt")
    outcome = train(DATASET=str(corpus), ADDITIONAL_STEPS="2")
    assert_refused(outcome, 78, "changed: two.txt; added: four.txt; removed: one.txt")


def test_a_run_of_an_older_version_is_refused_without_names_and_remembers_from_now_on(
    train: Train, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("word after word\n" * 400)
    assert train(DATASET=str(corpus))[0] == 0
    kept = tmp_path / "store" / "tiny" / SOURCE
    before = json.loads(kept.read_text())
    kept.unlink()
    assert train(DATASET=str(corpus), ADDITIONAL_STEPS="2")[0] == 0
    assert json.loads(kept.read_text()) == before
    kept.unlink()
    corpus.write_text("other words\n" * 400)
    outcome = train(DATASET=str(corpus), ADDITIONAL_STEPS="2")
    assert_refused(outcome, 78, f"DATASET {str(corpus)!r} changed its content. Set")
