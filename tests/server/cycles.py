"""Load, change, break and unload a model of a real server, over and over, while others ask: nothing may pile up.

python -m tests.server.cycles --cycles 1000

One cycle: a good model is loaded, a changed one takes its place, a broken one is refused and the one before goes on,
and the model is unloaded. Each load is tried in a child process, as always. Two clients ask all the time, one for the
model in question and one for a model that nobody touches; each answer is checked, and none may be refused while its
model is there.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.server.repository_models import BROKEN, scale_bytes
from tests.server.running import RunningServer

GROWTH_MB = 2.0
"""What memory may grow by in the second half of the cycles, by its slope."""
STEADY_FACTOR = 3.0


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds."""

    memory_mb: float
    files: int
    threads: int
    children: int

    @classmethod
    def of(cls, pid: int) -> Held:
        place = Path("/proc", str(pid))
        status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
        children: list[str] = []
        for task in (place / "task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
                children += (task / "children").read_text().split()
        files = sum(1 for _ in (place / "fd").iterdir())
        return cls(int(status["VmRSS"].split()[0]) / 1024, files, int(status["Threads"]), len(children))


@dataclass(slots=True)
class Traffic:
    """What clients may see and saw."""

    history: list[tuple[frozenset[float], bool]] = field(default_factory=lambda: [(frozenset(), False)])
    """What could be expected of the cycled model, the newest last: factors that an answer may show, and whether there
    must be one."""
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    stopped: bool = False

    def expect(self, *factors: float, always: bool = True) -> None:
        self.history.append((frozenset(factors), always))


class Client:
    """Plain HTTP on one connection, which is `kept` or opened for each request."""

    def __init__(self, address: str, kept: bool = False) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=120)
        self._kept = kept

    def post(self, path: str, document: Any) -> tuple[int, Any]:
        self._begin()
        self._connection.request("POST", path, json.dumps(document), {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None

    def close(self) -> None:
        self._connection.close()

    def _begin(self) -> None:
        # The server closes a connection that is idle for long, maybe just when the next request is on its way.
        if not self._kept:
            self._connection.close()

    def get(self, path: str) -> str:
        self._begin()
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        content = answer.read().decode()
        assert answer.status == 200, content
        return content

    def infer(self, model: str, x: list[list[float]]) -> tuple[int, Any]:
        tensor = {"name": "x", "shape": [len(x), len(x[0])], "datatype": "FP32", "data": x}
        return self.post(f"/v2/models/{model}/infer", {"inputs": [tensor]})


def ask_steady(address: str, traffic: Traffic) -> None:
    """Ask for the model that nobody touches."""
    client, rng = Client(address, kept=True), np.random.default_rng(1)
    while not traffic.stopped:
        x = rng.integers(-99, 99, (int(rng.integers(1, 5)), 4)).astype(float).tolist()
        status, document = client.infer("steady", x)
        wanted = [v * STEADY_FACTOR for row in x for v in row]
        if status != 200 or document["outputs"][0]["data"] != wanted:
            traffic.wrong.append(f"steady: {status} {document} for {x}")
        traffic.answers += 1
        time.sleep(0.02)
    client.close()


def ask_cycled(address: str, traffic: Traffic) -> None:
    """Ask for the model that comes and goes."""
    client, rng = Client(address, kept=True), np.random.default_rng(2)
    while not traffic.stopped:
        x = rng.integers(1, 99, (int(rng.integers(1, 5)), 4)).astype(float).tolist()
        look = len(traffic.history) - 1
        status, document = client.infer("m", x)
        # What was expected may have changed meanwhile: any of it is right then.
        meanwhile = traffic.history[look:]
        allowed = frozenset(factor for factors, _ in meanwhile for factor in factors)
        always = all(sure for _, sure in meanwhile)
        if status == 200:
            found = document["outputs"][0]["data"]
            if not any(found == [v * factor for row in x for v in row] for factor in allowed):
                traffic.wrong.append(f"m: {found} for {x}, which is none of {sorted(allowed)}")
            traffic.answers += 1
        elif always or status not in (400, 404, 503):
            traffic.wrong.append(f"m: {status} {document} while one of {sorted(allowed)} was there")
        time.sleep(0.02)
    client.close()


def cycle(client: Client, folder: Path, traffic: Traffic, number: int, weights: Any) -> None:
    """Load, change, break, unload."""
    old, new = float(number % 7 + 1), float(number % 5 + 11)
    _write(folder, scale_bytes(old, weights=weights))
    traffic.expect(old, always=False)
    status, document = client.post("/v2/repository/models/m/load", {})
    assert status == 200, document
    traffic.expect(old)
    _write(folder, scale_bytes(new, weights=weights))
    traffic.expect(old, new)
    status, document = client.post("/v2/repository/models/m/load", {})
    assert status == 200, document
    traffic.expect(new)
    _write(folder, BROKEN)
    status, document = client.post("/v2/repository/models/m/load", {})
    assert status == 400, document
    assert "not an ONNX model" in document["error"], document
    assert client.infer("m", [[1.0, 2.0, 3.0, 4.0]])[1]["outputs"][0]["data"] == [new * v for v in (1, 2, 3, 4)]
    traffic.expect(new, always=False)
    status, document = client.post("/v2/repository/models/m/unload", {})
    assert status == 200, document
    traffic.expect(always=False)


def _write(folder: Path, content: bytes) -> None:
    part = folder / ".part"
    part.write_bytes(content)
    part.rename(folder / "m.onnx")


def slope_mb(found: Sequence[float]) -> float:
    """How much memory grows over all of these samples, by the line that fits them best."""
    steps = np.arange(len(found))
    return float(np.polyfit(steps, found, 1)[0] * (len(found) - 1)) if len(found) > 1 else 0.0


def run(cycles: int, weights_mb: int = 4, report: bool = False) -> list[Held]:
    """What the server holds after each cycle. Raises AssertionError for what is wrong."""
    weights = np.random.default_rng(0).standard_normal(weights_mb << 18).astype(np.float32)
    held: list[Held] = []
    traffic = Traffic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "models"
        folder.mkdir()
        (folder / "steady.onnx").write_bytes(scale_bytes(STEADY_FACTOR))
        log = Path(place) / "server.log"
        arguments = ("--control-mode", "explicit", "--load-model", "steady", "--admin-on-main-port")
        with RunningServer(folder, *arguments, log=log) as server:
            assert server.process is not None
            pid = server.process.pid
            clients = [
                threading.Thread(target=ask, args=(server.http, traffic), daemon=True)
                for ask in (ask_steady, ask_cycled)
            ]
            for thread in clients:
                thread.start()
            client = Client(server.http)
            metrics = Client(f"127.0.0.1:{server.metrics_port}")
            try:
                for number in range(cycles):
                    cycle(client, folder, traffic, number, weights)
                    metrics.get("/metrics")
                    client.post("/v2/repository/index", {})
                    held.append(Held.of(pid))
                    assert not traffic.wrong, traffic.wrong[:3]
                    if report and number % max(cycles // 20, 1) == 0:
                        print(f"cycle {number + 1:5d}: {held[-1]}, {traffic.answers} answers", flush=True)
            finally:
                traffic.stopped = True
                for thread in clients:
                    thread.join(60)
                client.close()
                metrics.close()
        text = log.read_text()
        assert "Traceback" not in text, text[-4000:]
    assert not traffic.wrong, traffic.wrong[:3]
    assert traffic.answers > cycles, traffic.answers
    return held


def check(held: Sequence[Held]) -> None:
    """Nothing grows in the second half of the cycles."""
    half = list(held[len(held) // 2 :])
    grown = slope_mb([h.memory_mb for h in half])
    assert grown < GROWTH_MB, f"memory grows by {grown:.2f} MB in {len(half)} cycles"
    for name in ("files", "threads", "children"):
        before = max(getattr(h, name) for h in held[: len(held) // 2])
        after = max(getattr(h, name) for h in half)
        assert after <= before, f"{name} grew from {before} to {after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--weights-mb", type=int, default=4)
    arguments = parser.parse_args()
    began = time.monotonic()
    held = run(arguments.cycles, arguments.weights_mb, report=True)
    half = [h.memory_mb for h in held[len(held) // 2 :]]
    print(
        f"{len(held)} cycles in {time.monotonic() - began:.0f} s; memory {held[0].memory_mb:.1f} MB after the first, "
        f"{half[0]:.1f} half way, {half[-1]:.1f} at the end; slope of the second half {slope_mb(half):+.2f} MB; "
        f"at the end {held[-1].files} files, {held[-1].threads} threads, {held[-1].children} children"
    )
    check(held)
    return 0


if __name__ == "__main__":
    sys.exit(main())
