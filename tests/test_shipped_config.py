"""The files that users start from, checked against the settings and the Kubernetes schemas.

`kubernetes-validate --strict` knows field names and types. It does not know enumerations,
quantities, references between fields, or what this job promises; `manifest_problems` does.
"""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.sections import variables
from app.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent
COMPOSE_FILES = sorted(ROOT.glob("docker-compose*.yml"))
MANIFESTS = sorted((ROOT / "k8s").glob("*.yaml"))

KNOWN = {variable.name for variable in variables()}
# boto3's and the hub client's own names.
FOREIGN = re.compile(r"(AWS|HF)_[A-Z0-9_]+")
# Between the moment when the job wants to be done and SIGKILL.
GRACE_MARGIN_SECONDS = 5

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
ENUMS = {
    "action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "operator": {"In", "NotIn", "Exists", "Equal"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "medium": {"", "Memory"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
}


def unknown_variables(names: Iterator[str] | set[str]) -> list[str]:
    return sorted(name for name in names if name not in KNOWN and not FOREIGN.fullmatch(name))


def parsed(values: dict[str, str], monkeypatch: pytest.MonkeyPatch, empty: Path) -> Settings:
    """The settings that a process with just these variables would have."""
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(empty)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def services(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["services"]
    return found


def job_environment(path: Path) -> dict[str, str | None]:
    found: dict[str, str | None] = services(path)["train"]["environment"]
    return found


def compose_default(value: str) -> str:
    """What `${NAME:-default}` becomes where NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


def seconds(duration: str) -> float:
    match = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert match, f"{duration} is not minutes and seconds"
    return 60 * int(match[1] or 0) + int(match[2] or 0)


def documents() -> list[dict[str, Any]]:
    return [doc for path in MANIFESTS for doc in yaml.safe_load_all(path.read_text()) if doc]


def of_kind(docs: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (only,) = [doc for doc in docs if doc["kind"] == kind]
    return only


def items(node: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every (path, key, value) below `node`."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        here = f"{path}.{key}"
        yield here, str(key), value
        if isinstance(value, dict | list):
            yield from items(value, here)


def quantities(docs: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for path, key, value in items(docs):
        if key == "sizeLimit":
            yield path, value
        elif key in ("requests", "limits"):
            yield from ((f"{path}.{name}", amount) for name, amount in value.items())


def reference_problems(docs: list[dict[str, Any]]) -> Iterator[str]:
    """Names that point at nothing in the same file."""
    pod = of_kind(docs, "Job")["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    containers = {container["name"] for container in pod["containers"]}
    named = {(doc["kind"], doc["metadata"]["name"]) for doc in docs}
    for path, key, value in items(docs):
        if key == "volumeMounts":
            for mount in value:
                if mount["name"] not in volumes:
                    yield f"{path}: no volume is named {mount['name']}"
        elif key == "containerName" and value not in containers:
            yield f"{path}: no container is named {value}"
        elif key == "configMapRef" and ("ConfigMap", value["name"]) not in named:
            yield f"{path}: no ConfigMap is named {value['name']}"
        elif key == "claimName" and ("PersistentVolumeClaim", value) not in named:
            yield f"{path}: no PersistentVolumeClaim is named {value}"


def job_problems(docs: list[dict[str, Any]]) -> Iterator[str]:
    """What the exit codes and the preemption of this job ask of its Job."""
    job, config = of_kind(docs, "Job")["spec"], of_kind(docs, "ConfigMap")["data"]
    pod = job["template"]["spec"]
    if pod.get("restartPolicy") != "Never":
        yield "restartPolicy: podFailurePolicy works with Never only"
    if job.get("podReplacementPolicy") != "Failed":
        yield "podReplacementPolicy: with anything but Failed, two pods write at once"
    promised = float(config["GRACE_SECONDS"]) + GRACE_MARGIN_SECONDS
    if pod["terminationGracePeriodSeconds"] < promised:
        yield f"terminationGracePeriodSeconds: GRACE_SECONDS needs {promised:g}"
    rules = job["podFailurePolicy"]["rules"]
    actions: dict[int, str] = {}
    for rule in rules:
        for code in rule.get("onExitCodes", {}).get("values", []):
            actions.setdefault(code, rule["action"])
    wanted = {143: "Ignore", 64: "FailJob", 77: "FailJob", 78: "FailJob", 79: "FailJob"}
    if actions != wanted:
        yield f"podFailurePolicy: exit codes are treated as {actions}, not as {wanted}"
    first = rules[0].get("onPodConditions", [{}])[0]
    if rules[0]["action"] != "Ignore" or first.get("type") != "DisruptionTarget":
        yield "podFailurePolicy: a disruption must be ignored before exit codes are looked at"


def manifest_problems(docs: list[dict[str, Any]]) -> list[str]:
    """Everything wrong with the manifests, as one line each."""
    problems = []
    for doc in docs:
        try:
            kubernetes_validate.validate(doc, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            problems.append(f"{doc['kind']}: {error}")
    problems += [
        f"{path}: {value} is none of {sorted(ENUMS[key])}"
        for path, key, value in items(docs)
        if key in ENUMS and value not in ENUMS[key]
    ]
    problems += [
        f"{path}: {value} is not a quantity"
        for path, value in quantities(docs)
        if not QUANTITY.fullmatch(str(value))
    ]
    return [*problems, *reference_problems(docs), *job_problems(docs)]


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
    assert parsed(values, monkeypatch, tmp_path)


def test_compose_waits_longer_for_the_job_than_the_job_needs() -> None:
    train = services(ROOT / "docker-compose.yml")["train"]
    grace = float(compose_default(train["environment"]["GRACE_SECONDS"]))
    assert seconds(train["stop_grace_period"]) >= grace + GRACE_MARGIN_SECONDS


def test_no_port_is_open_to_the_network() -> None:
    ports = [
        port for s in services(ROOT / "docker-compose.yml").values() for port in s.get("ports", [])
    ]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_the_example_environment_file_names_only_variables_that_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = re.findall(
        r"^(?:# )?([A-Z][A-Z0-9_]*)=(.*)$", (ROOT / ".env.example").read_text(), re.M
    )
    values = dict(lines)
    assert "AWS_SECRET_ACCESS_KEY" in values
    assert unknown_variables(set(values)) == []
    assert parsed({k: v for k, v in values.items() if k in KNOWN}, monkeypatch, tmp_path)


def test_the_manifests_are_right() -> None:
    assert manifest_problems(documents()) == []


def test_the_manifest_names_only_variables_that_exist() -> None:
    config = of_kind(documents(), "ConfigMap")["data"]
    pod = of_kind(documents(), "Job")["spec"]["template"]["spec"]
    env = {entry["name"] for container in pod["containers"] for entry in container["env"]}
    text = "".join(path.read_text() for path in MANIFESTS)
    choices = set(re.findall(r"^  # ([A-Z][A-Z0-9_]*): ", text, re.M))
    assert "ADDITIONAL_STEPS" in choices
    assert unknown_variables(set(config) | env | choices) == []


def test_the_values_in_the_manifest_can_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = parsed(of_kind(documents(), "ConfigMap")["data"], monkeypatch, tmp_path)
    assert settings.model.model == "smollm2-135m"
    assert settings.compute.device == "cuda"


def test_the_manifest_runs_as_the_user_of_the_image() -> None:
    pod = of_kind(documents(), "Job")["spec"]["template"]["spec"]
    user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.M)[-1]
    context = pod["securityContext"]
    assert user == (str(context["runAsUser"]), str(context["fsGroup"]))


def break_type(docs: list[dict[str, Any]]) -> None:
    of_kind(docs, "Job")["spec"]["backoffLimit"] = "six"


def break_field(docs: list[dict[str, Any]]) -> None:
    of_kind(docs, "Job")["spec"]["backofLimit"] = 6


def break_action(docs: list[dict[str, Any]]) -> None:
    of_kind(docs, "Job")["spec"]["podFailurePolicy"]["rules"][1]["action"] = "Ignoore"


def break_operator(docs: list[dict[str, Any]]) -> None:
    rules = of_kind(docs, "Job")["spec"]["podFailurePolicy"]["rules"]
    rules[2]["onExitCodes"]["operator"] = "Inn"


def break_restart_policy(docs: list[dict[str, Any]]) -> None:
    of_kind(docs, "Job")["spec"]["template"]["spec"]["restartPolicy"] = "Always"


def break_claim_size(docs: list[dict[str, Any]]) -> None:
    claim = of_kind(docs, "PersistentVolumeClaim")
    claim["spec"]["resources"]["requests"]["storage"] = "1Gib"


def break_memory(docs: list[dict[str, Any]]) -> None:
    container = of_kind(docs, "Job")["spec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = "16 GB"


def break_mount(docs: list[dict[str, Any]]) -> None:
    container = of_kind(docs, "Job")["spec"]["template"]["spec"]["containers"][0]
    container["volumeMounts"][0]["name"] = "dta"


def break_container_name(docs: list[dict[str, Any]]) -> None:
    rules = of_kind(docs, "Job")["spec"]["podFailurePolicy"]["rules"]
    rules[1]["onExitCodes"]["containerName"] = "trainer"


def break_grace(docs: list[dict[str, Any]]) -> None:
    of_kind(docs, "ConfigMap")["data"]["GRACE_SECONDS"] = "30"


def break_order(docs: list[dict[str, Any]]) -> None:
    of_kind(docs, "Job")["spec"]["podFailurePolicy"]["rules"].reverse()


def break_exit_codes(docs: list[dict[str, Any]]) -> None:
    rules = of_kind(docs, "Job")["spec"]["podFailurePolicy"]["rules"]
    rules[2]["onExitCodes"]["values"] = [64, 77, 79]


def break_config_reference(docs: list[dict[str, Any]]) -> None:
    of_kind(docs, "ConfigMap")["metadata"]["name"] = "other"


@pytest.mark.parametrize(
    ("breaks", "named"),
    [
        (break_type, "backoffLimit"),
        (break_field, "backofLimit"),
        (break_action, "Ignoore"),
        (break_operator, "Inn"),
        (break_restart_policy, "restartPolicy"),
        (break_claim_size, "1Gib"),
        (break_memory, "16 GB"),
        (break_mount, "dta"),
        (break_container_name, "trainer"),
        (break_grace, "terminationGracePeriodSeconds"),
        (break_order, "disruption"),
        (break_exit_codes, "78"),
        (break_config_reference, "no ConfigMap is named smollm2-train"),
    ],
)
def test_a_broken_manifest_is_found(
    breaks: Callable[[list[dict[str, Any]]], None], named: str
) -> None:
    docs = copy.deepcopy(documents())
    breaks(docs)
    assert any(named in problem for problem in manifest_problems(docs))


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt"])
def test_every_requirement_is_pinned_exactly(name: str) -> None:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and line[0] != "#"]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", line)] == []
