"""What the clients of the soak share: where the server is, which models it has, and the book of what happened."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.server.soak_models import Array, Asked

CALL_S = 240.0
"""A call that takes longer has hung."""
PACE_S = 0.002
"""What a client waits between two requests, so that none has the machine for itself."""
MOST_PROBLEMS = 40


class Book:
    """Counts by client and outcome, answered requests by model, and everything that should not have happened."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.answered: Counter[str] = Counter()
        self.maybe: Counter[str] = Counter()
        """Requests whose client does not know whether they were answered, by model."""
        self.problems: list[str] = []
        self.problem_count = 0

    def ok(self, who: str, model: str) -> None:
        with self._lock:
            self.counts[who, "ok"] += 1
            self.answered[model] += 1

    def note(self, who: str, what: str, maybe: str = "") -> None:
        """An outcome that is as it should be; `maybe`: the model that may have answered all the same."""
        with self._lock:
            self.counts[who, what] += 1
            if maybe:
                self.maybe[maybe] += 1

    def problem(self, who: str, text: str) -> None:
        with self._lock:
            self.problem_count += 1
            if len(self.problems) < MOST_PROBLEMS:
                self.problems.append(f"{time.strftime('%H:%M:%S')} {who}: {text[-1500:]}")

    def check(self, who: str, asked: Asked, feed: dict[str, Array], found: dict[str, Array]) -> None:
        """Note an answer, right or wrong."""
        wrong = asked.problem(feed, found)
        if wrong is None:
            self.ok(who, asked.name)
        else:
            self.problem(who, f"wrong answer of {asked.name}: {wrong}")


class Spans:
    """What was true when: values with the time from which and to which each may hold."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[list[Any]] = []

    def begin(self, value: Any) -> None:
        """From now on, `value` may hold."""
        with self._lock:
            self._spans.append([value, time.monotonic(), float("inf")])

    def end(self, value: Any) -> None:
        """From now on, `value` may not hold any more."""
        with self._lock:
            for span in self._spans:
                if span[0] == value and span[2] == float("inf"):
                    span[2] = time.monotonic()
            del self._spans[:-200]

    def within(self, start: float, end: float) -> set[Any]:
        """The values that may have held at some moment from `start` to `end`."""
        with self._lock:
            return {value for value, a, b in self._spans if a <= end and b >= start}


@dataclass
class Soak:
    """One run. `stopped` ends every client; clients stop between requests."""

    http_port: int
    grpc_port: int
    admin_port: int
    metrics_port: int
    token: str
    asked: dict[str, Asked]
    seed: int
    by_request: bool
    """Whether the server loads and unloads when it is asked to, or follows the disk."""
    book: Book = field(default_factory=Book)
    stopped: threading.Event = field(default_factory=threading.Event)
    factors: Spans = field(default_factory=Spans)
    """The factor of the model `swap`."""
    onoff: Spans = field(default_factory=Spans)
    """Whether the model `onoff` is "on", "off" or "changing"."""

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def generator(self, who: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *who.encode()])

    def random(self, who: str) -> random.Random:
        return random.Random(f"{self.seed} {who}")

    def pause(self, seconds: float = PACE_S) -> None:
        self.stopped.wait(seconds)

    def turns(self, seconds: float = PACE_S) -> Iterator[int]:
        """Until the run ends."""
        turn = 0
        while not self.stopped.is_set():
            yield turn
            turn += 1
            self.pause(seconds)

    @contextmanager
    def attempt(self, who: str, what: str) -> Iterator[None]:
        """Whatever is raised inside should not have happened."""
        try:
            yield
        except Exception:
            self.book.problem(who, f"{what}: {traceback.format_exc()}")
            self.pause(0.2)

    def start(self, who: str, client: Callable[[Soak, str], None]) -> threading.Thread:
        """Run a client in a thread. One that ends before the run does is a problem."""

        def run() -> None:
            try:
                client(self, who)
            except Exception:
                self.book.problem(who, f"ended: {traceback.format_exc()}")

        thread = threading.Thread(target=run, name=who, daemon=True)
        thread.start()
        return thread
