"""Depthwise convolution, channels last: every channel has its own filter, a vector holds neighbouring channels.

A tile of sums is a few neighbouring output pixels of a row. Each input pixel under it is loaded once for each row of
taps and goes into all the sums that it belongs to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from whet.codegen.lang import Function, Operand, Pointer, Value, Variables, maximum, minimum, prefix_mask
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, DType
from whet.kernels.base import Frame
from whet.kernels.conv import Window
from whet.kernels.gemm import aligned_empty
from whet.kernels.tile import Epilogue, Finish, Tile, blocks_of, finish, left_over, multiply_add, times

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Depthwise:
    """A convolution of each channel by itself, over two spatial axes (one of them has extent 1 in one dimension).

    Words: x, x_n, x_s0, x_s1 (elements from one image, row, pixel to the next; channels are 1 apart), in0, in1, out0,
    out1 (rows and columns of input and output; `columns` fixes in1 and out1, which is faster at the image's edges), w
    (`pack_depthwise_weights`), c, ldc, c_n, e0, e0_s, e0_n, ... as for `Conv`.

    A tile is `rows` output rows of one image x `vectors` vectors of channels. `pixels` sums are kept at a time.
    """

    window: Window
    channels: int
    dtype: DType = FLOAT32
    columns: tuple[int, int] | None = None
    pixels: int = 7
    rows: int = 8
    vectors: int = 4
    epilogue: Epilogue | None = None

    def tiles(self, target: Target, out_rows: int, images: int) -> int:
        """images * ceil(channels / (lanes * vectors)) * ceil(out_rows / rows)."""
        channels = target.lanes(self.dtype) * self.vectors
        return images * -(-self.channels // channels) * ((out_rows + self.rows - 1) // self.rows)

    def emit(self, frame: Frame) -> None:
        k = frame.k
        in_columns, out_columns = self.columns or (None, None)
        x = frame.address("x", self.dtype)
        weights = frame.address("w", self.dtype)
        image = (frame.number("in0"), frame.number("in1", in_columns))
        out = (frame.number("out0"), frame.number("out1", out_columns))
        x_n = frame.number("x_n")
        steps = (frame.number("x_s0"), frame.number("x_s1"))
        lanes = frame.target.lanes(self.dtype)
        everywhere = finish(frame, Tile(self.dtype, self.pixels, 1, lanes), self.epilogue)
        image_strides = [frame.number("c_n")]
        for i, kind in enumerate(self.epilogue.operands if self.epilogue else ()):
            image_strides.append(frame.number(f"e{i}_n") if kind == "full" else 0)
        zeros = k.stack_array(self.dtype, lanes)
        zeros.store(k.constant(self.dtype, 0, lanes))

        groups = blocks_of(self.channels, lanes * self.vectors)
        row_blocks = blocks_of(out[0], self.rows)
        whole = self.channels // lanes
        with frame.tiles() as number:
            rest, row_block = number / row_blocks, number % row_blocks
            group, index = rest % groups, rest / groups
            here = everywhere.moved(times(index, image_strides[0]), [times(index, s) for s in image_strides[1:]])
            first = group * self.vectors
            rows = _Rows(k, self, lanes, x + index * x_n, weights, image, out, steps, zeros, here)

            # Channels are innermost: where an image row is a power of two apart from the next pixel's, walking along
            # it with few channels would use few of the cache's sets.
            def each_vector(body: Callable[[Value, int], None]) -> None:
                with k.loop(minimum(first + self.vectors, whole), start=first) as vector:
                    body(vector, lanes)
                if self.channels % lanes:
                    with k.when(first + self.vectors > whole):
                        body(k.index(whole), self.channels % lanes)

            first_row = row_block * self.rows
            with k.loop(minimum(first_row + self.rows, out[0]), start=first_row, nonempty=True) as row:
                rows.row(row, each_vector)


Vectors = Callable[[Callable[[Value, int], None]], None]
"""Does its argument (vector, channels that exist in it) for every vector of channels of a tile."""


class _Line:
    """A finished run of neighbouring pixels, one vector each."""

    def __init__(self, tile: Tile, sums: Variables[int, Value]) -> None:
        self._tile = tile
        self._sums = sums

    @property
    def tile(self) -> Tile:
        return self._tile

    def totals(self) -> list[list[Value]]:
        return [[self._sums[i]] for i in range(self._tile.rows)]


@dataclass(frozen=True)
class _Taps:
    """The rows of taps that lie inside the image for one row of output: `first` to `last` - 1, from image row `top`."""

    top: Value
    first: Value
    last: Value


@dataclass(frozen=True)
class _Rows:
    """The rows of one image."""

    k: Function
    spec: Depthwise
    lanes: int
    x: Pointer
    weights: Pointer
    image: tuple[Operand, Operand]
    out: tuple[Operand, Operand]
    steps: tuple[Operand, Operand]
    zeros: Pointer
    finish: Finish

    def row(self, row: Value, each_vector: Vectors) -> None:
        """One row of output, all pixels and the channels of a tile."""
        window = self.spec.window
        kernel, dilation = window.kernel[0], window.dilations[0]
        top = row * window.strides[0] - window.pads[0]
        first = (maximum(-top, 0) + (dilation - 1)) / dilation
        last = minimum((maximum(self.image[0] - top, 0) + (dilation - 1)) / dilation, kernel)
        taps = _Taps(top, first, last)

        def pixels(pixel: Operand, count: int, columns: set[int] | None) -> None:
            each_vector(lambda vector, inside: self._line(row, pixel, count, columns, taps, vector, inside))

        width = self.out[1]
        if isinstance(width, int) and isinstance(self.image[1], int):
            self._known_row(width, self.image[1], pixels)
        else:
            self._any_row(pixels)

    def _known_row(self, width: int, image: int, pixels: Callable[[Operand, int, set[int] | None], None]) -> None:
        """Lines whose columns inside the image are known one by one; like neighbours share a loop."""
        size = self.spec.pixels
        lines = [(start, min(size, width - start)) for start in range(0, width, size)]
        inside = [self._columns(start, count, image) for start, count in lines]
        for (count, columns), group in itertools.groupby(range(len(lines)), lambda i: (lines[i][1], inside[i])):
            first, *others = list(group)
            if not others:
                pixels(lines[first][0], count, set(columns))
                continue
            with self.k.loop(lines[others[-1]][0] + 1, start=lines[first][0], step=size) as pixel:
                pixels(pixel, count, set(columns))

    def _columns(self, start: int, count: int, image: int) -> frozenset[int]:
        """Which of the image's columns under a line are there, counted from the line's first."""
        window = self.spec.window
        left = start * window.strides[1] - window.pads[1]
        reach = (count - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilations[1] + 1
        return frozenset(c for c in range(reach) if 0 <= left + c < image)

    def _any_row(self, pixels: Callable[[Operand, int, set[int] | None], None]) -> None:
        """Lines that see only columns of the image, and lines that check every column."""
        k, window, size = self.k, self.spec.window, self.spec.pixels
        low = -(-window.pads[1] // window.strides[1])
        reach = (window.kernel[1] - 1) * window.dilations[1] - window.pads[1]
        high = (maximum(k.index(self.image[1]) - reach, 0) + (window.strides[1] - 1)) / window.strides[1]
        high = minimum(high, self.out[1])
        everything = (size - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilations[1] + 1
        with k.loop(self.out[1], step=size, nonempty=True) as pixel:
            with k.when((pixel >= low) & (pixel + size <= high)):
                pixels(pixel, size, set(range(everything)))
            with k.otherwise():
                pixels(pixel, size, None)

    def _line(
        self, row: Value, pixel: Operand, count: int, columns: set[int] | None, taps: _Taps, vector: Value, inside: int
    ) -> None:
        """`count` pixels of one vector of channels. `columns` are those inside the image; None: check at run time."""
        k, spec, window = self.k, self.spec, self.spec.window
        channel = vector * self.lanes
        sums = k.variables(dict.fromkeys(range(count), k.constant(spec.dtype, 0, self.lanes)))
        left = pixel * window.strides[1] - window.pads[1]
        corner = self.x + channel + taps.top * self.steps[0]
        filters = self.weights + vector * (window.taps * self.lanes)
        with k.loop(taps.last, start=taps.first) as tap:
            line = corner + tap * times(self.steps[0], window.dilations[0])
            self._add_taps(sums, count, line, left, columns, filters + tap * (window.kernel[1] * self.lanes), inside)
        place = self.finish.at(row * self.out[1] + pixel, channel, inside)
        done = _Line(Tile(spec.dtype, count, 1, self.lanes), sums)
        if columns is None:
            self.finish.store_rows(done, place, left_over(k, self.out[1], k.index(pixel), count))
        else:
            self.finish.store(done, place)

    def _add_taps(
        self, sums: Variables[int, Value], count: int, line: Pointer, left: Operand, columns: set[int] | None,
        filters: Pointer, inside: int,
    ) -> None:  # fmt: skip
        """Add what one row of taps gives to the sums: each column of the image goes into all that it belongs to."""
        window = self.spec.window
        stride, dilation = window.strides[1], window.dilations[1]
        weights = [filters.load(i * self.lanes, self.lanes) for i in range(window.kernel[1])]
        first = line + times(left, self.steps[1])
        users: dict[int, list[tuple[int, int]]] = {}
        for pixel in range(count):
            for tap in range(window.kernel[1]):
                users.setdefault(pixel * stride + tap * dilation, []).append((pixel, tap))
        for column in sorted(users):
            if columns is not None and column not in columns:
                continue
            address = first + times(self.steps[1], column)
            if columns is None:
                place = self.k.index(left) + column
                address = _choose((place >= 0) & (place < self.image[1]), address, self.zeros)
            value = self._load(address, inside)
            for pixel, tap in users[column]:
                sums[pixel] = multiply_add(value, weights[tap], sums[pixel])

    def _load(self, address: Pointer, inside: int) -> Value:
        if inside == self.lanes:
            return address.load(0, self.lanes)
        return address.load_masked(prefix_mask(self.k.index(inside), self.lanes))


def choose_depthwise_tile(target: Target, window: Window, out_columns: int | None) -> tuple[int, int, int]:
    """(pixels, rows, vectors) for an output this wide; None: not known."""
    # Wide windows share more of what they load among neighbours.
    most = 14 if window.kernel[1] >= 5 and target.vector_registers >= 32 else 8
    if out_columns is None:
        return 7, 8, 4
    lines = -(-out_columns // most)
    return max(1, -(-out_columns // lines)), 8, 4


def _choose(condition: Value, chosen: Pointer, otherwise: Pointer) -> Pointer:
    text = f"select {condition.type_text} {condition.name}, {chosen.type_text} {chosen.name}, "
    return chosen.renamed(chosen.emitter.assign(f"{text}{otherwise.type_text} {otherwise.name}"))


def pack_depthwise_weights(weights: Array, lanes: int) -> Array:
    """Weights [channels, 1, taps...] as [ceil(channels / lanes), taps, lanes], zeros in the rest of the last vector."""
    channels = weights.shape[0]
    flat = weights.reshape(channels, -1)
    packed = aligned_empty((-(-channels // lanes), flat.shape[1], lanes), weights.dtype)
    padded = np.zeros((packed.shape[0] * lanes, flat.shape[1]), weights.dtype)
    padded[:channels] = flat
    packed[...] = padded.reshape(-1, lanes, flat.shape[1]).transpose(0, 2, 1)
    return packed
