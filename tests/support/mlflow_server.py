"""A real `mlflow server` on loopback, which a test can kill and start again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

STARTS_WITHIN = 120.0  # seconds, on a busy machine
POLL_SECONDS = 0.05


class MlflowServer:
    """What it is told lies in `folder`, so that it is there again after a kill."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = int(free.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Returns once it answers."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "mlflow", "server", "--host=127.0.0.1"),
                    *(f"--port={self._port}", "--workers=1"),
                    f"--backend-store-uri=sqlite:///{self._folder}/runs.db",
                    *("--serve-artifacts", f"--artifacts-destination={self._folder}/artifacts"),
                ],
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while not self._answers():
            said = (self._folder / "server.log").read_text("utf-8", "replace")[-2000:]
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """With all of its workers, at once."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def runs(self, experiment: str) -> list[Any]:
        """The runs of an experiment, the newest first; none if there is no such experiment."""
        known = self._client().get_experiment_by_name(experiment)
        return list(self._client().search_runs([known.experiment_id])) if known else []

    def run(self, run_id: str) -> Any:
        return self._client().get_run(run_id)

    def delete(self, run_id: str) -> None:
        self._client().delete_run(run_id)

    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of everything that was logged under that name, by step."""
        found = self._client().get_metric_history(run_id, name)
        return sorted((metric.step, metric.value) for metric in found)

    def wait_for_step(self, experiment: str, step: int) -> None:
        """Until the only run of the experiment has the loss of that step."""
        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            for found in self.runs(experiment):
                if step in dict(self.history(found.info.run_id, "loss")):
                    return
            assert time.monotonic() < deadline
            time.sleep(POLL_SECONDS)

    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
