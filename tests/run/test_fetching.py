"""Every byte is verified, and a damaged checkpoint gives way to the one before."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.console import size
from app.errors import Damaged, IncompatibleRun, Unavailable
from app.run.checkpoints import FileEntry, read_manifest
from app.run.fetching import fetch, newest_valid
from app.run.layout import MANIFEST
from app.run.retention import remove_unfinished
from app.run.view import read_view
from app.stores.contract import Store
from app.stores.opening import open_store
from tests.support.interposed import Answer, Interposed, failing_at
from tests.support.stored_run import FILES, FreeLease, commit_step, committed_steps
from tests.support.unreadable import make_unreadable

_AT_ONCE = (0.0, 0.0)


def test_a_committed_checkpoint_is_read_back_and_verified(folder: Store, tmp_path: Path) -> None:
    name = commit_step(folder, 20)
    directory = fetch(folder, name, tmp_path)
    assert (directory / "model.safetensors").read_bytes() == b"weightsmore"
    assert read_manifest(folder, name).train_loss == pytest.approx(9.8)


def test_a_disk_here_that_fills_up_under_a_download_is_unavailable_and_no_damage(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    commit_step(store, 20)

    def full(*paths: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("s3transfer.utils.rename_file", full)
    with pytest.raises(Unavailable, match=f"^the download to {tmp_path}/.* is full"):
        newest_valid(store, read_view(store), tmp_path)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [_flip, _truncate, _empty, Path.unlink])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_checkpoint_gives_way_to_the_next(
    harm: Callable[[Path], None], file: str, folder: Store, tmp_path: Path
) -> None:
    good, bad = commit_step(folder, 20), commit_step(folder, 40)
    harm(tmp_path / "run" / bad.key(file))
    found = newest_valid(folder, read_view(folder), tmp_path / "scratch")
    assert found is not None and found.name == good
    assert [name for name, _ in found.damaged] == [bad]
    assert file in found.damaged[0][1]


@pytest.mark.parametrize("file", ["model.safetensors", MANIFEST])
def test_a_bit_that_flips_in_a_download_costs_no_checkpoint(
    bucket: str, s3_answers: Interposed, tmp_path: Path, file: str
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    commit_step(store, 20)
    name = commit_step(store, 40)
    content, _ = store.get(name.key(file))
    flipped = bytes([content[0] ^ 1]) + content[1:]
    answers = [(200, flipped.decode())]

    def answering(environ: dict[str, Any]) -> Answer | None:
        wanted = environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"].endswith(file)
        return answers.pop() if wanted and answers else None

    s3_answers.answering = answering
    found = newest_valid(store, read_view(store), tmp_path)
    assert found is not None and not answers
    assert (found.name, found.damaged) == (name, [])


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{", b"null", b'{"step": 40}', b"\xff\xfe"],
)
def test_a_damaged_manifest_makes_the_checkpoint_damaged(
    manifest: bytes, folder: Store, tmp_path: Path
) -> None:
    good, bad = commit_step(folder, 20), commit_step(folder, 40)
    folder.put(bad.key(MANIFEST), [manifest])
    found = newest_valid(folder, read_view(folder), tmp_path / "scratch")
    assert found is not None and found.name == good and len(found.damaged) == 1


def test_a_manifest_cannot_name_a_file_elsewhere(folder: Store, tmp_path: Path) -> None:
    name = commit_step(folder, 20)
    manifest = read_manifest(folder, name)
    files = {**manifest.files, "../../run.json": manifest.files["state.json"]}
    changed = manifest.model_copy(update={"files": files})
    folder.put(name.key(MANIFEST), [changed.model_dump_json().encode()])
    with pytest.raises(Damaged, match="unusable file"):
        fetch(folder, name, tmp_path)


def test_a_manifest_of_a_newer_format_is_not_called_damaged(folder: Store, tmp_path: Path) -> None:
    name = commit_step(folder, 20)
    newer = read_manifest(folder, name).model_dump() | {"format_version": 99}
    for entry in newer["files"].values():
        entry["crc"] = "of a later day"
    folder.put(name.key(MANIFEST), [json.dumps(newer).encode()])
    with pytest.raises(IncompatibleRun, match="format 99"):
        newest_valid(folder, read_view(folder), tmp_path)


def test_with_no_valid_checkpoint_left_the_job_explains_and_changes_nothing(
    folder: Store, tmp_path: Path
) -> None:
    name = commit_step(folder, 20)
    _flip(tmp_path / "run" / name.key("state.json"))
    with pytest.raises(Damaged, match="no valid checkpoint is left"):
        newest_valid(folder, read_view(folder), tmp_path / "scratch")
    assert committed_steps(folder) == [20]


def test_an_empty_store_has_no_checkpoint(folder: Store, tmp_path: Path) -> None:
    assert newest_valid(folder, read_view(folder), tmp_path) is None


def test_a_volume_that_cannot_be_read_is_named_and_is_not_called_damaged(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run" / commit_step(folder, 20).key("model.safetensors")
    make_unreadable(monkeypatch, path, errno.EIO)
    with pytest.raises(Unavailable, match=rf"{path} does not work now \(Input/output error\)"):
        newest_valid(folder, read_view(folder), tmp_path / "scratch", pauses=_AT_ONCE)


def test_a_checkpoint_that_lost_its_manifest_is_damaged_not_unfinished(
    folder: Store, tmp_path: Path
) -> None:
    good, bad = commit_step(folder, 20), commit_step(folder, 40)
    folder.delete([bad.key(MANIFEST)])
    assert remove_unfinished(folder, read_view(folder), 2, FreeLease(folder)) == []
    found = newest_valid(folder, read_view(folder), tmp_path / "scratch")
    assert found is not None and found.name == good
    assert [name for name, _ in found.damaged] == [bad]


def test_fetching_and_verifying_a_checkpoint_give_signs_of_life(
    store: Store, tmp_path: Path
) -> None:
    commit_step(store, 2)
    seen: list[None] = []
    assert newest_valid(
        store, read_view(store), tmp_path / "scratch", alive=lambda: seen.append(None)
    )
    verified = len(FILES)
    fetched = 0 if store.uri.startswith("file:") else len(FILES)
    assert len(seen) == verified + fetched


class _Small:
    """Expects files of at most 100 bytes, of 150 together, and that the step is 20."""

    most_bytes_in_all = 150

    def check(self, step: int, directory: Path) -> None:
        if step != 20:
            raise Damaged("it is of another run")

    def most_bytes(self, file: str) -> int:
        return 100


def test_a_file_that_is_longer_than_it_can_be_is_not_read(folder: Store, tmp_path: Path) -> None:
    good, bad = commit_step(folder, 20), commit_step(folder, 40)
    huge, manifest = tmp_path / "run" / bad.key("model.safetensors"), read_manifest(folder, bad)
    os.truncate(huge, 1 << 36)  # with a hole, which takes no room, and minutes to be read
    entry = manifest.files["model.safetensors"].model_copy(update={"size": 1 << 36})
    changed = manifest.model_copy(update={"files": {**manifest.files, "model.safetensors": entry}})
    folder.put(bad.key(MANIFEST), [changed.model_dump_json().encode()])
    found = newest_valid(folder, read_view(folder), tmp_path / "scratch", expected=_Small())
    assert found is not None and found.name == good
    assert [reason for _, reason in found.damaged] == [
        f"{bad.key(MANIFEST)} lists model.safetensors with 68.7 GB"
    ]


def test_files_that_are_longer_together_than_they_can_be_are_not_read(
    folder: Store, tmp_path: Path
) -> None:
    good, bad = commit_step(folder, 20), commit_step(folder, 40)
    content = b"x" * 90
    manifest = read_manifest(folder, bad)
    entry = FileEntry(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    more = {"vocab.json": entry, "merges.txt": entry}
    for file in more:
        folder.put(bad.key(file), [content])
    changed = manifest.model_copy(update={"files": {**manifest.files, **more}})
    folder.put(bad.key(MANIFEST), [changed.model_dump_json().encode()])
    found = newest_valid(folder, read_view(folder), tmp_path / "scratch", expected=_Small())
    assert found is not None and found.name == good
    total = changed.total_bytes
    assert [reason for _, reason in found.damaged] == [
        f"{bad.key(MANIFEST)} lists files of {size(total)} in all"
    ]


def test_a_checkpoint_that_is_not_the_expected_one_gives_way_to_the_one_before(
    folder: Store, tmp_path: Path
) -> None:
    good, other = commit_step(folder, 20), commit_step(folder, 40)
    found = newest_valid(folder, read_view(folder), tmp_path / "scratch", expected=_Small())
    assert found is not None and found.name == good
    assert list(found.damaged) == [(other, "it is of another run")]


@pytest.mark.parametrize("file", ["model.safetensors", MANIFEST])
def test_a_checkpoint_of_which_one_object_is_never_served_gives_way_to_the_next(
    bucket: str, s3_answers: Interposed, no_backoff: None, tmp_path: Path, file: str
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    store.put("run.json", [b"{}"])
    good, bad = commit_step(store, 20), commit_step(store, 40)
    view = read_view(store, lambda _: None)
    s3_answers.answering = failing_at(bad.key(file))
    found = newest_valid(store, view, tmp_path, pauses=_AT_ONCE)
    assert found is not None and (found.name, found.damaged) == (good, [])
    ((name, reason),) = found.unserved
    assert name == bad and bad.key(file) in reason and "answered 500" in reason
    # The proof that it is this object: another one was read after each refusal but the last.
    asked = [line.rpartition("/")[2] for line in s3_answers.requests]
    assert asked.count("run.json") >= len(_AT_ONCE)


def test_an_object_that_is_served_again_costs_no_checkpoint(
    bucket: str, s3_answers: Interposed, no_backoff: None, tmp_path: Path
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    store.put("run.json", [b"{}"])
    commit_step(store, 20)
    name = commit_step(store, 40)
    view, fail = read_view(store, lambda _: None), failing_at(name.key("model.safetensors"))
    left = [None] * 5  # more than one call of the SDK

    def answering(environ: dict[str, Any]) -> Answer | None:
        answer = fail(environ)
        if answer and left:
            left.pop()
            return answer
        return None

    s3_answers.answering = answering
    found = newest_valid(store, view, tmp_path, pauses=_AT_ONCE)
    assert found is not None and not left
    assert (found.name, found.damaged, list(found.unserved)) == (name, [], [])


@pytest.mark.parametrize(
    "failing",
    [("model.safetensors",), (MANIFEST,), (MANIFEST, "run.json")],
    ids=["the same file of all", "all manifests", "the rest of the run too"],
)
def test_a_store_that_serves_no_checkpoint_is_unavailable_and_nothing_is_called_damaged(
    bucket: str, s3_answers: Interposed, no_backoff: None, tmp_path: Path, failing: tuple[str, ...]
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    store.put("run.json", [b"{}"])
    commit_step(store, 20)
    commit_step(store, 40)
    view = read_view(store, lambda _: None)
    s3_answers.answering = failing_at(*failing)
    with pytest.raises(Unavailable, match=failing[-1]):
        newest_valid(store, view, tmp_path, pauses=_AT_ONCE)


def test_a_store_that_asks_for_fewer_requests_has_no_damage(
    bucket: str, s3_answers: Interposed, no_backoff: None, tmp_path: Path
) -> None:
    store = open_store(f"s3://{bucket}", "run")
    store.put("run.json", [b"{}"])
    commit_step(store, 20)
    fail = failing_at(commit_step(store, 40).key(MANIFEST))
    slow = (503, "<Error><Code>SlowDown</Code></Error>")
    s3_answers.answering = lambda environ: slow if fail(environ) else None
    with pytest.raises(Unavailable, match="SlowDown"):
        newest_valid(store, read_view(store, lambda _: None), tmp_path, pauses=_AT_ONCE)


def test_a_file_on_a_volume_that_fails_gives_way_too(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.put("run.json", [b"{}"])
    good, bad = commit_step(folder, 20), commit_step(folder, 40)
    view = read_view(folder, lambda _: None)
    make_unreadable(monkeypatch, tmp_path / "run" / bad.key("model.safetensors"), errno.EIO)
    found = newest_valid(folder, view, tmp_path / "scratch", pauses=_AT_ONCE)
    assert found is not None and found.name == good
    assert [name for name, _ in found.unserved] == [bad]
