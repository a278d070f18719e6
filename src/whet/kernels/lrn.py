"""Local response normalization over neighbouring channels of channels-last tensors."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Function, LanguageError, Operand, Pointer, Value, fma, iota, sqrt
from whet.codegen.vecmath import exp2, log2, pow
from whet.dtypes import FLOAT32, INT64, DType
from whet.kernels.base import Frame
from whet.kernels.walk import axes, load, over_vectors, plus, store, tiles, times, working


@dataclass(frozen=True, slots=True)
class Lrn:
    """out[c] = x[c] / (bias + alpha / size * sum of x[i]**2) ** beta, i from c - (size-1)//2 to c + size//2 inside.

    Words: `x`, `out` addresses; `kept0`.. (`kept_rank`, at least 1) extents, `x_kept0`.., `out_kept0`.. strides;
    `channels`, of stride 1; `tile`: positions of the last kept axis in one tile. Grid: kept0 * ... * ceil(last kept /
    tile). out is not x.
    """

    dtype: DType
    out: DType
    size: int
    alpha: float = 1e-4
    beta: float = 0.75
    bias: float = 1.0
    kept_rank: int = 1

    def emit(self, frame: Frame) -> None:
        if not working(self.dtype).is_float or self.size < 1:
            raise LanguageError("local response normalization is for floats and a positive size", found=self)
        k = frame.k
        x, out = frame.address("x", self.dtype), frame.address("out", self.out)
        kept = axes(frame, "kept", self.kept_rank, ("x", "out"))
        channels, tile = k.index(frame.number("channels")), frame.number("tile")
        lanes = frame.target.lanes(working(self.dtype))
        with tiles(frame, kept, tile) as (at, _), k.loop(at.stop, start=at.start) as row:
            row_x = x + plus(at.offsets["x"], times(row, kept.strides["x"][-1]))
            row_out = out + plus(at.offsets["out"], times(row, kept.strides["out"][-1]))

            def body(_: int, c: Operand, mask: Value | None) -> None:
                self._vector(k, row_x, row_out, k.index(c), channels, lanes, mask)

            over_vectors(k, channels, lanes, 1, body)

    def _vector(
        self, k: Function, x: Pointer, out: Pointer, c: Value, channels: Value, lanes: int, mask: Value | None
    ) -> None:
        dtype = working(self.dtype)
        before, after = (self.size - 1) // 2, self.size // 2
        total = k.variable(k.constant(dtype, 0, lanes))

        def add(square_of: Value) -> None:
            total.value = fma(square_of, square_of, total.value)

        with k.when((c >= before) & (c + (lanes + after) <= channels)):
            for step in range(-before, after + 1):
                add(load(x, c + step, lanes))
        with k.otherwise():
            for step in range(-before, after + 1):
                place = iota(k.constant(dtype, 0, lanes), INT64) + (c + step)
                add(load(x, c + step, lanes, (place >= 0) & (place < channels)))
        base = total.value * (self.alpha / self.size) + self.bias
        value = load(x, c, lanes, mask)
        store(out, value * self._power(base), c, mask)

    def _power(self, base: Value) -> Value:
        """base ** -beta."""
        if self.beta == 0.75:
            root = sqrt(base)
            return 1.0 / (root * sqrt(root))
        if self.beta == 0.5:
            return 1.0 / sqrt(base)
        if base.dtype is FLOAT32:
            return pow(base, -self.beta)
        return exp2(log2(base) * -self.beta)
