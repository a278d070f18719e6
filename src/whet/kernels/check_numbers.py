"""A look at a few numbers that decide about all others, before a kernel relies on them."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import absolute, convert
from whet.dtypes import DType
from whet.kernels.base import BAD_VALUE, Frame
from whet.kernels.walk import working


@dataclass(frozen=True, slots=True)
class CheckNumbers:
    """Ends the run with BAD_VALUE where one of `count` numbers is not finite or, with `positive`, not above zero.

    Words: `x`, `count`, `x_stride`. Grid: one tile. The status names the position.
    """

    dtype: DType
    positive: bool = False

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k = frame.k
        x, count = frame.address("x", self.dtype), k.index(frame.number("count"))
        stride = k.index(frame.number("x_stride"))
        with k.loop(count) as i:
            number = convert(x.load(i * stride), working(self.dtype))
            good = absolute(number) < float("inf")
            if self.positive:
                good = good & (number > 0.0)
            frame.fail_if(~good, BAD_VALUE, i)
