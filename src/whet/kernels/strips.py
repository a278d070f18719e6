"""A tile of a convolution over two spatial axes in blocks: a few neighbouring output pixels of a few rows at a time.

A tile is walked in strips from top to bottom, so that the rows under a block are still in the first cache when the
next block needs most of them again.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from whet.codegen.lang import Function, Operand, Pointer, Value, maximum, minimum
from whet.kernels.conv import Window
from whet.kernels.tile import Tile, times


@dataclass(frozen=True)
class Block:
    """`lines` rows x `pixels` pixels of the output, from a row and a pixel on.

    `columns`: those of the input's columns under the block that lie inside the image, counted from the first that its
    first tap reads; None: that is found out at run time.
    """

    row: Value
    lines: int
    pixel: Operand
    pixels: int
    columns: set[int] | None


Do = Callable[[Block], None]


@dataclass(frozen=True)
class Strips:
    """The strips of one image: blocks are `lines` x `pixels`, tiles `rows` rows, the output has `out_rows` (None: not
    known). `image` and `out` are rows and columns of input and output."""

    k: Function
    window: Window
    pixels: int
    lines: int
    rows: int
    out_rows: int | None
    image: tuple[Operand, Operand]
    out: tuple[Operand, Operand]

    def all(self, first_row: Value, last_row: Value, do: Do) -> None:
        """Every block of output rows `first_row` to `last_row` - 1."""

        def strip(pixel: Operand, pixels: int, columns: set[int] | None) -> None:
            self._each_row(first_row, last_row, lambda row, lines: do(Block(row, lines, pixel, pixels, columns)))

        width = self.out[1]
        if isinstance(width, int) and isinstance(self.image[1], int):
            self._known(width, self.image[1], strip)
        else:
            self._any(strip)

    def _each_row(self, first: Value, last: Value, body: Callable[[Value, int], None]) -> None:
        """`lines` rows at a time, then the rest one by one."""
        k, lines = self.k, self.lines
        if lines == 1:
            with k.loop(last, start=first, nonempty=True) as row:
                body(row, 1)
            return
        whole = last - (last - first) % lines
        with k.loop(whole, start=first, step=lines) as row:
            body(row, lines)
        # Rows of a tile that occur.
        known = None if self.out_rows is None else {min(self.out_rows, self.rows), self.out_rows % self.rows}
        if known is None or any(count % lines for count in known):
            with k.loop(last, start=whole) as row:
                body(row, 1)

    def _known(self, width: int, image: int, strip: Callable[[Operand, int, set[int] | None], None]) -> None:
        """Strips whose columns inside the image are known one by one; like neighbours share a loop."""
        size = self.pixels
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
        window = self.window
        left = start * window.strides[1] - window.pads[1]
        reach = (count - 1) * window.strides[1] + (window.kernel[1] - 1) * window.dilations[1] + 1
        return frozenset(c for c in range(reach) if 0 <= left + c < image)

    def _any(self, strip: Callable[[Operand, int, set[int] | None], None]) -> None:
        """Strips that see only columns of the image, and strips that check every column."""
        k, window, size = self.k, self.window, self.pixels
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


class Line:
    """A finished run of neighbouring pixels, one vector each."""

    def __init__(self, tile: Tile, sums: list[Value]) -> None:
        self._tile = tile
        self._sums = sums

    @property
    def tile(self) -> Tile:
        return self._tile

    def totals(self) -> list[list[Value]]:
        return [[total] for total in self._sums]


def column_users(window: Window, pixels: int) -> dict[int, list[tuple[int, int]]]:
    """(pixel, column of taps) that read a column of the image, by the column's distance from a block's first."""
    return _users(pixels, window.kernel[1], window.strides[1], window.dilations[1])


def _users(count: int, taps: int, stride: int, dilation: int) -> dict[int, list[tuple[int, int]]]:
    users: dict[int, list[tuple[int, int]]] = {}
    for output, tap in itertools.product(range(count), range(taps)):
        users.setdefault(output * stride + tap * dilation, []).append((output, tap))
    return dict(sorted(users.items()))


def choose(condition: Value, chosen: Pointer, otherwise: Pointer) -> Pointer:
    """One of two addresses."""
    text = f"select {condition.type_text} {condition.name}, {chosen.type_text} {chosen.name}, "
    return chosen.renamed(chosen.emitter.assign(f"{text}{otherwise.type_text} {otherwise.name}"))


def each_row_of_taps(
    k: Function, window: Window, image_rows: Operand, block: Block, straight: bool,
    do: Callable[[Operand, list[tuple[int, Operand]]], None],
) -> None:  # fmt: skip
    """Call `do`(a row of the image, counted from a block's first; the (line, row of taps) that read it) for every row
    inside the image. A block of one line is a loop, unless it is to be `straight`."""
    stride, dilation = window.strides[0], window.dilations[0]
    top = block.row * stride - window.pads[0]
    if block.lines == 1 and not straight:
        first = (maximum(-top, 0) + (dilation - 1)) / dilation
        last = minimum((maximum(k.index(image_rows) - top, 0) + (dilation - 1)) / dilation, window.kernel[0])
        with k.loop(last, start=first) as tap:
            do(times(tap, dilation), [(0, tap)])
        return
    users = _users(block.lines, window.kernel[0], stride, dilation)
    for place in users:
        # Only the padding above and below is outside, and only a block's first and last rows can lie in it.
        above, below = place < window.pads[0], max(users) - place < window.pads[2]
        here = top + place
        if not above and not below:
            do(place, list(users[place]))
            continue
        inside = (here >= 0) & (here < image_rows) if above and below else here >= 0 if above else here < image_rows
        with k.when(inside):
            do(place, list(users[place]))
