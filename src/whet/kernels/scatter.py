"""Scatters: updates written, or combined with what is there, at places that an index tensor names.

The data is copied to `out` before; these kernels change it in place. Updates of one place are made in the order of
their positions by one tile, so that the result does not depend on threads. Every index is checked before it is used; a
call that ends with INDEX_OUT_OF_BOUNDS may have made some of the updates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from whet.codegen.lang import LanguageError, Pointer, Value, convert, minimum
from whet.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, DType
from whet.kernels.base import Frame
from whet.kernels.copy import element_of
from whet.kernels.expression import Step, Tape
from whet.kernels.gather import check_index_type, load_index, tuple_offset
from whet.kernels.grid import Walk
from whet.kernels.rows import Row, RowOperand

Reduction = Literal["none", "add", "mul", "max", "min"]

_BOOL_OPS = {"add": "or", "max": "or", "mul": "and", "min": "and"}


def update_tape(dtype: DType, reduction: Reduction) -> Tape:
    """The tape that makes an element of (what is there, the update)."""
    if reduction == "none":
        return Tape((dtype, dtype), (), (1,))
    if dtype is BOOL:
        return Tape((dtype, dtype), (Step(_BOOL_OPS[reduction], BOOL, (0, 1)),), (2,))
    if dtype in (FLOAT16, BFLOAT16):
        steps = (
            Step("cast", FLOAT32, (0,)),
            Step("cast", FLOAT32, (1,)),
            Step(reduction, FLOAT32, (2, 3)),
            Step("cast", dtype, (4,)),
        )
        return Tape((dtype, dtype), steps, (5,))
    return Tape((dtype, dtype), (Step(reduction, dtype, (0, 1)),), (2,))


@dataclass(frozen=True)
class ScatterElements:
    """out[.., indices[i], ..] (coordinate along `axis` replaced) combined with updates[i], for every position i.

    `indices` and `updates` are contiguous, of extents `n{d}`; out's strides are words. Words, in order: `out`,
    `indices`, `updates`, `axis` (out's extent along the axis), `n{d}` and `out_s{d}` for every dimension. Out's other
    extents must be at least those of the indices. A tile is one position of all dimensions but the axis; it makes its
    updates in ascending order along the axis.
    """

    dtype: DType
    index: DType
    rank: int
    axis: int
    reduction: Reduction = "none"

    def __post_init__(self) -> None:
        check_index_type(self.index)
        if not 0 <= self.axis < self.rank:
            raise LanguageError("no such axis", found=self.axis, expected=f"0 to {self.rank - 1}")

    def tiles(self, extents: Sequence[int]) -> int:
        """Tiles of the grid."""
        return math.prod(e for d, e in enumerate(extents) if d != self.axis)

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k = frame.k
        dtype = element_of(self.dtype.bits // 8) if self.reduction == "none" else self.dtype
        tape = update_tape(dtype, self.reduction)
        out, indices = frame.address("out", dtype), frame.address("indices", self.index)
        updates = frame.address("updates", dtype)
        axis = k.index(frame.number("axis"))
        extents = [k.index(frame.number(f"n{d}")) for d in range(self.rank)]
        strides = [k.index(frame.number(f"out_s{d}")) for d in range(self.rank)]
        dense = [k.index(1)]
        for extent in extents[:0:-1]:
            dense.insert(0, dense[0] * extent)
        others = [d for d in range(self.rank) if d != self.axis]
        walk = Walk(
            k,
            [k.index(1), *(extents[d] for d in others)],
            {"out": [0, *(strides[d] for d in others)], "dense": [0, *(dense[d] for d in others)]},
            frame.begin,
        )
        with frame.tiles():
            with k.loop(extents[self.axis]) as i:
                position = walk.offset("dense") + i * dense[self.axis]
                index = load_index(frame, indices, position, axis)
                place = out + (walk.offset("out") + index * strides[self.axis])
                place.store(_combined(frame, tape, place, updates.load(position)))
            walk.advance()


@dataclass(frozen=True)
class ScatterND:
    """out[indices[t, 0], .., indices[t, width-1], :] combined with updates[t, :], for tuples t in ascending order.

    Words, in order: `out`, `indices`, `updates`, `count` (tuples), `inner` (elements of a slice), `block`, and for
    every part of a tuple `axis{j}` (out's extent) and `out_s{j}` (its stride in elements). A tile is `block` elements
    of every slice, of all tuples; the grid has ceil(inner / block) of them.
    """

    dtype: DType
    index: DType
    width: int
    reduction: Reduction = "none"

    def __post_init__(self) -> None:
        check_index_type(self.index)

    @staticmethod
    def tiles(inner: int, block: int) -> int:
        """Tiles of the grid."""
        return -(-inner // block)

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k = frame.k
        dtype = element_of(self.dtype.bits // 8) if self.reduction == "none" else self.dtype
        tape = update_tape(dtype, self.reduction)
        out, indices = frame.address("out", dtype), frame.address("indices", self.index)
        updates = frame.address("updates", dtype)
        count, inner = k.index(frame.number("count")), k.index(frame.number("inner"))
        block = k.index(frame.number("block"))
        axes = [k.index(frame.number(f"axis{j}")) for j in range(self.width)]
        strides = [k.index(frame.number(f"out_s{j}")) for j in range(self.width)]
        start, stop = frame.begin * block, minimum(frame.end * block, inner)
        with k.when(frame.begin < frame.end), k.loop(count) as t:
            place = out + tuple_offset(frame, indices, t, axes, strides)
            operands = [RowOperand(place, 1), RowOperand(updates + t * inner, 1)]
            Row(k, tape, operands, [RowOperand(place, 1)]).emit(start, stop)


def _combined(frame: Frame, tape: Tape, place: Pointer, update: Value) -> Value:
    if not tape.steps:
        return update
    return convert(tape.emit(frame.k, [place.load(), update], 1)[0], place.dtype)
