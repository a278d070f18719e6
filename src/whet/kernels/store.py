"""Numbers of a run, such as its extents, written to memory."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import convert
from whet.dtypes import DType
from whet.kernels.base import Frame


@dataclass(frozen=True, slots=True)
class StoreNumbers:
    """out[i] = the argument word `v{i}`, for i below `count`, in a row.

    Words: `out` address, `v{i}`. Grid: one tile.
    """

    dtype: DType
    count: int

    def emit(self, frame: Frame) -> None:
        out = frame.address("out", self.dtype)
        for i in range(self.count):
            out.store(convert(frame.k.index(frame.number(f"v{i}")), self.dtype), i)
