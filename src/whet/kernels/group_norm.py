"""Group normalization of channels-last tensors, in three steps that threads share: statistics of blocks, their
combination, application. Instance normalization has as many groups as channels.

Means and sums of squared deviations of blocks are combined after Chan, Golub and LeVeque, "Updating Formulae and a
Pairwise Algorithm for Computing Sample Variances" (1979): squares are only taken of deviations from a near mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whet.codegen.lang import Function, LanguageError, Operand, Pointer, Value, convert, fma, minimum, sqrt
from whet.dtypes import FLOAT64, DType
from whet.kernels.accumulate import SLOTS, Totals, summation
from whet.kernels.base import Frame
from whet.kernels.expression import Tape
from whet.kernels.walk import apply, load, over_vectors, store, times, working


def _require_float(dtype: DType) -> None:
    if not working(dtype).is_float:
        raise LanguageError("norms are for floats", found=dtype)


@dataclass(frozen=True, slots=True)
class GroupNormParts:
    """Step 1: parts[n, block, 0, c] = mean of x[n, rows of the block, c]; parts[n, block, 1, c] = sum of squared
    deviations from it.

    Words: `x`, `parts` addresses; `batch`, `spatial`, `channels` extents; `x_batch`, `x_row` strides (channels have
    stride 1); `block`: rows of a block, at least 1; `tile`: channels of a tile. `parts` is dense, of `parts_dtype`
    (x's working type), batch * ceil(spatial / block) * 2 * channels elements.
    Grid: batch * ceil(spatial / block) * ceil(channels / tile).
    """

    dtype: DType

    @property
    def parts_dtype(self) -> DType:
        """The type of means and sums between the steps."""
        return working(self.dtype)

    def emit(self, frame: Frame) -> None:
        _require_float(self.dtype)
        k = frame.k
        x, parts = frame.address("x", self.dtype), frame.address("parts", self.parts_dtype)
        frame.number("batch")
        spatial, channels = k.index(frame.number("spatial")), k.index(frame.number("channels"))
        x_batch, x_row = frame.number("x_batch"), frame.number("x_row")
        block, tile = frame.number("block"), frame.number("tile")
        blocks, tiles = (spatial + block - 1) / block, (channels + tile - 1) / tile
        lanes = frame.target.lanes(self.parts_dtype)
        with frame.tiles() as number:
            image_block, first = number / tiles, number % tiles * tile
            row = image_block % blocks * block
            rows = minimum(spatial - row, block)
            source = x + (image_block / blocks * x_batch + row * x_row)
            target = parts + image_block * (channels * 2)
            stop = minimum(first + tile, channels)
            main = first + ((stop - first) & -(SLOTS * lanes))
            with k.loop(main, start=first, step=SLOTS * lanes) as c:
                self._channels(k, source + c, target + c, rows, x_row, channels, SLOTS, lanes, None)

            def rest(_: int, offset: Operand, mask: Value | None) -> None:
                c = main + offset
                self._channels(k, source + c, target + c, rows, x_row, channels, 1, lanes, mask)

            over_vectors(k, stop - main, lanes, 1, rest)

    def _channels(
        self,
        k: Function,
        x: Pointer,
        parts: Pointer,
        rows: Value,
        x_row: Operand,
        channels: Value,
        vectors: int,
        lanes: int,
        mask: Value | None,
    ) -> None:
        """The means of some vectors of channels, then their squared deviations."""
        how = summation(self.parts_dtype)

        def element(group: int, i: Operand) -> Value:
            return load(x + times(i, x_row), group * lanes, lanes, mask)

        sums = Totals(k, how, lanes, vectors, SLOTS // vectors)
        sums.add_columns(rows, element)
        count = convert(rows, how.total)
        means = [convert(total / count, self.parts_dtype) for total in sums.values]
        squares = Totals(k, how, lanes, vectors, SLOTS // vectors)

        def square(group: int, i: Operand) -> Value:
            deviation = element(group, i) - means[group]
            return deviation * deviation

        squares.add_columns(rows, square)
        for group, (mean, total) in enumerate(zip(means, squares.values, strict=True)):
            store(parts, mean, group * lanes, mask)
            store(parts + channels, total, group * lanes, mask)


@dataclass(frozen=True, slots=True)
class GroupNormCombine:
    """Step 2: coefficients[n, 0, c] = the mean of c's group; coefficients[n, 1, c] = 1 / sqrt(variance + epsilon),
    times scale[c].

    Words: `parts`, `coefficients` (both dense, of `parts_dtype`) and, if its field gives a type, `scale` addresses;
    `batch`, `spatial`, `channels`, `groups` (divides channels) extents; `block` as in step 1; `tile`: groups of a
    tile. Grid: batch * ceil(groups / tile).
    """

    dtype: DType
    epsilon: float
    scale: DType | None = None

    @property
    def parts_dtype(self) -> DType:
        """The type of means and sums between the steps."""
        return working(self.dtype)

    def emit(self, frame: Frame) -> None:
        _require_float(self.dtype)
        k = frame.k
        parts, coefficients = (frame.address(name, self.parts_dtype) for name in ("parts", "coefficients"))
        scale = None if self.scale is None else frame.address("scale", self.scale)
        frame.number("batch")
        spatial, channels = k.index(frame.number("spatial")), k.index(frame.number("channels"))
        groups, block, tile = k.index(frame.number("groups")), frame.number("block"), frame.number("tile")
        blocks, tiles, width = (spatial + block - 1) / block, (groups + tile - 1) / tile, channels / groups
        lanes = frame.target.lanes(self.parts_dtype)
        with frame.tiles() as number:
            image, first = number / tiles, number % tiles * tile
            with k.loop(minimum(first + tile, groups), start=first) as group:
                c = group * width
                base = parts + (image * blocks * channels * 2 + c)
                mean, deviation = self._group(k, base, spatial, block, blocks, channels, width, lanes)
                target = coefficients + (image * channels * 2 + c)
                factor = convert(1.0 / sqrt(deviation + self.epsilon), self.parts_dtype)
                level = convert(mean, self.parts_dtype)

                def write(_: int, i: Operand, mask: Value | None) -> None:
                    ones = k.constant(self.parts_dtype, 1, lanes)
                    store(target, ones * level, i, mask)
                    scales = ones if scale is None else convert(load(scale + c, i, lanes, mask), ones.dtype)
                    store(target + channels, scales * factor, i, mask)

                over_vectors(k, width, lanes, 1, write)

    def _group(
        self,
        k: Function,
        parts: Pointer,
        spatial: Value,
        block: Operand,
        blocks: Value,
        channels: Value,
        width: Value,
        lanes: int,
    ) -> tuple[Value, Value]:
        """Mean and variance of a group from its blocks, in float64."""
        how = summation(FLOAT64)

        def fold(of: Callable[[Pointer, Value, Operand, Value | None], Value]) -> Value:
            totals = Totals(k, how, lanes, slots=1)
            with k.loop(blocks) as b:
                rows = convert(minimum(spatial - b * block, block), FLOAT64)
                place = parts + b * channels * 2
                totals.add_row(width, lambda i, mask: of(place, rows, i, mask))
            return totals.result()

        def wide(place: Pointer, i: Operand, mask: Value | None) -> Value:
            return convert(load(place, i, lanes, mask), FLOAT64)

        count = convert(spatial * width, FLOAT64)
        mean = fold(lambda place, rows, i, mask: wide(place, i, mask) * rows) / count

        def spread(place: Pointer, rows: Value, i: Operand, mask: Value | None) -> Value:
            away = wide(place, i, mask) - mean
            return fma(away * away, rows, wide(place + channels, i, mask))

        return mean, fold(spread) / count


@dataclass(frozen=True, slots=True)
class GroupNormApply:
    """Step 3: out = (x - coefficients[n, 0, c]) * coefficients[n, 1, c] + bias[c], then `epilogue` (one input).

    Words: `x`, `out`, `coefficients` (dense, x's working type) and, if its field gives a type, `bias` addresses;
    `batch`, `spatial`, `channels` extents; `x_batch`, `x_row`, `out_batch`, `out_row` strides; `tile`: rows of a tile.
    Grid: batch * ceil(spatial / tile). out may be x.
    """

    dtype: DType
    out: DType
    bias: DType | None = None
    epilogue: Tape | None = None

    def emit(self, frame: Frame) -> None:
        _require_float(self.dtype)
        k, dtype = frame.k, working(self.dtype)
        x, out = frame.address("x", self.dtype), frame.address("out", self.out)
        coefficients = frame.address("coefficients", dtype)
        bias = None if self.bias is None else frame.address("bias", self.bias)
        frame.number("batch")
        spatial, channels = k.index(frame.number("spatial")), k.index(frame.number("channels"))
        x_batch, x_row, out_batch, out_row = (
            frame.number(name) for name in ("x_batch", "x_row", "out_batch", "out_row")
        )
        tile = frame.number("tile")
        tiles = (spatial + tile - 1) / tile
        lanes = frame.target.lanes(dtype)
        with frame.tiles() as number:
            image, first = number / tiles, number % tiles * tile
            rows = minimum(spatial - first, tile)
            source = x + (image * x_batch + first * x_row)
            target = out + (image * out_batch + first * out_row)
            means = coefficients + image * channels * 2

            def channels_at(c: Operand, vectors: int, mask: Value | None) -> None:
                """Some vectors of channels of all rows, so that coefficients stay in registers."""
                at = [v * lanes for v in range(vectors)]
                mean = [load(means + c, i, lanes, mask) for i in at]
                factor = [load(means + channels + c, i, lanes, mask) for i in at]
                added = [convert(load(bias + c, i, lanes, mask), dtype) for i in at] if bias is not None else None
                with k.loop(rows) as row:
                    row_x, row_out = source + (row * x_row + c), target + (row * out_row + c)
                    for v, i in enumerate(at):
                        value = load(row_x, i, lanes, mask) - mean[v]
                        value = value * factor[v] if added is None else fma(value, factor[v], added[v])
                        if self.epilogue is not None:
                            value = apply(k, self.epilogue, value)
                        store(row_out, value, i, mask)

            main = channels & -(SLOTS * lanes)
            with k.loop(main, step=SLOTS * lanes) as c:
                channels_at(c, SLOTS, None)
            over_vectors(k, channels - main, lanes, 1, lambda _, i, mask: channels_at(main + i, 1, mask))
