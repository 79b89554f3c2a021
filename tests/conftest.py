"""What every room's tests share: their order, a quiet surrounding, and the smallest job.

Stores and S3 servers are in tests/support/store_fixtures.py.
"""

import logging
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.settings.variables import variables
from tests.support.small_job import make_tokenizer, small_job

pytest_plugins = ["tests.support.store_fixtures", "tests.support.train_command"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that the workers end together."""

    def seconds(item: pytest.Item) -> float:
        limit = item.get_closest_marker("timeout")
        slow = item.get_closest_marker("slow") is not None
        return slow + (float(limit.args[0]) if limit else 0.0)

    items.sort(key=seconds, reverse=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread_each() -> None:
    """Workers beside each other would wait for each other's threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def undisturbed_log() -> Iterator[None]:
    """A command that a test runs sets the level of the log; the next test finds it as it was."""
    log = logging.getLogger("app")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of the job is in the environment, and no `.env` in the working directory."""
    for variable in variables():
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own_handlers() -> Iterator[None]:
    """For a test in which this process is asked to stop."""
    names = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGTSTP")
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, names)}
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def small_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer of 300 tokens."""
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def job_environment(
    small_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Variables of a run of seconds."""
    return small_job(tmp_path_factory.mktemp("job"), small_tokenizer)
