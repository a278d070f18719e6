"""Convolution as a matrix product over address patterns, channels last.

An output pixel is a row of the product. Its A row is found tap by tap: the address of the input pixel under the tap,
or of a row of zeros outside the image. The addresses of a block of pixels are computed once for all panels of outputs.
A 1x1 convolution with stride 1 and no padding is a plain `Gemm`; few channels are better gathered (`ConvIm2col`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from whet.codegen.lang import Function, Operand, Pointer, Value, broadcast, minimum, reinterpret, select
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT64, UINT64, DType
from whet.kernels.base import Frame
from whet.kernels.gemm import pack_b
from whet.kernels.gemm_tile import GemmTile, Problem, choose_tile, rests
from whet.kernels.tile import (
    Epilogue,
    Finish,
    Rows,
    RowTable,
    Sums,
    Tile,
    blocks_of,
    finish,
    left_over,
    next_panel,
    over_rows,
    plus,
    times,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Window:
    """How a convolution reads its input, one number for each of 1 to 3 spatial axes; `pads` are begins, then ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def taps(self) -> int:
        return prod(self.kernel)

    def is_padded(self, axis: int) -> bool:
        """Whether a tap can lie outside the image along `axis`."""
        return self.pads[axis] > 0 or self.pads[axis + self.rank] > 0

    def extents(self, image: Sequence[int]) -> tuple[int, ...]:
        """The output's extents."""
        return tuple(
            (image[i] + self.pads[i] + self.pads[i + self.rank] - (self.kernel[i] - 1) * self.dilations[i] - 1)
            // self.strides[i]
            + 1
            for i in range(self.rank)
        )


@dataclass(frozen=True)
class Pixels:
    """The output's pixels in row-major order, in blocks."""

    k: Function
    extents: tuple[Operand, ...]

    def count(self) -> Operand:
        total: Operand = 1
        for extent in self.extents:
            total = times(extent, total)
        return total

    def coordinates(self, pixel: Value) -> list[Value]:
        """The position of a pixel along each axis."""
        found: list[Value] = []
        for extent in self.extents[:0:-1]:
            found.insert(0, pixel % extent)
            pixel = pixel / extent
        return [pixel, *found]

    def following(self, position: Sequence[Value]) -> list[Value]:
        """The position of the next pixel."""
        result = list(position)
        carry: Value | None = None
        for axis in reversed(range(len(position))):
            moved = position[axis] + 1 if carry is None else select(carry, position[axis] + 1, position[axis])
            if axis == 0:
                result[axis] = moved
            else:
                carry = moved >= self.extents[axis]
                result[axis] = select(carry, 0, moved)
        return result


@dataclass(frozen=True)
class Block:
    """A kernel's tile: pixels from `first_row` of one image, panels of one group, and where results go."""

    image: Value
    group: Value
    first_row: Value
    rows: Value
    first_panel: Value
    last_panel: Value
    finish: Finish


@dataclass(frozen=True, slots=True)
class Convolution:
    """What every convolution by matrix product is: `channels` to `outputs` numbers a pixel, in each of `groups` groups.

    `extents` fixes the output's spatial extents. A tile is `m_block` output pixels of one image x `panels` panels of
    one group's outputs. The output is channels last.
    """

    window: Window
    channels: int
    outputs: int
    groups: int = 1
    dtype: DType = FLOAT32
    extents: tuple[int, ...] | None = None
    mr: int = 12
    nv: int = 2
    m_block: int = 48
    panels: int = 4
    epilogue: Epilogue | None = None

    @property
    def depth(self) -> int:
        """Products that are summed up in one output."""
        return self.window.taps * self.channels

    def width(self, target: Target) -> int:
        """Output channels in a panel of weights."""
        return self.nv * target.lanes(self.dtype)

    def tiles(self, target: Target, pixels: int, images: int) -> int:
        """images * groups * ceil(outputs / (width * panels)) * ceil(pixels / m_block), `pixels` of an output image."""
        columns = self.width(target) * self.panels
        return images * (self.groups * -(-self.outputs // columns)) * ((pixels + self.m_block - 1) // self.m_block)


Products = Callable[[Sums, Pointer, Operand, int], None]
"""Adds a tile's products: (sums, weights of the panel, first row in the block, rows)."""


class Product:
    """The output's side of a convolution: its words, its grid, and the loops over a tile's panels and rows."""

    def __init__(self, frame: Frame, spec: Convolution) -> None:
        self.frame = frame
        self.spec = spec
        self.tile = Tile(spec.dtype, spec.mr, spec.nv, frame.target.lanes(spec.dtype))
        rank = spec.window.rank
        self.weights = frame.address("w", spec.dtype)
        extents = [frame.number(f"out{i}", spec.extents[i] if spec.extents else None) for i in range(rank)]
        self.pixels = Pixels(frame.k, tuple(extents))
        self._finish = finish(frame, self.tile, spec.epilogue)
        self._image_strides = [frame.number("c_n")]
        for i, kind in enumerate(spec.epilogue.operands if spec.epilogue else ()):
            self._image_strides.append(frame.number(f"e{i}_n") if kind == "full" else 0)

    def block(self, number: Value) -> Block:
        """The tile of this number: pixels fastest, so that tiles that follow each other share their weights."""
        k, spec = self.frame.k, self.spec
        panels = blocks_of(spec.outputs, self.tile.width)
        parts = blocks_of(spec.outputs, self.tile.width * spec.panels)
        pixels = self.pixels.count()
        blocks = blocks_of(pixels, spec.m_block)
        rest, row_block = number / blocks, number % blocks
        part = rest % parts
        rest = rest / parts
        group, image = rest % spec.groups, rest / spec.groups
        first_row = row_block * spec.m_block
        first_panel = part * spec.panels
        moved = [times(image, stride) for stride in self._image_strides]
        return Block(
            image,
            group,
            first_row,
            left_over(k, pixels, first_row, spec.m_block),
            first_panel,
            minimum(first_panel + spec.panels, panels),
            self._finish.moved(moved[0], moved[1:]),
        )

    def multiply(self, block: Block, add_products: Products) -> None:
        """All tiles of sums of a block: their products, and the epilogue."""
        k, spec, tile = self.frame.k, self.spec, self.tile
        panels = blocks_of(spec.outputs, tile.width)
        pixels = None if spec.extents is None else prod(spec.extents)
        rest_sizes = rests(spec.m_block, spec.mr, pixels, 1)
        with k.loop(block.last_panel, start=block.first_panel, nonempty=True) as panel:
            weights = self.weights + (block.group * panels + panel) * (spec.depth * tile.width)
            column = panel * tile.width
            columns = tile.width if spec.outputs % tile.width == 0 else k.index(spec.outputs) - column
            first_column = block.group * spec.outputs + column

            def multiply(row: Operand, count: int) -> None:
                sums = Sums(k, tile.with_rows(count))
                add_products(sums, weights, row, count)
                block.finish.store(sums, block.finish.at(block.first_row + row, first_column, columns))

            over_rows(k, block.rows, spec.mr, multiply, rest_sizes)


class TapTable:
    """Scratch memory with the address of the input pixel under every tap of a block of output pixels."""

    def __init__(self, frame: Frame, window: Window, dtype: DType, pixels: int) -> None:
        self.k = frame.k
        self.window = window
        self.dtype = dtype
        self.lanes = frame.target.lanes(INT64)
        self.row = -(-pixels // self.lanes) * self.lanes
        self._checked = [axis for axis in range(window.rank) if window.is_padded(axis)]
        self._addresses = frame.scratch(INT64, window.taps * self.row)
        self._origins = frame.scratch(INT64, self.row)
        self._places = {axis: frame.scratch(UINT64, self.row) for axis in self._checked}

    def rows(self, tap: Operand, row: Operand, count: int) -> Rows:
        """The rows of A of a tile under one tap."""
        return RowTable(self._addresses + times(tap, self.row)).rows(self.dtype, row, count)

    def fill(
        self, pixels: Pixels, first: Value, count: Value, base: Value, zero: Operand, image: Sequence[Operand],
        steps: Sequence[Operand],
    ) -> None:  # fmt: skip
        """For `count` output pixels from `first` on. `base` is the image's address, `steps` bytes along each axis."""
        k, window = self.k, self.window
        position = {i: k.variable(p) for i, p in enumerate(pixels.coordinates(first))}
        with k.loop(count, nonempty=True) as row:
            here = [position[axis].value for axis in range(window.rank)]
            origin: Value = base
            for axis in range(window.rank):
                corner = here[axis] * window.strides[axis] - window.pads[axis]
                origin = origin + corner * steps[axis]
                if axis in self._checked:
                    # A place before the image wraps to a large number, so that one comparison finds both sides.
                    self._places[axis].store(reinterpret(corner, UINT64), row)
            self._origins.store(origin, row)
            for axis, moved in enumerate(pixels.following(here)):
                position[axis].value = moved
        self._fill_taps(count, zero, image, steps)

    def _fill_taps(self, count: Value, zero: Operand, image: Sequence[Operand], steps: Sequence[Operand]) -> None:
        k, window = self.k, self.window
        outside = broadcast(k.index(zero), self.lanes)
        with ExitStack() as loops:
            tap: list[Operand] = [loops.enter_context(k.loop(n)) if n > 1 else 0 for n in window.kernel]
            number: Operand = 0
            offset: Operand = 0
            shifts = []
            for axis in range(window.rank):
                number = plus(times(number, window.kernel[axis]), tap[axis])
                shifts.append(times(tap[axis], window.dilations[axis]))
                offset = plus(offset, times(shifts[axis], steps[axis]))
            addresses = self._addresses + times(number, self.row)
            row = loops.enter_context(k.loop(count, step=self.lanes, nonempty=True))
            found = self._origins.load(row, self.lanes, align=8) + offset
            for axis in self._checked:
                place = self._places[axis].load(row, self.lanes) + reinterpret(k.index(shifts[axis]), UINT64)
                inside = place < broadcast(reinterpret(k.index(image[axis]), UINT64), self.lanes)
                found = select(inside, found, outside)
            addresses.store(found, row)


@dataclass(frozen=True, slots=True)
class Conv(Convolution):
    """A convolution of a channels-last input.

    Words: x, zero (address of at least `channels` zeros), x_n, x_s0.. (elements from one image, and from one place
    along each axis, to the next; channels are 1 apart), in0.., out0.. (spatial extents of input and output), w
    (`pack_conv_weights`), c, ldc, c_n (elements from one output pixel, and image, to the next), e0, e0_s, e0_n, ...
    (an epilogue operand; of a full one the pixel and image stride). `ahead` as for `Gemm`.
    """

    ahead: int = 0

    def emit(self, frame: Frame) -> None:
        k, window = frame.k, self.window
        x, zero = k.index(frame.number("x")), frame.number("zero")
        image = [frame.number(f"in{i}") for i in range(window.rank)]
        x_n = frame.number("x_n")
        element = self.dtype.bits // 8
        steps = [frame.number(f"x_s{i}") * element for i in range(window.rank)]
        product = Product(frame, self)
        taps = TapTable(frame, window, self.dtype, self.m_block)

        with frame.tiles() as number:
            block = product.block(number)
            base = x + (block.image * x_n + block.group * self.channels) * element
            shared_from = block.first_row if self.panels == 1 else 0
            taps.fill(product.pixels, block.first_row, block.rows, base, zero, image, steps)

            def add_products(sums: Sums, weights: Pointer, row: Operand, count: int) -> None:
                ahead = next_panel(product.tile, weights, self.depth, plus(shared_from, row), self.mr, self.ahead)
                if window.taps == 1:
                    sums.add_products(taps.rows(0, row, count), weights, self.channels, ahead=ahead)
                    return
                with k.loop(window.taps) as tap:
                    b = weights + tap * (self.channels * product.tile.width)
                    part = None if ahead is None else ahead.moved(tap * self.channels)
                    sums.add_products(taps.rows(tap, row, count), b, self.channels, ahead=part)

            product.multiply(block, add_products)


def choose_conv_tile(
    target: Target, window: Window, channels: int, outputs: int, pixels: int | None, gathered: bool = False,
    dtype: DType = FLOAT32, threads: int = 1,
) -> GemmTile:  # fmt: skip
    """The tile of a convolution of a group's `channels` to `outputs`; `pixels` None: many.

    `gathered`: for `ConvIm2col`.
    """
    depth = window.taps * channels
    # What is prepared for a block of pixels stays in half of L1: addresses of taps, or patches.
    prepared = depth * dtype.bits // 8 if gathered else window.taps * 8
    most = max(1, target.l1_bytes // 2 // prepared)
    tile = choose_tile(target, Problem(outputs, depth, pixels, 1, dtype, threads=threads, most_rows=most))
    width = tile.nv * target.lanes(dtype)
    all_panels = -(-outputs // width)
    # It must serve enough outputs to be worth its time.
    needed = all_panels if gathered else -(-_WORTHWHILE // (channels * width))
    return replace(tile, panels=min(max(tile.panels, needed), all_panels))


_WORTHWHILE = 4096
"""Multiplications to make with an address of a pixel's tap before it is computed again."""


def pack_conv_weights(weights: Array, groups: int, width: int, channels_first: bool = False) -> Array:
    """Weights [outputs, channels of a group, taps...] as [groups, panels, taps, channels, width], zeros in the rest of
    the last panel; with `channels_first`, [groups, panels, channels, taps, width]."""
    outputs, channels = weights.shape[:2]
    per_group = weights.reshape(groups, outputs // groups, channels, -1)
    ordered = per_group.transpose((0, 2, 3, 1) if channels_first else (0, 3, 2, 1))
    depth = channels * per_group.shape[3]
    packed = [pack_b(group.reshape(depth, -1), width) for group in ordered]
    return np.stack(packed) if groups > 1 else packed[0][None]
