"""`whet serve` beside Triton Inference Server on one machine: same models, same load tool, rounds interleaved.

usage: serving.py --model MODEL.onnx [--triton ENVIRONMENT] [--rounds 5] [--seconds 5] [--output FILE.json]

Four measurements (`--only` chooses): `model`, requests of one row and binary tensors to MODEL at 1, 8 and 32
connections; `identity`, 16 floats as JSON at 128 connections, by `whet load` and by wrk where it is installed; `added`,
what the server adds to a run of the session at one connection, and where a request's time goes; `tool`, what the load
tools themselves can do, against an HTTP server that answers without looking.

Triton is what `serving_triton.py` describes, and is left out with the reason where it is not there. Its settings are
chosen for it: before the rounds, each number of instances and threads is measured at each number of connections, and
the one with the most requests per second takes part. Both servers may form batches; Whet runs with its defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from serving_triton import Tensor, Triton, Variant

import whet
from whet.loadgen.plan import ModelLoad, Pace, Plan, Target, Windows
from whet.loadgen.report import document
from whet.loadgen.run import make_mix
from whet.loadgen.run import run as run_load
from whet.server.http.json_forms import Forms
from whet.server.http.json_response import write_response
from whet.server.request import InferResponse, OutputTensor

CONNECTIONS = (1, 8, 32)
IDENTITY_CONNECTIONS = 128
ROWS = 32
VARIANTS = tuple(
    Variant(engine, threads, instances)
    for engine in ("onnxruntime", "whet")
    for threads, instances in ((1, 1), (2, 1), (1, 2), (2, 2))
)
IDENTITY = Variant("", 1, 1)
MODEL = "network"  # by this name the servers know the model
WHET = "whet serve, CPUExecutionProvider of Whet"
TRITON = "Triton, "
WARM_UP_S = 0.5


@dataclass(frozen=True)
class Contestant:
    """A model on a server."""

    label: str
    port: int
    model: str


def measure(contestant: Contestant, connections: int, seconds: float, binary: bool, processes: int) -> dict[str, Any]:
    """One round with `whet load`. Raises RuntimeError where a request was not answered."""
    target = Target("127.0.0.1", contestant.port, "http", binary)
    windows = Windows(WARM_UP_S, seconds, needed=1, most=1)
    plan = Plan(target, Pace(connections), windows, timeout_s=60, processes=min(processes, connections))
    result = run_load(plan, make_mix(target, [ModelLoad(contestant.model)]), [contestant.model])
    if result.error_count:
        raise RuntimeError(f"{contestant.label}: {result.errors} {result.details}")
    return document(result)


def measure_wrk(contestant: Contestant, connections: int, seconds: float, body: bytes, scratch: Path) -> dict[str, Any]:
    """One round with wrk, one thread of it."""
    (scratch / "body").write_bytes(body)
    script = scratch / "post.lua"
    script.write_text(
        f'wrk.method = "POST"\nlocal f = io.open("{scratch / "body"}")\nwrk.body = f:read("*a")\nf:close()\n'
        'wrk.headers["Content-Type"] = "application/json"\n',
        encoding="utf-8",
    )
    url = f"http://127.0.0.1:{contestant.port}/v2/models/{contestant.model}/infer"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "--latency", "-s", str(script), url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"{contestant.label}: {text}")
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    found: dict[str, Any] = {"requests_per_s": float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])}  # type: ignore[index]
    latency = {}
    for percent, value, unit in re.findall(r"(50|90|99)%\s+([\d.]+)(us|ms|s)", text):
        latency[f"p{percent}_ms"] = float(value) * units[unit]
    return found | {"latency": latency}


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and lower quartile of the throughput, medians of the latencies."""
    rates = [r["requests_per_s"] for r in rounds]
    lower, median = np.percentile(rates, [25, 50])
    found = {"requests_per_s": round(float(median), 2), "lower_quartile_requests_per_s": round(float(lower), 2)}
    for key in ("p50_ms", "p99_ms"):
        found[key] = round(float(np.median([r["latency"][key] for r in rounds])), 3)
    return found


class Table:
    """Rows that are printed as they come and kept for the report."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, what: str, connections: int, label: str, tool: str, rounds: list[dict[str, Any]]) -> None:
        """A row of a server's rounds."""
        row = {"what": what, "connections": connections, "server": label, "tool": tool, **summary(rounds)}
        self.rows.append({**row, "rounds": rounds})
        print(
            f"{what:10} {connections:4d} connections  {label:55} {tool:9} {row['requests_per_s']:9,.0f} requests/s "
            f"(lower quartile {row['lower_quartile_requests_per_s']:9,.0f})  p50 {row['p50_ms']:8.2f} ms"
            f"  p99 {row['p99_ms']:8.2f} ms",
            flush=True,
        )


def identity_model() -> onnx.ModelProto:
    """16 floats in each row, given back."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
        "identity",
        [helper.make_tensor_value_info("INPUT0", TensorProto.FLOAT, ["rows", 16])],
        [helper.make_tensor_value_info("OUTPUT0", TensorProto.FLOAT, ["rows", 16])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server answers that it is ready."""
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready") as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"a server did not start:\n{log.read_text(errors='replace')[-3000:]}")


@contextlib.contextmanager
def running(process: subprocess.Popen[bytes], port: int, log: Path) -> Iterator[None]:
    """The server is up, and ends with the block."""
    try:
        wait_until_ready(port, process, log)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Bench:
    """The servers, and the measurements on them."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.arguments = arguments
        self.scratch = scratch
        self.table = Table()
        self.chosen: dict[str, Any] = {}
        self.rounds: int = arguments.rounds
        self.seconds: float = arguments.seconds
        self.triton = Triton(arguments.triton)
        self.whet_port, self.triton_port = free_port(), free_port()
        self.given, self.gives = ends(arguments.model)

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start both servers."""
        models = self.scratch / "whet"
        models.mkdir()
        shutil.copy(self.arguments.model, models / f"{MODEL}.onnx")
        onnx.save(identity_model(), models / "identity.onnx")
        log = self.scratch / "whet.log"
        command = [sys.executable, "-m", "whet.cli", "serve", str(models), "--http-port", str(self.whet_port)]
        with log.open("wb") as out:
            process = subprocess.Popen([*command, "--grpc-port=-1", "--metrics-port=-1"], stdout=out, stderr=out)
        stack.enter_context(running(process, self.whet_port, log))
        if self.triton.problem is not None:
            print(f"Triton is left out: {self.triton.problem}\n")
            return
        repository = self.scratch / "triton"
        inside = [str(Path(whet.__file__).parent.parent)]
        for variant in VARIANTS:
            extra = inside if variant.engine == "whet" else []
            model = models / f"{MODEL}.onnx"
            self.triton.write(repository, MODEL, variant, model, self.given, self.gives, ROWS, extra)
        given, gives = Tensor("INPUT0", (16,)), Tensor("OUTPUT0", (16,))
        self.triton.write(repository, "identity", IDENTITY, None, given, gives, 128)
        log = self.scratch / "triton.log"
        process = self.triton.start(repository, self.scratch, self.triton_port, log)
        stack.enter_context(running(process, self.triton_port, log))
        found = re.search(r"server_version\s+\|\s+(\S+)", log.read_text(errors="replace"))
        self.triton.versions["tritonserver"] = found[1] if found else "unknown"

    def contestants(self, connections: int) -> list[Contestant]:
        """Who takes part with the model: Whet, and Triton's best settings for each engine."""
        found = [Contestant(WHET, self.whet_port, MODEL)]
        if self.triton.problem is not None:
            return found
        for engine in ("onnxruntime", "whet"):
            tried = {}
            for variant in (v for v in VARIANTS if v.engine == engine):
                candidate = Contestant(TRITON + variant.label, self.triton_port, variant.model_name(MODEL))
                result = measure(candidate, connections, min(2.0, self.seconds), True, 1)
                tried[candidate] = result["requests_per_s"]
            best = max(tried, key=lambda c: tried[c])
            self.chosen[f"{engine}, {connections} connections"] = {c.label: rate for c, rate in tried.items()}
            found.append(best)
        return found

    def model(self) -> None:
        """Requests of one row, binary tensors."""
        for connections in CONNECTIONS:
            contestants = self.contestants(connections)
            rounds: dict[Contestant, list[dict[str, Any]]] = {c: [] for c in contestants}
            for _ in range(self.rounds):
                for contestant in contestants:
                    rounds[contestant].append(measure(contestant, connections, self.seconds, True, 1))
            for contestant, results in rounds.items():
                self.table.add("model", connections, contestant.label, "whet load", results)

    def identity(self) -> None:
        """16 floats as JSON."""
        contestants = [Contestant(WHET, self.whet_port, "identity")]
        if self.triton.problem is None:
            label = TRITON + IDENTITY.label
            contestants.append(Contestant(label, self.triton_port, IDENTITY.model_name("identity")))
        body = identity_body()
        tools = ["whet load", *(["wrk"] if shutil.which("wrk") else [])]
        for tool in tools:
            rounds: dict[Contestant, list[dict[str, Any]]] = {c: [] for c in contestants}
            for _ in range(self.rounds):
                for contestant in contestants:
                    if tool == "wrk":
                        result = measure_wrk(contestant, IDENTITY_CONNECTIONS, self.seconds, body, self.scratch)
                    else:
                        result = measure(contestant, IDENTITY_CONNECTIONS, self.seconds, False, 2)
                    rounds[contestant].append(result)
            for contestant, results in rounds.items():
                self.table.add("identity", IDENTITY_CONNECTIONS, contestant.label, tool, results)

    def added(self) -> dict[str, Any]:
        """What the server adds at one connection, and the parts of a request's time."""
        found = {}
        identity = self.scratch / "whet" / "identity.onnx"
        ends_of = {MODEL: (self.given, self.gives), "identity": (Tensor("INPUT0", (16,)), Tensor("OUTPUT0", (16,)))}
        for name, path, binary in ((MODEL, self.arguments.model, True), ("identity", identity, False)):
            session = whet.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            given, gives = ends_of[name]
            array = np.random.default_rng(0).random((1, *given.dims), np.float32)
            contestant = Contestant(WHET, self.whet_port, name)
            inside, outside, parts = [], [], []
            for _ in range(self.rounds):
                inside.append(time_session(session, {given.name: array}, self.seconds))
                before = self.statistics(name)
                result = measure(contestant, 1, self.seconds, binary, 1)
                parts.append(parts_of(before, self.statistics(name), result))
                outside.append(result)
            parse, serialize = time_formats(name, given, gives, array, binary)
            mean = {key: float(np.median([p[key] for p in parts])) for key in parts[0]}
            latency = float(np.median([r["latency"]["p50_ms"] for r in outside])) * 1e3
            alone = float(np.median(inside))
            reading = mean.pop("before_queue")
            breakdown = {
                "receive, network": mean.pop("outside") - serialize + reading - parse, "parse": parse,
                "queue": mean["queue"], "batch": mean["batch"], "compute": mean["compute"],
                "hand back": mean["hand_back"], "serialize": serialize,
            }  # fmt: skip
            found[name] = {
                "client_p50_us": round(latency, 1), "session_p50_us": round(alone, 1),
                "added_p50_us": round(latency - alone, 1), "encoding": "binary" if binary else "json",
                "breakdown_us": {k: round(v, 1) for k, v in breakdown.items()},
            }  # fmt: skip
            print(
                f"added: {name}: client p50 {latency:.0f} us, session in process {alone:.0f} us, added"
                f" {latency - alone:.0f} us; mean parts (us): "
                + ", ".join(f"{k} {v:.0f}" for k, v in breakdown.items()),
                flush=True,
            )
        return found

    def statistics(self, model: str) -> dict[str, Any]:
        """The server's own sums for a model."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.whet_port}/v2/models/{model}/stats") as answer:
            found: dict[str, Any] = json.loads(answer.read())["model_stats"][0]
        return found

    def tool(self) -> None:
        """The load tools against a server that answers without looking."""
        port, log = free_port(), self.scratch / "echo.log"
        script = Path(__file__).with_name("http_servers.py")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, str(script), "--serve", "whet", "--port", str(port)], stdout=out, stderr=out
            )
        with running(process, port, log):
            contestant = Contestant("bare answer, Whet's connections", port, "identity")
            for connections in (1, 8, 32, 128):
                for processes in (1, 2):
                    if processes <= connections:
                        results = [
                            measure(contestant, connections, self.seconds, False, processes) for _ in range(self.rounds)
                        ]
                        label = f"{contestant.label}, {processes} processes of the tool"
                        self.table.add("tool", connections, label, "whet load", results)
                if shutil.which("wrk"):
                    body = identity_body()
                    results = [
                        measure_wrk(contestant, connections, self.seconds, body, self.scratch)
                        for _ in range(self.rounds)
                    ]
                    self.table.add("tool", connections, contestant.label, "wrk", results)


def ends(model: Path) -> tuple[Tensor, Tensor]:
    """The input and output of a model that has one of each, free rows, and fixed extents beside them."""
    session = whet.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    return Tensor(given.name, tuple(given.shape[1:])), Tensor(gives.name, tuple(gives.shape[1:]))


def identity_body() -> bytes:
    """A request of 16 floats."""
    values = np.random.default_rng(0).random(16, np.float32)
    tensor = {"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": [float(str(v)) for v in values]}
    return json.dumps({"inputs": [tensor]}).encode()


def time_session(session: whet.InferenceSession, feed: dict[str, Any], seconds: float) -> float:
    """Median of a run in process, in microseconds."""
    for _ in range(20):
        session.run(None, feed)
    times, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        session.run(None, feed)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) * 1e6


def parts_of(before: dict[str, Any], after: dict[str, Any], result: dict[str, Any]) -> dict[str, float]:
    """Mean microseconds a request, from the differences of the server's sums and what the client saw."""
    old, new = before["inference_stats"], after["inference_stats"]
    count = new["success"]["count"] - old["success"]["count"]

    def mean(key: str) -> float:
        return float(new[key]["ns"] - old[key]["ns"]) / count / 1e3

    joined = sum(b["compute_input"]["ns"] for b in after["batch_stats"])
    joined -= sum(b["compute_input"]["ns"] for b in before["batch_stats"])
    batch = joined / count / 1e3
    return {
        "before_queue": mean("compute_input"), "queue": mean("queue") - batch, "batch": batch,
        "compute": mean("compute_infer"), "hand_back": mean("compute_output"),
        "outside": result["latency"]["mean_ms"] * 1e3 - mean("success"),
    }  # fmt: skip


def time_formats(name: str, given: Tensor, gives: Tensor, array: Any, binary: bool) -> tuple[float, float]:
    """Microseconds for reading a request and for writing its answer, of the functions that the server uses."""
    tensor: dict[str, Any] = {"name": given.name, "datatype": "FP32", "shape": list(array.shape)}
    document: dict[str, Any] = {"inputs": [tensor]}
    if binary:
        tensor["parameters"] = {"binary_data_size": array.nbytes}
        document["parameters"] = {"binary_data_output": True}
    else:
        tensor["data"] = array.reshape(-1).tolist()
    head = json.dumps(document).encode()
    body, length = (head + array.tobytes(), len(head)) if binary else (head, None)
    reading = Forms().read
    request, wanted, everything = reading(name, "", body, length)
    output = OutputTensor(gives.name, request.inputs[0].datatype, np.zeros((1, *gives.dims), np.float32))
    response = InferResponse(name, "1", "", [output])
    times = [], []
    for _ in range(300):
        began = time.perf_counter()
        reading(name, "", body, length)
        middle = time.perf_counter()
        write_response(response, wanted, everything)
        times[0].append(middle - began)
        times[1].append(time.perf_counter() - middle)
    return float(np.median(times[0])) * 1e6, float(np.median(times[1])) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="one input and one output, the first extent free")
    parser.add_argument("--triton", type=Path, help="environment with nvidia-pytriton (see serving_triton.py)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each round")
    parser.add_argument("--only", default="model,identity,added,tool", help="comma-separated")
    parser.add_argument("--note", default="", help="circumstances that the report should tell")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        bench = Bench(arguments, Path(folder))
        if {"model", "identity", "added"} & set(parts):
            bench.start(stack)
        added = {}
        if "model" in parts:
            bench.model()
        if "identity" in parts:
            bench.identity()
        if "added" in parts:
            added = bench.added()
        if "tool" in parts:
            bench.tool()
        report = {
            "machine": {
                "cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(),
                "system": platform.platform(),
            },
            "versions": {
                "whet": whet.__version__, "httptools": metadata.version("httptools"), **bench.triton.versions,
            },
            "note": arguments.note,
            "triton_left_out": bench.triton.problem,
            "settings": {
                "model": arguments.model.name, "rounds": bench.rounds, "seconds": bench.seconds,
                "warm_up_s": WARM_UP_S, "rows_of_a_batch_at_most": ROWS,
                "whet_serve": "defaults: 1 instance, all cores, delay learned",
                "triton": "dynamic_batching {}, settings tried before the rounds:", "tried": bench.chosen,
            },
            "results": bench.table.rows,
            "added_latency": added,
        }  # fmt: skip
    if arguments.output:
        if arguments.output.exists() and set(parts) != {"model", "identity", "added", "tool"}:
            report = merged(json.loads(arguments.output.read_text()), report)
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """An old report, with the parts that were measured again from the new one."""
    again = {row["what"] for row in new["results"]}
    old["results"] = [row for row in old["results"] if row["what"] not in again] + new["results"]
    old["added_latency"] = new["added_latency"] or old["added_latency"]
    if "model" in again:
        old["settings"] = new["settings"]
    old["versions"] |= new["versions"]
    return old


def cpu_name() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1]
    return platform.processor()


if __name__ == "__main__":
    main()
