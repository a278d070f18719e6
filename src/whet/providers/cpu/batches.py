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
from whet.errors import InvalidArgument
from whet.providers.cpu.plan import PLANS, Plan
from whet.runtime import program as p
from whet.runtime.cancel import CancelToken
from whet.runtime.context import RunContext
from whet.runtime.cores import core_budget
from whet.runtime.program import Table
from whet.runtime.streams import StreamContext, merge

TRAFFIC = 3
"""How often a value passes between a cache and what is behind it: fetched to be written, written, and read."""


MOST_EXTENTS = 4
"""Extents of a sample whose memory is kept."""
MOST_FREE = 8
"""Contexts of batches of the same extents that are kept: as many as ran at one time, up to this."""


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
        self.failed_sample = 0

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
                self.failed_sample = self._streams.failed_sample
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
                self.failed, self.failed_status, self.failed_sample = rest, rest.failed_status, sample
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
        self._free: OrderedDict[tuple[tuple[int, ...], int], deque[Batch]] = OrderedDict()
        """Those that no run has, by the extents of a sample and the threads; the last used last."""
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
            pays = _pays(blueprint, slots(single), at)
            with self._lock:
                self._pays[single] = pays
                while len(self._pays) > 4 * PLANS:
                    self._pays.popitem(last=False)
        return single if pays else None

    def samples(self, symbols: tuple[int, ...]) -> int:
        """How many samples a run of these extents has."""
        return symbols[self._symbol]

    def first(self, arrays: Sequence[Array], blueprint: Blueprint, samples: int, names: Sequence[str]) -> list[Array]:
        """The first sample of each input. Raises InvalidArgument where an input has another number of them.

        What another provider gives may belie its declared type, so that this is not known before.
        """
        firsts = []
        for array, dims, name in zip(arrays, blueprint.input_dims, names, strict=True):
            batched = dims[:1] == (self._symbol,)
            if batched and array.shape[:1] != (samples,):
                raise InvalidArgument(
                    "an input's shape does not agree with the other inputs'", value=name, found=array.shape,
                    expected=(samples, *array.shape[1:]),
                )  # fmt: skip
            firsts.append(array[:1] if batched else array)
        return firsts

    def take(self, single: tuple[int, ...], threads: int) -> Batch | None:
        """A free batch whose last run was of samples of these extents, if there is one."""
        with self._lock:
            pool = self._free.get((single, threads))
            return pool.pop() if pool else None

    def new(self, plan: Plan, threads: int) -> Batch:
        """A batch that runs by `plan`."""
        blueprint = plan.blueprint
        batched = tuple(dims[:1] == (self._symbol,) for dims in (*blueprint.input_dims, *blueprint.output_dims))
        made = Batch(plan, batched, threads)
        with self._lock:
            self._all.add(made)
        return made

    def give_back(self, batch: Batch) -> None:
        """The run is over. Extents that were not run for the longest time lose their memory."""
        assert batch.symbols is not None
        key = batch.symbols, batch.threads
        with self._lock:
            self._free.setdefault(key, deque(maxlen=MOST_FREE)).append(batch)
            self._free.move_to_end(key)
            while len(self._free) > MOST_EXTENTS:
                self._free.popitem(last=False)

    def all(self) -> list[Batch]:
        """Those that exist."""
        with self._lock:
            return list(self._all)


def _pays(blueprint: Blueprint, slots: Table, symbol: int) -> bool:
    """Whether the values between the steps of one sample outweigh what all samples read, and do not fit a core's cache.

    Inputs that all samples share are taken to be weights of four bytes which each sample brings into order again.
    """
    shared = sum(
        4 * math.prod(int(slots[slot]) for slot in dims) for dims in blueprint.input_dims if dims[:1] != (symbol,)
    )
    values = sum(int(slots[slot]) * buffer.dtype.bits // 8 for buffer, slot in blueprint.size_slots.items()) - shared
    weights = sum(w.array.nbytes for w in blueprint.weights) + 2 * shared
    return values * TRAFFIC > weights and values > host_target().l2_bytes
