"""Checks of operands that come before a kernel that relies on them."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import any_true, minimum, prefix_mask
from whet.dtypes import DType
from whet.kernels.base import BAD_VALUE, Frame


@dataclass(frozen=True, slots=True)
class RequireNonZero:
    """Fails with BAD_VALUE and its position where an element of x [n] is 0.

    Words: x, n, block (elements of a tile). Grid: ceil(n / block).
    """

    dtype: DType

    def emit(self, frame: Frame) -> None:
        k = frame.k
        x, n, block = frame.address("x", self.dtype), k.index(frame.number("n")), k.index(frame.number("block"))
        lanes = frame.target.lanes(self.dtype)
        with k.when(frame.begin < frame.end):
            stop = minimum(frame.end * block, n)
            with k.loop(stop, start=frame.begin * block, step=lanes) as i:
                mask = prefix_mask(stop - i, lanes)
                zero = any_true((x.load_masked(mask, i, fill=1) == 0) & mask)
                with k.when(zero), k.loop(stop, start=i) as j:
                    frame.fail_if(x.load(j) == 0, BAD_VALUE, j)
