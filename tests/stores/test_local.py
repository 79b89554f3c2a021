"""A run in a folder: links, locks, full and read-only volumes, leftovers of killed writers."""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.errors import AccessDenied, AppError, ConfigError, Unavailable, Unserved
from app.stores.contract import Store
from app.stores.durable_files import kernel_id
from app.stores.local import PARTIAL
from app.stores.opening import open_store
from tests.support.store_contents import keys


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(f"file://{tmp_path}/store", "run")


class TestLocalStore:
    def test_fetches_its_own_file(self, folder: Store, tmp_path: Path) -> None:
        folder.put("a/b", [b"x"])
        assert folder.fetch("a/b", tmp_path / "unused") == tmp_path / "store/run/a/b"
        assert not (tmp_path / "unused").exists()

    def test_removes_folders_that_became_empty(self, folder: Store, tmp_path: Path) -> None:
        folder.put("a/b/1", [b"x"])
        folder.put("a/c/2", [b"x"])
        folder.delete(["a/b/1"])
        folder.move("a/c/2", "3")
        assert sorted(path.name for path in (tmp_path / "store/run").iterdir()) == ["3"]

    @pytest.mark.parametrize("target", ["outside", "outside/secret"])
    def test_does_not_follow_a_link_out_of_its_root(
        self, folder: Store, tmp_path: Path, target: str
    ) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside/secret").write_text("secret")
        folder.put("inside", [b"x"])
        link = tmp_path / "store/run/link"
        link.symlink_to(tmp_path / target)
        key = "link/secret" if target == "outside" else "link"
        for use in (
            lambda: folder.get(key),
            lambda: folder.put(key, [b"y"]),
            lambda: folder.delete([key]),
            lambda: folder.move("inside", key),
        ):
            with pytest.raises(ConfigError, match="symbolic link"):
                use()
        assert keys(folder) == ["inside"]
        assert (tmp_path / "outside/secret").read_text() == "secret"

    @pytest.mark.parametrize(
        ("number", "expected", "text"),
        [
            (errno.ENOSPC, Unavailable, "CHECKPOINT_URI: .* is full"),
            (errno.EDQUOT, Unavailable, "CHECKPOINT_URI: .* is full"),
            (errno.EACCES, AccessDenied, "CHECKPOINT_URI"),
            (errno.EROFS, AccessDenied, "CHECKPOINT_URI"),
            (errno.EIO, Unserved, "CHECKPOINT_URI"),
            (errno.ESTALE, Unavailable, "CHECKPOINT_URI"),
            (errno.EFBIG, ConfigError, "CHECKPOINT_URI"),
        ],
    )
    def test_a_write_that_fails_leaves_the_former_object(
        self,
        folder: Store,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        expected: type[AppError],
        text: str,
    ) -> None:
        folder.put("a", [b"former"])
        with monkeypatch.context() as patch:
            patch.setattr("os.write", failing(number))
            for use in (lambda: folder.put("a", [b"new"]), folder.check):
                with pytest.raises(expected, match=text) as caught:
                    use()
                assert type(caught.value) is expected
        assert folder.get("a")[0] == b"former"
        assert [path.name for path in (tmp_path / "store/run").iterdir()] == ["a"]

    def test_a_volume_that_cannot_sync_is_refused_before_hours_are_spent(
        self, folder: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder.put("a", [b"x"])
        monkeypatch.setattr("os.fsync", failing(errno.EIO))
        with pytest.raises(Unavailable, match="CHECKPOINT_URI"):
            folder.check()

    @pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
    def test_a_volume_that_cannot_be_written_is_access_denied(
        self, folder: Store, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        monkeypatch.setattr("pathlib.Path.mkdir", failing(number))
        with pytest.raises(AccessDenied, match="CHECKPOINT_URI"):
            folder.check()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
    def test_a_folder_without_write_permission_is_access_denied(
        self, folder: Store, tmp_path: Path
    ) -> None:
        (tmp_path / "store").mkdir(mode=0o500)
        with pytest.raises(AccessDenied, match="CHECKPOINT_URI"):
            folder.check()

    def test_a_volume_that_cannot_be_read_is_not_an_empty_one(
        self, folder: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder.put("a", [b"x"])
        monkeypatch.setattr("os.scandir", failing(errno.EIO))
        with pytest.raises(Unavailable):
            keys(folder)

    def test_a_file_in_the_place_of_the_folder_is_a_configuration_error(
        self, folder: Store, tmp_path: Path
    ) -> None:
        (tmp_path / "store").write_text("a file")
        with pytest.raises(ConfigError, match="a file stands where a folder is needed"):
            folder.check()
        assert (tmp_path / "store").read_text() == "a file"

    def test_a_file_system_without_locks_has_no_atomic_conditions(
        self, folder: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fcntl.flock", failing(errno.ENOLCK))
        folder.check()
        assert not folder.conditional_writes
        assert folder.exclusive_lock() is None
        etag = folder.put_if_absent("a", b"1")
        assert etag
        assert folder.put_if_absent("a", b"2") is None
        assert folder.put_if_match("a", b"2", etag)

    def test_half_written_files_are_not_listed_and_stale_once_nobody_can_be_at_them(
        self, folder: Store, tmp_path: Path
    ) -> None:
        folder.put("a/b", [b"x"])
        place = tmp_path / "store/run/a"
        kernel = kernel_id()[:8]
        partial_file(place, kernel, "dead", age=120)
        partial_file(place, kernel, "young", age=0)
        partial_file(place, "another", "kernel", age=3600)
        partial_file(place, "another", "day", age=90_000)
        locked = partial_file(place, kernel, "locked", age=120)
        with locked.open("r+b") as writer:
            fcntl.flock(writer, fcntl.LOCK_EX)
            found = folder.half_written()
        assert keys(folder) == ["a/b"]
        assert len(found) == 5 and {half.size for half in found} == {len(b"half")}
        stale = {half.key.rpartition("-")[2] for half in found if half.stale}
        assert stale == {"dead", "day"}

    def test_who_writes_on_what_was_discarded_is_told_and_can_write_again(
        self, folder: Store
    ) -> None:
        def data() -> Iterator[bytes]:
            yield b"one"
            for half in folder.half_written():
                folder.discard(half)
            yield b"two"

        with pytest.raises(Unavailable, match="removed by someone"):
            folder.put("a/b", data())  # type: ignore[arg-type]
        assert keys(folder) == []
        folder.put("a/b", [b"one", b"two"])
        assert keys(folder) == ["a/b"]

    def test_its_exclusive_lock_has_one_holder(self, folder: Store) -> None:
        lock = folder.exclusive_lock()
        assert lock is not None
        assert folder.exclusive_lock() is None
        lock.release()
        again = folder.exclusive_lock()
        assert again is not None
        assert again.scope == lock.scope
        again.release()

    def test_a_write_survives_that_its_empty_folder_is_removed_under_it(
        self, folder: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = os.open
        removed: list[Any] = []

        def open_after_removal(path: Any, *rest: Any, **named: Any) -> int:
            if "partial" in str(path) and not removed:
                removed.append(path)
                Path(path).parent.rmdir()
            return original(path, *rest, **named)

        monkeypatch.setattr("os.open", open_after_removal)
        folder.put("a/b", [b"x"])
        assert removed
        assert keys(folder) == ["a/b"]


def failing(number: int) -> Callable[..., Any]:
    def fail(*arguments: object, **named: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def partial_file(folder: Path, kernel: str, name: str, age: float) -> Path:
    path = folder / f"{PARTIAL}{kernel}-{name}"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path
