"""What to type to call this program again, as it was called: STARTED_BY says how."""

import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from app.console import redacted
from app.settings.combined import Settings
from app.settings.variables import StartedBy, variables

_COMPOSE = "docker compose"
_WITH_GPU = "docker compose -f docker-compose.yml -f docker-compose.gpu.yml"
_PAGE = "http://127.0.0.1:8080"
_OUT = '-v "$PWD:/out" --user "$(id -u)" '
# What compose and the image set by themselves: nobody types it.
IMAGE_SETS: Mapping[str, str] = {"DATA_DIR": "/data", "CHECKPOINT_URI": "file:///checkpoints"}
COMPOSE_SETS: Mapping[str, str] = {
    **IMAGE_SETS,
    "CHECKPOINT_URI": "s3://checkpoints/smollm2",
    "LEASE_TTL": "10",
    "GRACE_SECONDS": "25",
}
GPU_FILE_SETS: Mapping[str, str] = {"MODEL": "smollm2-135m", "DEVICE": "cuda"}
COMPOSE_ENDPOINT = "AWS_ENDPOINT_URL_S3=http://s3:8333"
_SET_BY: Mapping[StartedBy, Mapping[str, str]] = {
    "compose": COMPOSE_SETS,
    "compose-gpu": {**COMPOSE_SETS, **GPU_FILE_SETS},
    "docker": IMAGE_SETS,
}

_NAMES_THE_RUN = frozenset({"RUN_NAME", "INIT_FROM", "MODEL"})
_OF_ONE_START = frozenset({"ADDITIONAL_STEPS", "EXTENSION_ID", "RESUME", "STARTED_BY"})


@dataclass(frozen=True)
class NextSteps:
    """What to type next for the run `run_name`, for a user who started it with `settings`.

    After `docker run`, … stands for the options and the image that it was started with.
    """

    settings: Settings
    run_name: str

    def after_the_target(self) -> Iterator[tuple[str, str]]:
        """Pairs of what for, and what to type."""
        prompt = ' --prompt "def main("' if self.settings.data.dataset == "builtin" else ""
        if self._how == "kubernetes":
            yield from _in_kubernetes(f"generate{prompt}")
            return
        yield "text from the model", self._command(f"generate{prompt}")
        yield "its files", self._command("checkpoints pull --to {}", "model")
        yield "its curves", self._page()
        yield "more steps", self._train(ADDITIONAL_STEPS="500")

    def to_go_on(self) -> str:
        if self._how == "kubernetes":
            return "the Job's next pod goes on; without a Job: apply again what you applied"
        return self._train()

    @property
    def _how(self) -> StartedBy:
        return self.settings.logs.started_by

    def _command(self, words: str, output: str = "") -> str:
        """`output`: a file or folder that the command writes, in the place of {} in `words`."""
        if self._how == "docker":
            return f"docker run … {words.format(f'/data/{output}')}"
        if self._how in ("compose", "compose-gpu"):
            program, folder = f"{self._compose} run --rm {_OUT if output else ''}train", "/out/"
        else:
            program, folder = f"{self._python} -m app", ""
        words = words.format(f"{folder}{output}")
        return " ".join([*self._where_the_run_is(), program, words])

    def _page(self) -> str:
        """The live page shows all runs of the place."""
        if self._how == "docker":
            return "docker run -p 127.0.0.1:8080:8080 … report --serve --host=0.0.0.0"
        if self._how in ("compose", "compose-gpu"):
            program = f"{self._compose} up -d report"
        else:
            make = self._how == "make"
            program = "make report" if make else f"{self._python} -m app report --serve"
        return " ".join([*self._where_runs_are(), f"{program}, then look at {_PAGE}"])

    def _train(self, **changes: str) -> str:
        changed = [f"{name}={value}" for name, value in changes.items()]
        if self._how == "docker":
            return " ".join(["docker run", *(f"-e {change}" for change in changed), "… train"])
        if self._how in ("compose", "compose-gpu"):
            program = f"{self._compose} up train"
        else:
            program = "make train" if self._how == "make" else f"{self._python} -m app train"
        return " ".join([*changed, *self._what_the_run_is(), program])

    @property
    def _compose(self) -> str:
        return _WITH_GPU if self._how == "compose-gpu" else _COMPOSE

    @property
    def _python(self) -> str:
        return ".venv/bin/python" if self._how == "make" else sys.orig_argv[0]

    def _where_the_run_is(self) -> Iterator[str]:
        """What leads a command to the run: its place, and its name where a default does not."""
        if dict(self._given()).keys() & _NAMES_THE_RUN:
            yield f"RUN_NAME={self.run_name}"
        yield from self._where_runs_are()

    def _where_runs_are(self) -> Iterator[str]:
        given = dict(self._given())
        if "CHECKPOINT_URI" in given:
            yield f"CHECKPOINT_URI={given['CHECKPOINT_URI']}"
        yield from self._endpoint()

    def _what_the_run_is(self) -> Iterator[str]:
        """All that this start was given, but for what only one start is given."""
        yield from (f"{name}={value}" for name, value in self._given() if name not in _OF_ONE_START)
        yield from self._endpoint()

    def _given(self) -> Iterator[tuple[str, str]]:
        """(variable, value as a shell needs it) of what was typed, in the environment or as flags.

        What `.env` says is found by the next command too.
        """
        not_typed = _SET_BY.get(self._how, {})
        for variable in variables():
            value = self.settings.shown(variable)
            source = self.settings.sources.get(variable.name)
            if source in ("environment", "flag") and not_typed.get(variable.name) != value:
                yield variable.name, shlex.quote(value)

    def _endpoint(self) -> Iterator[str]:
        endpoint = self.settings.s3_endpoint
        stack = self._how in ("compose", "compose-gpu") and endpoint == COMPOSE_ENDPOINT
        if self.settings.uses_s3 and endpoint and not stack:
            name, _, value = redacted(endpoint).partition("=")
            yield f"{name}={shlex.quote(value)}"


def how_to_install(extra: str, started_by: StartedBy) -> str:
    """What to type so that the packages of requirements-`extra`.txt are there."""
    if started_by == "make":
        return f"EXTRAS={extra} make train"
    if started_by in ("compose", "compose-gpu"):
        compose = _WITH_GPU if started_by == "compose-gpu" else _COMPOSE
        return f"EXTRAS={extra} {compose} build train"
    if started_by in ("docker", "kubernetes"):
        return f"docker build --build-arg EXTRAS={extra} -t YOUR_IMAGE ."
    python = sys.orig_argv[0]
    return f"{python} -m pip install -r requirements-{extra}.txt -c requirements.txt"


def _in_kubernetes(generate: str) -> Iterator[tuple[str, str]]:
    """A pod that reads the run has its files, and answers to further commands.

    Which overlay was applied is not known here: the page that is named says what to write into the
    one that reads, where it is another than k8s/job.yaml.
    """
    pod, own = "smollm2-train-results", "your own overlay's name goes into it: docs/kubernetes.md"
    program = f"kubectl exec {pod} -- python -m app"
    ready = f"kubectl wait --for=condition=Ready pod/{pod} --timeout=10m"
    yield (
        "its files",
        f"kubectl apply -k k8s/overlays/results ({own}); {ready}; "
        f"kubectl cp {pod}:/out/model model",
    )
    yield "text from the model, in that pod", f"{program} {generate}"
    yield (
        "its curves, from that pod",
        f"{program} report --to /out/report.html; kubectl cp {pod}:/out/report.html report.html",
    )
    yield (
        "more steps",
        "kubectl apply -k k8s/overlays/extend, with the number in its nameSuffix counted up",
    )
