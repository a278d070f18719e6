"""Batches that are run a sample at a time: when it pays, and how.

A step over a whole batch writes values that the next step finds no more in a core's caches, and its threads wait for
each other. One sample after the other, each on one thread, has neither; but it reads the weights once for each sample.
So it is done where a sample's own values outweigh the weights. Whether it is done does not depend on the threads of a
session: results are the same with any number of them.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from whet.codegen.target import host_target
from whet.compiler.assemble import Blueprint
from whet.compiler.weights import Array
from whet.providers.cpu.plan import PLANS, Plan
from whet.runtime import program as p
from whet.runtime.cancel import CancelToken
from whet.runtime.context import RunContext
from whet.runtime.cores import core_budget
from whet.runtime.program import Table
from whet.runtime.streams import StreamContext, merge

TRAFFIC = 3
"""How often a value passes between a cache and what is behind it: fetched to be written, written, and read."""


class Batch:
    """The contexts of one batch at a time: streams for as many samples as the threads divide, one context for the rest.

    The rest are done one after the other, each by all threads.
    """

    def __init__(self, plan: Plan, batched: tuple[bool, ...], threads: int) -> None:
        self.plan = plan
        self.symbols: tuple[int, ...] | None = None
        """The extents of one sample."""
        self.shapes: list[tuple[int, ...]] = []
        """Of one sample of each input."""
        self.outputs: list[tuple[tuple[int, ...], np.dtype[Any]]] = []
        """Shape and numpy type of one sample of each output."""
        self.steps: list[int] = []
        """Bytes from a sample to the next, of each input and output."""
        self._streams = StreamContext(plan.loaded, threads)
        self._rest: RunContext | None = None
        self._batched = batched
        self.threads = threads
        self.failed = self.native
        """The context in which the last run that was not DONE stopped."""
        self.failed_status = 0

    @property
    def native(self) -> RunContext:
        """A context that holds the numbers of one sample."""
        return self._streams.parts[0]

    @property
    def arena_bytes(self) -> int:
        """Bytes of the values between the steps."""
        return self._streams.arena_bytes + (0 if self._rest is None else self._rest.arena.nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of the contexts' own memory."""
        return self._streams.nbytes + (0 if self._rest is None else self._rest.nbytes)

    def prepare(self, symbols: tuple[int, ...]) -> int:
        """Give the program's symbols the numbers of one sample; an outcome as RunContext's."""
        return self._streams.prepare(symbols)

    def bind(
        self, symbols: tuple[int, ...], arrays: Sequence[Array], outputs: list[tuple[tuple[int, ...], np.dtype[Any]]]
    ) -> None:
        """Remember what `prepare` has led to; `arrays` are one sample's inputs."""
        self.symbols, self.outputs = symbols, outputs
        self.shapes = [a.shape for a in arrays]
        sizes = [a.nbytes for a in arrays] + [math.prod(shape) * dtype.itemsize for shape, dtype in outputs]
        self.steps = [n if batched else 0 for n, batched in zip(sizes, self._batched, strict=True)]

    def run(
        self, samples: int, inputs: Sequence[int], outputs: Sequence[int], cancel: CancelToken | None,
        deadline_ns: int, timestamps: Table | None,
    ) -> int:  # fmt: skip
        """Run `samples` samples; how it ended (DONE, ...). `inputs` and `outputs` are addresses of whole batches."""
        shared = samples - samples % self.threads
        if shared:
            with _watched(cancel, self._streams.cancel_address):
                outcome = self._streams.run(shared, inputs, outputs, self.steps, deadline_ns, timestamps)
            if outcome != p.DONE:
                self.failed, self.failed_status = self._streams.failed or self.native, self._streams.failed_status
                return outcome
        if shared == samples:
            return p.DONE
        assert self.symbols is not None
        rest = self._rest = self._rest or RunContext(self.plan.loaded, self.threads)
        outcome = rest.prepare(self.symbols)
        own = None if timestamps is None else np.zeros_like(timestamps)
        for sample in range(shared, samples):
            places = [a + sample * step for a, step in zip((*inputs, *outputs), self.steps, strict=True)]
            with _watched(cancel, rest.cancel_address):
                outcome = rest.run(places[: len(inputs)], places[len(inputs) :], deadline_ns, own)
            if outcome != p.DONE:
                self.failed, self.failed_status = rest, rest.failed_status
                return outcome
            if timestamps is not None and own is not None:
                merge([own], timestamps)
        return p.DONE


def _watched(cancel: CancelToken | None, address: int) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if cancel is None else cancel.watched(address)


class Batches:
    """What a specialization's batches need: the decision for each set of extents, and contexts that are free."""

    def __init__(self, symbol: int) -> None:
        self._symbol = symbol
        self._least = max(2, core_budget())
        self._lock = threading.Lock()
        self._pays: OrderedDict[tuple[int, ...], bool] = OrderedDict()
        self._free: deque[Batch] = deque()
        self._all: weakref.WeakSet[Batch] = weakref.WeakSet()

    def sample(
        self, symbols: tuple[int, ...], blueprint: Blueprint, slots: Callable[[tuple[int, ...]], Table]
    ) -> tuple[int, ...] | None:
        """The extents of one sample of a batch that is to be run by samples; None where it is not.

        `slots` gives the slots of the blueprint's program for the extents of a run.
        """
        at = self._symbol
        if symbols[at] < self._least:
            return None
        single = (*symbols[:at], 1, *symbols[at + 1 :])
        pays = self._pays.get(single)
        if pays is None:
            pays = _pays(blueprint, slots(single))
            with self._lock:
                self._pays[single] = pays
                while len(self._pays) > PLANS:
                    self._pays.popitem(last=False)
        return single if pays else None

    def samples(self, symbols: tuple[int, ...]) -> int:
        """How many samples a run of these extents has."""
        return symbols[self._symbol]

    def first(self, arrays: Sequence[Array], blueprint: Blueprint) -> list[Array]:
        """The first sample of each input."""
        dims_of = blueprint.input_dims
        return [a[:1] if dims[:1] == (self._symbol,) else a for a, dims in zip(arrays, dims_of, strict=True)]

    def take(self, single: tuple[int, ...], threads: int) -> Batch | None:
        """A free batch whose last run was of samples of these extents, if there is one."""
        try:
            found = self._free.pop()
        except IndexError:
            return None
        # One of other extents makes room for them: its memory is laid out for its own.
        return found if found.symbols == single and found.threads == threads else None

    def new(self, plan: Plan, threads: int) -> Batch:
        """A batch that runs by `plan`."""
        blueprint = plan.blueprint
        batched = tuple(dims[:1] == (self._symbol,) for dims in (*blueprint.input_dims, *blueprint.output_dims))
        made = Batch(plan, batched, threads)
        with self._lock:
            self._all.add(made)
        return made

    def give_back(self, batch: Batch) -> None:
        """The run is over."""
        self._free.append(batch)

    def all(self) -> list[Batch]:
        """Those that exist."""
        with self._lock:
            return list(self._all)


def _pays(blueprint: Blueprint, slots: Table) -> bool:
    """Whether the values between the steps of one sample outweigh the weights, and do not fit a core's cache."""
    values = sum(int(slots[slot]) * buffer.dtype.bits // 8 for buffer, slot in blueprint.size_slots.items())
    weights = sum(w.array.nbytes for w in blueprint.weights)
    return values * TRAFFIC > weights and values > host_target().l2_bytes
