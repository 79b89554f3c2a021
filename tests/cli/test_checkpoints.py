"""The checkpoints commands; what they look at is tested in tests/run."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest

from app.cli import parser as cli
from app.run.checkpoints import FileEntry, read_manifest
from app.run.journal import AttemptJournal
from app.run.layout import LATEST, MANIFEST
from app.run.record import create_record
from app.settings.presets import PRESETS
from app.stores.opening import open_store
from tests.support.error_lines import errors
from tests.support.stored_run import IDENTITY, attempt_record, commit_step

pytestmark = pytest.mark.usefixtures("nothing_set")


def test_checkpoints_of_a_run_that_does_not_exist_exit_78(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["checkpoints", "list", "--checkpoint_uri", f"file://{tmp_path}"]) == 78
    assert "holds no run named smollm2-135m or tiny" in errors(capsys)[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "sizes", [{"model.safetensors": 1 << 36}, {f"{n}.json": 64 * 2**20 for n in range(5)}]
)
def test_a_checkpoint_that_is_larger_than_its_model_is_not_pulled(
    sizes: dict[str, int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/store"
    store = open_store(uri, "tiny")
    shape = asdict(PRESETS["tiny"])
    create_record(store, "tiny", IDENTITY.model_copy(update={"shape": shape}), 100)
    name = commit_step(store, 20)
    manifest = read_manifest(store, name)
    for file, size in sizes.items():
        path = tmp_path / "store/tiny" / name.key(file)
        path.touch()
        os.truncate(path, size)  # with a hole, which takes no room
    entries = {file: FileEntry(size=size, sha256="0" * 64) for file, size in sizes.items()}
    changed = manifest.model_copy(update={"files": {**manifest.files, **entries}})
    store.put(name.key(MANIFEST), [changed.model_dump_json().encode()])
    named = ["--checkpoint_uri", uri, "--run_name", "tiny"]
    assert cli.main(["checkpoints", "pull", *named, "--to", f"{tmp_path}/pulled"]) == 78
    assert f"{name.key(MANIFEST)} lists " in errors(capsys)[-1]
    assert not (tmp_path / "pulled").exists()


FORGED = "x\n12:00:00 target reached\x1b[2J\x9b\r"


def test_nothing_in_a_store_forges_a_line_or_commands_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}"
    store = open_store(uri, "tiny")
    create_record(store, "tiny", IDENTITY, 100)
    name = commit_step(store, 20)
    forged = read_manifest(store, name).model_copy(update={"created_at": FORGED})
    store.put(name.key(MANIFEST), [forged.model_dump_json().encode()])
    record = attempt_record().model_copy(update={"started_at": FORGED, "ended": FORGED})
    for key, content in AttemptJournal(store, record).objects().items():
        store.put(key, content)
    store.put(LATEST, [FORGED.encode()])
    for command in ("list", "verify"):
        cli.main(["checkpoints", command, "--checkpoint_uri", uri, "--run_name", "tiny"])
        said = "".join(capsys.readouterr())
        assert "target reached" in said
        assert not any(line.startswith("12:00:00 target") for line in said.splitlines())
        assert not set("\x1b\x9b\r") & set(said)


@pytest.mark.parametrize("verb", ["list", "verify"])
def test_a_run_without_checkpoints_says_so_in_a_sentence(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    uri = f"file://{tmp_path}/store"
    create_record(open_store(uri, "tiny"), "tiny", IDENTITY, 100)
    named = ["--checkpoint_uri", uri, "--run_name", "tiny", "--checkpoint_every_steps", "7"]
    assert cli.main(["checkpoints", verb, *named]) == 0
    shown = capsys.readouterr().out
    assert f"{uri}/tiny holds no checkpoint yet" in shown and "CHECKPOINT_EVERY_STEPS=7" in shown
    assert "train loss" not in shown and "0 checkpoints" not in shown
