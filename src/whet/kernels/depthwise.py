"""Depthwise convolution, channels last: every channel has its own filter, a vector holds neighbouring channels.

Each input pixel under a block of output pixels is loaded once for all the sums that it belongs to.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whet.codegen.lang import Function, Operand, Pointer, Value, Variables, minimum, prefix_mask
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, DType
from whet.kernels.base import Frame
from whet.kernels.conv import Window
from whet.kernels.gemm import aligned_empty
from whet.kernels.strips import Block, Line, Strips, choose, column_users, each_row_of_taps
from whet.kernels.tile import Epilogue, Finish, Tile, blocks_of, even_size, finish, left_over, multiply_add, times

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

    Tiles that follow each other have the same rows of an image, or with `by_channels` the same channels.

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
    by_channels: bool = False

    def parts(self, target: Target) -> int:
        """Tiles beside each other: ceil(channels / (lanes * vectors))."""
        return -(-self.channels // (target.lanes(self.dtype) * self.vectors))

    def tiles(self, target: Target, out_rows: int, images: int) -> int:
        """images * ceil(out_rows / rows) * parts."""
        return images * ((out_rows + self.rows - 1) // self.rows) * self.parts(target)

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
        strips = Strips(k, self.window, self.pixels, self.lines, self.rows, self.out_rows, image, out)
        with frame.tiles() as number:
            # Rows run slowest, so that a thread's share of the tiles is a part of the image, as in the steps before and
            # behind; or channels, where those are what the step before has dealt out.
            if self.by_channels:
                rest, row_block = number / row_blocks, number % row_blocks
                index, group = rest / groups, rest % groups
            else:
                rest, group = number / groups, number % groups
                index, row_block = rest / row_blocks, rest % row_blocks
            here = everywhere.moved(times(index, image_strides[0]), [times(index, s) for s in image_strides[1:]])
            first = group * self.vectors
            one = _Image(k, self, lanes, x + index * x_n, weights, image, out, steps, zeros, here, totals)

            def each_vector(body: Callable[[Value, int], None]) -> None:
                with k.loop(minimum(first + self.vectors, whole), start=first) as vector:
                    body(vector, lanes)
                if self.channels % lanes:
                    with k.when(first + self.vectors > whole):
                        body(k.index(whole), self.channels % lanes)

            first_row = row_block * self.rows
            if totals is not None:
                totals.begin(first)
            strips.all(
                first_row, minimum(first_row + self.rows, out[0]),
                lambda block: each_vector(lambda vector, inside: one.add(block, vector, inside)),
            )  # fmt: skip
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


Sums = Variables[tuple[int, int], Value]
"""By line and pixel of a block."""


@dataclass(frozen=True)
class _Image:
    """One image: blocks of sums of one vector of channels, of which `inside` exist."""

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

    def add(self, b: Block, vector: Value, inside: int) -> None:
        """Compute a block and write it."""
        k, spec, window = self.k, self.spec, self.spec.window
        places = itertools.product(range(b.lines), range(b.pixels))
        sums = k.variables(dict.fromkeys(places, k.constant(spec.dtype, 0, self.lanes)))
        corner = self._corner(b, vector)
        filters = self.weights + vector * (window.taps * self.lanes)
        straight = window.taps * b.lines * b.pixels <= _STRAIGHT_PRODUCTS or b.lines > 1
        # All in registers where they fit beside the sums, a pixel, and a bit of room.
        fit = straight and window.taps + b.lines * b.pixels + 3 <= k.target.vector_registers
        held = [self._weights(filters, tap) for tap in range(window.kernel[0])] if fit else None

        def row_of_taps(row: Operand, users: list[tuple[int, Operand]]) -> None:
            weights = [
                (line, held[tap] if held and isinstance(tap, int) else self._weights(filters, tap))
                for line, tap in users
            ]
            self._add_row(sums, b, inside, corner + times(row, self.steps[0]), weights)

        each_row_of_taps(k, window, self.image[0], b, straight, row_of_taps)
        if self.totals is None:
            self._store(sums, b, vector, inside, self.finish)
        else:
            with self.totals.adding(self.finish, vector) as finish:
                self._store(sums, b, vector, inside, finish)

    def _store(self, sums: Sums, b: Block, vector: Value, inside: int, finish: Finish) -> None:
        k, tile = self.k, Tile(self.spec.dtype, b.pixels, 1, self.lanes)
        for line in range(b.lines):
            done = Line(tile, [sums[line, pixel] for pixel in range(b.pixels)])
            place = finish.at((b.row + line) * self.out[1] + b.pixel, vector * self.lanes, inside)
            if b.columns is None:
                finish.store_rows(done, place, left_over(k, self.out[1], k.index(b.pixel), b.pixels))
            else:
                finish.store(done, place)

    def _corner(self, b: Block, vector: Value) -> Pointer:
        """The place in the image under a block's first tap; it may lie outside."""
        window = self.spec.window
        top = b.row * window.strides[0] - window.pads[0]
        left = b.pixel * window.strides[1] - window.pads[1]
        return self.x + vector * self.lanes + top * self.steps[0] + times(left, self.steps[1])

    def _weights(self, filters: Pointer, tap: Operand) -> list[Value]:
        """A row of taps."""
        count = self.spec.window.kernel[1]
        row = filters + times(tap, count * self.lanes)
        return [row.load(i * self.lanes, self.lanes) for i in range(count)]

    def _add_row(self, sums: Sums, b: Block, inside: int, row: Pointer, weights: list[tuple[int, list[Value]]]) -> None:
        """Add what a row of the image gives to the sums of some lines, by each line's row of weights."""
        window = self.spec.window
        for column, users in column_users(window, b.pixels).items():
            if b.columns is not None and column not in b.columns:
                continue
            address = row + times(self.steps[1], column)
            if b.columns is None:
                place = self.k.index(b.pixel) * window.strides[1] + (column - window.pads[1])
                address = choose((place >= 0) & (place < self.image[1]), address, self.zeros)
            value = self._load(address, inside)
            for pixel, tap in users:
                for line, filters in weights:
                    sums[line, pixel] = multiply_add(value, filters[tap], sums[line, pixel])

    def _load(self, address: Pointer, inside: int) -> Value:
        if inside == self.lanes:
            return address.load(0, self.lanes)
        return address.load_masked(prefix_mask(self.k.index(inside), self.lanes))


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
    pixels = 7 if out_columns is None else max(1, even_size(out_columns, most))
    lines = 1
    if pixels <= 7 and not few and window.strides[0] == 1 and (out_rows or _ROWS) > 1:
        # So few sums do not hide the latency of fma.
        lines = 2 if window.taps * pixels * 2 <= _MOST_PRODUCTS else 1
    rows = _ROWS if out_rows is None else max(1, even_size(out_rows, _ROWS))
    vectors = -(-channels // target.lanes(dtype))
    return DepthwiseTile(pixels, lines, rows + rows % lines, even_size(vectors, _VECTORS))


_ROWS, _VECTORS = 8, 4
"""The most of a tile."""
_MOST_PRODUCTS = 350
"""Of a block of several lines, which is written out."""


def pack_depthwise_weights(weights: Array, lanes: int) -> Array:
    """Weights [channels, 1, taps...] as [ceil(channels / lanes), taps, lanes], zeros in the rest of the last vector."""
    channels = weights.shape[0]
    flat = weights.reshape(channels, -1)
    packed = aligned_empty((-(-channels // lanes), flat.shape[1], lanes), weights.dtype)
    padded = np.zeros((packed.shape[0] * lanes, flat.shape[1]), weights.dtype)
    padded[:channels] = flat
    packed[...] = padded.reshape(-1, lanes, flat.shape[1]).transpose(0, 2, 1)
    return packed
