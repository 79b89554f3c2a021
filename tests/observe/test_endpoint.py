"""One port of a training process: what Prometheus reads, whether the job lives, and its page."""

import shutil
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from app import heartbeat
from app.observe.endpoint import served
from app.settings.load import load_settings
from tests.support.job import JobProcess, JobRunner
from tests.support.metrics import samples
from tests.support.promtool import asked_of


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def asked(port: str, path: str) -> tuple[int, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
    opener = urllib.request.build_opener(Unraised)
    with opener.open(request, timeout=30) as answer:
        return answer.status, answer.read().decode()


class Unraised(urllib.request.HTTPErrorProcessor):
    """A status that says no is an answer too."""

    def http_response(self, request: object, response: object) -> object:
        return response


def test_a_training_process_serves_metrics_health_and_the_page_on_one_port(
    job_environment: dict[str, str], tmp_path: Path
) -> None:
    port, answers = free_port(), dict[str, tuple[int, str]]()
    job = JobRunner(
        {
            **job_environment,
            "CHECKPOINT_URI": f"file://{tmp_path}/store",
            "METRICS_PORT": port,
            "TOTAL_STEPS": "1000000",
            "CHECKPOINT_EVERY_STEPS": "2",
        }
    )

    def ask(process: JobProcess) -> None:
        answers.update({path: asked(port, path) for path in ("/metrics", "/healthz", "/")})
        process.send_signal(signal.SIGTERM)

    done = job.run("train", when={"checkpoint step ": ask})
    assert done.code == 143 and f"live page are at http://127.0.0.1:{port}/" in done.log, done.log
    status, text = answers["/metrics"]
    labels, told = ("attempt=1", "rank=0", "run=tiny"), samples(text)
    assert status == 200
    assert told["smollm2_train_step", *labels] >= 1
    assert told["smollm2_train_step_seconds_count", *labels] >= 1
    assert told["smollm2_checkpoint_saves_total", *labels] >= 1
    assert 0 <= told["smollm2_checkpoint_age_seconds", *labels] < 60
    assert 0 < told["smollm2_goodput_ratio", *labels] <= 1
    if promtool := shutil.which("promtool"):
        assert asked_of(promtool, tmp_path, "check", "metrics", given=text) == ""
    status, said = answers["/healthz"]
    assert status == 200 and said.startswith("alive ")
    status, page = answers["/"]
    assert status == 200 and "tiny" in page


def test_a_job_without_a_sign_of_life_is_not_healthy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port = free_port()
    uri = f"file://{tmp_path}/store"
    settings = load_settings({"checkpoint_uri": uri, "run_name": "r", "metrics_port": port})
    with served(settings, "r"):
        status, said = asked(port, "/healthz")
        assert status == 503 and "no sign of life" in said
        heartbeat.show_life_of(settings.run_place)
        assert asked(port, "/healthz") == (200, "alive 0 s ago\n")


def test_without_a_port_nothing_is_served(capfd: pytest.CaptureFixture[str]) -> None:
    with served(load_settings({}), "r") as metrics:
        assert metrics.text()
    assert "live page" not in capfd.readouterr().err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost"])
def test_it_listens_where_the_user_says(host: str, tmp_path: Path) -> None:
    if host == "::":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"this machine has no IPv6: {error}")
    port = free_port()
    settings = load_settings(
        {"checkpoint_uri": str(tmp_path), "metrics_host": host, "metrics_port": port}
    )
    with served(settings, "r"):
        there = "::1" if host == "::" else "127.0.0.1"
        with socket.create_connection((there, int(port)), timeout=10):
            pass
