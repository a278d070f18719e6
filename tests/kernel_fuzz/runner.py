"""Child processes that make cases, and what happens when a kernel ends one of them."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from .case import Result, make_case
from .worker import STATE

_QUIET_SECONDS = 300.0
"""A case that takes longer hangs."""


class Worker:
    """One child: seeds `first`, first + step, ... below `last`. It is started again behind a seed that ended it."""

    def __init__(self, first: int, step: int, last: int, entries: int, family: str | None) -> None:
        self._next, self._step, self._last, self._entries, self._family = first, step, last, entries, family
        handle, name = tempfile.mkstemp(prefix="kernel-fuzz-")
        os.write(handle, STATE.pack(first, -1, 0))
        os.close(handle)
        self._state = Path(name)
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "tests.kernel_fuzz.worker", str(self._state)]
        numbers = (self._next, self._step, self._last, self._entries)
        more = [] if self._family is None else [self._family]
        self._heard = time.monotonic()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        self.process = subprocess.Popen(
            [*command, *map(str, numbers), *more], stdout=subprocess.PIPE, stderr=self._errors
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout
        self._rest = b""

    def read(self) -> tuple[list[Result], bool]:
        """What is there to read, once something is; and whether the child has done all its seeds."""
        data = os.read(self.stdout.fileno(), 1 << 16)
        self._heard = time.monotonic()
        if not data:
            return self._ended()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [Result(**json.loads(line)) for line in lines], False

    def _ended(self) -> tuple[list[Result], bool]:
        code = self.process.wait()
        if code == 0:
            self.close()
            return [], True
        seed, number, variant = STATE.unpack(self._state.read_bytes()[: STATE.size])
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")[-3000:]
        name = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}\n{said}"
        result = report_of(seed, number, f"{name} in variant {variant}")
        self._errors.close()
        self.stdout.close()
        self._next = seed + self._step
        if self._next >= self._last:
            self._state.unlink(missing_ok=True)
            return [result], True
        self._start()
        return [result], False

    def check_time(self) -> None:
        """End the child where it has been quiet for too long."""
        if time.monotonic() - self._heard > _QUIET_SECONDS:
            self.process.kill()

    def close(self) -> None:
        """End the child, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.stdout.close()
        self._errors.close()
        self._state.unlink(missing_ok=True)


def report_of(seed: int, number: int, what: str) -> Result:
    """A result for a seed that ended its process in a call (-1: before the first)."""
    try:
        case = make_case(seed)
        text = case.describe(max(number, 0))
    except Exception as error:
        return Result(seed, "?", "?", failures=[f"{what}\nseed {seed}, call {number} (cannot be drawn: {error!r})"])
    return Result(seed, case.family.name, case.target_name, failures=[f"{what}\n{text}"])


def fuzz(first: int, kernels: int, entries: int, jobs: int, family: str | None = None) -> Iterator[Result]:
    """The results of seeds `first` to first + kernels - 1, each with about `entries` entries of its kernel."""
    jobs = max(min(jobs, kernels), 1)
    workers = [Worker(first + j, jobs, first + kernels, entries, family) for j in range(jobs)]
    try:
        while workers:
            ready, _, _ = select.select([w.stdout for w in workers], [], [], 5.0)
            for worker in list(workers):
                if worker.stdout in ready:
                    results, done = worker.read()
                    yield from results
                    if done:
                        workers.remove(worker)
                else:
                    worker.check_time()
    finally:
        for worker in workers:
            worker.close()
