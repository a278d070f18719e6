"""Convolution of few channels a group, channels last: a vector holds outputs of whole groups, or a part of one group's.

Every lane of a vector of outputs wants its own group's channels. Where the groups of a vector have their channels in
one vector of the input, that is loaded and permuted: a step of the loop over a group's channels puts a channel of each
group into all lanes of its outputs. Where a vector belongs to one group, a channel is broadcast from memory. Either
serves all taps and pixels of a block that read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whet.codegen.lang import (
    Function,
    Operand,
    Pointer,
    Value,
    Variables,
    broadcast,
    minimum,
    permute,
    prefix_mask,
)
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT32, INT64, DType
from whet.kernels.base import Frame
from whet.kernels.conv import Window
from whet.kernels.gemm import aligned_empty
from whet.kernels.strips import Block, Line, Strips, choose, column_users, each_row_of_taps
from whet.kernels.tile import Epilogue, Finish, Tile, blocks_of, even_size, finish, left_over, multiply_add, plus, times

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What groups share: `groups` whole groups in one vector, or one group in `vectors` of them."""

    groups: int
    vectors: int


def bundle_of(lanes: int, channels: int, outputs: int) -> Bundle:
    """For groups of so many channels and outputs."""
    groups = lanes // max(channels, outputs)
    return Bundle(groups, 1) if groups > 1 else Bundle(1, -(-outputs // lanes))


@dataclass(frozen=True, slots=True)
class Grouped:
    """A convolution of `groups` groups from `channels` to `outputs` numbers each, over two spatial axes (one of them
    has extent 1 in one dimension).

    Words: as for `Depthwise`; w is `pack_grouped_weights`. Elements have 32 or 64 bits.

    A tile is `rows` output rows of one image x `bundles` bundles. Sums of `lines` rows x `pixels` pixels of one vector
    are kept at a time. All rows of a tile come for one vector, then for the next: its weights stay in the first cache.

    `totals`: as for `Depthwise`, for each output.

    `ahead`: beside the products of a block, what the block below it reads first and the next vector's weights are
    fetched to the first cache.
    """

    window: Window
    groups: int
    channels: int
    outputs: int
    dtype: DType = FLOAT32
    columns: tuple[int, int] | None = None
    pixels: int = 7
    rows: int = 8
    bundles: int = 2
    epilogue: Epilogue | None = None
    lines: int = 1
    out_rows: int | None = None
    pixel_stride: int | None = None
    totals: bool = False
    ahead: bool = False

    def count(self, lanes: int) -> int:
        """How many bundles there are."""
        return -(-self.groups // bundle_of(lanes, self.channels, self.outputs).groups)

    def parts(self, target: Target) -> int:
        """Tiles beside each other: ceil(bundles there are / bundles of a tile)."""
        return -(-self.count(target.lanes(self.dtype)) // self.bundles)

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
        zeros = k.stack_array(self.dtype, max(lanes, self.channels))
        if self.columns is None:
            for i in range(max(lanes, self.channels)):
                zeros.store(0, i)

        strips = Strips(k, self.window, self.pixels, self.lines, self.rows, self.out_rows, image, out)
        row_blocks, parts = blocks_of(out[0], self.rows), self.parts(frame.target)
        with frame.tiles() as number:
            # Rows run slowest, so that a thread's share of the tiles is a part of the image, as in the steps before and
            # behind.
            rest, part = number / parts, number % parts
            index, row_block = rest / row_blocks, rest % row_blocks
            here = everywhere.moved(times(index, image_strides[0]), [times(index, s) for s in image_strides[1:]])
            first_row = row_block * self.rows
            last_row = minimum(first_row + self.rows, out[0])
            vectors = _Vectors(k, self, lanes, x + index * x_n, weights, image, out, steps, zeros)

            def compute(vector: _Vector) -> None:
                if totals is None:
                    strips.all(first_row, last_row, lambda block: vectors.add(block, vector, here))
                    return
                with totals.of(vector, index, row_block):

                    def add(block: Block) -> None:
                        with totals.adding(here) as adding:
                            vectors.add(block, vector, adding)

                    strips.all(first_row, last_row, add)

            vectors.each(part * self.bundles, minimum(part * self.bundles + self.bundles, self.count(lanes)), compute)


@dataclass(frozen=True)
class _Vector:
    """A vector of outputs: its bundle and its number there, its first output and how many outputs it has; `mask`: the
    lanes of its bundle's vector of channels that exist, where that is not all."""

    bundle: Value
    number: Operand
    column: Value
    inside: Operand
    mask: Value | None = None


class _Totals:
    """The results of a tile in one vector, added up in memory that stays in the first cache."""

    def __init__(self, frame: Frame, spec: Grouped, lanes: int) -> None:
        self._k, self._spec, self._lanes = frame.k, spec, lanes
        self._out = frame.address("totals", spec.dtype)
        self._image = frame.number("totals_n")
        self._room = frame.k.stack_array(spec.dtype, lanes)

    @contextmanager
    def of(self, vector: _Vector, image: Value, part: Value) -> Iterator[None]:
        """Write what is added up inside."""
        self._room.store(self._k.constant(self._spec.dtype, 0, self._lanes))
        yield
        out = self._out + (image * self._image + part * (self._spec.groups * self._spec.outputs)) + vector.column
        value = self._room.load(0, self._lanes)
        if not isinstance(vector.inside, Value) and vector.inside == self._lanes:
            out.store(value)
        else:
            out.store_masked(prefix_mask(self._k.index(vector.inside), self._lanes), value)

    @contextmanager
    def adding(self, finish: Finish) -> Iterator[Finish]:
        """What writes the results of a block and adds them up."""
        total = self._k.variable(self._k.constant(self._spec.dtype, 0, self._lanes))

        def add(result: Value) -> None:
            total.value = total.value + result

        yield replace(finish, each=add)
        self._room.store(self._room.load(0, self._lanes) + total.value)


Sums = Variables[tuple[int, int], Value]
"""By line and pixel of a block."""


@dataclass(frozen=True)
class _Vectors:
    """The vectors of one image."""

    k: Function
    spec: Grouped
    lanes: int
    x: Pointer
    weights: Pointer
    image: tuple[Operand, Operand]
    out: tuple[Operand, Operand]
    steps: tuple[Operand, Operand]
    zeros: Pointer

    @property
    def bundle(self) -> Bundle:
        return bundle_of(self.lanes, self.spec.channels, self.spec.outputs)

    def each(self, first: Value, last: Value, body: Callable[[_Vector], None]) -> None:
        """Every vector of bundles `first` to `last` - 1."""
        k, spec, lanes, bundle = self.k, self.spec, self.lanes, self.bundle
        if bundle.groups == 1:
            whole, rest = divmod(spec.outputs, lanes)
            with k.loop(last, start=first, nonempty=True) as index:
                with k.loop(whole) as number:
                    body(_Vector(index, number, index * spec.outputs + number * lanes, lanes))
                if rest:
                    body(_Vector(index, whole, index * spec.outputs + whole * lanes, rest))
            return
        channels, outputs = bundle.groups * spec.channels, bundle.groups * spec.outputs
        # Bundles of which all outputs exist, and as many channels as a vector has.
        whole = min(spec.groups // bundle.groups, max(spec.groups * spec.channels - lanes + channels, 0) // channels)
        with k.loop(minimum(last, whole), start=first) as index:
            body(_Vector(index, 0, index * outputs, outputs))
        if whole < spec.count(lanes):
            start = self.k.variable(first)
            with k.when(first < whole):
                start.value = k.index(whole)
            with k.loop(last, start=start.value) as index:
                mask = prefix_mask(k.index(spec.groups * spec.channels) - index * channels, lanes)
                inside = minimum(k.index(spec.groups * spec.outputs) - index * outputs, outputs)
                body(_Vector(index, 0, index * outputs, inside, mask))

    def add(self, b: Block, vector: _Vector, finish: Finish) -> None:
        """Compute a block and write it."""
        k, spec, window = self.k, self.spec, self.spec.window
        places = itertools.product(range(b.lines), range(b.pixels))
        sums = k.variables(dict.fromkeys(places, k.constant(spec.dtype, 0, self.lanes)))
        corner = self._corner(b, vector)
        # Of a row of taps.
        size = window.kernel[1] * spec.channels * self.lanes
        filters = self.weights + (vector.bundle * self.bundle.vectors + vector.number) * (window.kernel[0] * size)

        # A tap's weights of the next vector; other rows fetch the others.
        next_filters = filters + (window.kernel[0] * size + b.row % window.kernel[1] * self.lanes)

        def row_of_taps(row: Operand, users: list[tuple[int, Operand]]) -> None:
            start = corner + times(row, self.steps[0])
            tap = users[0][1]

            def fetch(channel: Value) -> None:
                if spec.ahead:
                    next_filters.prefetch(times(tap, size) + channel * (window.kernel[1] * self.lanes))
                    self._fetch_below(b, corner, times(tap, spec.channels) + channel)

            self._add_row(sums, b, vector, start, [(line, filters + times(tap, size)) for line, tap in users], fetch)

        each_row_of_taps(k, window, self.image[0], b, False, row_of_taps)
        tile = Tile(spec.dtype, b.pixels, 1, self.lanes)
        for line in range(b.lines):
            done = Line(tile, [sums[line, pixel] for pixel in range(b.pixels)])
            place = finish.at((b.row + line) * self.out[1] + b.pixel, vector.column, vector.inside)
            if b.columns is None:
                finish.store_rows(done, place, left_over(k, self.out[1], k.index(b.pixel), b.pixels))
            else:
                finish.store(done, place)

    def _fetch_below(self, b: Block, corner: Pointer, part: Value) -> None:
        """Ask for a part of the rows of the image that the block below this one is the first to read: there are as many
        parts as rows of taps of all channels."""
        window = self.spec.window
        first = (b.lines - 1) * window.strides[0] + (window.kernel[0] - 1) * window.dilations[0] + 1
        columns = (b.pixels - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilations[1] + 1
        size = -(-columns // (window.kernel[0] * self.spec.channels))
        place = corner + times(first, self.steps[0]) + times(times(part, size), self.steps[1])
        for row, column in itertools.product(range(b.lines * window.strides[0]), range(size)):
            place.prefetch(plus(times(row, self.steps[0]), times(column, self.steps[1])))

    def _corner(self, b: Block, vector: _Vector) -> Pointer:
        """The place of a bundle's first channel in the image under a block's first tap; it may lie outside."""
        window = self.spec.window
        top = b.row * window.strides[0] - window.pads[0]
        left = b.pixel * window.strides[1] - window.pads[1]
        channel = vector.bundle * (self.bundle.groups * self.spec.channels)
        return self.x + channel + top * self.steps[0] + times(left, self.steps[1])

    def _add_row(
        self, sums: Sums, b: Block, vector: _Vector, row: Pointer, weights: list[tuple[int, Pointer]],
        fetch: Callable[[Value], None],
    ) -> None:  # fmt: skip
        """Add what a row of the image gives to the sums of some lines, by each line's row of taps."""
        k, spec, lanes, taps = self.k, self.spec, self.lanes, self.spec.window.kernel[1]
        addresses = {
            column: self._address(b, row, column)
            for column in column_users(spec.window, b.pixels)
            if b.columns is None or column in b.columns
        }
        places = k.variable(self._places())
        with k.loop(spec.channels, nonempty=True) as channel:
            filters = {
                line: [first.load(channel * (taps * lanes) + tap * lanes, lanes) for tap in range(taps)]
                for line, first in weights
            }
            fetch(channel)
            for column, users in column_users(spec.window, b.pixels).items():
                if column not in addresses:
                    continue
                value = self._value(addresses[column], vector, channel, places.value)
                for pixel, tap in users:
                    for line, _ in weights:
                        sums[line, pixel] = multiply_add(filters[line][tap], value, sums[line, pixel])
            places.value = places.value + 1

    def _places(self) -> Value:
        """Where a vector of a bundle's channels has the first channel of each output's group."""
        spec, groups = self.spec, self.bundle.groups
        first = [min(lane // spec.outputs, groups - 1) * spec.channels for lane in range(self.lanes)]
        return self.k.constant_vector(INT32 if spec.dtype.bits == 32 else INT64, first)

    def _value(self, address: Pointer, vector: _Vector, channel: Value, places: Value) -> Value:
        """A channel of each group, in the lanes of the group's outputs."""
        if self.bundle.groups == 1:
            return broadcast(address.load(channel), self.lanes)
        if vector.mask is None:
            return permute(address.load(0, self.lanes), places)
        return permute(address.load_masked(vector.mask), places)

    def _address(self, b: Block, row: Pointer, column: int) -> Pointer:
        """A bundle's first channel in a column of a row of the image; zeros outside."""
        address = row + times(self.steps[1], column)
        if b.columns is not None:
            return address
        window = self.spec.window
        place = self.k.index(b.pixel) * window.strides[1] + (column - window.pads[1])
        return choose((place >= 0) & (place < self.image[1]), address, self.zeros)


@dataclass(frozen=True, slots=True)
class GroupedTile:
    """What a `Grouped` computes at a time."""

    pixels: int
    lines: int
    rows: int
    bundles: int


def choose_grouped_tile(
    target: Target, window: Window, groups: int, channels: int, outputs: int, out_rows: int | None,
    out_columns: int | None, dtype: DType = FLOAT32,
) -> GroupedTile:  # fmt: skip
    """For an output of these extents; None: not known."""
    most = _PIXELS if target.vector_registers >= 32 else _PIXELS_OF_16
    pixels = most // 2 if out_columns is None else even_size(out_columns, most)
    # Few sums do not hide the latency of fma.
    lines = min(most // pixels, _LINES, out_rows or _LINES)
    rows = _ROWS if out_rows is None else even_size(out_rows, _ROWS)
    count = -(-groups // bundle_of(target.lanes(dtype), channels, outputs).groups)
    return GroupedTile(pixels, lines, rows + -rows % lines, even_size(count, _BUNDLES))


_PIXELS, _PIXELS_OF_16, _LINES = 14, 8, 4
"""The most of a block, with 32 and with 16 registers."""
_ROWS, _BUNDLES = 8, 2
"""The most of a tile."""


def pack_grouped_weights(weights: Array, groups: int, lanes: int) -> Array:
    """Weights [groups * outputs, channels, rows, columns] as [bundles][vectors of a bundle][rows][channels][columns]
    [lanes], zeros in lanes without an output."""
    outputs, channels = weights.shape[0] // groups, weights.shape[1]
    bundle = bundle_of(lanes, channels, outputs)
    count = -(-groups // bundle.groups)
    # Outputs of a bundle, then lanes of a bundle.
    each, room = bundle.groups * outputs, bundle.vectors * lanes
    flat = np.zeros((count * each, *weights.shape[1:]), weights.dtype)
    flat[: len(weights)] = weights
    padded = np.zeros((count, room, *weights.shape[1:]), weights.dtype)
    padded[:, :each] = flat.reshape(count, each, *weights.shape[1:])
    ordered = padded.reshape(count, bundle.vectors, lanes, *weights.shape[1:]).transpose(0, 1, 4, 3, 5, 2)
    packed = aligned_empty(ordered.shape, weights.dtype)
    packed[...] = ordered
    return packed
