"""The alerts and the dashboard: what they ask for exists, and each alert fires when it should.

`promtool` is in Debian's package `prometheus`, and in the image of the tests.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.manifests import K8S, built, of_kind
from tests.support.metrics import names_of_metrics
from tests.support.promtool import asked_of, found_promtool

MONITORING = K8S / "components/monitoring"
RUN = '{namespace="ml", run="smollm2-135m", attempt="3", rank="0", pod="a"}'
JOB = '{namespace="ml", job_name="smollm2-train"}'


def rules() -> list[dict[str, Any]]:
    found = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"]["groups"]
    return [rule for group in found for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MONITORING / "smollm2.json").read_text())
    return found


def shown() -> list[str]:
    """What the panels ask for."""
    panels = dashboard()["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.fixture
def promtool() -> str:
    return found_promtool()


def test_alerts_and_panels_ask_for_metrics_that_the_job_has() -> None:
    asked = [*shown(), *(rule["expr"] for rule in rules())]
    named = {name for expression in asked for name in re.findall(r"\bsmollm2_\w+", expression)}
    assert named and named <= names_of_metrics()
    assert not any(re.search(r"\btrain_", expression) for expression in asked), "an old name"


def test_panels_have_an_expression_that_can_be_parsed(promtool: str, tmp_path: Path) -> None:
    asked = [e.replace("$namespace", "x").replace("$run", "x") for e in shown()]
    recorded = [{"record": f"panel:{number}", "expr": e} for number, e in enumerate(asked)]
    group = {"groups": [{"name": "panels", "rules": recorded}]}
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump(group))
    assert f"{len(asked)} rules found" in asked_of(
        promtool, tmp_path, "check", "rules", "panels.yaml"
    )


def test_the_dashboard_is_found_by_the_sidecar_of_grafana() -> None:
    docs = built("one-gpu", "monitoring")
    (board,) = [doc for doc in docs if doc["metadata"]["name"] == "smollm2-dashboard"]
    assert board["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert json.loads(board["data"]["smollm2.json"]) == dashboard()
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_the_monitor_finds_the_pods_and_their_port() -> None:
    for overlay in ("one-gpu", "extend", "jobset"):
        docs = built(overlay, "monitoring")
        monitor = of_kind(docs, "PodMonitor")["spec"]
        (endpoint,) = monitor["podMetricsEndpoints"]
        text = yaml.safe_dump([doc for doc in docs if doc["kind"] in ("Job", "JobSet")])
        (label,) = monitor["selector"]["matchLabels"].items()
        assert f"{label[0]}: {label[1]}" in text
        port = of_kind(docs, "ConfigMap")["data"]["METRICS_PORT"]
        assert f"containerPort: {port}\n" in text and f"name: {endpoint['port']}\n" in text


# Values are written minute by minute: 0+60x20 is 0, 60, 120 … and _ is no value.
CALM = {
    f"smollm2_train_last_step_timestamp_seconds{RUN}": "0+60x600",
    f"smollm2_checkpoint_age_seconds{RUN}": "120x600",
    f"smollm2_checkpoint_save_failures_in_a_row{RUN}": "0x600",
    f"smollm2_train_step{RUN}": "0+10x600",
    f"smollm2_checkpoint_saves_total{RUN}": "0x5 1x594",
    f"smollm2_train_tokens_total{RUN}": "0+60000x600",
    f"smollm2_train_tokens_per_second{RUN}": "1100x600",
    f"kube_job_status_active{JOB}": "1x600",
    f'kube_job_failed{{condition="true", {JOB[1:]}': "0x600",
}
NO_STEP = {f"smollm2_train_last_step_timestamp_seconds{RUN}": "0+60x400 24000x200"}
STALE = {
    f"smollm2_checkpoint_age_seconds{RUN}": "120x400 120+60x200",
}
UNSAVED = {
    f"smollm2_checkpoint_age_seconds{RUN}": "_x600",
    f"smollm2_checkpoint_saves_total{RUN}": "0x600",
}
REFUSED = {f"smollm2_checkpoint_save_failures_in_a_row{RUN}": "0x400 0+1x200"}
LOST = {f"smollm2_train_tokens_total{RUN}": "0+60000x200 12000000+20000x400"}
GONE = {s: v.replace("x600", "x400") for s, v in CALM.items() if s.startswith("smollm2_")}
FAILED = {
    f'kube_job_failed{{condition="true", {JOB[1:]}': "0x400 1x200",
    f"kube_job_status_active{JOB}": "1x400 0x200",
}


@pytest.mark.parametrize(
    ("change", "minute", "firing"),
    [
        ({}, 590, []),
        (NO_STEP, 410, []),
        (NO_STEP, 420, ["SmolLM2NoStep"]),
        (STALE, 420, []),
        (STALE, 435, ["SmolLM2NoCheckpoint"]),
        (UNSAVED, 25, []),
        (UNSAVED, 35, ["SmolLM2NothingSaved"]),
        (REFUSED, 402, []),
        (REFUSED, 410, ["SmolLM2SavesFail"]),
        (LOST, 590, ["SmolLM2Goodput"]),
        (GONE, 415, []),
        (GONE, 430, ["SmolLM2NoPod"]),
        (FAILED, 410, ["SmolLM2JobFailed"]),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_an_alert_fires_when_it_should_and_not_before(
    change: dict[str, str], minute: int, firing: list[str], promtool: str, tmp_path: Path
) -> None:
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump(yaml.safe_load((MONITORING / "alerts.yaml").read_text())["spec"])
    )
    series = CALM | change
    # ALERTS is Prometheus's own series of what fires.
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing]
    asked = 'count by (alertname) (ALERTS{alertstate="firing"})'
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "promql_expr_test": [
                    {"expr": asked, "eval_time": f"{minute}m", "exp_samples": samples}
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    assert "SUCCESS" in asked_of(promtool, tmp_path, "test", "rules", "test.yaml")


def test_every_alert_is_tried() -> None:
    module = Path(__file__).read_text()
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert alerts == set(re.findall(r'\["(SmolLM2\w+)"\]', module))


def test_promtool_is_in_the_image_of_the_tests() -> None:
    """So that CI tries the alerts, wherever it has an engine."""
    image = (K8S.parent / "Dockerfile").read_text()
    stage = image.partition("AS test-environment")[2].partition("\nFROM ")[0]
    assert "promtool" in stage
