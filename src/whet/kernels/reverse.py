"""Sequences of a batch turned round, each as far as it is long."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import convert, select
from whet.dtypes import INT64
from whet.kernels.base import BAD_VALUE, Frame
from whet.kernels.copy import element_of
from whet.kernels.gather import copy_row
from whet.kernels.grid import Walk


@dataclass(frozen=True, slots=True)
class ReverseSequence:
    """out[b, t, :] = x[b, lengths[b] - 1 - t, :] for t below lengths[b] (int64), x[b, t, :] from there on.

    Words: `x`, `lengths`, `out` addresses; `batch`, `time`, `inner` extents; `x_batch`, `x_time`, `out_batch`,
    `out_time` strides; rows are contiguous. Grid: batch * time. A length below 0 or above `time` is BAD_VALUE.
    """

    element_bytes: int

    def emit(self, frame: Frame) -> None:
        k, element = frame.k, element_of(self.element_bytes)
        x, lengths, out = frame.address("x", element), frame.address("lengths", INT64), frame.address("out", element)
        batch, time, inner = (k.index(frame.number(name)) for name in ("batch", "time", "inner"))
        x_batch, x_time = frame.number("x_batch"), k.index(frame.number("x_time"))
        out_batch, out_time = frame.number("out_batch"), frame.number("out_time")
        walk = Walk(k, [batch, time], {"x": [x_batch, 0], "out": [out_batch, out_time]}, frame.begin)
        with frame.tiles():
            t = walk.index(1)
            length = convert(lengths.load(walk.index(0)), INT64)
            frame.fail_if((length < 0) | (length > time), BAD_VALUE, walk.index(0))
            source = select(t < length, length - 1 - t, t)
            copy_row(k, x + (walk.offset("x") + source * x_time), out + walk.offset("out"), 0, inner)
            walk.advance()
