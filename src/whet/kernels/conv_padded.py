"""Convolution of few channels: a block of the image is copied with its padding, then multiplied in place.

Where a tap has only a few channels, its loop over them would be too short, and gathering patches (`ConvIm2col`) copies
every input as often as it has taps. In a copy that holds the padding, what a row of taps reads lies together for every
output pixel, and neighbouring pixels are a fixed distance apart: the rows of a product, without edges.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from whet.codegen.lang import Function, Operand, Pointer, Value, iota, maximum, minimum, select
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT64, DType
from whet.kernels.base import Frame
from whet.kernels.conv import Window
from whet.kernels.tile import (
    Epilogue,
    RegularRows,
    Sums,
    Tile,
    blocks_of,
    even_size,
    finish,
    left_over,
    over_rows,
    plus,
    times,
)


@dataclass(frozen=True, slots=True)
class ConvPadded:
    """A convolution over two spatial axes, of an input of any layout, whose taps along a row are neighbours.

    Words: x, x_n, x_s0, x_s1 (elements from one image, row, pixel to the next; `pixel_stride` fixes x_s1), x_c
    (elements from one channel to the next, unless `channels_last`: 1), in0, in1, out0, out1 (`extents` fixes them), w
    (`pack_conv_weights`), c, ldc, c_n, e0, ... as for `Conv`; dilations[1] is 1.

    The order of the weights: `channels_last` [taps][channels], else [channels][taps].
    A tile is `rows` x `columns` output pixels of one image and all outputs of one group.
    """

    window: Window
    channels: int
    outputs: int
    groups: int = 1
    dtype: DType = FLOAT32
    extents: tuple[int, int] | None = None
    mr: int = 14
    nv: int = 2
    rows: int = 4
    columns: int = 112
    epilogue: Epilogue | None = None
    channels_last: bool = True
    pixel_stride: int | None = None

    def width(self, target: Target) -> int:
        """Output channels in a panel of weights."""
        return self.nv * target.lanes(self.dtype)

    def tiles(self, out: tuple[int, int], images: int) -> int:
        """images * groups * ceil(out0 / rows) * ceil(out1 / columns)."""
        return images * self.groups * ((out[0] + self.rows - 1) // self.rows) * (-(-out[1] // self.columns))

    @property
    def unit(self) -> int:
        """Elements of a pixel that lie together."""
        return self.channels if self.channels_last else 1

    def emit(self, frame: Frame) -> None:
        k = frame.k
        x = frame.address("x", self.dtype)
        image = (frame.number("in0"), frame.number("in1"))
        x_n = frame.number("x_n")
        steps = (frame.number("x_s0"), frame.number("x_s1", self.pixel_stride))
        channel_step = frame.number("x_c", 1 if self.channels_last else None)
        weights = frame.address("w", self.dtype)
        rows, columns = self.extents or (None, None)
        out = (frame.number("out0", rows), frame.number("out1", columns))
        tile = Tile(self.dtype, self.mr, self.nv, frame.target.lanes(self.dtype))
        everywhere = finish(frame, tile, self.epilogue)
        image_strides = [frame.number("c_n")]
        for i, kind in enumerate(self.epilogue.operands if self.epilogue else ()):
            image_strides.append(frame.number(f"e{i}_n") if kind == "full" else 0)
        copy = _Copy(frame, self, tile.lanes, image, steps, channel_step)

        row_blocks, column_blocks = blocks_of(out[0], self.rows), blocks_of(out[1], self.columns)
        with frame.tiles() as number:
            rest, column_block = number / column_blocks, number % column_blocks
            rest, row_block = rest / row_blocks, rest % row_blocks
            index, group = rest / self.groups, rest % self.groups
            here = everywhere.moved(times(index, image_strides[0]), [times(index, s) for s in image_strides[1:]])
            first_row, first_column = row_block * self.rows, column_block * self.columns
            block_rows = left_over(k, out[0], first_row, self.rows)
            block_columns = left_over(k, out[1], first_column, self.columns)
            whole = self.extents is not None and self.extents[1] % self.columns == 0
            base = x + (index * x_n + group * times(self.channels, channel_step))
            copy.fill(base, first_row, first_column, block_rows, self.columns if whole else block_columns)
            panels = blocks_of(self.outputs, tile.width)
            rests = None
            if self.extents is not None:
                rests = [self.extents[1] % self.columns % self.mr, self.columns % self.mr]
            depth = self.window.taps * self.channels
            with k.loop(panels) as panel:
                column = panel * tile.width
                panel_weights = weights + (group * panels + panel) * (depth * tile.width)
                outputs = tile.width if self.outputs % tile.width == 0 else k.index(self.outputs) - column

                with k.loop(block_rows, nonempty=True) as row:

                    def multiply(
                        pixel: Operand, count: int, row: Value = row, panel_weights: Pointer = panel_weights,
                        column: Value = column, outputs: Operand = outputs,
                    ) -> None:  # fmt: skip
                        sums = Sums(k, tile.with_rows(count))
                        copy.multiply(sums, row, pixel, count, panel_weights)
                        place = (first_row + row) * out[1] + first_column + pixel
                        here.store(sums, here.at(place, group * self.outputs + column, outputs))

                    over_rows(k, block_columns, self.mr, multiply, rests)


class _Copy:
    """A block of the image in scratch memory: [row][pixel][channel], or [row][channel][pixel]."""

    def __init__(
        self, frame: Frame, spec: ConvPadded, lanes: int, image: tuple[Operand, Operand],
        steps: tuple[Operand, Operand], channel_step: Operand,
    ) -> None:  # fmt: skip
        self.k: Function = frame.k
        self.spec = spec
        self.lanes = lanes
        self.image = image
        self.steps = steps
        self.channel_step = channel_step
        self.planes = 1 if spec.channels_last else spec.channels
        self.pixels, rows = copied_extents(spec.window, spec.rows, spec.columns)
        self.plane = self.pixels * spec.unit
        self.row = self.plane * self.planes
        # The last vector of a row may reach into the next one, which is written later.
        self.memory = frame.scratch(spec.dtype, rows * self.row + lanes)

    def multiply(self, sums: Sums, row: Value, pixel: Operand, count: int, weights: Pointer) -> None:
        """Add the products of `count` output pixels of one row of the block."""
        k, spec, window = self.k, self.spec, self.spec.window
        step = window.strides[1] * spec.unit
        run = window.kernel[1] * spec.unit
        first = self.memory + plus(row * (window.strides[0] * self.row), times(pixel, step))
        width = sums.tile.width

        def row_of_taps(start: Pointer, b: Pointer) -> None:
            sums.add_products(RegularRows(start, step, count), b, run)

        def plane(start: Pointer, b: Pointer) -> None:
            if window.kernel[0] == 1:
                row_of_taps(start, b)
                return
            with k.loop(window.kernel[0]) as tap:
                row_of_taps(start + tap * (window.dilations[0] * self.row), b + tap * (run * width))

        if self.planes == 1:
            plane(first, weights)
            return
        with k.loop(self.planes) as channel:
            plane(first + channel * self.plane, weights + channel * (window.kernel[0] * run * width))

    def fill(self, base: Pointer, first_row: Value, first_column: Value, rows: Value, columns: Operand) -> None:
        """Copy what `rows` x `columns` output pixels from the first on read; `base` is the group's first channel."""
        k, window = self.k, self.spec.window
        pixels = plus(times(columns - 1, window.strides[1]), window.kernel[1])
        top = first_row * window.strides[0] - window.pads[0]
        left = first_column * window.strides[1] - window.pads[1]
        # Pixels of a row that are inside the image.
        first = minimum(maximum(-left, 0), pixels)
        last = maximum(minimum(k.index(self.image[1]) - left, pixels), first)
        reach = (window.kernel[0] - 1) * window.dilations[0] + 1
        with k.loop((rows - 1) * window.strides[0] + reach, nonempty=True) as row:
            place = top + row
            inside = (place >= 0) & (place < self.image[0])
            row_last = select(inside, last, first)
            source = base + place * self.steps[0] + times(left, self.steps[1])
            target = self.memory + row * self.row
            with k.loop(self.planes) as channel:
                plane = target + channel * self.plane
                self._copy(source + times(channel, self.channel_step), plane, first, row_last, pixels)

    def _copy(self, source: Pointer, target: Pointer, first: Value, last: Value, pixels: Operand) -> None:
        """One row of one plane: pixels `first` to `last` - 1 are there, the others are zeros."""
        k, unit = self.k, self.spec.unit
        if self.spec.pixel_stride == unit:
            self._copy_run(source, target, first * unit, last * unit, times(pixels, unit))
            return
        with k.loop(pixels) as pixel:
            inside = (pixel >= first) & (pixel < last)
            start = source + times(pixel, self.steps[1])
            if unit == 1:
                with k.when(inside):
                    target.store(start.load(), pixel)
                with k.otherwise():
                    target.store(0, pixel)
            else:
                self._copy_run(start, target + pixel * unit, k.index(0), select(inside, k.index(unit), 0), unit)

    def _copy_run(self, source: Pointer, target: Pointer, first: Value, last: Value, count: Operand) -> None:
        """Elements `first` to `last` - 1 of `count` neighbours, and zeros. A few more than `count` are written."""
        k, lanes = self.k, self.lanes
        with k.loop(count, step=lanes) as place:
            with k.when((place >= first) & (place + lanes <= last)):
                target.store(source.load(place, lanes), place)
            with k.otherwise():
                number = iota(k.constant(INT64, 0, lanes), INT64) + place
                mask = (number >= first) & (number < last)
                target.store(source.load_masked(mask, place), place)


def copied_extents(window: Window, rows: int, columns: int) -> tuple[int, int]:
    """(pixels of a row, rows) of the image that `rows` x `columns` output pixels read."""
    return (
        (columns - 1) * window.strides[1] + window.kernel[1],
        (rows - 1) * window.strides[0] + (window.kernel[0] - 1) * window.dilations[0] + 1,
    )


@dataclass(frozen=True, slots=True)
class PaddedTile:
    """What a `ConvPadded` computes at a time."""

    mr: int
    nv: int
    rows: int
    columns: int


def choose_padded_tile(
    target: Target, window: Window, channels: int, outputs: int, out: tuple[int | None, int | None],
    dtype: DType = FLOAT32,
) -> PaddedTile:  # fmt: skip
    """For a convolution of a group's `channels` to `outputs`; `out`: extents of the output, None: not known."""
    lanes = target.lanes(dtype)
    # LLVM loads a number of the input once for all taps that it belongs to, which takes registers.
    sums = target.vector_registers // 2
    shapes = [(even_size(out[1] or sums, sums // nv), nv) for nv in range(1, 5) if nv <= sums]

    def cycles(shape: tuple[int, int]) -> float:
        """Of a step of the depth loop, for a pixel and all outputs."""
        mr, nv = shape
        return -(-outputs // (nv * lanes)) * max(mr * nv / 2, (mr + nv) / 2, _LATENCY) / mr

    mr, nv = min(shapes, key=cycles)
    room = target.l1_bytes // 2 * 8 // dtype.bits // channels
    reach = copied_extents(window, 1, 1)[1]
    most = max(mr, (room // reach - window.kernel[1]) // window.strides[1] + 1)
    columns = min(out[1] or _COLUMNS, most)
    if out[1] is not None and columns < out[1]:
        columns = even_size(out[1], columns)
        columns = -(-columns // mr) * mr
    rows = even_size(out[0], _ROWS) if out[0] is not None else _ROWS
    if out[0] is not None:
        rows = min(rows, -(-out[0] // _TILES))
    while rows > 1 and prod(copied_extents(window, rows, columns)) > room:
        rows -= 1
    return PaddedTile(mr, nv, even_size(out[0], rows) if out[0] is not None else rows, columns)


_ROWS, _COLUMNS, _TILES = 8, 56, 8
"""The most of a tile, where they are not known; the least tiles of an image, for the threads."""
_LATENCY = 4.0
"""Cycles of a step of the depth loop, at least: each sum waits for its last."""
