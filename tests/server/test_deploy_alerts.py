"""Each alert rule of deploy/ on made-up series, by `promtool test rules`: what makes it fire, and what nearly does."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[2] / "deploy"
ALERTS = DEPLOY / "prometheus/alerts.yml"
INTERVAL = "15s"
FOREVER = 80
"""Samples after the first: 20 minutes."""

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")

SERVER = {"instance": "a:8002", "job": "whet"}
MODEL = {"instance": "a:8002", "model": "m", "version": "1"}
"""What is left of a model's labels by a sum."""


def series(metric: str, values: str, **labels: str) -> dict[str, str]:
    text = ",".join(f'{k}="{v}"' for k, v in labels.items())
    return {"series": f"{metric}{{{text}}}", "values": values}


def server(metric: str, values: str) -> dict[str, str]:
    return series(metric, values, **SERVER)


def model(metric: str, values: str, **labels: str) -> dict[str, str]:
    return series(metric, values, **SERVER, model="m", version="1", **labels)


def rising(step: float) -> str:
    """A counter that rises by so much with each sample."""
    return f"0+{step}x{FOREVER}"


def failures(**steps: float) -> list[dict[str, str]]:
    """The failures of a model by reason: all of them are there, as the server writes them."""
    reasons = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0.0) | steps
    return [model("nv_inference_request_failure", rising(step), reason=r) for r, step in reasons.items()]


def requests(success: float, **failed: float) -> list[dict[str, str]]:
    return [model("nv_inference_request_success", rising(success)), *failures(**failed)]


def waits(queue_us: float, infer_us: float, requests: float) -> list[dict[str, str]]:
    return [
        model("nv_inference_queue_duration_us", rising(queue_us)),
        model("nv_inference_compute_infer_duration_us", rising(infer_us)),
        model("nv_inference_request_success", rising(requests)),
    ]


def latencies(below_1s: float, below_2s: float, more: float) -> list[dict[str, str]]:
    """A histogram that gets so many new values in each bucket."""
    counts = {"1.0": below_1s, "2.0": below_1s + below_2s, "+Inf": below_1s + below_2s + more}
    return [model("whet_request_duration_seconds_bucket", rising(n), le=le) for le, n in counts.items()]


def memory(used: float) -> list[dict[str, str]]:
    total = server("nv_cpu_memory_total_bytes", f"1000x{FOREVER}")
    return [total, server("nv_cpu_memory_used_bytes", f"{used}x{FOREVER}")]


@dataclass(frozen=True)
class Case:
    what: str
    alert: str
    series: list[dict[str, str]]
    at: str
    summary: str | None = None
    """Of the alert that fires; None where nothing does."""
    labels: dict[str, str] | None = None


CASES = [
    Case("down", "WhetServerDown", [server("up", f"1x3 0x{FOREVER}")], "3m",
         "Whet on a:8002 does not answer scrapes", SERVER),
    Case("down for less than a minute", "WhetServerDown", [server("up", f"1x3 0x{FOREVER}")], "1m30s"),
    Case("another job is down", "WhetServerDown", [series("up", f"0x{FOREVER}", instance="b", job="node")], "5m"),
    Case("not ready", "WhetServerNotReady", [server("whet_server_ready", f"0x{FOREVER}")], "5m",
         "Whet on a:8002 takes no requests", SERVER),
    Case("ready in between", "WhetServerNotReady", [server("whet_server_ready", "0x15 1 0x15")], "7m"),
    Case("a model is not ready", "WhetModelNotReady", [model("whet_model_ready", f"0x{FOREVER}")], "5m",
         "Model m version 1 does not answer", SERVER | MODEL),
    Case("a model was not ready while it loaded", "WhetModelNotReady", [model("whet_model_ready", "0x15 1x20")], "5m"),
    Case("2% fail", "WhetModelFails", requests(98, BACKEND=2), "10m",
         "Model m fails 0.133 requests a second", MODEL),
    Case("all fail", "WhetModelFails", requests(0, BACKEND=3), "10m",
         "Model m fails 0.200 requests a second", MODEL),
    Case("1% fail", "WhetModelFails", requests(99, BACKEND=1), "10m"),
    Case("bad requests", "WhetModelFails", requests(1, OTHER=50, CANCELED=50, REJECTED=50), "10m"),
    Case("idle", "WhetModelFails", requests(0), "10m"),
    Case("refused all the time", "WhetRequestsRejected", failures(REJECTED=15), "10m",
         "The queue of m is full: 1.000 requests a second are refused", MODEL),
    Case("one burst", "WhetRequestsRejected",
         [model("nv_inference_request_failure", f"0x8 500x{FOREVER}", reason="REJECTED")], "7m"),
    Case("other failures", "WhetRequestsRejected", failures(BACKEND=15, OTHER=15, CANCELED=15), "10m"),
    Case("waits six times as long as it runs", "WhetQueueDominates", waits(60_000, 10_000, 30), "15m",
         "Requests of m wait five times as long as they run", SERVER | MODEL),
    Case("waits four times as long", "WhetQueueDominates", waits(40_000, 10_000, 30), "15m"),
    Case("a request a minute waits", "WhetQueueDominates", waits(60_000, 10_000, 0.25), "15m"),
    Case("2% take more than a second", "WhetSlow", latencies(98, 2, 0), "15m", "p99 of m is 1.5s", MODEL),
    Case("half a percent does", "WhetSlow", latencies(995, 5, 0), "15m"),
    Case("slow for five minutes", "WhetSlow", latencies(98, 2, 0), "6m"),
    Case("no requests", "WhetSlow", latencies(0, 0, 0), "15m"),
    Case("memory", "WhetMemoryHigh", memory(960), "5m", "The machine of a:8002 has used 95% of its memory", SERVER),
    Case("less memory", "WhetMemoryHigh", memory(940), "15m"),
    Case("lines dropped", "WhetLogLinesDropped", [server("whet_log_lines_dropped_total", rising(3))], "10m",
         "Nobody reads the log of a:8002 fast enough", SERVER),
    Case("lines dropped once", "WhetLogLinesDropped",
         [server("whet_log_lines_dropped_total", f"0x8 90x{FOREVER}")], "7m"),
]  # fmt: skip


def rules() -> dict[str, Any]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    for fires in (True, False):
        assert {c.alert for c in CASES if (c.summary is not None) is fires} == set(rules())


def promtool(folder: Path, tests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    document = {"rule_files": [str(ALERTS)], "evaluation_interval": INTERVAL, "tests": tests}
    (folder / "tests.yml").write_text(yaml.safe_dump(document))
    command = ["promtool", "test", "rules", str(folder / "tests.yml")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def alert_test(case: Case) -> dict[str, Any]:
    expected = []
    if case.summary is not None:
        rule = rules()[case.alert]
        annotations = rule["annotations"] | {"summary": case.summary}
        expected = [{"exp_labels": {**(case.labels or {}), **rule["labels"]}, "exp_annotations": annotations}]
    question = {"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected}
    return {"interval": INTERVAL, "input_series": case.series, "alert_rule_test": [question]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert}: {case.what}")
def test_alert(case: Case, tmp_path: Path) -> None:
    done = promtool(tmp_path, [alert_test(case)])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_expectation_is_told(tmp_path: Path) -> None:
    down = CASES[0]
    assert promtool(tmp_path, [alert_test(Case("", down.alert, down.series, down.at))]).returncode != 0


def test_the_autoscaler_gets_the_mean_depth_of_a_pods_queues(tmp_path: Path) -> None:
    """prometheus-adapter fills its template for the pods that the autoscaler asks about."""
    values = yaml.safe_load((DEPLOY / "kubernetes/prometheus-adapter.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    metric = rule["seriesQuery"].split("{")[0]
    query = rule["metricsQuery"]
    for placeholder, text in {
        "<<.Series>>": metric, "<<.LabelMatchers>>": 'namespace="n",pod=~"p|q"', "<<.GroupBy>>": "pod",
    }.items():  # fmt: skip
        assert placeholder in query
        query = query.replace(placeholder, text)
    given = [
        series(metric, f"{depth}x{FOREVER}", namespace=namespace, pod=pod, model=name, version="1")
        for namespace, pod, name, depth in (
            ("n", "p", "m", 6), ("n", "p", "other", 3), ("n", "q", "m", 1), ("n", "r", "m", 50), ("else", "p", "m", 70),
        )
    ]  # fmt: skip
    expected = [{"labels": '{pod="p"}', "value": 9}, {"labels": '{pod="q"}', "value": 1}]
    question = {"expr": query, "eval_time": "5m", "exp_samples": expected}
    done = promtool(tmp_path, [{"interval": INTERVAL, "input_series": given, "promql_expr_test": [question]}])
    assert done.returncode == 0, done.stdout + done.stderr
