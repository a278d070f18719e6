"""A real Prometheus takes the files of deploy/, scrapes a server under load, and answers every query of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httptools")
yaml = pytest.importorskip("yaml")
triton = pytest.importorskip("tritonclient.http")

from tests.server.repository_models import scale_bytes  # noqa: E402
from tests.server.running import RunningServer, free_port  # noqa: E402
from tests.server.soak_models import CACHED  # noqa: E402
from tests.server.test_deploy import DEPLOY, alert_expressions, dashboard_expressions  # noqa: E402

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None, reason="Prometheus is not installed"
)

SCRAPES = 4
START_S = 60.0
VARIABLES = {"$__rate_interval": "10s", "$instance": ".*", "$model": ".*"}
NEEDS_A_GPU = re.compile(r"nv_gpu_|whet_gpu_|nv_energy")
"""tests/server/test_metrics.py shows with a fake that these are there where a GPU is."""

Query = Callable[[str], list[Any]]


def ask(port: int, path: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(parameters)}", timeout=20) as a:
        document = json.loads(a.read())
    assert document["status"] == "success", document
    return document["data"]


def infer_some(server: RunningServer) -> None:
    client = triton.InferenceServerClient(server.http)
    x = np.ones((2, 4), np.float32)
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    for model in ("plain", "cached", "cached"):
        client.infer(model, [tensor])
    client.close()


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Query]:
    folder = tmp_path_factory.mktemp("prometheus")
    for name in ("plain", "cached"):
        (folder / "models" / name / "1").mkdir(parents=True)
        (folder / "models" / name / "1/model.onnx").write_bytes(scale_bytes(2.0))
    (folder / "models/cached/config.pbtxt").write_text(CACHED)
    with RunningServer(folder / "models", "--cache-bytes", "1000000") as server:
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.metrics_port}"]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        shutil.copy(DEPLOY / "prometheus/alerts.yml", folder)
        port = free_port()
        command = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_S
            # Counters rise from one scrape to the next.
            while True:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < end, (folder / "log").read_text()
                infer_some(server)
                try:
                    found = ask(port, "/api/v1/query", query='count_over_time(up{job="whet"}[1m])')["result"]
                except OSError:
                    found = []
                if found and int(found[0]["value"][1]) >= SCRAPES:
                    break
                time.sleep(0.2)
            yield lambda text: ask(port, "/api/v1/query", query=text)["result"]  # type: ignore[no-any-return]
            # It has taken the rules, too, and evaluated them without an error.
            (group,) = ask(port, "/api/v1/rules")["groups"]
            assert {r["name"] for r in group["rules"]} == set(alert_expressions())
            assert {r["health"] for r in group["rules"]} <= {"ok", "unknown"}
            assert [r["lastError"] for r in group["rules"] if r.get("lastError")] == []
        finally:
            process.terminate()
            process.wait(30)


def with_values(text: str) -> str:
    for variable, value in VARIABLES.items():
        text = text.replace(variable, value)
    return text


def test_the_server_is_up(query: Query) -> None:
    assert [r["value"][1] for r in query('up{job="whet"}')] == ["1"]
    assert [r["value"][1] for r in query("whet_server_ready")] == ["1"]


def test_every_query_of_the_dashboard_gives_series(query: Query) -> None:
    texts = {place: with_values(text) for place, text in dashboard_expressions().items()}
    assert "$" not in "".join(texts.values())
    empty = [f"{place}: {text}" for place, text in texts.items() if not query(text) and not NEEDS_A_GPU.search(text)]
    assert empty == []


def test_figures_are_those_of_the_load(query: Query) -> None:
    rate = query('sum(rate(nv_inference_request_success{model="plain"}[10s]))')
    assert float(rate[0]["value"][1]) > 0
    hits = query("sum by (model) (nv_cache_num_hits_per_model) > 0")
    assert [r["metric"]["model"] for r in hits] == ["cached"]


def test_every_alert_sees_series_and_none_fires(query: Query) -> None:
    for alert, text in alert_expressions().items():
        assert query(text) == [], f"{alert} would fire"
        # Compared with `bool`, both sides show whether they fire or not.
        seen = re.sub(r" (>|==) (?!bool)", r" \1 bool ", text)
        assert seen != text
        assert query(seen), f"{alert} sees nothing: {seen}"


def test_the_rules_and_the_configuration_are_valid(tmp_path: Path) -> None:
    for kind, name in (("rules", "alerts.yml"), ("config", "prometheus.yml")):
        done = subprocess.run(
            ["promtool", "check", kind, str(DEPLOY / "prometheus" / name)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
