"""Signs of life come where bytes move, as long as somebody waits for them."""

from pathlib import Path

import pytest

from app.health import heartbeat_path
from app.preparation import PrepareProgress
from app.sections import DataSettings
from app.sources import pin_source
from app.token_progress import TokenProgress


@pytest.fixture(autouse=True)
def _own_heartbeat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def beats(progress: TokenProgress) -> bool:
    heartbeat_path().unlink(missing_ok=True)
    progress.alive()
    return heartbeat_path().exists()


def test_bytes_are_a_sign_of_life_unless_the_training_goes_on_without_them() -> None:
    progress = TokenProgress()
    assert beats(progress), "before the first tokens"
    progress.waiting(PrepareProgress())
    assert beats(progress)
    progress.arrived()
    assert not beats(progress), "a training that hangs must not look alive"
    progress.waiting(PrepareProgress())
    assert beats(progress), "the training waits for tokens"


def test_hashing_a_large_file_gives_signs_of_life_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.files._BLOCK", 100)
    seen: list[None] = []
    for name, size in (("small.txt", 1000), ("large.txt", 64 * 2**20 + 1)):
        (tmp_path / name).write_bytes(b"x" * size)
        pin_source(DataSettings(dataset=f"{tmp_path}/{name}"), None, lambda: seen.append(None))
    assert len(seen) == 10 + 256
