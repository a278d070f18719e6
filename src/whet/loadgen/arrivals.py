"""When requests of an open loop start."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np

from whet.loadgen.plan import Arrivals

CLOCK_MONOTONIC = 1
TIMER_ABSOLUTE = 1
BLOCK = 1024


def intervals(rate: float, arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Seconds from one start to the next, without end, `1 / rate` on average."""
    if arrivals == "constant":
        while True:
            yield 1 / rate
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.exponential(1 / rate, BLOCK).tolist()


class Alarm:
    """Calls back at times of the monotonic clock.

    Event loops count in whole milliseconds, which is longer than many requests take: on Linux a timer of the kernel
    wakes the loop instead.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._ring = ring
        self._handle: asyncio.TimerHandle | None = None
        self._timer = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._timer = self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer >= 0:
            loop.add_reader(self._timer, self._woken)

    def set(self, at_s: float) -> None:
        """Ring once at this time (`time.monotonic`), at once where it is past."""
        if self._timer < 0:
            self._handle = self._loop.call_later(max(0.0, at_s - self._loop.time()), self._ring)
            return
        seconds = int(at_s)
        # Interval (none), then the time: seconds and nanoseconds each. All zero would stop the timer.
        setting = (ctypes.c_long * 4)(0, 0, seconds, max(1, int((at_s - seconds) * 1e9)))
        self._libc.timerfd_settime(self._timer, TIMER_ABSOLUTE, ctypes.byref(setting), None)

    def _woken(self) -> None:
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return
        self._ring()

    def close(self) -> None:
        """Ring no more."""
        if self._handle is not None:
            self._handle.cancel()
        if self._timer >= 0:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)
            self._timer = -1
