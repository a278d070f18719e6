"""Packed panels of B with a factor for each row of B: what a product reads in place of A's columns times them."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.target import Target
from whet.dtypes import FLOAT32, DType
from whet.kernels.base import Frame
from whet.kernels.tile import times

UNROLL = 4
"""Rows in one round."""


@dataclass(frozen=True, slots=True)
class ScalePanels:
    """scaled[i][panel][p][j] = packed[panel][p][j] * factors[i, p]: B's rows times numbers, for each matrix i.

    `packed` is what `PackB` and `pack_b` write, of panels of nv vectors. Words: packed, factors, scaled, k, panels,
    factors_i (elements from one matrix's factors to the next's; those of one are neighbours).
    """

    nv: int
    k: int | None = None
    dtype: DType = FLOAT32

    def width(self, target: Target) -> int:
        """Columns in a panel."""
        return self.nv * target.lanes(self.dtype)

    def tiles(self, target: Target, n: int, matrices: int = 1) -> int:
        """matrices * ceil(n / width): a tile is a panel."""
        return matrices * -(-n // self.width(target))

    def emit(self, frame: Frame) -> None:
        k, lanes = frame.k, frame.target.lanes(self.dtype)
        width = self.width(frame.target)
        packed, factors = frame.address("packed", self.dtype), frame.address("factors", self.dtype)
        scaled = frame.address("scaled", self.dtype)
        depth = k.index(frame.number("k", self.k))
        panels, factors_i = frame.number("panels"), frame.number("factors_i")
        with frame.tiles() as number:
            source = packed + (number % panels) * (depth * width)
            target = scaled + number * (depth * width)
            own = factors + times(number / panels, factors_i)
            main = depth & -UNROLL
            for start, stop, rows in ((0, main, UNROLL), (main, depth, 1)):
                with k.loop(stop, start=start, step=rows) as p:
                    for row in range(rows):
                        factor = own.load(p + row)
                        for j in range(self.nv):
                            place = (p + row) * width + j * lanes
                            target.store(source.load(place, lanes) * factor, place)
