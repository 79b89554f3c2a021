"""A run's data are those that it was begun with, and what changed in them is said."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli import parser as cli
from app.errors import AccessDenied, ConfigError, Damaged, IncompatibleRun, Unavailable
from app.run.layout import RECORD, SOURCE
from app.run.record import create_record
from app.run.recorded_source import _SAME, difference, remember_parts, source_of_named_run
from app.settings.variables import DataSettings, variables
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.hubserver import REVISION, Requests, hub
from tests.support.interposed import Interposed
from tests.support.stored_run import IDENTITY
from tests.support.train_command import Train, assert_refused

PARTS = {"a.txt": "1", "b.txt": "2", "c.txt": "3"}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (PARTS, _SAME),
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
    assert difference(folder, PARTS) == _SAME


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


BEGUN, NEWEST = "b" * 40, REVISION
ON_HUB = DataSettings(dataset="o/good")


@pytest.fixture
def on_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Requests]:
    files = {"train.jsonl": b"".join(b'{"text": "row %d of the text"}\n' % i for i in range(90))}
    with hub(monkeypatch, tmp_path, files) as requests:
        yield requests


def begin(uri: str, name: str, revision: str, dataset: str = "o/good") -> None:
    identity = IDENTITY.model_copy(update={"dataset": dataset, "dataset_revision": revision})
    create_record(open_store(uri, name), name, identity, 20)


def test_a_command_that_looks_at_data_takes_the_commit_of_the_run(
    on_hub: Requests, tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/store"
    begin(uri, "tiny", BEGUN)
    assert source_of_named_run(ON_HUB, uri, ["smollm2-135m", "tiny"]).revision == BEGUN
    assert on_hub == [], "a known commit needs no hub"


@pytest.mark.parametrize("begun", ["no run", "another dataset"])
def test_without_a_run_of_this_dataset_the_newest_commit_is_taken_with_a_warning(
    begun: str, on_hub: Requests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"file://{tmp_path}/store"
    if begun == "another dataset":
        begin(uri, "tiny", BEGUN, "o/other")
    assert source_of_named_run(ON_HUB, uri, ["tiny"]).revision == NEWEST
    assert caplog.messages == [
        f"DATASET=o/good is taken at its newest commit on the hub, since {uri} holds no run tiny "
        "that was begun with one"
    ]
    assert (tmp_path / "store").exists() == (begun != "no run"), "looking leaves nothing behind"


@pytest.mark.parametrize(
    ("content", "failure"), [(b"{", Damaged), (b'{"format_version": 99}', IncompatibleRun)]
)
@pytest.mark.parametrize("names", [["tiny"], ["tiny", "another"], ["another", "tiny"]], ids=str)
def test_a_record_that_cannot_be_understood_is_not_passed_over(
    content: bytes,
    failure: type[ConfigError],
    names: list[str],
    on_hub: Requests,
    tmp_path: Path,
) -> None:
    uri = f"file://{tmp_path}/store"
    begin(uri, "another", NEWEST)
    open_store(uri, "tiny").put(RECORD, [content])
    with pytest.raises(failure, match=r"store/tiny/run.json"):
        source_of_named_run(ON_HUB, uri, names)
    assert on_hub == [], "no other commit is looked for"


HOW_TO_DO_WITHOUT = r"^DATASET=o/good .* the store does not say \(write owner/name@COMMIT .*\): "


@pytest.mark.usefixtures("no_backoff")
def test_a_store_that_refuses_or_is_silent_is_no_store_without_runs(
    on_hub: Requests,
    bucket: str,
    s3_answers: Interposed,
    closed_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = f"s3://{bucket}/prefix"
    begin(uri, "tiny", BEGUN)
    s3_answers.answering = lambda environ: (403, "<Error><Code>AccessDenied</Code></Error>")
    with pytest.raises(AccessDenied, match=HOW_TO_DO_WITHOUT + f"CHECKPOINT_URI: {uri}"):
        source_of_named_run(ON_HUB, uri, ["tiny"])
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", closed_endpoint)
    with pytest.raises(Unavailable, match=HOW_TO_DO_WITHOUT + f"CHECKPOINT_URI: {uri}"):
        source_of_named_run(ON_HUB, uri, ["tiny"])
    assert on_hub == [], "no other commit is looked for"
    pinned = ON_HUB.model_copy(update={"dataset": f"o/good@{BEGUN}"})
    assert source_of_named_run(pinned, uri, ["tiny"]).revision == BEGUN


def test_of_two_runs_with_different_commits_one_has_to_be_named(
    on_hub: Requests, tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/store"
    begin(uri, "smollm2-135m", BEGUN)
    begin(uri, "tiny", NEWEST)
    with pytest.raises(ConfigError, match=r"runs smollm2-135m and tiny with .* set RUN_NAME"):
        source_of_named_run(ON_HUB, uri, ["smollm2-135m", "tiny"])
    assert source_of_named_run(ON_HUB, uri, ["tiny"]).revision == NEWEST


@pytest.mark.parametrize("dataset", ["file", f"o/good@{NEWEST}"])
def test_of_data_that_neither_a_commit_nor_an_image_changes_the_store_is_not_asked(
    dataset: str, on_hub: Requests, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if dataset == "file":
        dataset = str(tmp_path / "a.txt")
        Path(dataset).write_text("some text\n")
    monkeypatch.setattr("app.run.recorded_source.open_store", None)
    source_of_named_run(DataSettings(dataset=dataset), "s3://bucket/x", ["tiny"])
    assert on_hub == []


def words_of_run(
    tmp_path: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    for variable in variables():
        monkeypatch.delenv(variable.name, raising=False)
    variables_of_run = {
        "dataset": "o/good",
        "tokenizer": str(small_tokenizer),
        "data_dir": str(tmp_path / "data"),
        "checkpoint_uri": f"file://{tmp_path}/store",
        "device": "cpu",
        "seq_len": "8",
    }
    return [word for name, value in variables_of_run.items() for word in (f"--{name}", value)]


def test_prepare_makes_no_tokens_of_another_commit_where_the_record_is_damaged(
    on_hub: Requests,
    tmp_path: Path,
    small_tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of_run(tmp_path, small_tokenizer, monkeypatch)
    open_store(f"file://{tmp_path}/store", "tiny").put(RECORD, [b"{"])
    for command in (["prepare"], ["data", "stats"], ["data", "show", "--step", "1"]):
        assert cli.main([*command, *words]) == 78
        assert "run.json is damaged" in capsys.readouterr().err
    assert not (tmp_path / "data" / "tokens").exists()


def test_prepare_and_data_stats_read_what_train_reads(
    on_hub: Requests,
    tmp_path: Path,
    small_tokenizer: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = words_of_run(tmp_path, small_tokenizer, monkeypatch)
    assert cli.main(["prepare", "--all", *words]) == 0
    begin(f"file://{tmp_path}/store", "tiny", REVISION)
    monkeypatch.setattr("tests.support.hubserver.REVISION", "c" * 40)  # a new commit
    on_hub.clear()
    capsys.readouterr()
    for command in (["prepare", "--all"], ["data", "stats"], ["data", "show", "--step", "1"]):
        assert cli.main([*command, *words]) == 0, capsys.readouterr().err
    assert on_hub == []
    assert "WARNING" not in capsys.readouterr().err
    assert len(list((tmp_path / "data" / "tokens").iterdir())) == 1
