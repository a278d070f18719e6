"""Pointwise kernels: a tape over operands of one broadcast shape, each with its own strides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from whet.codegen.lang import LanguageError, Operand, minimum
from whet.kernels.base import Frame
from whet.kernels.expression import Tape
from whet.kernels.grid import Walk, ceil_div
from whet.kernels.rows import Row, RowOperand

Strides = tuple[int | None, ...]
"""Elements per step of each dimension, outermost first; None where it is known at run time only."""


@dataclass(frozen=True)
class Pointwise:
    """outputs[index] = tape(inputs[index]) for every index of a shape of `rank` dimensions.

    `inputs` and `outputs` hold the strides of each operand: 0 is broadcast, 1 contiguous, None a word. The last
    dimension is the vectorized one. An output may be the same memory as an input of the same strides; other overlaps
    are not allowed.

    Words, in order: for each input `in{i}`, then `in{i}_s{d}` where a stride is None; for each output `out{i}` and
    `out{i}_s{d}` likewise; the extents `n{d}`; `block`, the elements of the last dimension that one tile takes.
    The grid has `tiles(extents, block)` tiles, the last dimension's blocks fastest.
    """

    tape: Tape
    rank: int
    inputs: tuple[Strides, ...]
    outputs: tuple[Strides, ...]

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.tape.inputs) or len(self.outputs) != len(self.tape.outputs):
            raise LanguageError("strides and tape differ in operands", found=f"{self.inputs}, {self.outputs}")
        if self.rank < 1 or any(len(s) != self.rank for s in (*self.inputs, *self.outputs)):
            raise LanguageError("strides do not fit the rank", found=f"{self.inputs}, {self.outputs}")

    @staticmethod
    def tiles(extents: Sequence[int], block: int) -> int:
        """Tiles of the grid."""
        return math.prod(extents[:-1]) * -(-extents[-1] // block)

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k = frame.k
        pointers = []
        strides: dict[str, list[Operand]] = {}
        kinds = [
            *((f"in{i}", dtype, self.inputs[i]) for i, dtype in enumerate(self.tape.inputs)),
            *((f"out{i}", self.tape.dtype(v), self.outputs[i]) for i, v in enumerate(self.tape.outputs)),
        ]
        for name, dtype, fixed in kinds:
            pointers.append(frame.address(name, dtype))
            strides[name] = [frame.number(f"{name}_s{d}", s) for d, s in enumerate(fixed)]
        extents = [frame.number(f"n{d}") for d in range(self.rank)]
        block = k.index(frame.number("block"))
        length = k.index(extents[-1])

        def row(offsets: Sequence[Operand]) -> Row:
            operands = [
                RowOperand(p + offset, strides[name][-1])
                for (name, _, _), p, offset in zip(kinds, pointers, offsets, strict=True)
            ]
            return Row(k, self.tape, operands[: len(self.inputs)], operands[len(self.inputs) :])

        if self.rank == 1:
            # Tiles that follow each other are one piece of the row.
            with k.when(frame.begin < frame.end):
                row([0] * len(kinds)).emit(frame.begin * block, minimum(frame.end * block, length))
            return
        walk_strides = {name: [*each[:-1], 0] for name, each in strides.items()}
        walk = Walk(k, [*extents[:-1], ceil_div(k, length, block)], walk_strides, frame.begin)
        with frame.tiles():
            start = walk.index(self.rank - 1) * block
            row([walk.offset(name) for name, _, _ in kinds]).emit(start, minimum(start + block, length))
            walk.advance()
