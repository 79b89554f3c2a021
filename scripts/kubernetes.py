"""The manifests that are made from k8s/base:   python scripts/kubernetes.py

k8s/job.yaml is the base in one file, with its comments, for those who do not use kustomize. A
JobSet holds the Job's pod inside a resource of another kind, which no patch of kustomize can make
of it. `tests/test_manifests.py` fails where a file here is not what this makes.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
K8S = ROOT / "k8s"

Manifest = dict[str, Any]

_JOB_HEADER = """\
# Made from k8s/base by scripts/kubernetes.py; k8s/overlays and k8s/components have the other forms.
#
# One GPU, one run:   kubectl apply -f k8s/volume.yaml -f k8s/job.yaml
# Follow it:          kubectl logs -f job/smollm2-train
# Remove the Job:     kubectl delete job smollm2-train
# Extend the run:     kubectl apply -k k8s/overlays/extend
#
# Without volume.yaml the pod stays Pending, and `kubectl describe pod` says that the claim is not
# found. Change first: `image` (push the one that `docker compose build train` makes).
"""

_JOBSET_HEADER = """\
# Made from k8s/base by scripts/kubernetes.py.
#
# A reclaimed node ends the Job, and the JobSet makes a new one at once, as often as it takes. A Job
# that replaces its pod itself waits up to 10 minutes after the seventh one.
"""

_RUNTIME_HEADER = """\
# Made from k8s/base by scripts/kubernetes.py. What an administrator applies once.
"""


def job_yaml() -> str:
    """k8s/job.yaml: the resources of the base as they stand there."""
    names = yaml.safe_load((K8S / "base/kustomization.yaml").read_text())["resources"]
    return _JOB_HEADER + "---\n".join((K8S / "base" / name).read_text() for name in names)


def base_job() -> Manifest:
    job: Manifest = yaml.safe_load((K8S / "base/job.yaml").read_text())
    return job


def jobset() -> Manifest:
    """The Job of the base inside a JobSet.

    Three ways to end need three reasons of the Job: FailJob for what was preempted, FailIndex
    for what is hopeless. Everything else is tried again inside the Job, up to the limit.
    """
    job = base_job()
    metadata, spec = job["metadata"], copy.deepcopy(job["spec"])
    spec |= {
        "completionMode": "Indexed",  # what backoffLimitPerIndex and FailIndex need
        "backoffLimitPerIndex": spec.pop("backoffLimit"),
        "maxFailedIndexes": 0,
    }
    actions = {"Ignore": "FailJob", "FailJob": "FailIndex"}
    for rule in spec["podFailurePolicy"]["rules"]:
        rule["action"] = actions[rule["action"]]
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": 0,
                "rules": [
                    {
                        "name": "preempted",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    },
                    {
                        "name": "hopeless",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["FailedIndexes", "MaxFailedIndexesExceeded"],
                    },
                ],
            },
            "replicatedJobs": [{"name": "train", "replicas": 1, "template": {"spec": spec}}],
        },
    }


def multi_node_jobset(nodes: int = 2) -> Manifest:
    """The JobSet with a pod for each node. One that fails stops the others, so none is retried
    alone."""
    found = jobset()
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    job |= {"completions": nodes, "parallelism": nodes}
    found["spec"]["network"] = {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    return found


def training_runtime() -> Manifest:
    """What a TrainJob of Kubeflow is made from. Trainer looks for the names `node`, and sets
    completions and parallelism itself."""
    spec = multi_node_jobset()["spec"]
    (replicated,) = spec["replicatedJobs"]
    replicated["name"] = "node"
    ancestor = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    job = replicated["template"]["spec"]
    replicated["template"] = {"metadata": {"labels": ancestor}, "spec": job}
    job |= {"completions": 1, "parallelism": 1}
    for rule in job["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            rule["onExitCodes"]["containerName"] = "node"
    pod = job["template"]["spec"]
    pod["containers"][0]["name"] = "node"
    # No claim of one node, and what the component s3 adds to a Job and a JobSet.
    pod["volumes"][0] = {"name": "data", "emptyDir": {"sizeLimit": "40Gi"}}
    pod["containers"][0]["envFrom"].append({"secretRef": {"name": "smollm2-s3", "optional": True}})
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "ClusterTrainingRuntime",
        "metadata": {
            "name": "smollm2-train",
            "labels": {"trainer.kubeflow.org/framework": "torch"},
        },
        "spec": {
            "mlPolicy": {"numNodes": 2, "torch": {"numProcPerNode": "auto"}},
            "template": {"spec": spec},
        },
    }


def made() -> dict[Path, str]:
    """What each of the files has to hold."""
    return {
        K8S / "job.yaml": job_yaml(),
        K8S / "overlays/jobset/jobset.yaml": _JOBSET_HEADER + _dumped(jobset()),
        K8S / "overlays/jobset-multi-node/jobset.yaml": (
            _JOBSET_HEADER + _dumped(multi_node_jobset())
        ),
        K8S / "overlays/kubeflow/runtime.yaml": _RUNTIME_HEADER + _dumped(training_runtime()),
    }


def _dumped(manifest: Manifest) -> str:
    return yaml.safe_dump(manifest, sort_keys=False, width=1000)


def main() -> int:
    for path, text in made().items():
        path.write_text(text, "utf-8")
        print(path.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
