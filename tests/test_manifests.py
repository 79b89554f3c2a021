"""The Kubernetes manifests, as kustomize builds them, and as they are with their choices taken."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.errors import AppError
from scripts.kubernetes import base_job, made
from tests.support.manifests import (
    COMPONENTS,
    HOPELESS,
    K8S,
    OVERLAYS,
    PREEMPTED,
    SPOT,
    Manifest,
    actions,
    built,
    claim,
    config,
    job_specs,
    of_kind,
    pods,
    problems,
)
from tests.support.repository import ROOT
from tests.support.shipped_settings import settings_of

# A comment that is a field with one word as its value, or none; sentences have more.
CHOICE = re.compile(r"^( *)# ( *(?:- )?[\w./-]+:(?: \S+)?(?: # .*)?)$", re.M)
# Each with all that a cluster may want beside it. `read-results` is in an overlay.
SETS = [(spot, "s3", "kueue", "monitoring", "openshift") for spot in SPOT]


def one_file(choices: bool = False) -> list[Manifest]:
    """k8s/job.yaml; with `choices`, with what is commented, of each field the last."""
    text = (K8S / "job.yaml").read_text()
    text = CHOICE.sub(r"\1\2", text) if choices else text
    return [doc for doc in yaml.safe_load_all(text) if doc]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_is_right(overlay: str) -> None:
    assert problems(built(overlay)) == []


@pytest.mark.parametrize("components", SETS, ids=list(SPOT))
@pytest.mark.parametrize("overlay", [name for name in OVERLAYS if name != "kubeflow"])
def test_every_overlay_is_right_with_components(overlay: str, components: tuple[str, ...]) -> None:
    docs = built(overlay, *components)
    assert problems(docs) == []
    # A component whose patch finds nothing changes nothing, and nobody would notice.
    label, value = SPOT[components[0]]
    for _, job in job_specs(docs):
        pod = job["template"]["spec"]
        assert pod["nodeSelector"] == {label: value}
        assert [p["name"] for p in pod["containers"][0]["ports"]] == ["metrics"]
    for pod in pods(docs):
        assert "runAsUser" not in pod["securityContext"]
        assert "emptyDir" in pod["volumes"][0]
        secret = {"secretRef": {"name": "smollm2-s3", "optional": True}}
        assert secret in pod["containers"][0]["envFrom"]
    values = config(docs)
    assert values["CHECKPOINT_URI"].startswith("s3://") and values["METRICS_PORT"] == "9400"


def test_every_component_is_tried() -> None:
    assert set(COMPONENTS) == {name for names in SETS for name in names} | {"read-results"}


def test_the_volume_is_right_and_in_no_other_file() -> None:
    assert problems([*built("one-gpu"), claim()]) == []
    everything = [doc for overlay in OVERLAYS for doc in built(overlay)] + one_file()
    assert "PersistentVolumeClaim" not in {doc["kind"] for doc in everything}
    assert claim()["metadata"]["name"] in str(of_kind(one_file(), "Job"))


def test_what_is_made_by_the_script_is_current() -> None:
    current = {path: path.read_text() for path in made()}
    assert current == made(), "run: python scripts/kubernetes.py"


def test_the_file_for_one_command_is_the_overlay_for_one_gpu() -> None:
    assert one_file() == built("one-gpu")


@pytest.mark.parametrize("choices", [False, True])
def test_the_one_file_is_right_without_and_with_its_choices(
    choices: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    docs = one_file(choices)
    assert problems(docs) == []
    settings = settings_of(config(docs), monkeypatch, tmp_path)
    assert (settings.model.model, settings.compute.device) == ("smollm2-135m", "cuda")


def test_every_choice_in_the_comments_is_among_those_tried() -> None:
    docs = one_file(choices=True)
    (pod,), values = pods(docs), config(docs)
    assert pod["serviceAccountName"] == "smollm2-train"
    assert {"secretRef": {"name": "smollm2-s3"}} in pod["containers"][0]["envFrom"]
    assert values["CHECKPOINT_URI"].startswith("s3://")
    assert {"SPOT_NOTICES", "RESUME", "AWS_ENDPOINT_URL_S3"} <= values.keys()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_of_every_overlay_can_be_used(
    overlay: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert settings_of(config(built(overlay)), monkeypatch, tmp_path)


def test_every_exit_code_of_the_program_has_its_place_in_the_policy() -> None:
    def codes(error: type[AppError]) -> set[int]:
        return {error.exit_code}.union(*(codes(child) for child in error.__subclasses__()))

    # A bug, what may be better the next time, and Ctrl-C at a question, which no pod is asked.
    counted = {1, 75, 130}
    assert codes(AppError) - counted == HOPELESS | PREEMPTED
    assert set(actions(base_job()["spec"])) == HOPELESS | PREEMPTED


def test_a_fenced_process_does_not_end_the_job_of_its_successor() -> None:
    """It was cut off and woke up, and the pod that took the run over is this Job's next one."""
    assert actions(base_job()["spec"])[79] == "Ignore"


def test_a_store_that_is_down_for_two_hours_at_the_start_does_not_end_the_job() -> None:
    """The controller waits 10 s after the first failure, then twice as long, up to 600 s."""
    limit = base_job()["spec"]["backoffLimit"]
    waits = [min(600, 10 * 2**number) for number in range(limit)]
    assert sum(waits) >= 2 * 3600
    assert limit <= 30, "and a crash at each start does not hold a GPU for days"


def test_the_pod_fits_on_the_smallest_usual_spot_node() -> None:
    """Of 4 vCPU and 16 GiB, 3.92 and 14.4 GiB were allocatable, for the node's own pods too."""
    requests = base_job()["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert float(requests["cpu"]) <= 3.5
    assert int(requests["memory"].removesuffix("Gi")) <= 13


@pytest.mark.parametrize("spot", SPOT)
def test_each_cloud_has_its_own_grace(spot: str) -> None:
    docs = built("one-gpu", spot)
    (pod,) = pods(docs)
    most = {"gke-spot": 15, "aks-spot": 30, "eks-spot": 120, "karpenter": 120}[spot]
    assert float(config(docs)["GRACE_SECONDS"]) <= most - 3
    assert pod["nodeSelector"] == dict([SPOT[spot]])


def test_a_hung_pod_is_found_in_a_third_of_the_time_that_it_took() -> None:
    from app.heartbeat import SHORTEST_ALLOWANCE

    probe = base_job()["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    found = SHORTEST_ALLOWANCE + probe["periodSeconds"] * probe["failureThreshold"]
    assert found <= (900 + 5 * 60) / 3


def test_an_extension_has_a_name_of_its_own_and_the_name_is_its_id() -> None:
    docs = built("extend")
    job, base = of_kind(docs, "Job"), of_kind(built("one-gpu"), "Job")
    assert re.fullmatch(r"smollm2-train-extend-\d+", job["metadata"]["name"])
    assert job["metadata"]["name"] != base["metadata"]["name"]
    (entry,) = job["spec"]["template"]["spec"]["containers"][0]["env"]
    path = entry["valueFrom"]["fieldRef"]["fieldPath"]
    assert (entry["name"], path) == (
        "EXTENSION_ID",
        "metadata.labels['batch.kubernetes.io/job-name']",
    )
    assert {"ADDITIONAL_STEPS", "LEASE_WAIT"} <= config(docs).keys()
    # And no ADDITIONAL_STEPS are left over in the Job that comes back of itself.
    assert "ADDITIONAL_STEPS" not in config(built("one-gpu"))


def test_the_jobset_tells_what_was_preempted_from_what_is_hopeless() -> None:
    jobset = of_kind(built("jobset"), "JobSet")["spec"]
    rules = {tuple(r["onJobFailureReasons"]): r["action"] for r in jobset["failurePolicy"]["rules"]}
    assert rules == {
        ("PodFailurePolicy",): "RestartJobSetAndIgnoreMaxRestarts",
        ("FailedIndexes", "MaxFailedIndexesExceeded"): "FailJobSet",
    }
    ((_, job),) = job_specs(built("jobset"))
    assert job["template"] == base_job()["spec"]["template"]


@pytest.mark.parametrize(
    ("overlay", "first_pod"),
    [
        ("multi-node", "smollm2-train-0.smollm2-train"),
        ("jobset-multi-node", "smollm2-train-train-0-0.smollm2-train"),
    ],
)
def test_the_pods_of_several_nodes_find_the_first_one_by_its_name(
    overlay: str, first_pod: str
) -> None:
    docs = built(overlay)
    values = config(docs)
    assert values["MASTER_ADDR"] == first_pod
    assert values["CHECKPOINT_URI"].startswith("s3://")
    ((kind, job),) = job_specs(docs)
    nodes = int(values["NUM_NODES"])
    assert (job["completions"], job["parallelism"]) == (nodes, nodes)
    assert job["completionMode"] == "Indexed"
    gpus = int(job["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    together = int(values["BATCH_SIZE"]) * nodes * gpus
    assert int(values["GLOBAL_BATCH_SIZE"]) % together == 0
    if kind == "Job":
        service = of_kind(docs, "Service")
        assert service["metadata"]["name"] == job["template"]["spec"]["subdomain"]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        selector = service["spec"]["selector"].items()
        assert selector <= job["template"]["metadata"]["labels"].items()


def test_a_train_job_names_the_runtime_that_is_made_for_it() -> None:
    docs = built("kubeflow")
    runtime = of_kind(docs, "ClusterTrainingRuntime")
    assert of_kind(docs, "TrainJob")["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    labels = replicated["template"]["metadata"]["labels"]
    assert labels == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    (pod,) = pods(docs)
    assert (replicated["name"], pod["containers"][0]["name"]) == ("node", "node")


def test_the_manifest_runs_as_the_user_of_the_image() -> None:
    user = re.findall(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.M)[-1]
    for overlay in OVERLAYS:
        for pod in pods(built(overlay)):
            context = pod["securityContext"]
            assert user == (str(context["runAsUser"]), str(context["fsGroup"]))


def test_the_results_are_read_without_a_second_writer_and_without_a_gpu() -> None:
    docs = built("results")
    assert {doc["kind"] for doc in docs} == {"ConfigMap", "Pod"}
    # The settings of the Job stay as they are: these have a name of their own.
    assert of_kind(docs, "ConfigMap")["metadata"]["name"] != "smollm2-train"
    script = of_kind(docs, "Pod")["spec"]["containers"][0]["args"][0]
    assert re.findall(r"python -m app (\w+ \w+)", script) == [
        "checkpoints list",
        "checkpoints verify",
        "checkpoints pull",
    ]


def changed(docs: list[Manifest], kind: str, path: str, value: Any) -> list[Manifest]:
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
INNER = "spec replicatedJobs 0 template spec"


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
        ("Job", f"{POD} automountServiceAccountToken", None, "automountServiceAccountToken"),
        ("Job", f"{POD} hostNetwork", True, "namespace of the node"),
        ("Job", f"{POD} securityContext seccompProfile type", "RuntimeDefalt", "RuntimeDefalt"),
        ("Job", f"{POD} tolerations 0 key", "nvidia.com/gpus", "nvidia.com/gpus"),
        ("Job", f"{POD} tolerations 1 key", "cloud.google.com/spot", "cloud.google.com/spot"),
        ("Job", f"{POD} tolerations 1 kye", "cloud.google.com/gke-spot", "kye"),
        ("Job", f"{POD} nodeSelector", {"eks": "SPOT"}, "eks=SPOT"),
        ("Job", f"{POD} volumes 0", {"name": "data", "hostPath": {"path": "/"}}, "refuses"),
        ("Job", f"{BOX} image", "smollm2-spot-trainer", "names no version"),
        ("Job", f"{BOX} image", "smollm2-spot-trainer:latest", "names no version"),
        ("Job", f"{BOX} terminationMessagePolicy", None, "terminationMessagePolicy"),
        ("Job", f"{BOX} resources limits memory", "16 GB", "16 GB"),
        ("Job", f"{BOX} resources limits nvidia.com/gpu", None, "nvidia.com/gpu"),
        ("Job", f"{BOX} securityContext readOnlyRootFilesystem", None, "readOnlyRootFilesystem"),
        ("Job", f"{BOX} securityContext capabilities drop", ["AL"], "AL is none of"),
        ("Job", f"{BOX} env 0 valueFrom fieldRef fieldPath", "metadata.label['x']", "label['x']"),
        ("Job", f"{BOX} env 0 name", "EXTENSION", "no variable EXTENSION"),
        ("Job", f"{BOX} volumeMounts 0 name", "dta", "dta"),
        ("Job", f"{BOX} volumeMounts 0 mountPath", "/dta", "/dta"),
        ("ConfigMap", "metadata name", "other", "no ConfigMap is named smollm2-train"),
        ("ConfigMap", "data GRACE_SECONDS", "30", "terminationGracePeriodSeconds"),
        ("ConfigMap", "data TOTAL_STEP", "30", "no variable TOTAL_STEP"),
        ("ConfigMap", "data CHECKPOINT_URI", "file:///elsewhere", "outlives the container"),
        ("JobSet", "spec failurePolicy rules 0 action", "Restart", "'Restart' is none of"),
        ("JobSet", "spec failurePolicy rules 0 onJobFailureReasons", ["X"], "'X' is none of"),
        ("JobSet", "spec failurePolicy maxRestart", 3, "no field maxRestart"),
        ("JobSet", "spec replicatedJobs 0 name", None, "name is missing"),
        ("JobSet", "spec replicatedJobs 0 replicas", True, "not of type int"),
        ("JobSet", f"{INNER} completionMode", "indexed", "indexed is none of"),
        ("JobSet", f"{INNER} template spec contaners", [], "contaners"),
        ("JobSet", f"{INNER} podFailurePolicy rules 2 action", "FailJob", "exit codes"),
        ("PodMonitor", "spec podMetricsEndpoints 0 prt", "x", "no field prt"),
        ("LocalQueue", "spec clusterqueue", "x", "no field clusterqueue"),
        ("PrometheusRule", "spec groups 0 rules 0 expr", None, "expr is missing"),
    ],
)
def test_a_broken_manifest_is_found(kind: str, path: str, value: Any, named: str) -> None:
    overlay = "jobset" if kind == "JobSet" else "one-gpu"
    docs = built(overlay, "kueue", "monitoring")
    assert any(named in problem for problem in problems(changed(docs, kind, path, value)))


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("spec accessModes", ["ReadWriteOnse"], "ReadWriteOnse"),
        ("spec resources requests storage", "1Gib", "1Gib"),
        ("metadata name", "other", "no PersistentVolumeClaim is named smollm2-train"),
    ],
)
def test_a_broken_volume_is_found(path: str, value: Any, named: str) -> None:
    broken = changed([claim()], "PersistentVolumeClaim", path, value)
    assert any(named in problem for problem in problems([*built("one-gpu"), *broken]))
