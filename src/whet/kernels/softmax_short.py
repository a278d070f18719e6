"""Softmax and its logarithm over rows of a few elements: a vector holds several rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from whet.codegen.lang import LanguageError, Value, maximum, minimum, shuffle
from whet.codegen.target import Target
from whet.codegen.vecmath import exp, log
from whet.dtypes import FLOAT32, FLOAT64, DType
from whet.kernels.base import Frame
from whet.kernels.expression import identity
from whet.kernels.short_rows import Apart, can_hold, fits, over_short_rows


@dataclass(frozen=True, slots=True)
class SoftmaxShort:
    """out[row, i] = softmax of x[row] (or its logarithm) for rows of `length` neighbours, a power of two.

    `x` and `out` say how many elements it is from one row to the next (`short_rows.fits`). Words: `x`, `out`
    addresses, `n0` rows, `block` rows in a tile. The grid has ceil(n0 / block) tiles. out may be x. A row that holds
    NaN or +infinity, or -infinity alone, becomes NaN.
    """

    kind: Literal["softmax", "log_softmax"]
    length: int
    x: int
    out: int
    dtype: DType = FLOAT32

    @staticmethod
    def suits(target: Target, dtype: DType, length: int, x: int, out: int) -> bool:
        """Whether there is a kernel for such rows."""
        if dtype not in (FLOAT32, FLOAT64) or length & (length - 1):
            return False
        return can_hold(target, identity(dtype), length) and fits(length, x) and fits(length, out)

    def emit(self, frame: Frame) -> None:
        """Write the kernel's body."""
        k, dtype = frame.k, self.dtype
        if not self.suits(frame.target, dtype, self.length, self.x, self.out):
            raise LanguageError("no softmax of such rows here", found=self)
        lanes = frame.target.lanes(dtype)
        x, out = frame.address("x", dtype), frame.address("out", dtype)
        count, block = k.index(frame.number("n0")), k.index(frame.number("block"))
        reader, writer = (Apart(k, stride, self.length, lanes) for stride in (self.x, self.out))

        def over_row(value: Value, join: Callable[[Value, Value], Value]) -> Value:
            """What `join` makes of a row's elements, in all of them."""
            step = 1
            while step < self.length:
                value = join(value, shuffle(value, None, [lane ^ step for lane in range(lanes)]))
                step *= 2
            return value

        def body(row: Value, left: Value | None) -> None:
            value = reader.load(x, row, left)
            shifted = value - over_row(value, maximum)
            powers = exp(shifted)
            total = over_row(powers, lambda a, b: a + b)
            result = powers * (1.0 / total) if self.kind == "softmax" else shifted - log(total)
            writer.store(out, result, row, left)

        with k.when(frame.begin < frame.end):
            over_short_rows(
                k, frame.begin * block, minimum(frame.end * block, count), lanes // self.length, body
            )  # fmt: skip
