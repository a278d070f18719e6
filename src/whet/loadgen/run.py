"""Runs a plan: processes, windows, and the decision when they agree."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whet.errors import Fail
from whet.loadgen.driver import Mix, Window
from whet.loadgen.histogram import Histogram, merged
from whet.loadgen.metadata import model_inputs
from whet.loadgen.plan import ModelLoad, Plan, Target
from whet.loadgen.tensors import encode, feeds
from whet.loadgen.worker import Share

START_S = 0.05  # from the moment that every process is up to their common start


@dataclass(frozen=True)
class Result:
    """What was measured: the last windows together."""

    plan: Plan
    seconds: float
    latency: Histogram
    by_model: dict[str, Histogram]
    errors: dict[str, int]
    details: dict[str, str]
    window_rates: list[float]
    window_mean_s: list[float]
    stable: bool
    late: Histogram
    backlog: int

    @property
    def rate(self) -> float:
        """Answered requests per second."""
        return self.latency.count / self.seconds if self.seconds else 0.0

    @property
    def error_count(self) -> int:
        """Requests that were not answered with a result."""
        return sum(self.errors.values())


def make_mix(target: Target, models: Sequence[ModelLoad], timeout_s: float = 10.0) -> Mix:
    """Ask the server for each model's inputs and encode its requests. Raises as `model_inputs` and `feeds` do."""
    payloads = []
    for model in models:
        made = feeds(model, model_inputs(target, model.name, timeout_s))
        payloads.append([encode(target, model.name, tensors) for tensors in made])
    return Mix(payloads, [model.weight for model in models])


def run(
    plan: Plan, mix: Mix, names: Sequence[str], progress: Callable[[float, Histogram], None] | None = None
) -> Result:
    """Measure. `names` are those of the mix's models. Raises InvalidArgument for a plan that makes no sense."""
    plan.check()
    # Each process opens its connections; the first ones get those that do not divide.
    counts = [
        plan.pace.connections // plan.processes + (i < plan.pace.connections % plan.processes)
        for i in range(plan.processes)
    ]
    workers = [
        subprocess.Popen([sys.executable, "-m", "whet.loadgen.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in counts
    ]
    try:
        for worker in workers:
            _read(worker)  # it is up
        start_at = time.monotonic() + START_S
        for number, (worker, count) in enumerate(zip(workers, counts, strict=True)):
            rate = None if plan.pace.rate is None else plan.pace.rate * count / plan.pace.connections
            assert worker.stdin is not None
            pickle.dump(Share(plan, mix, count, rate, plan.seed * 1000 + number, start_at), worker.stdin)
            worker.stdin.flush()
        _gather(workers)  # the warm-up
        windows: list[list[Window]] = []
        stable = False
        while len(windows) < plan.windows.most and not stable:
            windows.append(_gather(workers))
            if progress is not None:
                latency = _latency(windows[-1])
                progress(latency.count / windows[-1][0].seconds, latency)
            stable = _agree(plan, windows)
    finally:
        for worker in workers:
            if worker.stdin is not None:
                worker.stdin.close()
        for worker in workers:
            try:
                worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
    return _result(plan, windows[-plan.windows.needed :], names, stable)


def _gather(workers: Sequence[subprocess.Popen[bytes]]) -> list[Window]:
    return [_read(worker) for worker in workers]


def _read(worker: subprocess.Popen[bytes]) -> Window:
    assert worker.stdout is not None
    try:
        found: Window = pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError) as error:
        raise Fail("a process of the load generator ended early", found=worker.wait()) from error
    return found


def _latency(parts: Sequence[Window]) -> Histogram:
    return merged(h for part in parts for h in part.latency)


def _rate(parts: Sequence[Window]) -> float:
    # Every process cuts at its own moment, by its own clock.
    return sum(_latency([part]).count / part.seconds for part in parts)


def _agree(plan: Plan, windows: Sequence[Sequence[Window]]) -> bool:
    last = windows[-plan.windows.needed :]
    if len(last) < plan.windows.needed:
        return False
    series = [[_rate(parts) for parts in last], [_latency(parts).mean_s for parts in last]]
    for values in series:
        mean = sum(values) / len(values)
        if not mean or (max(values) - min(values)) / mean > plan.windows.stability:
            return False
    return True


def _result(plan: Plan, windows: Sequence[Sequence[Window]], names: Sequence[str], stable: bool) -> Result:
    everything = [part for parts in windows for part in parts]
    errors: dict[str, int] = {}
    details: dict[str, str] = {}
    for part in everything:
        for kind, count in part.errors.items():
            errors[kind] = errors.get(kind, 0) + count
            details.setdefault(kind, part.details[kind])
    return Result(
        plan=plan,
        seconds=sum(part.seconds for part in everything) / plan.processes,
        latency=_latency(everything),
        by_model={name: merged(part.latency[i] for part in everything) for i, name in enumerate(names)},
        errors=errors,
        details=details,
        window_rates=[_rate(parts) for parts in windows],
        window_mean_s=[_latency(parts).mean_s for parts in windows],
        stable=stable,
        late=merged(part.late for part in everything),
        backlog=sum(part.backlog for part in windows[-1]),
    )
