"""The files of deploy/: they parse, they agree with the server, and every metric that they name exists."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.running import RunningServer
from tests.server.test_thin_path import save_scale_model

pytest.importorskip("httptools")
yaml = pytest.importorskip("yaml")
tritonclient_http = pytest.importorskip("tritonclient.http")

from whet.server.metrics.collect import GPU  # noqa: E402
from whet.server.options import ServerOptions  # noqa: E402

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana/dashboards/whet.json"
DEFAULTS = ServerOptions(Path())
ENDING_S = 5.0
"""Closing what was answered, and the process's own end."""
POD_S = 30.0
"""What Kubernetes gives a pod that asks for nothing else."""

# Words of PromQL that stand where a metric may; `up` and `vector` are Prometheus's own.
PROMQL = {"sum", "by", "rate", "increase", "histogram_quantile", "avg_over_time", "max", "or", "and", "up", "vector"}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def only(name: str, kind: str) -> Any:
    (document,) = documents(name)
    assert document["kind"] == kind
    return document


def metric_names(expression: str) -> set[str]:
    """The metrics of a PromQL expression: its words, less labels, strings, ranges, numbers and PromQL's own."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", text)
    return set(re.findall(r"[A-Za-z_][A-Za-z0-9_:]*", text)) - PROMQL


def test_metric_names_are_found_in_expressions() -> None:
    text = 'sum by (le, model) (rate(a_bucket{x="b_c",y=~"$d"}[5m])) / on_total > 0.5 * up{job="w"} or vector(0)'
    assert metric_names(text) == {"a_bucket", "on_total"}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all samples of a server that has answered a request; those of GPUs by their table."""
    folder = tmp_path_factory.mktemp("repository") / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    with RunningServer(folder) as server:
        client = tritonclient_http.InferenceServerClient(server.http)
        x = np.ones((1, 4), np.float32)
        tensor = tritonclient_http.InferInput("x", x.shape, "FP32")
        tensor.set_data_from_numpy(x)
        client.infer("scale", [tensor])
        client.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/metrics") as answer:
            text = answer.read().decode()
    found = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    # tests/server/test_metrics.py shows that a fake GPU gives exactly these.
    return found | {name for name, *_ in GPU}


def dashboard_expressions() -> dict[str, str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {f"{p['title']} {t['refId']}": t["expr"] for p in panels for t in p.get("targets", [])}


def alert_expressions() -> dict[str, str]:
    (document,) = documents("prometheus/alerts.yml")
    return {rule["alert"]: rule["expr"] for group in document["groups"] for rule in group["rules"]}


def test_every_metric_of_the_dashboard_exists(scraped: set[str]) -> None:
    named = {place: metric_names(text) for place, text in dashboard_expressions().items()}
    assert len(named) > 30
    assert {place: names - scraped for place, names in named.items() if not names or names - scraped} == {}
    variables = [v["definition"] for v in json.loads(DASHBOARD.read_text())["templating"]["list"] if "definition" in v]
    asked = {re.fullmatch(r"label_values\((\w+), \w+\)", text)[1] for text in variables}  # type: ignore[index]
    assert asked <= scraped


def test_every_metric_of_the_alerts_exists(scraped: set[str]) -> None:
    named = {alert: metric_names(text) for alert, text in alert_expressions().items()}
    assert len(named) > 5
    assert {alert: names - scraped for alert, names in named.items() if names - scraped} == {}
    metric = only("kubernetes/hpa.yaml", "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    (rule,) = documents("kubernetes/prometheus-adapter.yaml")[0]["rules"]["custom"]
    assert rule["name"]["as"] == metric
    assert rule["seriesQuery"].split("{")[0] == metric
    assert metric in scraped


def test_labels_of_expressions_exist() -> None:
    known = {
        "instance", "model", "version", "reason", "kind", "le", "gpu_uuid", "job",
    }  # fmt: skip
    for text in (*dashboard_expressions().values(), *alert_expressions().values()):
        used = set(re.findall(r'(\w+)(?:=~|!=|=)"', text))
        used |= {name for names in re.findall(r"by \(([^)]*)\)", text) for name in re.split(r",\s*", names)}
        assert used <= known, text


def test_expressions_are_balanced() -> None:
    for text in (*dashboard_expressions().values(), *alert_expressions().values()):
        bare = re.sub(r'"[^"]*"', "", text)
        for opening, closing in ("()", "[]", "{}"):
            assert bare.count(opening) == bare.count(closing), text


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"] == "whet"
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])
        }  # fmt: skip
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_alerts_have_what_prometheus_wants() -> None:
    (document,) = documents("prometheus/alerts.yml")
    for group in document["groups"]:
        for rule in group["rules"]:
            assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
            assert re.fullmatch(r"\d+[smh]", rule["for"])
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["summary"]
    (config,) = documents("prometheus/prometheus.yml")
    assert config["rule_files"] == ["alerts.yml"]
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == [f"whet:{DEFAULTS.metrics_port}"]


def help_text() -> str:
    command = [sys.executable, "-m", "whet.cli", "serve", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def containers() -> dict[str, Any]:
    pod = only("kubernetes/deployment.yaml", "Deployment")["spec"]["template"]["spec"]
    runtime = only("kserve/servingruntime.yaml", "ServingRuntime")["spec"]
    return {"deployment": pod["containers"][0], "kserve": runtime["containers"][0]}


def test_flags_exist() -> None:
    flags = set(re.findall(r"--[a-z-]+", help_text()))
    assert "--http-port" in flags
    (compose,) = documents("docker-compose.yml")
    given = {"compose": compose["services"]["whet"]["command"], **{n: c["args"] for n, c in containers().items()}}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    predictor = only("kserve/inferenceservice.yaml", "InferenceService")["spec"]["predictor"]
    given["inferenceservice"] = predictor["model"]["args"]
    given["dockerfile"] = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", dockerfile, re.MULTILINE)[1])  # type: ignore[index]
    for place, arguments in given.items():
        assert all(type(a) is str for a in arguments), place
        assert {a.partition("=")[0] for a in arguments if a.startswith("--")} <= flags, place
    readme = set(re.findall(r"`(--[a-z-]+)", (DEPLOY / "README.md").read_text()))
    assert readme <= flags


def test_ports_and_probes_agree_with_the_server() -> None:
    ports = {"http": DEFAULTS.http_port, "grpc": DEFAULTS.grpc_port, "metrics": DEFAULTS.metrics_port}
    container = containers()["deployment"]
    assert {p["name"]: p["containerPort"] for p in container["ports"]} == ports
    service = only("kubernetes/service.yaml", "Service")["spec"]
    assert {p["name"]: p["port"] for p in service["ports"]} == ports
    assert all(p["targetPort"] == p["name"] for p in service["ports"])
    (endpoint,) = only("kubernetes/servicemonitor.yaml", "ServiceMonitor")["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^EXPOSE (.*)$", dockerfile, re.MULTILINE)[1].split() == [str(p) for p in ports.values()]  # type: ignore[index]
    assert f"127.0.0.1:{ports['http']}/v2/health/ready" in dockerfile
    kserve = containers()["kserve"]
    chosen = kserve["args"][kserve["args"].index("--http-port") + 1]
    assert kserve["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": int(chosen)}


def test_kserve_finds_what_it_looks_for() -> None:
    """What the schema of KServe's objects does not say and its controller does, or that of Knative."""
    runtime = only("kserve/servingruntime.yaml", "ServingRuntime")
    spec, container = runtime["spec"], containers()["kserve"]
    given = dict(zip(container["args"][1::2], container["args"][2::2], strict=True))
    assert (container["name"], container["args"][0]) == ("kserve-container", "/mnt/models")
    # It sends requests to 8080 where a container names no ports. One that does could not get another for gRPC.
    assert given["--http-port"] == "8080"
    assert "ports" not in container
    assert "livenessProbe" not in container
    # It copies the annotations of the spec to pods, and not those of the runtime itself.
    assert spec["annotations"]["prometheus.kserve.io/port"] == given["--metrics-port"]
    assert "annotations" not in runtime["metadata"]
    model = only("kserve/inferenceservice.yaml", "InferenceService")["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in spec["protocolVersions"]
    assert model["modelFormat"]["name"] in {f["name"] for f in spec["supportedModelFormats"]}
    # Its arguments come after those of the runtime, which may be used for several models; it fills names into both.
    assert model["args"] == ["--model-name={{.Name}}"]
    assert not any("model-name" in argument for argument in container["args"])
    text = (DEPLOY / "kserve/inferenceservice.yaml").read_text()
    (port,) = yaml.safe_load(re.search(r"^ *# ports: (\[.*\])$", text, re.MULTILINE)[1])  # type: ignore[index]
    assert port == {"name": "h2c", "containerPort": int(given["--grpc-port"]), "protocol": "TCP"}


def test_selectors_meet_their_pods() -> None:
    deployment = only("kubernetes/deployment.yaml", "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    service = only("kubernetes/service.yaml", "Service")
    assert service["spec"]["selector"] == labels
    monitor = only("kubernetes/servicemonitor.yaml", "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    assert monitor.items() <= service["metadata"]["labels"].items()
    target = only("kubernetes/hpa.yaml", "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "whet"}
    pod = deployment["template"]["spec"]
    assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_there_is_time_to_drain() -> None:
    pod = only("kubernetes/deployment.yaml", "Deployment")["spec"]["template"]["spec"]
    given = pod["containers"][0]["args"]
    delay = float(given[given.index("--drain-delay-s") + 1])
    assert delay >= 5
    assert pod["terminationGracePeriodSeconds"] >= delay + DEFAULTS.drain_s + ENDING_S
    given = containers()["kserve"]["args"]
    delay, drain = (float(given[given.index(flag) + 1]) for flag in ("--drain-delay-s", "--drain-s"))
    assert delay + drain + ENDING_S <= POD_S
    (compose,) = documents("docker-compose.yml")
    assert int(compose["services"]["whet"]["stop_grace_period"].removesuffix("s")) >= DEFAULTS.drain_s + ENDING_S
    assert f"{DEFAULTS.drain_s:g} s" in (DEPLOY / "README.md").read_text()


def test_nothing_runs_as_root() -> None:
    user = re.findall(r"^USER (\S+)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)[-1]
    pod = only("kubernetes/deployment.yaml", "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert str(pod["securityContext"]["runAsUser"]) == user
    for container in containers().values():
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert str(containers()["kserve"]["securityContext"]["runAsUser"]) == user


def test_compose_mounts_what_is_there() -> None:
    (compose,) = documents("docker-compose.yml")
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith("./") or (DEPLOY / source).is_dir()
            assert source.startswith((".", "$")) or source in compose["volumes"]
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
    (source,) = documents("grafana/provisioning/datasources/prometheus.yml")
    (provider,) = documents("grafana/provisioning/dashboards/whet.yml")
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    mounted = [v.split(":")[1] for v in compose["services"]["grafana"]["volumes"]]
    assert provider["providers"][0]["options"]["path"] in mounted
    assert (DEPLOY.parent / compose["services"]["whet"]["build"]["dockerfile"]).is_file()


def test_the_image_gets_what_its_build_needs() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    }
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert copied == {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert all((DEPLOY.parent / name).exists() for name in copied)
