"""`checkpoints verify`: damage that a start would find is found, and nothing else is called so."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.cli import parser as cli
from app.run.committing import commit
from app.run.fetching import fetch
from app.run.journal import AttemptJournal
from app.run.layout import LATEST, CheckpointName
from app.run.record import create_record
from app.run.retention import quarantine
from app.run.verification import Verification
from app.run.view import read_view
from app.settings.variables import variables
from app.state.snapshot import STATE_FILES
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.stored_run import IDENTITY, FreeLease, attempt_record
from tests.support.training_state import state_without_tensors

NEWEST = "checkpoints/step-0000000006-e000001"

Verify = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def run(tmp_path: Path) -> Store:
    """A run with an attempt and the checkpoints of steps 2, 4 and 6."""
    store = open_store(f"file://{tmp_path}", "tiny")
    create_record(store, "tiny", IDENTITY, 6)
    AttemptJournal(store, attempt_record(1)).begin()
    for step in (2, 4, 6):
        commit(store, CheckpointName(step, 1), state_without_tensors(step), 1.0, FreeLease(store))
    return store


@pytest.fixture
def verify(
    run: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Verify:
    """Run the command. Returns exit code, the lines before the attempts, and the errors."""
    for variable in variables():
        monkeypatch.delenv(variable.name, raising=False)

    def verify(*words: str) -> tuple[int, list[str], str]:
        code = cli.main(
            ["checkpoints", "verify", *words, "--model=tiny", f"--checkpoint_uri=file://{tmp_path}"]
        )
        shown = capsys.readouterr()
        lines, _, attempts = shown.out.partition("\n\n")
        assert attempts.splitlines()[1].endswith("no end recorded: killed, or still running")
        return code, lines.splitlines(), shown.err

    return verify


def assert_damage(found: tuple[int, list[str], str], line: str) -> None:
    code, lines, errors = found
    assert code == 78
    assert [text for text in lines if "DAMAGED" in text] == [line]
    assert f"is damaged: {line.split(maxsplit=1)[0]} (exit 78)" in errors


def test_a_run_that_is_whole_is_verified_and_its_attempts_are_shown(verify: Verify) -> None:
    code, lines, errors = verify()
    assert (code, errors) == (0, "")
    assert lines == [
        "step-0000000006-e000001  ok",
        "step-0000000004-e000001  ok",
        "step-0000000002-e000001  ok",
        "3 checkpoints verified",
    ]
    assert verify("4")[1] == ["step-0000000004-e000001  ok", "1 checkpoint verified"]


def test_a_byte_that_changed_is_damage(verify: Verify, tmp_path: Path) -> None:
    path = tmp_path / "tiny/checkpoints/step-0000000002-e000001/state.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    assert_damage(
        verify(),
        "step-0000000002-e000001  DAMAGED: checkpoints/step-0000000002-e000001/state.json does "
        "not match its SHA-256 in the manifest",
    )
    assert verify("4")[0] == 0


def test_a_manifest_that_lacks_what_a_start_needs_is_damage(verify: Verify, run: Store) -> None:
    manifest = json.loads(run.get(f"{NEWEST}/manifest.json")[0])
    del manifest["files"]["optimizer.safetensors"]
    run.put(f"{NEWEST}/manifest.json", [json.dumps(manifest).encode()])
    assert_damage(
        verify(),
        f"step-0000000006-e000001  DAMAGED: {NEWEST}/manifest.json does not list "
        "optimizer.safetensors",
    )


def test_the_newest_without_its_manifest_is_damage(
    verify: Verify, run: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.delete([f"{NEWEST}/manifest.json"])
    assert_damage(verify(), f"step-0000000006-e000001  DAMAGED: {NEWEST}/manifest.json is missing")
    cli.main(["checkpoints", "list", "--model=tiny", f"--checkpoint_uri=file://{tmp_path}"])
    assert "damaged: its manifest is missing" in capsys.readouterr().out


def test_what_latest_names_has_to_be_there(verify: Verify, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "tiny" / NEWEST)
    gone = "step-0000000006-e000001  DAMAGED: LATEST names it, and it is not there"
    assert_damage(verify(), gone)
    shutil.rmtree(tmp_path / "tiny" / "checkpoints")
    assert_damage(verify(), gone)


def test_no_checkpoint_is_damage_where_an_attempt_went_on_from_one(
    verify: Verify, run: Store, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "tiny" / "checkpoints")
    run.delete([LATEST])
    code, lines = verify()[:2]
    assert (code, len(lines)) == (0, 1) and "holds no checkpoint yet" in lines[0]
    AttemptJournal(run, attempt_record(2, 4)).begin()
    assert_damage(
        verify(),
        "run.json  DAMAGED: attempts has one that went on from step 4, but no checkpoint is left",
    )


def test_an_unfinished_upload_is_said_and_is_no_damage(verify: Verify, run: Store) -> None:
    run.put("checkpoints/step-0000000008-e000001/state.json", [b"{}"])
    code, lines, _ = verify()
    assert code == 0
    assert lines[0] == "step-0000000008-e000001  unfinished upload"
    assert lines[-1] == "3 checkpoints verified"


def test_a_late_checkpoint_is_said_and_is_no_damage(verify: Verify, run: Store) -> None:
    AttemptJournal(run, attempt_record(2, 4)).begin()
    code, lines, _ = verify()
    assert code == 0
    assert lines[0] == "step-0000000006-e000001  late: not part of the run"


def test_damage_that_a_start_has_set_aside_is_none_any_more(verify: Verify, run: Store) -> None:
    quarantine(run, CheckpointName(6, 1), "damaged", FreeLease(run))
    code, lines, _ = verify()
    assert (code, lines[-1]) == (0, "2 checkpoints verified")


def test_a_checkpoint_that_is_pruned_meanwhile_is_no_damage(
    run: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def scratch() -> Iterator[Path]:
        yield tmp_path

    def pruned(store: Store, name: CheckpointName, folder: Path, **rest: Any) -> Path:
        if name.step == 2:
            run.delete([name.key("manifest.json"), name.key("state.json")])
        return fetch(store, name, folder, **rest)

    monkeypatch.setattr("app.run.verification.fetch", pruned)
    found = list(Verification(run, scratch, STATE_FILES).whole_run())
    assert [(finding.text, finding.damaged) for finding in found] == [
        ("ok", False),
        ("ok", False),
        ("removed just now", False),
    ]


def test_a_first_checkpoint_that_is_made_meanwhile_is_none_that_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"file://{tmp_path}", "tiny")
    create_record(store, "tiny", IDENTITY, 6)
    journal = AttemptJournal(store, attempt_record(1))
    journal.begin()
    views = [read_view(store)]
    commit(store, CheckpointName(2, 1), {"state.json": [b"{}"]}, 1.0, FreeLease(store))
    journal.committed(0.1)
    journal.end("target reached")
    monkeypatch.setattr(
        "app.run.verification.read_view", lambda store: views.pop() if views else read_view(store)
    )

    @contextlib.contextmanager
    def scratch() -> Iterator[Path]:
        yield tmp_path

    assert list(Verification(store, scratch, STATE_FILES).whole_run()) == []
