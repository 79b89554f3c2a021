"""A run that one image began goes on with the next one, whose Python has another library."""

import signal
from pathlib import Path

import pytest

from tests.support.forked_job import ForkedJobRunner, signal_in_step
from tests.support.job import assert_same_checkpoint, losses, newest_checkpoint
from tests.support.other_image import become_image, write_library

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("other image")]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("images")
    words = {"old": "the words of one image", "new": "and some that the next image has"}
    return {name: write_library(folder / name, text) for name, text in words.items()}


@pytest.fixture(params=["builtin", "mixture"], scope="module")
def environment(
    request: pytest.FixtureRequest,
    job_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    corpus = tmp_path_factory.mktemp("text") / "corpus.txt"
    corpus.write_text("words beside the builtin text, line after line\n" * 200)
    return {
        **job_environment,
        "DATASET": "builtin" if request.param == "builtin" else f"builtin:0.7,{corpus}:0.3",
        "TOKENIZER": "builtin",
        "TRAINER": "torch",
        "TOTAL_STEPS": "6",
        "CHECKPOINT_EVERY_STEPS": "3",
    }


def job(environment: dict[str, str], library: Path, store: Path, node: Path) -> ForkedJobRunner:
    places = {"CHECKPOINT_URI": f"file://{store}", "DATA_DIR": str(node)}
    return ForkedJobRunner({**environment, **places}).preceded_by(become_image, library)


def become_image_and_die(library: Path, step: int) -> None:
    become_image(library)
    signal_in_step(step, signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(
    environment: dict[str, str],
    images: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run of one image."""
    folder = tmp_path_factory.mktemp("whole")
    finished = job(environment, images["old"], folder / "store", folder / "node").run("train")
    assert finished.code == 0, finished.log
    return folder / "store" / "tiny"


@pytest.mark.parametrize("step", [2, 5], ids=["before a checkpoint", "after one"])
def test_a_run_of_one_image_goes_on_with_the_next_one_with_the_same_bits(
    step: int,
    whole: Path,
    environment: dict[str, str],
    images: dict[str, Path],
    tmp_path: Path,
) -> None:
    first = job(environment, images["old"], tmp_path / "store", tmp_path / "node")
    killed = first.preceded_by(become_image_and_die, images["old"], step).run("train")
    assert killed.code == -signal.SIGKILL, killed.log
    run = tmp_path / "store" / "tiny"
    finished = job(environment, images["new"], tmp_path / "store", tmp_path / "other").run("train")
    assert finished.code == 0, finished.log
    assert finished.log.count("the builtin text that the run was begun with") == 1
    assert finished.log.count("TOKENIZER=builtin: the one that the run was begun with") == 1
    assert_same_checkpoint(newest_checkpoint(whole), newest_checkpoint(run))
    assert losses(run) == losses(whole)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        one, other = newest_checkpoint(whole) / name, newest_checkpoint(run) / name
        assert one.read_bytes() == other.read_bytes()


def test_every_command_of_the_next_image_reads_what_the_run_was_begun_with(
    whole: Path, environment: dict[str, str], images: dict[str, Path], tmp_path: Path
) -> None:
    store = whole.parent
    old = job(environment, images["old"], store, tmp_path / "old")
    new = job(environment, images["new"], store, tmp_path / "new")
    shown = []
    for image in (old, new):
        prepared = image.run("prepare")
        assert prepared.code == 0, prepared.log
        seen = image.run("data", "show", "--step", "2", "--json")
        assert seen.code == 0 and '"samples"' in seen.log, seen.log
        shown.append(seen.log[seen.log.index("{") :])
    assert shown[0] == shown[1]
    (tokens,) = (tmp_path / "old" / "tokens").iterdir()
    (same,) = (tmp_path / "new" / "tokens").iterdir()
    assert tokens.name == same.name
    assert new.run("generate", "--prompt", "words", "--max_tokens", "5").code == 0
    again = new.run("train")
    assert again.code == 0 and "nothing to do" in again.log, again.log


def test_a_run_that_has_kept_nothing_is_told_how_to_go_on(
    environment: dict[str, str], images: dict[str, Path], tmp_path: Path
) -> None:
    old = job(environment, images["old"], tmp_path / "store", tmp_path / "node")
    new = job(environment, images["new"], tmp_path / "store", tmp_path / "other")
    begun = old.with_(TOTAL_STEPS="3").run("train")
    assert begun.code == 0, begun.log
    for kept in (tmp_path / "store" / "tiny" / "inputs").iterdir():
        kept.unlink()
    extended = {"TOTAL_STEPS": "3", "ADDITIONAL_STEPS": "1"}
    refused = new.with_(**extended).run("train")
    assert refused.code == 78, refused.log
    assert "start the run once with the image that began it" in refused.log
    assert old.with_(**extended).run("train").code == 0
    gone_on = new.with_(**extended).run("train")
    assert gone_on.code == 0, gone_on.log
