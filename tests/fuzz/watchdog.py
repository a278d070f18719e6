"""Runs fuzz cases in child processes; a crash, a hang or a burst of memory ends the child, not the run."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import psutil

from .cases import Outcome, run_case

CASE_SECONDS = 30.0
MEMORY_BYTES = 1 << 30  # on top of what the interpreter and its libraries have mapped
START_SECONDS = 60.0


def _serve(connection: Connection) -> None:
    limit = psutil.Process().memory_info().vms + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send("ready")
    while True:
        task = connection.recv()
        if task is None:
            return
        connection.send(run_case(*task))


class Worker:
    """One child process; started again after it died."""

    def __init__(self) -> None:
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    def _started(self) -> Connection:
        if self._connection is None:
            context = multiprocessing.get_context("spawn")
            self._connection, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other,), daemon=True)
            self._process.start()
            other.close()
            if not self._connection.poll(START_SECONDS) or self._connection.recv() != "ready":
                raise RuntimeError("the fuzz worker does not start")
        return self._connection

    def run(self, kind: str, seed: int) -> Outcome:
        """The outcome of one case; "crashed" and "hung" when the child gives none."""
        connection = self._started()
        connection.send((kind, seed))
        try:
            if connection.poll(CASE_SECONDS):
                result = connection.recv()
                assert isinstance(result, Outcome)
                return result
            outcome = Outcome(kind, seed, "hung", f"no answer within {CASE_SECONDS:.0f} s")
        except EOFError:
            assert self._process is not None
            self._process.join(10)
            outcome = Outcome(kind, seed, "crashed", f"exit code {self._process.exitcode}")
        self.stop()
        return outcome

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None


BAD = frozenset({"wrong", "hung", "crashed"})


def fuzz(kinds: tuple[str, ...], start: int, seconds: float, count: int | None = None) -> Iterator[Outcome]:
    """Outcomes of seeds from `start`, the kinds in turn, until `seconds` or `count` seeds are over."""
    worker = Worker()
    ends = time.monotonic() + seconds
    seed = start
    try:
        while time.monotonic() < ends and (count is None or seed < start + count):
            for kind in kinds:
                yield worker.run(kind, seed)
            seed += 1
    finally:
        worker.stop()
