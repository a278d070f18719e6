"""How threads divide a step: each takes its own range from the front; who has none left helps from the back."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest

from tests.runtime_programs import Fill, one_kernel
from whet.codegen.lang import select
from whet.dtypes import INT64
from whet.kernels.base import Frame
from whet.runtime.layout import RANGE_BITS, Station
from whet.runtime.memory import ALIGNMENT
from whet.runtime.program import DONE
from whet.runtime.team import team


@dataclass(frozen=True)
class Mark:
    """out[tile] = the number that stands in the thread's scratch memory, after some work."""

    def emit(self, frame: Frame) -> None:
        k = frame.k
        out, value, scratch = frame.address("out", INT64), frame.number("value"), frame.scratch(INT64, 8)
        with frame.tiles() as tile:
            total = k.variable(tile + value)
            with k.loop(500):
                total.value = (total.value * 7 + 3) % 1009
            out.store(select(total.value < 0, -1, scratch.load()), tile)


@dataclass(frozen=True)
class Stuck:
    """out[0] counts the tiles, of which there are `value`; the one in the middle waits until all others are done."""

    def emit(self, frame: Frame) -> None:
        k = frame.k
        out, value = frame.address("out", INT64), frame.number("value")
        with frame.tiles() as tile:
            with k.when(tile == value / 2), k.repeat():
                k.leave_if(out.atomic_load("acquire") >= value - 1)
            out.atomic_add(1, "acq_rel")


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_owners_take_the_front_and_helpers_the_back(threads: int) -> None:
    tiles, steps = 96, 3
    context = one_kernel(Mark(), tiles, steps=steps).context(threads)
    marks = (ctypes.c_int64 * (threads * ALIGNMENT // 8)).from_address(context.scratch.address)
    for thread in range(threads):
        marks[thread * ALIGNMENT // 8] = thread
    context.prepare(())
    shared = 0
    for _ in range(200):
        out = np.full(tiles, -1, np.int64)
        assert context.run([], [out.ctypes.data]) == DONE
        # The last step may have found fewer workers than the run asked for: the ranges tell how many it had.
        station = context._station
        parts = int(station[Station.PARTS])
        shared += parts > 1
        for owner in range(parts):
            part = out[tiles * owner // parts : tiles * (owner + 1) // parts]
            assert ((part >= 0) & (part < parts)).all()
            others = np.flatnonzero(part != owner)
            assert others.size == 0 or (part[others[0] :] != owner).all()
            word = int(station[Station.FIRST_RANGE + owner * Station.RANGE_WORDS])
            assert word & ((1 << RANGE_BITS) - 1) == word >> RANGE_BITS & ((1 << RANGE_BITS) - 1)
    assert shared or team().workers == 0


def test_what_a_thread_has_begun_holds_up_nothing_else() -> None:
    """The first tile of the second range waits for all others: its owner's thread cannot do them."""
    for tiles in (2, 3, 8):
        context = one_kernel(Stuck(), tiles, value=tiles).context(2)
        context.prepare(())
        for _ in range(300):
            out = np.zeros(1, np.int64)
            assert context.run([], [out.ctypes.data]) == DONE
            assert out[0] == tiles


@pytest.mark.parametrize("tiles", [(1 << RANGE_BITS) - 1, 1 << RANGE_BITS, (1 << RANGE_BITS) * 3 + 5])
def test_ranges_hold_any_number_of_tiles(tiles: int) -> None:
    out, context = np.full(tiles, -1, np.int64), one_kernel(Fill(), tiles, value=7).context(3)
    context.prepare(())
    assert context.run([], [out.ctypes.data]) == DONE
    assert (out == np.arange(tiles) + 7).all()
