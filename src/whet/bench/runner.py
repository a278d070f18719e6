"""Engines side by side on one model: one process each, rounds interleaved, answers compared with the first one's."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from whet.bench.engines import check_engine, engine_version
from whet.bench.feed_file import load_values, save_values
from whet.bench.statistics import Latency, summarize
from whet.errors import Fail
from whet.version import __version__

ROUND_SECONDS = 0.25
"""What one engine's share of a round should take; slow engines run once a round."""

PRECISION = "float32"
"""What every engine computes in."""

SETTLE_SECONDS = 0.06
"""Between two engines' turns: the threads of some spin that long after a run, on cores that the next one needs."""


@dataclass(slots=True)
class EngineResult:
    """What one engine did: its timings, or why it could not run the model."""

    engine: str
    version: str
    load_ms: float = 0.0
    first_run_ms: float = 0.0
    latency: Latency | None = None
    timings_ms: list[float] = field(default_factory=list)
    """Every timed run."""
    outputs: list[Any] = field(default_factory=list)
    error: str = ""


@dataclass(slots=True)
class SideBySide:
    """A comparison of engines on one model and one feed."""

    model: str
    threads: int
    rounds: int
    results: list[EngineResult]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: timings with the machine and the versions that they were taken on."""
        return {
            "model": os.path.basename(self.model),
            "threads": self.threads,
            "rounds": self.rounds,
            "whet": __version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} CPUs",
            "engines": [
                {
                    "engine": r.engine,
                    "version": r.version,
                    "load_ms": r.load_ms,
                    "first_run_ms": r.first_run_ms,
                    "latency": r.latency.as_dict() if r.latency else None,
                    "error": r.error,
                }
                for r in self.results
            ],
        }


class _Process:
    """A worker process and its JSON-lines conversation."""

    def __init__(
        self, engine: str, model: str, feed: Path, results: Path, threads: int, command: Sequence[str] | None = None
    ) -> None:
        self.engine = engine
        start = command or [sys.executable, "-m", "whet.bench.worker", engine]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [*start, model, str(feed), str(results), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            tail = self._errors.read()[-500:].decode("utf-8", "replace").strip()
            return {"error": f"the process ended with status {self._process.returncode}: {tail}"}
        message: dict[str, Any] = json.loads(line)
        return message

    def time_runs(self, runs: int) -> list[float]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"runs": runs}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: `receive` says how
        answer = self.receive()
        if "error" in answer:
            raise Fail("the engine failed while it was timed", value=self.engine, found=answer["error"])
        return [float(t) for t in answer["timings_s"]]

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # what was not yet sent to a process that has ended
                    stream.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


def run_side_by_side(
    model: str,
    engines: Sequence[str],
    feed: Mapping[str, Any],
    *,
    threads: int = 0,
    rounds: int = 7,
    models: Mapping[str, str] | None = None,
    external: Mapping[str, Sequence[str]] | None = None,
    progress: Callable[[str], None] | None = None,
) -> SideBySide:
    """Time `engines` on `model` with `feed`; `models` gives single engines another file (an optimized one).

    `threads` is each engine's count (0: its own choice). `external`: commands of engines that Whet does not know, which
    speak the protocol of `bench.worker`; their first message also says `version` and `precision`, which must be
    float32. Engines that fail are listed with their error. Raises InvalidArgument or EPFail for an engine that is
    unknown or not installed.
    """
    commands = external or {}
    for engine in engines:
        check_engine(engine.partition("@")[0])
    report = progress or (lambda text: None)
    results = [EngineResult(engine, engine_version(engine.partition("@")[0])) for engine in engines]
    results += [EngineResult(engine, "") for engine in commands]
    timings: list[list[float]] = [[] for _ in results]
    running: dict[int, tuple[_Process, int]] = {}
    with tempfile.TemporaryDirectory(prefix="whet-bench-") as folder, ExitStack() as open_processes:
        feed_path = Path(folder) / "feed.npz"
        save_values(feed_path, feed)
        for index, result in enumerate(results):
            report(f"{result.engine}: loading")
            file, answers = (models or {}).get(result.engine, model), Path(folder) / f"{index}.npz"
            command = commands.get(result.engine)
            process = _Process(result.engine.partition("@")[0], file, feed_path, answers, threads, command)
            open_processes.callback(process.close)
            answer = process.receive()
            result.version = str(answer.get("version", result.version))
            if command is not None and "error" not in answer and answer.get("precision") != PRECISION:
                answer = {"error": f"computes in {answer.get('precision')}: like is compared with like, {PRECISION}"}
            if "error" in answer:
                result.error = str(answer["error"])
                continue
            result.load_ms, result.first_run_ms = answer["load_s"] * 1e3, answer["first_run_s"] * 1e3
            result.outputs = list(load_values(answers).values()) if answers.exists() else []
            try:
                probe = process.time_runs(1)[0]
            except Fail as error:
                result.error = str(error)
                continue
            running[index] = process, min(max(1, int(ROUND_SECONDS / max(probe, 1e-6))), 1000)
        for number in range(rounds):
            for index, (process, runs) in list(running.items()):
                report(f"{results[index].engine}: round {number + 1} of {rounds}")
                time.sleep(SETTLE_SECONDS)
                try:
                    timings[index].extend(process.time_runs(runs))
                except Fail as error:
                    results[index].error = str(error)
                    del running[index]
    for index in running:
        results[index].latency = summarize(timings[index])
        results[index].timings_ms = [seconds * 1e3 for seconds in timings[index]]
    return SideBySide(model, threads, rounds, results)
