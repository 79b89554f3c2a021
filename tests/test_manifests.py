"""The Kubernetes manifests, as they are and with their choices taken.

`kubernetes-validate --strict` knows field names and types. It does not know enumerations,
quantities, references between fields, or what this job promises; `manifest_problems` does.
"""

import copy
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.settings.calling import IMAGE_SETS
from tests.support.repository import ROOT
from tests.support.shipped_settings import GRACE_MARGIN_SECONDS, settings_of, unknown_variables

MANIFESTS = sorted((ROOT / "k8s").glob("*.yaml"))

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
# By the last names of the path to the value.
ENUMS = {
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "capabilities.drop": {"ALL"},
    "emptyDir.medium": {"", "Memory"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "onExitCodes.operator": {"In", "NotIn"},
    "onPodConditions.status": {"True", "False", "Unknown"},
    "onPodConditions.type": {"DisruptionTarget"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "rules.action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost", "Unconfined"},
    "tolerations.effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "tolerations.operator": {"Exists", "Equal"},
}
# What the downward API gives a variable of the environment.
FIELD_PATH = re.compile(
    r"metadata\.(name|namespace|uid|(labels|annotations)\['[\w./-]+'\])"
    r"|spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs)"
)
# The clouds' own labels of spot nodes; GKE and AKS taint them with the same.
SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
# A comment that is a field with one word as its value, or none; sentences have more.
CHOICE = re.compile(r"^( *)# ( *(?:- )?[\w./-]+:(?: \S+)?(?: # .*)?)$", re.M)


def documents(choices: bool = False) -> list[dict[str, Any]]:
    """What is in k8s/; with `choices`, of each field that has one the last that is commented."""
    texts = [path.read_text() for path in MANIFESTS]
    if choices:
        texts = [CHOICE.sub(r"\1\2", text) for text in texts]
    return [doc for text in texts for doc in yaml.safe_load_all(text) if doc]


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


def value_problems(docs: list[dict[str, Any]]) -> Iterator[str]:
    """Values that a field cannot have."""
    for path, key, value in items(docs):
        names = re.sub(r"\.\d+(?=\.|$)", "", path)
        allowed = [ENUMS[name] for name in ENUMS if names.endswith(f".{name}")]
        if allowed and not isinstance(value, dict | list) and value not in allowed[0]:
            yield f"{path}: {value} is none of {sorted(allowed[0])}"
        if key == "fieldPath" and not FIELD_PATH.fullmatch(value):
            yield f"{path}: {value} is nothing that the downward API gives"
    for path, value in quantities(docs):
        if not QUANTITY.fullmatch(str(value)):
            yield f"{path}: {value} is not a quantity"


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
    if not job.get("backoffLimit"):
        yield "backoffLimit: a crash must be tried again, and not for ever"
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


def pod_problems(docs: list[dict[str, Any]]) -> Iterator[str]:
    """What the image and the settings ask of the pod."""
    pod = of_kind(docs, "Job")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = of_kind(docs, "ConfigMap")["data"]
    hardened = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if not hardened.items() <= pod["securityContext"].items():
        yield f"securityContext of the pod: needs {hardened}"
    if pod.get("enableServiceLinks") is not False:
        yield "enableServiceLinks: a Service could set a variable of the job"
    hardened = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    if container["securityContext"] != hardened:
        yield f"securityContext of the container: needs {hardened}"
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    if (config["DEVICE"], gpus) != ("cuda", "1"):
        yield f"DEVICE={config['DEVICE']} with nvidia.com/gpu: {gpus}"
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    if mounted != {IMAGE_SETS["DATA_DIR"], "/tmp", "/dev/shm"}:
        yield f"mountPath: the job writes elsewhere than to {sorted(mounted)}"
    scheme, _, folder = config["CHECKPOINT_URI"].partition("://")
    volumes = mounted - {"/tmp", "/dev/shm"}
    if scheme == "file" and not any(PurePosixPath(folder).is_relative_to(v) for v in volumes):
        yield f"CHECKPOINT_URI: {folder} is on no volume that outlives the pod"


def spot_problems(docs: list[dict[str, Any]]) -> Iterator[str]:
    """Nodes that are asked for or tolerated under names that no cloud gives them."""
    pod = of_kind(docs, "Job")["spec"]["template"]["spec"]
    gpu, *spot = pod["tolerations"]
    if gpu != {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}:
        yield f"tolerations: {gpu} does not let it onto nodes with a GPU"
    named = [(t.get("key"), t.get("value")) for t in spot] + [*pod.get("nodeSelector", {}).items()]
    for key, value in named:
        if SPOT_LABELS.get(key) != value:
            yield f"{key}={value} is no cloud's label of spot nodes"


def manifest_problems(docs: list[dict[str, Any]]) -> list[str]:
    """Everything wrong with the manifests, as one line each."""
    problems = []
    for doc in docs:
        try:
            kubernetes_validate.validate(doc, kubernetes_validate.latest_version(), strict=True)
        except kubernetes_validate.ValidationError as error:
            problems.append(f"{doc['kind']}: {error}")
    checks = (value_problems, reference_problems, job_problems, pod_problems, spot_problems)
    return problems + [problem for check in checks for problem in check(docs)]


@pytest.mark.parametrize("choices", [False, True])
def test_the_manifests_are_right_without_and_with_their_choices(choices: bool) -> None:
    assert manifest_problems(documents(choices)) == []


def test_every_choice_in_the_comments_is_among_those_tried() -> None:
    pod = of_kind(documents(choices=True), "Job")["spec"]["template"]["spec"]
    config = of_kind(documents(choices=True), "ConfigMap")["data"]
    claim = of_kind(documents(choices=True), "PersistentVolumeClaim")["spec"]
    assert pod["nodeSelector"] == SPOT_LABELS
    assert [toleration["key"] for toleration in pod["tolerations"][1:]] == [
        "cloud.google.com/gke-spot",
        "kubernetes.azure.com/scalesetpriority",
    ]
    assert pod["serviceAccountName"] == "smollm2-train"
    assert {"secretRef": {"name": "smollm2-s3"}} in pod["containers"][0]["envFrom"]
    assert claim["storageClassName"] == "standard"
    assert config["CHECKPOINT_URI"].startswith("s3://")
    assert {"ADDITIONAL_STEPS", "SPOT_NOTICES", "AWS_ENDPOINT_URL_S3"} <= config.keys()


@pytest.mark.parametrize("choices", [False, True])
def test_the_manifest_names_only_variables_that_exist_with_values_that_can_be_used(
    choices: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = of_kind(documents(choices), "ConfigMap")["data"]
    pod = of_kind(documents(choices), "Job")["spec"]["template"]["spec"]
    env = {entry["name"] for container in pod["containers"] for entry in container["env"]}
    assert unknown_variables(set(config) | env) == []
    settings = settings_of(config, monkeypatch, tmp_path)
    assert settings.model.model == "smollm2-135m"
    assert settings.compute.device == "cuda"


def test_the_manifest_runs_as_the_user_of_the_image() -> None:
    pod = of_kind(documents(), "Job")["spec"]["template"]["spec"]
    user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.M)[-1]
    context = pod["securityContext"]
    assert user == (str(context["runAsUser"]), str(context["fsGroup"]))


def changed(docs: list[dict[str, Any]], kind: str, path: str, value: Any) -> list[dict[str, Any]]:
    """A copy with `value` in the place of what is at `path`; None: without it."""
    docs = copy.deepcopy(docs)
    node: Any = of_kind(docs, kind)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split()]
    for key in parents:
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return docs


RULES = "spec podFailurePolicy rules"
POD = "spec template spec"
BOX = f"{POD} containers 0"


@pytest.mark.parametrize(
    ("kind", "path", "value", "named"),
    [
        ("Job", "spec backoffLimit", "six", "backoffLimit"),
        ("Job", "spec backoffLimit", None, "backoffLimit"),
        ("Job", "spec backofLimit", 6, "backofLimit"),
        ("Job", f"{RULES} 1 action", "Ignoore", "Ignoore"),
        ("Job", f"{RULES} 2 onExitCodes operator", "Inn", "Inn"),
        ("Job", f"{RULES} 2 onExitCodes operator", "Exists", "Exists"),
        ("Job", f"{RULES} 1 onExitCodes containerName", "trainer", "trainer"),
        ("Job", f"{RULES} 2 onExitCodes values", [64, 77, 79], "78"),
        ("Job", f"{RULES} 0 onPodConditions 0 type", "DisruptionTarged", "DisruptionTarged"),
        ("Job", f"{RULES} 0", None, "disruption"),
        ("Job", f"{POD} restartPolicy", "Always", "restartPolicy"),
        ("Job", f"{POD} securityContext runAsNonRoot", None, "runAsNonRoot"),
        ("Job", f"{POD} enableServiceLinks", None, "enableServiceLinks"),
        ("Job", f"{POD} securityContext seccompProfile type", "RuntimeDefalt", "RuntimeDefalt"),
        ("Job", f"{POD} tolerations 0 key", "nvidia.com/gpus", "nvidia.com/gpus"),
        ("Job", f"{POD} tolerations 1 key", "cloud.google.com/spot", "cloud.google.com/spot"),
        ("Job", f"{POD} tolerations 1 kye", "cloud.google.com/gke-spot", "kye"),
        ("Job", f"{POD} nodeSelector eks", "SPOT", "eks=SPOT"),
        ("Job", f"{BOX} resources limits memory", "16 GB", "16 GB"),
        ("Job", f"{BOX} resources limits nvidia.com/gpu", None, "nvidia.com/gpu"),
        ("Job", f"{BOX} securityContext readOnlyRootFilesystem", None, "readOnlyRootFilesystem"),
        ("Job", f"{BOX} securityContext capabilities drop", ["AL"], "AL is none of"),
        ("Job", f"{BOX} env 0 valueFrom fieldRef fieldPath", "metadata.label['x']", "label['x']"),
        ("Job", f"{BOX} volumeMounts 0 name", "dta", "dta"),
        ("Job", f"{BOX} volumeMounts 0 mountPath", "/dta", "/dta"),
        ("ConfigMap", "metadata name", "other", "no ConfigMap is named smollm2-train"),
        ("ConfigMap", "data GRACE_SECONDS", "30", "terminationGracePeriodSeconds"),
        ("PersistentVolumeClaim", "spec accessModes", ["ReadWriteOnse"], "ReadWriteOnse"),
        ("PersistentVolumeClaim", "spec resources requests storage", "1Gib", "1Gib"),
    ],
)
def test_a_broken_manifest_is_found(kind: str, path: str, value: Any, named: str) -> None:
    broken = changed(documents(choices=True), kind, path, value)
    assert any(named in problem for problem in manifest_problems(broken))


def test_a_checkpoint_folder_on_no_volume_is_found() -> None:
    broken = changed(documents(), "ConfigMap", "data CHECKPOINT_URI", "file:///checkpoints")
    assert any("outlives the pod" in problem for problem in manifest_problems(broken))
