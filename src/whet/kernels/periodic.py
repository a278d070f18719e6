"""Memory continued periodically along an axis, in place: what padding by wrapping around does."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Operand
from whet.kernels.base import Frame
from whet.kernels.copy import element_of
from whet.kernels.gather import copy_row
from whet.kernels.walk import axes, plus, tiles, times


@dataclass(frozen=True, slots=True)
class Periodic:
    """x[..., p, ...] along an axis = x[..., before + (p - before) mod length, ...], for every p that lies outside of
    [before, before + length).

    Words: `x` address; `kept0`.. (`kept_rank`, at least 1) extents and `x_kept0`.. strides of the other axes; `axis`,
    its stride; `before`, `length` (not 0), `after`; `tile`: positions of the last kept axis in one tile. `unit`: the
    last kept axis has stride 1 (and no word for it). Grid: kept0 * ... * ceil(last kept / tile).
    """

    element_bytes: int
    kept_rank: int = 1
    unit: bool = False

    def emit(self, frame: Frame) -> None:
        k = frame.k
        x = frame.address("x", element_of(self.element_bytes))
        kept = axes(frame, "kept", self.kept_rank, ("x",), unit=("x",) if self.unit else ())
        axis, before = frame.number("axis"), k.index(frame.number("before"))
        length, after = k.index(frame.number("length")), k.index(frame.number("after"))
        tile = frame.number("tile")
        with tiles(frame, kept, tile) as (at, _):
            base = x + at.offsets["x"]

            def copy(target: Operand, source: Operand) -> None:
                to, of = base + times(target, axis), base + times(source, axis)
                if self.unit:
                    copy_row(k, of, to, at.start, at.stop)
                    return
                with k.loop(at.stop, start=at.start) as row:
                    step = times(row, kept.strides["x"][-1])
                    to.store(of.load(step), step)

            # From the middle outwards: each element comes from a period that is there already.
            with k.loop(before) as i:
                copy(before - 1 - i, plus(before - 1 - i, length))
            with k.loop(after) as i:
                copy(plus(before + length, i), plus(before, i))
