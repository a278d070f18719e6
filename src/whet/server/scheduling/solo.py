"""Runs on the event loop that are not tiny: where a single client asks, nobody else waits for the loop.

Handing a run to its instance's thread and its answer back takes 100 to 200 us, which is much of the time of a model
that takes a millisecond. While several clients ask it is well spent: the loop reads their requests meanwhile and
batches form. So a run stays on the loop only while every request of late came over one connection, and where runs of
its shapes are known to be short.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable

from whet.runtime.cores import core_budget

STREAK = 32
"""Requests of one connection, with no other between them, after which its client is taken to be the only one."""

SHORT_NS = 3_000_000
"""The loop stands still no longer than this: other clients' first requests may wait for it."""

KNOWN = 4
"""Short runs of the same shapes after which the next one is expected to be short."""

AWAKE_NS = 400_000
"""How long a loop waits awake for the next request of the only client."""

SHAPES = 64
"""Shapes that are remembered."""


class Solo:
    """Whether one client asks. `asked` is called for each request, with the number of its connection."""

    __slots__ = ("_source", "_streak", "in_flight")

    def __init__(self) -> None:
        self._source: int | None = None
        self._streak = 0
        self.in_flight = 0
        """Requests that are being answered by threads."""

    def asked(self, source: int | None) -> bool:
        """Note a request; whether its client is the only one. `source` None: nobody knows where it came from."""
        if source is not None and source == self._source:
            self._streak += 1
            return self._streak > STREAK and not self.in_flight
        self._source = source
        self._streak = 0
        return False


class Alertness:
    """Keeps an event loop awake for a moment: a client that asks one thing after the other asks again at once, and
    waking a thread that sleeps takes a good part of the time that its next request does.

    `cores`: how many this process may use; with one, the client may need it meanwhile, and the loop sleeps.
    """

    __slots__ = ("_is_awake", "_may", "_until_ns")

    def __init__(self, cores: int | None = None) -> None:
        self._may = (core_budget() if cores is None else cores) > 1
        self._until_ns = 0
        self._is_awake = False

    def stay(self) -> None:
        """Do not sleep within AWAKE_NS from now."""
        if not self._may:
            return
        self._until_ns = time.monotonic_ns() + AWAKE_NS
        if not self._is_awake:
            self._is_awake = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        if time.monotonic_ns() < self._until_ns:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._is_awake = False


class ShortRuns:
    """Which shapes of one model run shortly. A run that is not short makes its shapes unknown again."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: dict[Hashable, int] = {}

    def observe(self, shapes: Hashable, ns: int) -> None:
        """A run with these shapes took so long."""
        if ns > SHORT_NS:
            self._runs.pop(shapes, None)
            return
        if len(self._runs) >= SHAPES and shapes not in self._runs:
            self._runs.clear()
        self._runs[shapes] = self._runs.get(shapes, 0) + 1

    def knows(self, shapes: Hashable) -> bool:
        """Whether the next run with these shapes is expected to be short."""
        return self._runs.get(shapes, 0) >= KNOWN
