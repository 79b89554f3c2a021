"""The commands that a user is told to type: right for each way in which the program was started."""

import re
import shlex
import sys
from typing import Any

import pytest
import yaml

from app.cli import parser as cli
from app.errors import NotFound, UsageError
from app.settings.calling import (
    COMPOSE_ENDPOINT,
    COMPOSE_SETS,
    GPU_FILE_SETS,
    IMAGE_SETS,
    NextSteps,
)
from app.settings.combined import Settings
from app.settings.load import load_settings
from tests.support.manifests import built
from tests.support.repository import ROOT

PAGE = ", then look at http://127.0.0.1:8080"

pytestmark = pytest.mark.usefixtures("nothing_set")


def commands(settings: Settings) -> dict[str, str]:
    return dict(NextSteps(settings, "mine").after_the_target())


def started(how: str, monkeypatch: pytest.MonkeyPatch, **typed: str) -> Settings:
    for name, value in {"STARTED_BY": how, **typed}.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_bare_python_is_called_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.orig_argv[0]
    settings = started("python", monkeypatch)
    assert commands(settings) == {
        "text from the model": f'{python} -m app generate --prompt "def main("',
        "its files": f"{python} -m app checkpoints pull --to model",
        "its curves": f"{python} -m app report --serve{PAGE}",
        "more steps": f"ADDITIONAL_STEPS=500 {python} -m app train",
    }
    assert NextSteps(settings, "mine").to_go_on() == f"{python} -m app train"


def test_make_is_called_where_it_has_a_word_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = started("make", monkeypatch)
    assert commands(settings) == {
        "text from the model": '.venv/bin/python -m app generate --prompt "def main("',
        "its files": ".venv/bin/python -m app checkpoints pull --to model",
        "its curves": f"make report{PAGE}",
        "more steps": "ADDITIONAL_STEPS=500 make train",
    }
    assert NextSteps(settings, "mine").to_go_on() == "make train"


def test_compose_is_called_without_what_its_own_file_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*COMPOSE_ENDPOINT.split("="))
    settings = started("compose", monkeypatch, **COMPOSE_SETS)
    out = 'docker compose run --rm -v "$PWD:/out" --user "$(id -u)" train'
    assert commands(settings) == {
        "text from the model": 'docker compose run --rm train generate --prompt "def main("',
        "its files": f"{out} checkpoints pull --to /out/model",
        "its curves": f"docker compose up -d report{PAGE}",
        "more steps": "ADDITIONAL_STEPS=500 docker compose up train",
    }
    assert NextSteps(settings, "mine").to_go_on() == "docker compose up train"


def test_compose_with_a_gpu_is_called_with_both_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*COMPOSE_ENDPOINT.split("="))
    settings = started("compose-gpu", monkeypatch, **COMPOSE_SETS, **GPU_FILE_SETS)
    both = "docker compose -f docker-compose.yml -f docker-compose.gpu.yml"
    assert NextSteps(settings, "mine").to_go_on() == f"{both} up train"
    assert commands(settings)["text from the model"].startswith(f"{both} run --rm train generate")


def test_a_container_without_compose_is_called_with_the_options_that_it_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = started("docker", monkeypatch, **IMAGE_SETS)
    assert commands(settings) == {
        "text from the model": 'docker run … generate --prompt "def main("',
        "its files": "docker run … checkpoints pull --to /data/model",
        "its curves": "docker run -p 127.0.0.1:8080:8080 … report --serve --host=0.0.0.0",
        "more steps": "docker run -e ADDITIONAL_STEPS=500 … train",
    }
    assert NextSteps(settings, "mine").to_go_on() == "docker run … train"


def test_in_kubernetes_a_pod_that_reads_the_run_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands(started("kubernetes", monkeypatch, CHECKPOINT_URI="/data/checkpoints"))
    pod = next(doc for doc in built("results") if doc["kind"] == "Pod")
    name, (container,) = pod["metadata"]["name"], pod["spec"]["containers"]
    assert "livenessProbe" not in container, "generate gives no sign of life"
    assert "--to /out/model" in container["args"][0]
    for what, said in found.items():
        assert set(re.findall(r"smollm2-train[a-z-]*", said)) <= {name}
        assert (name in said) is (what != "more steps")
    assert found["its files"].startswith("kubectl apply -k k8s/overlays/results (your own overlay")
    assert found["its files"].endswith(f"kubectl cp {name}:/out/model model")
    text = found["text from the model, in that pod"]
    assert text == f'kubectl exec {name} -- python -m app generate --prompt "def main("'
    assert found["more steps"].endswith("counted up")


def test_what_was_typed_is_in_the_commands_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = {"RUN_NAME": "mine", "TOTAL_STEPS": "60", "ADDITIONAL_STEPS": "9", "RESUME": "must"}
    typed |= {"DATASET": "/my books/*.txt", "CHECKPOINT_URI": "s3://bucket/x"}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store:9000")
    settings = started("compose", monkeypatch, **typed)
    place = "CHECKPOINT_URI=s3://bucket/x AWS_ENDPOINT_URL_S3=http://store:9000"
    assert commands(settings)["text from the model"] == (
        f"RUN_NAME=mine {place} docker compose run --rm train generate"
    )
    assert NextSteps(settings, "mine").to_go_on() == (
        f"RUN_NAME=mine TOTAL_STEPS=60 DATASET='/my books/*.txt' {place} docker compose up train"
    )


def test_a_run_that_another_variable_names_is_named_by_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = commands(started("make", monkeypatch, MODEL="tiny"))
    assert found["its files"].startswith("RUN_NAME=mine .venv/bin/python -m app checkpoints pull")
    assert found["its curves"] == f"make report{PAGE}", "it shows all runs"
    assert found["more steps"] == "ADDITIONAL_STEPS=500 MODEL=tiny make train"


def test_the_commands_are_commands_of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    found = commands(started("python", monkeypatch))
    for purpose in ("text from the model", "its files"):
        words = shlex.split(found[purpose])
        ended = cli.main(words[words.index("app") + 1 :])
        assert ended == NotFound.exit_code != UsageError.exit_code, "there is no run here"


def job_environment(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    environment: dict[str, Any] = found["services"]["train"]["environment"]
    return environment


def test_what_compose_sets_by_itself_is_what_its_files_say() -> None:
    for name, sets in {
        "docker-compose.yml": COMPOSE_SETS,
        "docker-compose.gpu.yml": GPU_FILE_SETS,
    }.items():
        defaults = {
            variable: default[1]
            for variable, value in job_environment(name).items()
            if (default := re.fullmatch(r"\$\{\w+:-(.+)\}", value or ""))
            and not variable.startswith("AWS_")
        }
        assert defaults == {k: v for k, v in sets.items() if k != "DATA_DIR"}
    endpoint = job_environment("docker-compose.yml")["AWS_ENDPOINT_URL_S3"]
    assert f"AWS_ENDPOINT_URL_S3={endpoint.partition(':-')[2].rstrip('}')}" == COMPOSE_ENDPOINT


def test_what_the_image_sets_by_itself_is_what_its_recipe_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = re.search(r"^ENV (CHECKPOINT_URI=.*)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert line
    for word in line[1].split():
        monkeypatch.setenv(*word.split("="))
    settings = load_settings()
    assert settings.logs.started_by == "docker"
    assert settings.checkpoints.checkpoint_uri == IMAGE_SETS["CHECKPOINT_URI"]
    assert str(settings.data.data_dir) == IMAGE_SETS["DATA_DIR"]


@pytest.mark.parametrize(
    ("file", "how"),
    [("docker-compose.yml", "compose"), ("docker-compose.gpu.yml", "compose-gpu")],
)
def test_each_compose_file_says_how_it_calls_the_program(file: str, how: str) -> None:
    assert job_environment(file)["STARTED_BY"] == how


def test_the_manifest_and_the_makefile_say_how_they_call_the_program() -> None:
    config = next(
        document
        for document in yaml.safe_load_all((ROOT / "k8s/job.yaml").read_text())
        if document["kind"] == "ConfigMap"
    )
    assert config["data"]["STARTED_BY"] == "kubernetes"
    assert "STARTED_BY=make .venv/bin/python -m app train" in (ROOT / "Makefile").read_text()
