"""Scratch memory of Winograd's convolutions: a matrix for each point."""

from __future__ import annotations

from whet.codegen.lang import Function
from whet.dtypes import DType
from whet.kernels.base import Frame


class Planes:
    """[parts][points][rows][columns] of scratch memory, with strides that spread it over the cache."""

    def __init__(self, frame: Frame, dtype: DType, points: int, rows: int, columns: int, parts: int = 1) -> None:
        line = max(frame.target.lanes(dtype), 512 // dtype.bits)
        lines = -(-columns // line)
        # Rows a multiple of a KiB apart share few of the cache's sets, as planes an even number of lines apart do.
        lines += 1 if lines % 16 == 0 and lines > 16 else 0
        self.row = lines * line
        self.plane = (rows * lines | 1) * line
        self.size = self.plane * points
        self.memory = frame.scratch(dtype, self.size * parts)

    def clear(self, k: Function, lanes: int) -> None:
        zeros = k.constant(self.memory.dtype, 0, lanes)
        with k.loop(self.size, step=lanes) as place:
            self.memory.store(zeros, place)
