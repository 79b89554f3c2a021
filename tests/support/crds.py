"""The fields of resources that are not Kubernetes' own, as far as the manifests may use them.

Names and kinds of values were read from the types that the projects publish (2026-11-28):
kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go at 0336a8f; kubeflow/trainer,
pkg/apis/trainer/v1alpha1/trainjob_types.go at 0015772 and trainingruntime_types.go at 022656a;
kubernetes-sigs/kueue, apis/kueue/v1beta2/localqueue_types.go at 02bc146;
prometheus-operator/prometheus-operator, pkg/apis/monitoring/v1/podmonitor_types.go at 053d84e and
prometheusrule_types.go. A field that is not in here may exist: look there, and add it.
"""

from collections.abc import Iterator
from typing import Any

import kubernetes_validate

# A schema is a type, a set of allowed words, [schema of the items], or {field: schema}. A field
# whose name ends with "!" has to be there. JOB and PODS are Kubernetes' own inside another one.
JOB, PODS = "a batch/v1 JobSpec", "a list of v1 env variables"

_METADATA = {"name": str, "labels": dict, "annotations": dict}
_JOBSET_SPEC = {
    "replicatedJobs!": [
        {
            "name!": str,
            "replicas": int,
            "groupName": str,
            "template!": {"metadata": _METADATA, "spec!": JOB},
        }
    ],
    "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
    "successPolicy": {"operator!": {"All", "Any"}, "targetReplicatedJobs": [str]},
    "failurePolicy": {
        "maxRestarts": int,
        "restartStrategy": {"Recreate", "BlockingRecreate", "InPlaceRestart"},
        "rules": [
            {
                "name!": str,
                "action!": {
                    "FailJobSet",
                    "RestartJobSet",
                    "RestartJobSetAndIgnoreMaxRestarts",
                    "RestartJob",
                    "RestartJobAndIgnoreMaxRestarts",
                },
                "onJobFailureReasons": [
                    {
                        "BackoffLimitExceeded",
                        "DeadlineExceeded",
                        "FailedIndexes",
                        "MaxFailedIndexesExceeded",
                        "PodFailurePolicy",
                    }
                ],
                "targetReplicatedJobs": [str],
            }
        ],
    },
    "suspend": bool,
    "ttlSecondsAfterFinished": int,
}
_SPECS: dict[tuple[str, str], Any] = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): _JOBSET_SPEC,
    ("kueue.x-k8s.io/v1beta2", "LocalQueue"): {
        "clusterQueue": str,
        "stopPolicy": {"None", "Hold", "HoldAndDrain"},
    },
    ("trainer.kubeflow.org/v1alpha1", "ClusterTrainingRuntime"): {
        "mlPolicy": {"numNodes": int, "torch": {"numProcPerNode": str}},
        "template!": {"metadata": _METADATA, "spec!": _JOBSET_SPEC},
    },
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): {
        "runtimeRef!": {"name!": str, "apiGroup": str, "kind": str},
        "trainer": {
            "image": str,
            "command": [str],
            "args": [str],
            "env": PODS,
            "numNodes": int,
            "numProcPerNode": int,
            "resourcesPerNode": dict,
        },
        "suspend": bool,
    },
    ("monitoring.coreos.com/v1", "PodMonitor"): {
        "jobLabel": str,
        "podTargetLabels": [str],
        "selector!": {"matchLabels": dict},
        "namespaceSelector": {"any": bool, "matchNames": [str]},
        "podMetricsEndpoints!": [{"port": str, "path": str, "interval": str, "scrapeTimeout": str}],
    },
    ("monitoring.coreos.com/v1", "PrometheusRule"): {
        "groups!": [
            {
                "name!": str,
                "interval": str,
                "rules!": [
                    {
                        "alert": str,
                        "record": str,
                        "expr!": str,
                        "for": str,
                        "labels": dict,
                        "annotations": dict,
                    }
                ],
            }
        ]
    },
}


def kubernetes_problems(doc: dict[str, Any]) -> Iterator[str]:
    """Where `doc`, of a kind that Kubernetes itself has, is not as its schema says."""
    try:
        kubernetes_validate.validate(doc, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{doc['kind']}: {error}"


def field_problems(doc: dict[str, Any]) -> Iterator[str]:
    """Where `doc` has a field that its kind has not, or a value of another kind."""
    schema = _SPECS.get((doc["apiVersion"], doc["kind"]))
    if schema is None:
        yield from kubernetes_problems(doc)
        return
    whole = {"apiVersion": str, "kind": str, "metadata!": _METADATA, "spec!": schema}
    yield from _problems(doc, whole, doc["kind"])


def _problems(value: Any, schema: Any, path: str) -> Iterator[str]:
    if schema == JOB:
        metadata = {"name": "inner"}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": value}
        yield from (f"{path}: {problem}" for problem in kubernetes_problems(job))
    elif schema == PODS:
        container = {"name": "inner", "image": "inner", "env": value}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "inner"}}
        problems = kubernetes_problems(pod | {"spec": {"containers": [container]}})
        yield from (f"{path}: {problem}" for problem in problems)
    elif isinstance(schema, type):
        # bool is an int in Python, and not in Kubernetes.
        if not isinstance(value, schema) or (schema is int and isinstance(value, bool)):
            yield f"{path}: {value!r} is not of type {schema.__name__}"
    elif isinstance(schema, set):
        if value not in schema:
            yield f"{path}: {value!r} is none of {sorted(schema)}"
    elif isinstance(schema, list):
        if not isinstance(value, list):
            yield f"{path}: {value!r} is not a list"
            return
        for number, item in enumerate(value):
            yield from _problems(item, schema[0], f"{path}.{number}")
    else:
        fields = {name.rstrip("!"): child for name, child in schema.items()}
        needed = {name.rstrip("!") for name in schema if name.endswith("!")}
        yield from (f"{path}: {name} is missing" for name in sorted(needed - value.keys()))
        for name, child in value.items():
            if name not in fields:
                yield f"{path}: there is no field {name}"
            else:
                yield from _problems(child, fields[name], f"{path}.{name}")
