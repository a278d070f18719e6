"""Convolution of few channels: the patches under a block of output pixels are gathered, then multiplied as a matrix.

Where a tap has only a few channels, its loop over them would be too short. A patch is gathered in runs that lie
together in the input; all of a pixel's runs are whole vectors unless its window reaches over the image's edge.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod

from whet.codegen.lang import Function, Operand, Pointer, Value, broadcast, iota, maximum, minimum
from whet.dtypes import BOOL, INT64
from whet.kernels.base import Frame
from whet.kernels.conv import Convolution, Pixels, Product
from whet.kernels.tile import RegularRows, Sums, plus, times

_STRAIGHT_COPIES = 64
"""Up to so many copies of a patch are written without a loop."""


@dataclass(frozen=True, slots=True)
class ConvIm2col(Convolution):
    """A convolution of an input of any layout.

    Words: x, x_n, x_s0.. (elements from one image, and from one place along each axis, to the next; `pixel_stride`
    fixes the last axis'), x_c (elements from one channel to the next, unless `channels_last`: 1), in0.., out0.., w, c,
    ldc, c_n, e0, ... as for `Conv`.

    The order of the weights: `channels_last` [taps][channels], else [channels][taps] (`pack_conv_weights`).
    """

    channels_last: bool = True
    pixel_stride: int | None = None

    @property
    def is_contiguous(self) -> bool:
        """Whether all that a row of taps reads lies together."""
        together = self.channels if self.channels_last else 1
        if self.window.kernel[-1] == 1:
            # The copy may reach into the next pixel, which must lie behind this one.
            return self.pixel_stride is not None and self.pixel_stride > 0
        return self.pixel_stride == together and self.window.dilations[-1] == 1

    def emit(self, frame: Frame) -> None:
        k, rank = frame.k, self.window.rank
        x = frame.address("x", self.dtype)
        image = [frame.number(f"in{i}") for i in range(rank)]
        x_n = frame.number("x_n")
        steps = [frame.number(f"x_s{i}", self.pixel_stride if i == rank - 1 else None) for i in range(rank)]
        channel_step = frame.number("x_c", 1 if self.channels_last else None)
        product = Product(frame, self)
        lanes = product.tile.lanes
        # The last vector of a row may reach into the next one, which is written later.
        patches = frame.scratch(self.dtype, self.m_block * self.depth + lanes)

        with frame.tiles() as number:
            block = product.block(number)
            base = x + (block.image * x_n + block.group * times(self.channels, channel_step))
            gather = _Gather(k, self, lanes, image, steps, channel_step)
            gather.block(product.pixels, block.first_row, block.rows, base, patches)

            def add_products(sums: Sums, weights: Pointer, row: Operand, count: int) -> None:
                sums.add_products(RegularRows(patches + row * self.depth, self.depth, count), weights, self.depth)

            product.multiply(block, add_products)


@dataclass(frozen=True)
class _Axis:
    """A loop over a patch: `axis` of the image, or None for channels; elements from one round to the next."""

    axis: int | None
    extent: int
    step: Operand


class _Gather:
    """Copies the patches of a block of output pixels, one behind the other."""

    def __init__(
        self, k: Function, spec: ConvIm2col, lanes: int, image: Sequence[Operand], steps: Sequence[Operand],
        channel_step: Operand,
    ) -> None:  # fmt: skip
        self.k = k
        self.window = window = spec.window
        self.image = image
        self.steps = steps
        self.contiguous = spec.is_contiguous
        taps = [_Axis(i, window.kernel[i], times(window.dilations[i], steps[i])) for i in range(window.rank)]
        if self.contiguous:
            taps.pop()
        channels = [] if spec.channels_last else [_Axis(None, spec.channels, channel_step)]
        self.axes = channels + taps
        unit = spec.channels if spec.channels_last else 1
        self.unit = unit
        self.run = unit * window.kernel[-1] if self.contiguous else unit
        self.pieces = _pieces(self.run, lanes, exact=not self.contiguous)
        self.span = sum(self.pieces)
        """Elements that the copy of a run reads and writes, which may be a few more than it has."""

    def block(self, pixels: Pixels, first: Value, count: Value, base: Pointer, patches: Pointer) -> None:
        """The patches of `count` pixels from `first` on."""
        k, window = self.k, self.window
        position = {i: k.variable(p) for i, p in enumerate(pixels.coordinates(first))}
        size = self.run * prod(a.extent for a in self.axes)
        with k.loop(count, nonempty=True) as row:
            here = [position[axis].value for axis in range(window.rank)]
            corner = [here[i] * window.strides[i] - window.pads[i] for i in range(window.rank)]
            origin = base
            for i, step in enumerate(self.steps):
                origin = origin + times(corner[i], step)
            patch = patches + row * size
            inside = self._is_inside(corner)
            with k.when(inside):
                self._copy_whole(origin, patch)
            with k.otherwise():
                self._copy_part(corner, origin, patch)
            for axis, moved in enumerate(pixels.following(here)):
                position[axis].value = moved

    def _is_inside(self, corner: Sequence[Value]) -> Value:
        """Whether all that the copy of a whole patch reads lies inside the image."""
        window = self.window
        result = self.k.constant(BOOL, 1)
        for i in range(window.rank):
            reach = (window.kernel[i] - 1) * window.dilations[i] + 1
            if i == window.rank - 1 and self.contiguous:
                reach = -(-self.span // self.unit)
            result = result & (corner[i] >= 0) & (corner[i] + reach <= self.image[i])
        return result

    def _copy_whole(self, origin: Pointer, patch: Pointer) -> None:
        def copy(source: Pointer, target: Pointer, taps: Sequence[Operand]) -> None:
            start = 0
            for lanes in self.pieces:
                target.store(source.load(start, lanes), start)
                start += lanes

        runs = prod(a.extent for a in self.axes)
        self._runs(origin, patch, copy, straight=runs * len(self.pieces) <= _STRAIGHT_COPIES)

    def _copy_part(self, corner: Sequence[Value], origin: Pointer, patch: Pointer) -> None:
        k, window = self.k, self.window
        last = window.rank - 1
        first = maximum(-corner[last], 0) * self.unit
        stop = minimum(k.index(self.image[last]) - corner[last], window.kernel[last]) * self.unit

        def copy(source: Pointer, target: Pointer, taps: Sequence[Operand]) -> None:
            inside = k.constant(BOOL, 1)
            for axis, tap in zip(self.axes, taps, strict=True):
                if axis.axis is not None:
                    place = corner[axis.axis] + times(tap, window.dilations[axis.axis])
                    inside = inside & (place >= 0) & (place < self.image[axis.axis])
            start = 0
            for lanes in self.pieces:
                if lanes == 1:
                    with k.when(inside):
                        target.store(source.load(start), start)
                    with k.otherwise():
                        target.store(0.0, start)
                else:
                    mask = broadcast(inside, lanes)
                    if self.contiguous:
                        number = iota(mask, INT64) + start
                        mask = mask & (number >= first) & (number < stop)
                    target.store(source.load_masked(mask, start), start)
                start += lanes

        self._runs(origin, patch, copy, straight=False)

    def _runs(
        self, origin: Pointer, patch: Pointer, copy: Callable[[Pointer, Pointer, Sequence[Operand]], None],
        straight: bool,
    ) -> None:  # fmt: skip
        """Do `copy`(source, target, taps) for every run, in ascending order."""
        extents = [a.extent for a in self.axes]

        def one(taps: Sequence[Operand]) -> None:
            source: Operand = 0
            number: Operand = 0
            for axis, tap in zip(self.axes, taps, strict=True):
                source = plus(source, times(tap, axis.step))
                number = plus(times(number, axis.extent), tap)
            copy(origin + source, patch + times(number, self.run), taps)

        if straight:
            for taps in itertools.product(*map(range, extents)):
                one(taps)
            return
        with ExitStack() as loops:
            one([loops.enter_context(self.k.loop(n)) if n > 1 else 0 for n in extents])


def _pieces(run: int, lanes: int, exact: bool) -> list[int]:
    """Vector lengths, powers of two, to copy `run` elements with; unless `exact`, the last may reach beyond."""
    pieces = [lanes] * (run // lanes)
    rest = run % lanes
    if not exact and rest:
        pieces.append(max(2, 1 << (rest - 1).bit_length()))
        rest = 0
    while rest:
        pieces.append(1 << rest.bit_length() - 1)
        rest -= pieces[-1]
    return pieces
