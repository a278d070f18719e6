"""What /metrics says, read by prometheus_client's parsers, against what clients did."""

from __future__ import annotations

import asyncio
import math
import random
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.server.running import RunningServer
from tests.server.test_thin_path import save_scale_model

pytest.importorskip("httptools")
tritonclient_http = pytest.importorskip("tritonclient.http")
openmetrics = pytest.importorskip("prometheus_client.openmetrics.parser")
prometheus = pytest.importorskip("prometheus_client.parser")

from whet.providers.base import MemoryUse  # noqa: E402
from whet.server.data_plane import DataPlane  # noqa: E402
from whet.server.metrics import collect  # noqa: E402
from whet.server.metrics.collect import MEMORY_MODELS, Metrics  # noqa: E402
from whet.server.metrics.exposition import OPENMETRICS, TEXT, Exposition, bounds_text, labels  # noqa: E402
from whet.server.metrics.gpu import GpuSample  # noqa: E402
from whet.server.metrics.machine import Machine  # noqa: E402
from whet.server.stats import DURATION_BOUNDS_US, Histogram, ModelStats  # noqa: E402

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str, parser: Any = prometheus) -> Samples:
    """Every sample of a scrape by its name and labels; a sample that is there twice is a failure."""
    found: Samples = {}
    written = {line.split(" ")[0].split("{")[0] for line in text.splitlines()}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            # The parser of the older format gives every counter the suffix of OpenMetrics.
            name = sample.name if sample.name in written else sample.name.removesuffix("_total")
            assert name in written, name
            key = (name, tuple(sorted(sample.labels.items())))
            assert key not in found, key
            found[key] = sample.value
    return found


def scrape(url: str, accept: str = "") -> tuple[str, str]:
    """The content type and the text of a scrape."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"accept": accept} if accept else {})) as answer:
        return answer.headers["content-type"], answer.read().decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("repository") / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    save_scale_model(folder / "other.onnx")
    (folder / "broken.onnx").write_bytes(b"no model")
    with RunningServer(folder) as running:
        yield running


def infer(server: RunningServer, model: str, rows: int) -> None:
    client = tritonclient_http.InferenceServerClient(server.http)
    x = np.random.default_rng().standard_normal((rows, 4), np.float32)
    tensor = tritonclient_http.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    np.testing.assert_array_equal(client.infer(model, [tensor]).as_numpy("y"), 2 * x + 1)
    client.close()


def test_counters_follow_requests(server: RunningServer) -> None:
    url = f"http://127.0.0.1:{server.metrics_port}/metrics"
    before = samples(scrape(url)[1])
    for rows in (1, 3, 3, 8):
        infer(server, "scale", rows)
    with pytest.raises(tritonclient_http.InferenceServerException):
        infer(server, "scale", 10_000)
    after = samples(scrape(url)[1])

    def grown(name: str, model: str = "scale", **more: str) -> float:
        key = (name, tuple(sorted({"model": model, "version": "1", **more}.items())))
        return after[key] - before.get(key, 0.0)

    assert grown("nv_inference_request_success") == 4
    assert grown("nv_inference_count") == 15
    assert grown("nv_inference_exec_count") == 4
    assert grown("nv_inference_request_failure", reason="OTHER") == 1
    assert grown("nv_inference_request_failure", reason="BACKEND") == 0
    assert grown("nv_inference_request_duration_us") > 0
    assert grown("whet_request_duration_seconds_count") == 4
    # Triton's counters are cut to whole microseconds, the histograms' sums are not.
    seconds = grown("whet_request_duration_seconds_sum")
    assert math.isclose(seconds, grown("nv_inference_request_duration_us") / 1e6, abs_tol=2e-6)
    assert grown("whet_batch_rows_count") == 4
    assert grown("whet_batch_rows_sum") == 15
    by_bound = [grown("whet_batch_rows_bucket", le=le) for le in ("1.0", "2.0", "4.0", "8.0", "+Inf")]
    assert by_bound == [1, 1, 3, 4, 4]
    closed = sum(value for (name, _), value in after.items() if name == "whet_batches_total")
    closed -= sum(value for (name, _), value in before.items() if name == "whet_batches_total")
    assert closed == 4
    for name in ("nv_inference_request_success", "nv_inference_count", "whet_batch_rows_count"):
        assert grown(name, model="other") == 0
    one = (("model", "scale"), ("version", "1"))
    assert after["nv_inference_pending_request_count", one] == 0
    assert after["whet_in_flight_requests", one] == 0
    assert 0 < after["nv_model_load_duration_secs", one] < 120


def test_what_is_not_ready_shows(server: RunningServer) -> None:
    found = samples(scrape(f"http://127.0.0.1:{server.metrics_port}/metrics")[1])
    ready = {dict(key)["model"]: value for (name, key), value in found.items() if name == "whet_model_ready"}
    assert ready == {"scale": 1, "other": 1, "broken": 0}
    assert found["whet_server_ready", ()] == 1


def test_memory_of_a_model_shows(server: RunningServer) -> None:
    infer(server, "scale", 2)
    found = samples(scrape(f"http://127.0.0.1:{server.metrics_port}/metrics")[1])
    kinds = {
        dict(key)["kind"]: value
        for (name, key), value in found.items()
        if name == "whet_model_memory_bytes" and dict(key)["model"] == "scale"
    }
    assert set(kinds) == {"weights", "shared_weights", "arena", "contexts", "code", "tables"}
    assert kinds["code"] > 0
    assert kinds["contexts"] > 0


def test_both_ports_and_both_formats_say_the_same(server: RunningServer) -> None:
    infer(server, "other", 5)
    by_metrics_port = f"http://127.0.0.1:{server.metrics_port}/metrics"
    prometheus_asks = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    kind, text = scrape(by_metrics_port)
    assert kind == TEXT
    kind, open_text = scrape(f"http://{server.http}/metrics", prometheus_asks)
    assert kind == OPENMETRICS
    assert open_text.endswith("# EOF\n")
    plain, opened = samples(text), samples(open_text, openmetrics)
    # OpenMetrics would have renamed Triton's counters: the names have to be the same whoever asks.
    assert plain.keys() == opened.keys()
    changing = ("process_", "nv_cpu_")
    assert {k: v for k, v in plain.items() if not k[0].startswith(changing)} == {
        k: v for k, v in opened.items() if not k[0].startswith(changing)
    }


def test_only_reading_of_metrics_is_there(server: RunningServer) -> None:
    base = f"http://127.0.0.1:{server.metrics_port}"
    for path, method, status in (("/metrics", "POST", 405), ("/", "GET", 404), ("/v2/health/ready", "GET", 404)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(base + path, method=method))
        assert caught.value.code == status
        caught.value.close()
    with urllib.request.urlopen(urllib.request.Request(base + "/metrics", method="HEAD")) as answer:
        assert (answer.status, answer.read()) == (200, b"")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_names_with_anything_in_them_come_back(accept: str) -> None:
    names = ['a"b', "back\\slash", "line\nbreak", "<b>&{}=,", "ä€𝄞", "", "\\n", '\\"']
    out = Exposition(accept)
    out.family("whet_batches_total", "counter", "Batches")
    for index, name in enumerate(names):
        out.sample(labels(model=name), index)
    found = samples(out.content().decode(), openmetrics if accept else prometheus)
    assert {dict(key)["model"]: value for (_, key), value in found.items()} == dict(zip(names, range(8), strict=True))
    assert labels(model="\ud800") == 'model="?"'


@pytest.mark.parametrize("seed", range(20))
def test_histograms_are_cumulative(seed: int) -> None:
    rng = random.Random(seed)
    values = [rng.choice((rng.expovariate(1e-3), rng.choice(DURATION_BOUNDS_US), 1e9)) for _ in range(500)]
    counted = Histogram(DURATION_BOUNDS_US)
    for value in values:
        counted.observe(value)
    out = Exposition("application/openmetrics-text")
    out.family("whet_x_seconds", "histogram", "x")
    bounds = bounds_text(DURATION_BOUNDS_US, 1e-6)
    out.histogram(labels(model="m"), bounds, counted.counts, counted.sum * 1e-6)
    found = samples(out.content().decode(), openmetrics)
    for bound, text in zip((*DURATION_BOUNDS_US, math.inf), bounds, strict=True):
        key = ("whet_x_seconds_bucket", (("le", text), ("model", "m")))
        assert found[key] == sum(v <= bound for v in values)
    assert found["whet_x_seconds_count", (("model", "m"),)] == 500
    assert math.isclose(found["whet_x_seconds_sum", (("model", "m"),)], sum(values) / 1e6, rel_tol=1e-12)


# The metrics whose names Triton's users have in their dashboards, with their types.
TRITONS: dict[str, str] = {
    "nv_inference_request_success": "counter",
    "nv_inference_request_failure": "counter",
    "nv_inference_count": "counter",
    "nv_inference_exec_count": "counter",
    "nv_inference_pending_request_count": "gauge",
    "nv_inference_request_duration_us": "counter",
    "nv_inference_queue_duration_us": "counter",
    "nv_inference_compute_input_duration_us": "counter",
    "nv_inference_compute_infer_duration_us": "counter",
    "nv_inference_compute_output_duration_us": "counter",
    "nv_cache_num_hits_per_model": "counter",
    "nv_cache_num_misses_per_model": "counter",
    "nv_cache_hit_duration_per_model": "counter",
    "nv_cache_miss_duration_per_model": "counter",
    "nv_model_load_duration_secs": "gauge",
    "nv_gpu_utilization": "gauge",
    "nv_gpu_memory_total_bytes": "gauge",
    "nv_gpu_memory_used_bytes": "gauge",
    "nv_gpu_power_usage": "gauge",
    "nv_gpu_power_limit": "gauge",
    "nv_energy_consumption": "counter",
    "nv_cpu_utilization": "gauge",
    "nv_cpu_memory_total_bytes": "gauge",
    "nv_cpu_memory_used_bytes": "gauge",
}


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_tritons_metrics_are_there_with_their_types(accept: str) -> None:
    plane = DataPlane()
    plane.publish(fake_model("m", []))
    gpu = GpuSample("GPU-1", 0.5, 2, 1, 3.0, 4.0, 5.0, 6.0)
    metrics = Metrics(plane)
    _, content = metrics.render(accept, [fake_model("m", [])], Machine().sample(), [gpu])
    types = dict(line.split()[2:] for line in content.decode().splitlines() if line.startswith("# TYPE nv_"))
    # OpenMetrics takes no counter whose name does not end in _total: these are `unknown` there.
    expected = {n: "unknown" if accept and t == "counter" else t for n, t in TRITONS.items()}
    assert types == expected
    present = {name for name, _ in samples(content.decode(), openmetrics if accept else prometheus)}
    assert set(TRITONS) <= present


def test_counters_of_the_cache() -> None:
    stats = ModelStats()
    for ns in (3_000, 4_999):
        stats.cache_hit.add(ns)
    stats.cache_miss.add(11_000)
    model = fake_model("m", [])
    model.stats = stats
    found = samples(Metrics(DataPlane()).render("", [model])[1].decode())
    one = (("model", "m"), ("version", "1"))
    assert [found[f"nv_cache_{n}_per_model", one] for n in (
        "num_hits", "hit_duration", "num_misses", "miss_duration")] == [2, 7, 1, 11]  # fmt: skip


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("application/*", TEXT),
        ("text/plain", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; version=1.0.0 ; charset=utf-8", OPENMETRICS),
        ("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("application/openmetrics-text;q=0.3, text/plain;q=0.7", TEXT),
        ("application/openmetrics-text;q=0, */*", TEXT),
        ("application/openmetrics-text;q=x", TEXT),
        (",;,q=", TEXT),
    ],
)
def test_the_format_that_is_asked_for(accept: str, kind: str) -> None:
    content_type, content = Metrics(DataPlane()).render(accept, [])
    assert content_type == kind
    assert content.endswith(b"# EOF\n") == (kind == OPENMETRICS)
    assert b" # {" not in content  # no exemplars: not every reader takes them


def test_a_scrape_of_many_models_lets_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "TURN_NS", 0)

    async def run() -> tuple[int, bytes, bytes]:
        plane, turns = DataPlane(), 0
        for index in range(50):
            plane.publish(fake_model(f"m{index:02}", []))
        metrics = Metrics(plane)
        reading = asyncio.get_running_loop().create_future()

        async def read(_: Machine) -> tuple[None, list[GpuSample]]:
            reading.set_result(None)
            return None, []

        metrics.read = read  # type: ignore[assignment,method-assign]
        scrape = asyncio.create_task(metrics.scrape())
        await reading
        while not scrape.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, scrape.result()[1], metrics.render("", metrics._models())[1]

    turns, content, at_once = asyncio.run(run())
    assert turns > 15
    assert content == at_once


def fake_model(name: str, looked_up: list[str]) -> Any:
    class Session:
        @property
        def memory(self) -> MemoryUse:
            looked_up.append(name)
            return MemoryUse(weights=len(name))

    return SimpleNamespace(
        config=SimpleNamespace(name=name), version="1", stats=ModelStats(), session=Session(), load_s=0.5, pending=3,
        in_flight=4, scheduler=SimpleNamespace(running=2),
    )  # fmt: skip


def test_many_models_memory_is_looked_up_in_turns() -> None:
    looked_up: list[str] = []
    names = [f"m{i:02}" for i in range(2 * MEMORY_MODELS + 3)]

    async def scrapes() -> list[Samples]:
        plane = DataPlane()
        for name in names:
            plane.publish(fake_model(name, looked_up))
        metrics = Metrics(plane)
        return [samples((await metrics.scrape())[1].decode()) for _ in range(3)]

    *_, last = asyncio.run(scrapes())
    assert len(looked_up) == 3 * MEMORY_MODELS
    assert set(looked_up) == set(names)
    assert last["whet_model_memory_bytes", (("kind", "weights"), ("model", "m07"), ("version", "1"))] == 3
    assert last["nv_inference_pending_request_count", (("model", "m07"), ("version", "1"))] == 3
    assert last["whet_running_batches", (("model", "m07"), ("version", "1"))] == 2


def test_figures_of_the_machine_are_plausible() -> None:
    machine = Machine()
    sample = machine.sample()
    assert 0 < sample.memory_used < sample.memory_total
    assert 0 < sample.process_resident < sample.memory_total
    assert sample.process_cpu_s > 0
    assert 0.0 <= sample.cpu_utilization <= 1.0
