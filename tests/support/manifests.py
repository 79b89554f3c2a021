"""The manifests of k8s/ as kustomize builds them, and what can be wrong with them.

Schemas know field names and types. They do not know enumerations, quantities, references between
fields, or what this job promises.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from tests.support.crds import field_problems
from tests.support.repository import ROOT
from tests.support.shipped_settings import GRACE_MARGIN_SECONDS, unknown_variables

K8S = ROOT / "k8s"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent.name for path in K8S.glob("components/*/kustomization.yaml"))
SPOT = {  # the clouds' own labels of spot nodes
    "gke-spot": ("cloud.google.com/gke-spot", "true"),
    "eks-spot": ("eks.amazonaws.com/capacityType", "SPOT"),
    "aks-spot": ("kubernetes.azure.com/scalesetpriority", "spot"),
    "karpenter": ("karpenter.sh/capacity-type", "spot"),
}
TOLERATED = {
    ("nvidia.com/gpu", "Exists", None),
    ("cloud.google.com/gke-spot", "Equal", "true"),
    ("kubernetes.azure.com/scalesetpriority", "Equal", "spot"),
}
HOPELESS, PREEMPTED = {64, 77, 78}, {143, 79}

Manifest = dict[str, Any]

# https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
_QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?")
# By the last names of the path to the value.
_ENUMS = {
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "capabilities.drop": {"ALL"},
    "completionMode": {"Indexed", "NonIndexed"},
    "emptyDir.medium": {"", "Memory"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "onExitCodes.operator": {"In", "NotIn"},
    "onPodConditions.status": {"True", "False", "Unknown"},
    "onPodConditions.type": {"DisruptionTarget"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "podFailurePolicy.rules.action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "seccompProfile.type": {"RuntimeDefault", "Localhost", "Unconfined"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "tolerations.effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "tolerations.operator": {"Exists", "Equal"},
}
# What the downward API gives a variable of the environment.
_FIELD_PATH = re.compile(
    r"metadata\.(name|namespace|uid|(labels|annotations)\['[\w./-]+'\])"
    r"|spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs)"
)
_RESTRICTED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}


@cache
def _built(overlay: str, components: tuple[str, ...]) -> str:
    beside = Path(sys.executable).parent / "kubectl"
    kubectl = str(beside) if beside.exists() else shutil.which("kubectl")
    assert kubectl, "kubectl is missing: pip install -r requirements-test.txt"
    with tempfile.TemporaryDirectory() as folder:
        relative = Path(os.path.relpath(K8S, Path(folder).resolve()))
        wrapper = {
            "resources": [str(relative / "overlays" / overlay)],
            "components": [str(relative / "components" / name) for name in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(wrapper))
        done = subprocess.run(
            [kubectl, "kustomize", folder], capture_output=True, text=True, check=False, timeout=60
        )
    assert done.returncode == 0, done.stderr
    # kustomize warns about what it will not understand in a later version.
    assert not done.stderr, done.stderr
    return done.stdout


def built(overlay: str, *components: str) -> list[Manifest]:
    """What `kubectl apply -k` of the overlay with these components would send."""
    return [doc for doc in yaml.safe_load_all(_built(overlay, components)) if doc]


def claim() -> Manifest:
    found: Manifest = yaml.safe_load((K8S / "volume.yaml").read_text())
    return found


def of_kind(docs: list[Manifest], kind: str) -> Manifest:
    """The only one of that kind; the dashboard is no settings."""
    (only,) = [
        d for d in docs if d["kind"] == kind and "smollm2-dashboard" not in str(d["metadata"])
    ]
    return only


def job_specs(docs: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Each Job, with the kind of what holds it."""
    for doc in docs:
        if doc["kind"] == "Job":
            yield "Job", doc["spec"]
        spec = doc.get("spec", {})
        spec = spec.get("template", {}).get("spec", {}) if "Runtime" in doc["kind"] else spec
        for replicated in spec.get("replicatedJobs", []):
            yield "JobSet", replicated["template"]["spec"]


def pods(docs: list[Manifest]) -> list[Manifest]:
    """The spec of each pod that would be made."""
    single = [doc["spec"] for doc in docs if doc["kind"] == "Pod"]
    return single + [job["template"]["spec"] for _, job in job_specs(docs)]


def config(docs: list[Manifest]) -> dict[str, str]:
    data: dict[str, str] = of_kind(docs, "ConfigMap")["data"]
    return data


def actions(job: Manifest) -> dict[int, str]:
    """What happens to a pod that ends with a code, where a rule says it."""
    found: dict[int, str] = {}
    for rule in job["podFailurePolicy"]["rules"]:
        for code in rule.get("onExitCodes", {}).get("values", []):
            found.setdefault(code, rule["action"])
    return found


def _items(node: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every (path, key, value) below `node`."""
    children = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in children:
        here = f"{path}.{key}"
        yield here, str(key), value
        if isinstance(value, dict | list):
            yield from _items(value, here)


def _value_problems(docs: list[Manifest]) -> Iterator[str]:
    """Values that a field cannot have."""
    for path, key, value in _items(docs):
        names = re.sub(r"\.\d+(?=\.|$)", "", path)
        allowed = [_ENUMS[name] for name in _ENUMS if names.endswith(f".{name}")]
        if allowed and not isinstance(value, dict | list) and value not in allowed[0]:
            yield f"{path}: {value} is none of {sorted(allowed[0])}"
        if key == "fieldPath" and not _FIELD_PATH.fullmatch(value):
            yield f"{path}: {value} is nothing that the downward API gives"
        amounts = {"": value} if key == "sizeLimit" else {}
        if key in ("requests", "limits"):
            amounts = value
        for name, amount in amounts.items():
            if not _QUANTITY.fullmatch(str(amount)):
                yield f"{path}.{name}: {amount} is not a quantity"


def _reference_problems(docs: list[Manifest]) -> Iterator[str]:
    """Names that point at nothing."""
    claims = [doc for doc in docs if doc["kind"] == "PersistentVolumeClaim"] or [claim()]
    named = {(doc["kind"], doc["metadata"]["name"]) for doc in [*docs, *claims]}
    for pod in pods(docs):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for path, key, value in _items(pod):
            if key == "volumeMounts":
                for mount in value:
                    if mount["name"] not in volumes:
                        yield f"{path}: no volume is named {mount['name']}"
            elif key == "configMapRef" and ("ConfigMap", value["name"]) not in named:
                yield f"{path}: no ConfigMap is named {value['name']}"
            elif key == "claimName" and ("PersistentVolumeClaim", value) not in named:
                yield f"{path}: no PersistentVolumeClaim is named {value}"
    for _, job in job_specs(docs):
        containers = {container["name"] for container in job["template"]["spec"]["containers"]}
        for path, key, value in _items(job["podFailurePolicy"]):
            if key == "containerName" and value not in containers:
                yield f"{path}: no container is named {value}"


def _job_problems(docs: list[Manifest]) -> Iterator[str]:
    """What the exit codes and the preemption of this job ask of its Job."""
    for kind, job in job_specs(docs):
        pod, alone = job["template"]["spec"], kind == "Job"
        limit = "backoffLimit" if alone else "backoffLimitPerIndex"
        if not job.get(limit):
            yield f"{limit}: a crash must be tried again, and not for ever"
        if pod.get("restartPolicy") != "Never":
            yield "restartPolicy: podFailurePolicy works with Never only"
        if job.get("podReplacementPolicy") != "Failed":
            yield "podReplacementPolicy: with anything but Failed, two pods write at once"
        promised = float(config(docs)["GRACE_SECONDS"]) + GRACE_MARGIN_SECONDS
        if pod["terminationGracePeriodSeconds"] < promised:
            yield f"terminationGracePeriodSeconds: GRACE_SECONDS needs {promised:g}"
        again, never = ("Ignore", "FailJob") if alone else ("FailJob", "FailIndex")
        wanted = dict.fromkeys(PREEMPTED, again) | dict.fromkeys(HOPELESS, never)
        if actions(job) != wanted:
            yield f"podFailurePolicy: exit codes are treated as {actions(job)}, not as {wanted}"
        first = job["podFailurePolicy"]["rules"][0]
        conditions = first.get("onPodConditions", [{}])
        if first["action"] != again or conditions[0].get("type") != "DisruptionTarget":
            yield "podFailurePolicy: a disruption must come before exit codes are looked at"


def _restricted_problems(docs: list[Manifest]) -> Iterator[str]:
    """What a namespace with the pod security standard `restricted` would refuse, and what a
    read-only image asks for."""
    for pod in pods(docs):
        hardened: Manifest = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        if not hardened.items() <= pod["securityContext"].items():
            yield f"securityContext of the pod: needs {hardened}"
        if pod.get("enableServiceLinks") is not False:
            yield "enableServiceLinks: a Service could set a variable of the job"
        if pod.get("automountServiceAccountToken") is not False:
            yield "automountServiceAccountToken: the job asks the API server for nothing"
        for volume in pod["volumes"]:
            if not volume.keys() - {"name"} <= _RESTRICTED_VOLUMES:
                yield f"volumes: {volume['name']} is of a kind that `restricted` refuses"
        if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield "the pod: asks for a namespace of the node"
        hardened = {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for container in pod["containers"]:
            if container["securityContext"] != hardened:
                yield f"securityContext of the container: needs {hardened}"
            if not re.fullmatch(r"[\w./-]+(:\d+/[\w./-]+)?:(?!latest$)[\w.-]+", container["image"]):
                yield f"image: {container['image']} names no version"
            if container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
                yield "terminationMessagePolicy: `kubectl describe` would not show the error"


def _pod_problems(docs: list[Manifest]) -> Iterator[str]:
    """What the settings ask of the pods."""
    values = config(docs)
    for pod in pods(docs):
        (container,) = pod["containers"]
        env = {entry["name"]: entry.get("value") for entry in container.get("env", [])}
        if unknown := unknown_variables([*values, *env]):
            yield f"env: there is no variable {', '.join(unknown)}"
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        if not mounts.keys() >= {"/data", "/tmp"}:
            yield f"mountPath: the job writes elsewhere than to {sorted(mounts)}"
        gpus = container["resources"]["limits"].get("nvidia.com/gpu")
        device = env.get("DEVICE") or values["DEVICE"]
        if (device == "cuda") != bool(gpus):
            yield f"DEVICE={device} with nvidia.com/gpu: {gpus}"
        scheme, _, folder = values["CHECKPOINT_URI"].partition("://")
        where = PurePosixPath(folder)
        kept = [path for path in mounts.keys() - {"/tmp"} if where.is_relative_to(path)]
        if scheme == "file" and not kept:
            yield f"CHECKPOINT_URI: {folder} is on no volume that outlives the container"
        taints = {(t["key"], t.get("operator"), t.get("value")) for t in pod.get("tolerations", [])}
        if not taints <= TOLERATED:
            yield f"tolerations: {taints - TOLERATED} are no taints of nodes that are meant"
        for label in pod.get("nodeSelector", {}).items():
            if label not in SPOT.values():
                yield f"nodeSelector: {label[0]}={label[1]} is no cloud's label of spot nodes"


def problems(docs: list[Manifest]) -> list[str]:
    """Everything wrong with the manifests, as one line each."""
    found = [problem for doc in docs for problem in field_problems(doc)]
    checks = (
        _value_problems,
        _reference_problems,
        _job_problems,
        _restricted_problems,
        _pod_problems,
    )
    return found + [problem for check in checks for problem in check(docs)]
