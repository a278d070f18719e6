"""Depthwise convolution, channels last: every channel has its own filter, a vector holds neighbouring channels.

A block of sums is a few neighbouring output pixels of a few rows. Each input pixel under it is loaded once for all the
sums that it belongs to. A tile is walked in strips from top to bottom, so that the rows under a block are still in the
first cache when the next block needs most of them again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

_STRAIGHT_PRODUCTS = 200
"""A block of up to so many vector products is written out; a larger one, of one row, is a loop over rows of taps."""


@dataclass(frozen=True, slots=True)
class Depthwise:
    """A convolution of each channel by itself, over two spatial axes (one of them has extent 1 in one dimension).

    Words: x, x_n, x_s0, x_s1 (elements from one image, row, pixel to the next; channels are 1 apart; `pixel_stride`
    fixes x_s1), in0, in1, out0, out1 (rows and columns of input and output; `columns` fixes in1 and out1, which is
    faster at the image's edges, and `out_rows` out0), w (`pack_depthwise_weights`), c, ldc, c_n, e0, e0_s, e0_n, ...
    as for `Conv`. The extents of the output are those that the window gives.

    A tile is `rows` output rows of one image x `vectors` vectors of channels. Sums of `lines` rows x `pixels` pixels
    are kept at a time.

    `totals`: words totals, totals_n come behind the others. Each tile adds its results up, channel by channel, and
    writes what it finds at totals + image * totals_n + (number of its rows' block) * channels + channel;
    results have type `dtype`.
    """

    window: Window
    channels: int
    dtype: DType = FLOAT32
    columns: tuple[int, int] | None = None
    pixels: int = 7
    rows: int = 8
    vectors: int = 4
    epilogue: Epilogue | None = None
    lines: int = 1
    out_rows: int | None = None
    pixel_stride: int | None = None
    totals: bool = False

    def tiles(self, target: Target, out_rows: int, images: int) -> int:
        """images * ceil(out_rows / rows) * ceil(channels / (lanes * vectors))."""
        channels = target.lanes(self.dtype) * self.vectors
        return images * ((out_rows + self.rows - 1) // self.rows) * -(-self.channels // channels)

    def emit(self, frame: Frame) -> None:
        k = frame.k
        in_columns, out_columns = self.columns or (None, None)
        x = frame.address("x", self.dtype)
        weights = frame.address("w", self.dtype)
        image = (frame.number("in0"), frame.number("in1", in_columns))
        out = (frame.number("out0", self.out_rows), frame.number("out1", out_columns))
        x_n = frame.number("x_n")
        steps = (frame.number("x_s0"), frame.number("x_s1", self.pixel_stride))
        lanes = frame.target.lanes(self.dtype)
        everywhere = finish(frame, Tile(self.dtype, self.pixels, 1, lanes), self.epilogue)
        image_strides = [frame.number("c_n")]
        for i, kind in enumerate(self.epilogue.operands if self.epilogue else ()):
            image_strides.append(frame.number(f"e{i}_n") if kind == "full" else 0)
        totals = _Totals(frame, self, lanes) if self.totals else None
        zeros = k.stack_array(self.dtype, lanes)
        zeros.store(k.constant(self.dtype, 0, lanes))

        groups = blocks_of(self.channels, lanes * self.vectors)
        row_blocks = blocks_of(out[0], self.rows)
        whole = self.channels // lanes
        with frame.tiles() as number:
            # Rows run slowest, so that a thread's share of the tiles is a part of the image, as in the steps before and
            # behind.
            rest, group = number / groups, number % groups
            index, row_block = rest / row_blocks, rest % row_blocks
            here = everywhere.moved(times(index, image_strides[0]), [times(index, s) for s in image_strides[1:]])
            first = group * self.vectors
            strips = _Strips(k, self, lanes, x + index * x_n, weights, image, out, steps, zeros, here, totals)

            def each_vector(body: Callable[[Value, int], None]) -> None:
                with k.loop(minimum(first + self.vectors, whole), start=first) as vector:
                    body(vector, lanes)
                if self.channels % lanes:
                    with k.when(first + self.vectors > whole):
                        body(k.index(whole), self.channels % lanes)

            first_row = row_block * self.rows
            if totals is not None:
                totals.begin(first)
            strips.all(first_row, minimum(first_row + self.rows, out[0]), each_vector)
            if totals is not None:
                totals.end(index, row_block, each_vector)


Vectors = Callable[[Callable[[Value, int], None]], None]
"""Does its argument (vector, channels that exist in it) for every vector of channels of a tile."""


class _Totals:
    """The results of a tile, added up by channel in memory that stays in the first cache."""

    def __init__(self, frame: Frame, spec: Depthwise, lanes: int) -> None:
        self._k, self._spec, self._lanes = frame.k, spec, lanes
        self._out = frame.address("totals", spec.dtype)
        self._image = frame.number("totals_n")
        self._room = frame.k.stack_array(spec.dtype, spec.vectors * lanes)
        self._first: Value = frame.k.index(0)

    def begin(self, first: Value) -> None:
        """Begin a tile whose first vector of channels is `first`."""
        self._first = first
        for i in range(self._spec.vectors):
            self._room.store(self._k.constant(self._spec.dtype, 0, self._lanes), i * self._lanes, align=64)

    @contextmanager
    def adding(self, finish: Finish, vector: Value) -> Iterator[Finish]:
        """What writes the results of a block of one vector of channels and adds them up."""
        own = self._room + (vector - self._first) * self._lanes
        total = self._k.variable(self._k.constant(self._spec.dtype, 0, self._lanes))

        def add(result: Value) -> None:
            total.value = total.value + result

        yield replace(finish, each=add)
        own.store(own.load(0, self._lanes) + total.value)

    def end(self, image: Value, part: Value, each_vector: Vectors) -> None:
        """Write what a tile has found."""
        out = self._out + (image * self._image + part * self._spec.channels)

        def write(vector: Value, inside: int) -> None:
            value = self._room.load((vector - self._first) * self._lanes, self._lanes)
            if inside == self._lanes:
                out.store(value, vector * self._lanes)
            else:
                out.store_masked(prefix_mask(self._k.index(inside), self._lanes), value, vector * self._lanes)

        each_vector(write)


Strip = Callable[[Operand, int, "set[int] | None"], None]
"""Called with a strip's first output column, its width, and the input columns under it that lie inside the image,
counted from the first; None: that is found out at run time."""


class _Line:
    """A finished run of neighbouring pixels, one vector each."""

    def __init__(self, tile: Tile, sums: list[Value]) -> None:
        self._tile = tile
        self._sums = sums

    @property
    def tile(self) -> Tile:
        return self._tile

    def totals(self) -> list[list[Value]]:
        return [[total] for total in self._sums]


@dataclass(frozen=True)
class _Block:
    """Sums of `lines` rows x `pixels` pixels of one vector of channels, of which `inside` exist."""

    row: Value
    lines: int
    pixel: Operand
    pixels: int
    columns: set[int] | None
    vector: Value
    inside: int


Sums = Variables[tuple[int, int], Value]
"""By line and pixel of a block."""


@dataclass(frozen=True)
class _Strips:
    """The strips of one image."""

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
    totals: _Totals | None

    def all(self, first_row: Value, last_row: Value, each_vector: Vectors) -> None:
        """Output rows `first_row` to `last_row` - 1 of a tile's channels."""

        def strip(pixel: Operand, pixels: int, columns: set[int] | None) -> None:
            def lines(row: Value, count: int) -> None:
                each_vector(lambda v, inside: self._block(_Block(row, count, pixel, pixels, columns, v, inside)))

            self._each_row(first_row, last_row, lines)

        width = self.out[1]
        if isinstance(width, int) and isinstance(self.image[1], int):
            self._known_strips(width, self.image[1], strip)
        else:
            self._any_strips(strip)

    def _each_row(self, first: Value, last: Value, body: Callable[[Value, int], None]) -> None:
        """`spec.lines` rows at a time, then the rest one by one."""
        k, lines = self.k, self.spec.lines
        if lines == 1:
            with k.loop(last, start=first, nonempty=True) as row:
                body(row, 1)
            return
        whole = last - (last - first) % lines
        with k.loop(whole, start=first, step=lines) as row:
            body(row, lines)
        rows, most = self.spec.out_rows, self.spec.rows
        # Rows of a tile that occur.
        known = None if rows is None else {min(rows, most), rows % most}
        if known is None or any(count % lines for count in known):
            with k.loop(last, start=whole) as row:
                body(row, 1)

    def _known_strips(self, width: int, image: int, strip: Strip) -> None:
        """Strips whose columns inside the image are known one by one; like neighbours share a loop."""
        size = self.spec.pixels
        strips = [(start, min(size, width - start)) for start in range(0, width, size)]
        inside = [self._columns(start, count, image) for start, count in strips]
        for (count, columns), group in itertools.groupby(range(len(strips)), lambda i: (strips[i][1], inside[i])):
            first, *others = list(group)
            if not others:
                strip(strips[first][0], count, set(columns))
                continue
            with self.k.loop(strips[others[-1]][0] + 1, start=strips[first][0], step=size) as pixel:
                strip(pixel, count, set(columns))

    def _columns(self, start: int, count: int, image: int) -> frozenset[int]:
        """Which of the image's columns under a strip are there, counted from the strip's first."""
        window = self.spec.window
        left = start * window.strides[1] - window.pads[1]
        reach = (count - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilations[1] + 1
        return frozenset(c for c in range(reach) if 0 <= left + c < image)

    def _any_strips(self, strip: Strip) -> None:
        """Strips that see only columns of the image, and strips that check every column."""
        k, window, size = self.k, self.spec.window, self.spec.pixels
        low = -(-window.pads[1] // window.strides[1])
        reach = (window.kernel[1] - 1) * window.dilations[1] - window.pads[1]
        high = (maximum(k.index(self.image[1]) - reach, 0) + (window.strides[1] - 1)) / window.strides[1]
        high = minimum(high, self.out[1])
        everything = (size - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilations[1] + 1
        with k.loop(self.out[1], step=size, nonempty=True) as pixel:
            with k.when((pixel >= low) & (pixel + size <= high)):
                strip(pixel, size, set(range(everything)))
            with k.otherwise():
                strip(pixel, size, None)

    def _block(self, b: _Block) -> None:
        k, spec = self.k, self.spec
        places = itertools.product(range(b.lines), range(b.pixels))
        sums = k.variables(dict.fromkeys(places, k.constant(spec.dtype, 0, self.lanes)))
        if spec.window.taps * b.lines * b.pixels <= _STRAIGHT_PRODUCTS or b.lines > 1:
            self._straight(sums, b)
        else:
            self._loop(sums, b)
        if self.totals is None:
            self._store(sums, b, self.finish)
        else:
            with self.totals.adding(self.finish, b.vector) as finish:
                self._store(sums, b, finish)

    def _store(self, sums: Sums, b: _Block, finish: Finish) -> None:
        k, tile = self.k, Tile(self.spec.dtype, b.pixels, 1, self.lanes)
        for line in range(b.lines):
            done = _Line(tile, [sums[line, pixel] for pixel in range(b.pixels)])
            place = finish.at((b.row + line) * self.out[1] + b.pixel, b.vector * self.lanes, b.inside)
            if b.columns is None:
                finish.store_rows(done, place, left_over(k, self.out[1], k.index(b.pixel), b.pixels))
            else:
                finish.store(done, place)

    def _corner(self, b: _Block, top: Value) -> Pointer:
        """The place in the image under a block's first tap, from image row `top` on; it may lie outside."""
        window = self.spec.window
        left = b.pixel * window.strides[1] - window.pads[1]
        return self.x + b.vector * self.lanes + top * self.steps[0] + times(left, self.steps[1])

    def _loop(self, sums: Sums, b: _Block) -> None:
        """One line, a row of taps after the other."""
        k, window = self.k, self.spec.window
        kernel, dilation = window.kernel[0], window.dilations[0]
        top = b.row * window.strides[0] - window.pads[0]
        first = (maximum(-top, 0) + (dilation - 1)) / dilation
        last = minimum((maximum(self.image[0] - top, 0) + (dilation - 1)) / dilation, kernel)
        corner = self._corner(b, top)
        filters = self.weights + b.vector * (window.taps * self.lanes)
        with k.loop(last, start=first) as tap:
            row = corner + tap * times(self.steps[0], dilation)
            weights = self._weights(filters + tap * (window.kernel[1] * self.lanes))
            self._add_row(sums, b, row, [(0, weights)])

    def _straight(self, sums: Sums, b: _Block) -> None:
        """Several lines: each row of the image goes into all lines that it belongs to."""
        k, window = self.k, self.spec.window
        kernel, stride, dilation = window.kernel[0], window.strides[0], window.dilations[0]
        top = b.row * stride - window.pads[0]
        corner = self._corner(b, top)
        filters = self.weights + b.vector * (window.taps * self.lanes)
        users: dict[int, list[tuple[int, int]]] = {}
        for line, tap in itertools.product(range(b.lines), range(kernel)):
            users.setdefault(line * stride + tap * dilation, []).append((line, tap))
        row_of_weights = window.kernel[1] * self.lanes
        # All in registers where they fit beside the sums, a pixel, and a bit of room.
        fit = window.taps + b.lines * b.pixels + 3 <= k.target.vector_registers
        held = [self._weights(filters + tap * row_of_weights) for tap in range(kernel)] if fit else None
        last = max(users)
        for place in sorted(users):

            def add(place: int = place) -> None:
                weights = [
                    (line, held[tap] if held else self._weights(filters + tap * row_of_weights))
                    for line, tap in users[place]
                ]
                self._add_row(sums, b, corner + times(self.steps[0], place), weights)

            # Only the padding above and below is outside, and only a block's first and last rows can lie in it.
            above, below = place < window.pads[0], last - place < window.pads[2]
            if not above and not below:
                add()
                continue
            here = top + place
            inside = (here >= 0) & (here < self.image[0]) if above and below else here >= 0 if above else None
            with k.when(here < self.image[0] if inside is None else inside):
                add()

    def _weights(self, row: Pointer) -> list[Value]:
        return [row.load(i * self.lanes, self.lanes) for i in range(self.spec.window.kernel[1])]

    def _add_row(self, sums: Sums, b: _Block, row: Pointer, weights: list[tuple[int, list[Value]]]) -> None:
        """Add what a row of the image gives to the sums of some lines, by each line's row of weights."""
        window = self.spec.window
        stride, dilation = window.strides[1], window.dilations[1]
        users: dict[int, list[tuple[int, int]]] = {}
        for pixel, tap in itertools.product(range(b.pixels), range(window.kernel[1])):
            users.setdefault(pixel * stride + tap * dilation, []).append((pixel, tap))
        for column in sorted(users):
            if b.columns is not None and column not in b.columns:
                continue
            address = row + times(self.steps[1], column)
            if b.columns is None:
                place = self.k.index(b.pixel) * stride + (column - window.pads[1])
                address = _choose((place >= 0) & (place < self.image[1]), address, self.zeros)
            value = self._load(address, b.inside)
            for pixel, tap in users[column]:
                for line, filters in weights:
                    sums[line, pixel] = multiply_add(value, filters[tap], sums[line, pixel])

    def _load(self, address: Pointer, inside: int) -> Value:
        if inside == self.lanes:
            return address.load(0, self.lanes)
        return address.load_masked(prefix_mask(self.k.index(inside), self.lanes))


def _choose(condition: Value, chosen: Pointer, otherwise: Pointer) -> Pointer:
    text = f"select {condition.type_text} {condition.name}, {chosen.type_text} {chosen.name}, "
    return chosen.renamed(chosen.emitter.assign(f"{text}{otherwise.type_text} {otherwise.name}"))


@dataclass(frozen=True, slots=True)
class DepthwiseTile:
    """What a `Depthwise` computes at a time."""

    pixels: int
    lines: int
    rows: int
    vectors: int


def choose_depthwise_tile(
    target: Target, window: Window, out_rows: int | None, out_columns: int | None, channels: int,
    dtype: DType = FLOAT32,
) -> DepthwiseTile:  # fmt: skip
    """For an output of these extents; None: not known."""
    few = target.vector_registers < 32
    # Long strips share more of what they load among neighbours, which counts where there is more to share.
    shared = window.strides[1] == 1 and not few
    most = 14 if shared and (window.kernel[1] >= 5 or (out_columns or 15) <= 14) else 8
    pixels = 7 if out_columns is None else max(1, _even(out_columns, most))
    lines = 1
    if pixels <= 7 and not few and window.strides[0] == 1 and (out_rows or _ROWS) > 1:
        # So few sums do not hide the latency of fma.
        lines = 2 if window.taps * pixels * 2 <= _MOST_PRODUCTS else 1
    rows = _ROWS if out_rows is None else max(1, _even(out_rows, _ROWS))
    vectors = -(-channels // target.lanes(dtype))
    return DepthwiseTile(pixels, lines, rows + rows % lines, _even(vectors, _VECTORS))


_ROWS, _VECTORS = 8, 4
"""The most of a tile."""
_MOST_PRODUCTS = 350
"""Of a block of several lines, which is written out."""


def _even(extent: int, most: int) -> int:
    """The size of parts of `extent`, at most `most` and about equal."""
    return -(-extent // -(-extent // most))


def pack_depthwise_weights(weights: Array, lanes: int) -> Array:
    """Weights [channels, 1, taps...] as [ceil(channels / lanes), taps, lanes], zeros in the rest of the last vector."""
    channels = weights.shape[0]
    flat = weights.reshape(channels, -1)
    packed = aligned_empty((-(-channels // lanes), flat.shape[1], lanes), weights.dtype)
    padded = np.zeros((packed.shape[0] * lanes, flat.shape[1]), weights.dtype)
    padded[:channels] = flat
    packed[...] = padded.reshape(-1, lanes, flat.shape[1]).transpose(0, 2, 1)
    return packed
