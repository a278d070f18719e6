"""Loads put on a server that is slow, silent or broken in known ways, and on Whet's own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.loadgen.fake_server import FakeServer
from tests.server.running import RunningServer, free_port
from tests.server.test_thin_path import save_scale_model
from whet.loadgen.plan import ModelLoad, Pace, Plan, Target, Windows
from whet.loadgen.report import document
from whet.loadgen.run import Result, make_mix, run

SHORT = Windows(warm_up_s=0.1, window_s=0.25, needed=2, most=2)


def measure(
    server: FakeServer, pace: Pace, windows: Windows = SHORT, timeout_s: float = 5.0, processes: int = 1,
    models: tuple[ModelLoad, ...] = (ModelLoad("m"),),
) -> Result:  # fmt: skip
    target = Target("127.0.0.1", server.port)
    plan = Plan(target, pace, windows, timeout_s, processes)
    return run(plan, make_mix(target, models), [model.name for model in models])


def test_closed_loop_has_one_request_a_connection_under_way() -> None:
    with FakeServer(delay_s=0.02) as server:
        result = measure(server, Pace(4))
    # 4 connections, 20 ms each: at most 200 a second.
    assert 100 < result.rate < 201
    assert 0.0195 < result.latency.percentile(50) < 0.04
    assert result.errors == {}
    # One more asked for the metadata.
    assert server.connections == 5
    assert len(server.bodies) == 4
    assert server.paths == {"/v2/models/m/infer": len(server.arrivals)}


def test_processes_share_the_connections() -> None:
    with FakeServer(delay_s=0.02) as server:
        result = measure(server, Pace(5), processes=2)
    assert server.connections == 6
    assert 120 < result.rate < 251


@pytest.mark.parametrize("behaviour", ["chunked", "halves"])
def test_answers_in_pieces(behaviour: str) -> None:
    with FakeServer(behaviour) as server:
        result = measure(server, Pace(2))
    assert result.latency.count > 20
    assert result.errors == {}
    assert server.connections == 3


@pytest.mark.parametrize(
    ("behaviour", "kind", "detail"),
    [
        ("fail", "HTTP 503", "the queue is full"),
        ("close", "disconnected", "the server closed the connection"),
        ("mute", "timeout", "no answer within 0.1 s"),
    ],
)
def test_errors_by_kind(behaviour: str, kind: str, detail: str) -> None:
    with FakeServer(behaviour) as server:
        result = measure(server, Pace(2), timeout_s=0.1 if behaviour == "mute" else 5.0)
    assert result.latency.count == 0
    assert set(result.errors) == {kind}
    assert result.details == {kind: detail}
    assert result.errors[kind] >= 4
    assert document(result)["errors"][kind]["example"] == detail


def test_a_server_that_is_gone() -> None:
    target = Target("127.0.0.1", free_port())
    with FakeServer() as server:
        mix = make_mix(Target("127.0.0.1", server.port), [ModelLoad("m")])
    result = run(Plan(target, Pace(1), SHORT), mix, ["m"])
    assert set(result.errors) == {"connect"}


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_open_loop_keeps_its_rate(arrivals: str) -> None:
    with FakeServer() as server:
        result = measure(
            server, Pace(32, 400, "constant" if arrivals == "constant" else "poisson"), Windows(0.1, 0.5, 2, 2)
        )
    # Poisson: 400 in a second have a standard deviation of 20.
    assert result.rate == pytest.approx(400, rel=0.05 if arrivals == "constant" else 0.25)
    gaps = np.diff(server.arrivals)
    if arrivals == "constant":
        assert np.median(gaps) == pytest.approx(0.0025, rel=0.2)
    else:
        # A third of exponential gaps are shorter than 0.41 of the mean, and a busy machine makes only longer ones.
        assert (gaps < 0.41 * 0.0025).mean() > 0.2


def test_open_loop_sees_a_stall_that_a_closed_loop_hides() -> None:
    windows = Windows(0.0, 1.0, 1, 1)
    with FakeServer("stall", stall_s=0.4) as server:
        opened = measure(server, Pace(4, 200, "constant"), windows)
    with FakeServer("stall", stall_s=0.4) as server:
        closed = measure(server, Pace(4), windows)
    # 80 of the 200 requests fall into the stall, far more than the four connections: they wait 200 ms on average.
    assert opened.latency.percentile(90) > 0.15
    assert 0.35 < opened.latency.max_s < 0.7
    assert closed.latency.percentile(90) < 0.1


def test_open_loop_over_the_capacity() -> None:
    with FakeServer("serial", delay_s=0.02) as server:
        result = measure(server, Pace(4, 200, "constant"), Windows(0.0, 1.0, 1, 1))
    assert result.rate < 51
    assert result.backlog > 100
    assert result.latency.max_s > 0.5


def test_windows_repeat_until_they_agree() -> None:
    with FakeServer(delay_s=0.005) as server:
        loose = measure(server, Pace(2), Windows(0.1, 0.2, 3, 8, stability=0.9))
        strict = measure(server, Pace(2), Windows(0.1, 0.2, 3, 5, stability=1e-9))
    assert (loose.stable, len(loose.window_rates)) == (True, 3)
    assert (strict.stable, len(strict.window_rates)) == (False, 3)
    assert strict.seconds == pytest.approx(0.6, rel=0.2)


def test_models_mixed_by_weight() -> None:
    with FakeServer() as server:
        result = measure(server, Pace(4), models=(ModelLoad("a", 4), ModelLoad("b", 1)))
    counts = server.paths["/v2/models/a/infer"], server.paths["/v2/models/b/infer"]
    assert counts[1] / sum(counts) == pytest.approx(0.2, abs=0.06)
    assert sum(h.count for h in result.by_model.values()) == result.latency.count
    assert set(document(result)["models"]) == {"a", "b"}


@pytest.fixture(scope="module")
def whet_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("repository") / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    with RunningServer(folder) as running:
        yield running


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    short = ["--warm-up", "0.1", "--window", "0.15", "--windows", "3"]
    return subprocess.run(
        [sys.executable, "-m", "whet.cli", "load", *arguments, *short],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "options", [["--encoding", "json"], ["--encoding", "binary", "--batch", "3"], ["--protocol", "grpc"]]
)
def test_command_against_whet(whet_server: RunningServer, tmp_path: Path, options: list[str]) -> None:
    address = whet_server.grpc if "grpc" in options else whet_server.http
    done = command(address, "-m", "scale", "-c", "1,3", *options, "--json", "-o", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "out.json").read_text())
    assert [r["connections"] for r in found["results"]] == [1, 3]
    for result in found["results"]:
        assert result["errors"] == {}
        assert result["latency"]["count"] > 20
        assert 0 < result["latency"]["p50_ms"] <= result["latency"]["p99_ms"] <= result["latency"]["max_ms"]
        assert result["protocol"] == ("grpc" if "grpc" in options else "http")


def test_command_shows_a_table_and_names_errors(whet_server: RunningServer) -> None:
    done = command(whet_server.http, "-m", "scale", "--rate", "50,100", "--arrivals", "constant")
    assert done.returncode == 0, done.stderr
    assert "p99.9" in done.stdout
    assert "from the intended start" in done.stdout
    done = command(whet_server.http, "-m", "scale", "--batch", "2", "--shape", "x=2x4", "--encoding", "binary")
    assert done.returncode == 0, done.stderr
    done = command(whet_server.http, "-m", "scalf")
    assert done.returncode == 1
    assert "scalf" in done.stderr
    done = command(f"127.0.0.1:{free_port()}", "-m", "scale", "--protocol", "grpc")
    assert done.returncode == 1
    assert "no server answers" in done.stderr
