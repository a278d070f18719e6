"""Convolution along one axis with fewer multiplications: F(m, k) of Winograd, channels last.

A tile is m output pixels in a line, which depend on n = m + k - 1 input pixels. They are taken to n points of a
polynomial product, where convolution is a product of numbers: n matrix products where k taps would take k * m. A block
of tiles is transformed into scratch memory that stays in L2, multiplied there panel by panel, and taken back with the
epilogue.
"""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Function, Operand, Pointer, Value, minimum, prefix_mask, reinterpret, select
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT64, UINT64, DType
from whet.kernels.base import Frame
from whet.kernels.tile import Epilogue, Finish, RegularRows, Sums, Tile, blocks_of, finish, left_over, times
from whet.kernels.winograd_planes import Planes
from whet.kernels.winograd_points import from_points, pack_line_weights, to_points


@dataclass(frozen=True, slots=True)
class WinogradLine:
    """A convolution of `taps` taps along lines of pixels, stride and dilation 1, of `channels` to `outputs` numbers.

    Words: x, zero (address of at least `channels` zeros), x_n, x_l, x_s (elements from one image, line, and pixel of a
    line to the next; channels are 1 apart), in, out (pixels of a line of the input and the output; `extent` fixes the
    latter), lines (of an image), images, w (`pack_line_weights`), c, ldc, c_n, c_l (elements from one output pixel of
    a line, image, and line to the next), e0, e0_s, e0_n, e0_l, ... (an epilogue operand; of a full one the same).

    `pad` pixels of zeros lie before a line. The tiles of all lines and images are numbered; a tile of the grid is
    `block` of them x `panels` panels of outputs.
    """

    channels: int
    outputs: int
    taps: int
    points: int = 8
    pad: int = 0
    dtype: DType = FLOAT32
    extent: int | None = None
    mr: int = 8
    nv: int = 2
    block: int = 64
    panels: int = 4
    epilogue: Epilogue | None = None

    @property
    def tile(self) -> int:
        """Output pixels of a tile."""
        return self.points - self.taps + 1

    def width(self, target: Target) -> int:
        """Output channels in a panel of weights."""
        return self.nv * target.lanes(self.dtype)

    def tiles(self, target: Target, out: int, lines: int) -> int:
        """ceil(lines * tiles of a line / block) * ceil(outputs / (width * panels)), `lines` of all images."""
        count = lines * -(-out // self.tile)
        return -(-count // self.block) * -(-self.outputs // (self.width(target) * self.panels))

    def emit(self, frame: Frame) -> None:
        k = frame.k
        lanes = frame.target.lanes(self.dtype)
        width = self.width(frame.target)
        source = _Source(frame, self)
        weights = frame.address("w", self.dtype)
        everywhere = finish(frame, Tile(self.dtype, self.tile, 1, lanes), self.epilogue)
        strides = [(frame.number("c_n"), frame.number("c_l"))]
        for i, kind in enumerate(self.epilogue.operands if self.epilogue else ()):
            full = kind == "full"
            strides.append((frame.number(f"e{i}_n"), frame.number(f"e{i}_l")) if full else (0, 0))
        rows = -(-self.block // self.mr) * self.mr
        inputs = Planes(frame, self.dtype, self.points, rows, self.channels)
        products = Planes(frame, self.dtype, self.points, rows, width)
        result = _Result(k, self, lanes, source, everywhere, tuple(strides), products)
        panels = blocks_of(self.outputs, width)
        parts = blocks_of(self.outputs, width * self.panels)
        # Panels run fastest: of neighbouring tiles of the grid only the first has to transform the input.
        ready = k.variable(k.index(-1))
        with frame.tiles() as number:
            block, part = number / parts, number % parts
            first = block * self.block
            count = left_over(k, source.count, first, self.block)
            with k.when(block != ready.value):
                with k.loop(count, nonempty=True) as row:
                    source.transform(first + row, inputs, row)
                ready.value = block
            first_panel = part * self.panels
            with k.loop(minimum(first_panel + self.panels, panels), start=first_panel, nonempty=True) as panel:
                here = weights + panel * (self.points * self.channels * width)
                self._multiply(k, lanes, inputs, here, count, products)
                with k.loop(count, nonempty=True) as row:
                    result.write(first + row, row, panel)

    def _multiply(self, k: Function, lanes: int, a: Planes, b: Pointer, count: Value, to: Planes) -> None:
        """The products at all points of one panel."""
        tile = Tile(self.dtype, self.mr, self.nv, lanes)
        with k.loop(self.points) as point:
            here, weights = a.memory + point * a.plane, b + point * (self.channels * tile.width)
            place = to.memory + point * to.plane
            # Rows up to a whole tile of sums are multiplied too: nobody reads them.
            with k.loop(count, step=self.mr, nonempty=True) as row:
                sums = Sums(k, tile)
                sums.add_products(RegularRows(here + row * a.row, a.row, self.mr), weights, self.channels)
                start = place + row * to.row
                for i, vectors in enumerate(sums.totals()):
                    for j, total in enumerate(vectors):
                        start.store(total, i * to.row + j * lanes)


class _Source:
    """The input: where tiles and pixels lie, and the way to points."""

    def __init__(self, frame: Frame, spec: WinogradLine) -> None:
        self.k = k = frame.k
        self.spec = spec
        self.lanes = frame.target.lanes(spec.dtype)
        self.x, self.zero = frame.number("x"), k.index(frame.number("zero"))
        self.steps = [frame.number(name) for name in ("x_n", "x_l", "x_s")]
        self.extent = frame.number("in")
        self.out = frame.number("out", spec.extent)
        self.lines, self.images = frame.number("lines"), frame.number("images")
        self.per_line = blocks_of(self.out, spec.tile)
        self.count = times(times(self.per_line, self.lines), self.images)
        self.addresses = k.stack_array(INT64, spec.points)

    def place(self, number: Value) -> tuple[Value, Value, Value]:
        """(image, line, first output pixel in the line) of a tile."""
        line = number / self.per_line
        return line / self.lines, line % self.lines, number % self.per_line * self.spec.tile

    def transform(self, number: Value, to: Planes, row: Value) -> None:
        """Take one tile's input to points: to `row` of every plane."""
        spec, n = self.spec, self.spec.points
        self._find(number)
        pixels = [self.addresses.load_pointer(spec.dtype, i) for i in range(n)]
        here = to.memory + row * to.row

        def vector(channel: Operand, mask: Value | None) -> None:
            values = [
                pixel.load(channel, self.lanes) if mask is None else pixel.load_masked(mask, channel)
                for pixel in pixels
            ]
            for i, value in enumerate(to_points(values)):
                here.store(value, channel + i * to.plane)

        whole = spec.channels // self.lanes * self.lanes
        if whole:
            with self.k.loop(whole, step=self.lanes, nonempty=True) as channel:
                vector(channel, None)
        if whole < spec.channels:
            vector(whole, prefix_mask(self.k.index(spec.channels - whole), self.lanes))

    def _find(self, number: Value) -> None:
        """Write down the address of every pixel under a tile, of zeros outside the line."""
        k, element = self.k, self.spec.dtype.bits // 8
        image, line, first = self.place(number)
        corner = first - self.spec.pad
        step = k.index(self.steps[2]) * element
        start = k.index(self.x) + (image * self.steps[0] + line * self.steps[1]) * element + corner * step
        end = reinterpret(k.index(self.extent), UINT64)
        for i in range(self.spec.points):
            # A place before the line wraps to a large number, so that one comparison finds both sides.
            inside = reinterpret(corner + i, UINT64) < end
            self.addresses.store(select(inside, start + step * i, self.zero), i)


@dataclass(frozen=True)
class _Result:
    """The output: the way back from points, and the epilogue."""

    k: Function
    spec: WinogradLine
    lanes: int
    source: _Source
    everywhere: Finish
    strides: tuple[tuple[Operand, Operand], ...]
    products: Planes

    def write(self, number: Value, row: Value, panel: Value) -> None:
        """One tile's pixels, for the outputs of a panel; `row` is the tile's in the block."""
        k, spec = self.k, self.spec
        image, line, first_pixel = self.source.place(number)
        moves = [image * by_image + line * by_line for by_image, by_line in self.strides]
        here = self.everywhere.moved(moves[0], moves[1:])
        across = k.index(self.source.out) - first_pixel
        points = self.products.memory + row * self.products.row
        first = panel * spec.nv
        tile = Tile(spec.dtype, spec.tile, 1, self.lanes)
        last = minimum(first + spec.nv, -(-spec.outputs // self.lanes))
        with k.loop(last, start=first, nonempty=True) as vector:
            place = points + (vector - first) * self.lanes
            values = [place.load(i * self.products.plane, self.lanes) for i in range(spec.points)]
            line_of = _Line(tile, from_points(values, spec.tile))
            channel = vector * self.lanes
            present = self.lanes if spec.outputs % self.lanes == 0 else k.index(spec.outputs) - channel
            target = here.at(first_pixel, channel, present)
            if spec.extent is not None and spec.extent % spec.tile == 0:
                here.store(line_of, target)
            else:
                with k.when(across >= spec.tile):
                    here.store(line_of, target)
                with k.otherwise():
                    here.store_rows(line_of, target, minimum(across, spec.tile))


@dataclass(frozen=True)
class _Line:
    """A finished tile: neighbouring pixels, one vector each."""

    tile: Tile
    pixels: list[Value]

    def totals(self) -> list[list[Value]]:
        return [[pixel] for pixel in self.pixels]


__all__ = ["WinogradLine", "pack_line_weights"]
