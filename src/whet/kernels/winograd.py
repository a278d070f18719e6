"""Convolution 3x3 with fewer multiplications: F(m x m, 3 x 3) of Winograd, channels last, m = 4 or 2, stride 1 or 2.

A tile of m x m output pixels depends on n x n input pixels, n = m + 2 or 2m + 1. Both are taken to n x n points of a
polynomial product, where convolution is a product of numbers: for each point one matrix product of [tiles, channels]
and [channels, outputs]. A block of tiles is transformed into scratch memory that stays in L2, multiplied there, and
taken back panel by panel, with the epilogue, so that no transformed tensor ever reaches memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.codegen.lang import Function, Operand, Pointer, Value, minimum, prefix_mask, reinterpret, select
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, INT64, UINT64, DType
from whet.kernels.base import Frame
from whet.kernels.tile import Epilogue, Finish, RegularRows, Sums, Tile, blocks_of, finish, left_over, times
from whet.kernels.tile import Target as Destination
from whet.kernels.winograd_axis import Axis
from whet.kernels.winograd_planes import Planes
from whet.kernels.winograd_points import TAPS, pack_point_weights, pack_tap_weights

_STRAIGHT_POINTS = 36
"""A tile of more input pixels goes through memory on its way: registers hold too few of them."""


@dataclass(frozen=True, slots=True)
class Winograd:
    """A convolution 3x3, with dilation 1, of `channels` to `outputs` numbers a pixel.

    Words: x, zero (address of at least `channels` zeros), x_n, x_s0, x_s1 (elements from one image, row, pixel to the
    next; channels are 1 apart), in0, in1, out0, out1 (rows and columns of input and output; `extents` fixes the
    output's), images, w, c, ldc, c_n, e0, e0_s, e0_n, ... as for `Conv`.

    `tile` is m; `pads` are rows above and columns before the image. The tiles of all images are numbered; a tile of the
    grid is `block` of them x `panels` panels of outputs.

    Weights are at the points already (`pack_point_weights` by `axis.matrix()`), (m + 2)^2 / 9 times as many numbers as
    there were taps. Or they are taps (`pack_tap_weights`) and taken to points for `depth` channels at a time, again for
    every block.
    """

    channels: int
    outputs: int
    tile: int = 4
    pads: tuple[int, int] = (1, 1)
    dtype: DType = FLOAT32
    extents: tuple[int, int] | None = None
    mr: int = 14
    nv: int = 2
    block: int = 28
    panels: int = 4
    depth: int | None = None
    epilogue: Epilogue | None = None
    stride: int = 1

    @property
    def axis(self) -> Axis:
        return Axis(self.tile, self.stride)

    @property
    def reach(self) -> int:
        """Input pixels under a tile along one axis; products along one axis."""
        return self.axis.reach

    @property
    def points(self) -> int:
        """Products of a tile."""
        return self.reach**2

    def width(self, target: Target) -> int:
        """Output channels in a panel of weights."""
        return self.nv * target.lanes(self.dtype)

    def tiles(self, target: Target, out: Sequence[int], images: int) -> int:
        """ceil(images * tiles of an image / block) * ceil(outputs / (width * panels))."""
        m = self.tile
        count = images * (((out[0] + (m - 1)) // m) * ((out[1] + (m - 1)) // m))
        parts = -(-self.outputs // (self.width(target) * self.panels))
        return (count + (self.block - 1)) // self.block * parts

    def emit(self, frame: Frame) -> None:
        k = frame.k
        lanes = frame.target.lanes(self.dtype)
        source = Source(frame, self)
        width = self.width(frame.target)
        weights = _Weights(frame, self)
        everywhere = finish(frame, Tile(self.dtype, self.tile, 1, lanes), self.epilogue)
        strides = [frame.number("c_n")]
        for i, kind in enumerate(self.epilogue.operands if self.epilogue else ()):
            strides.append(frame.number(f"e{i}_n") if kind == "full" else 0)
        rows = -(-self.block // self.mr) * self.mr
        inputs = Planes(frame, self.dtype, self.points, rows, weights.depth, weights.count)
        products = Planes(frame, self.dtype, self.points, rows, width)
        result = Result(k, self, lanes, source, everywhere, tuple(strides), products)
        panels = blocks_of(self.outputs, width)
        parts = blocks_of(self.outputs, width * self.panels)
        # Panels run fastest: of neighbouring tiles of the grid only the first has to transform the input.
        ready = k.variable(k.index(-1))
        with frame.tiles() as number:
            block, part = number / parts, number % parts
            first = block * self.block
            count = left_over(k, source.grid.count, first, self.block)
            with k.when(block != ready.value):
                with k.loop(count, nonempty=True) as row:
                    source.transform(first + row, inputs, row)
                ready.value = block
            first_panel = part * self.panels
            last_panel = minimum(first_panel + self.panels, panels)
            with k.loop(last_panel, start=first_panel, nonempty=True) as panel:
                if weights.count == 1:
                    self._multiply(k, lanes, inputs.memory, weights.ready(panel, 0), count, inputs, products, None)
                else:
                    products.clear(k, lanes)
                    with k.loop(weights.count) as part_of_depth:
                        here = inputs.memory + part_of_depth * inputs.size
                        at_points = weights.ready(panel, part_of_depth)
                        ahead = weights.following(panel, part_of_depth)
                        self._multiply(k, lanes, here, at_points, count, inputs, products, ahead)
                with k.loop(count, nonempty=True) as row:
                    result.write(first + row, row, panel)

    def _multiply(
        self, k: Function, lanes: int, a: Pointer, b: tuple[Pointer, int], count: Value, inputs: Planes,
        products: Planes, ahead: Pointer | None,
    ) -> None:  # fmt: skip
        """The products at all points of one panel, of a part of the depth; meanwhile fetch the next part's taps."""
        panel_tile = Tile(self.dtype, self.mr, self.nv, lanes)
        memory, b_plane = b
        axis = self.axis
        depth = self.depth or self.channels
        line = 512 // self.dtype.bits
        row_tiles = -(-self.block // self.mr)
        lines = -(-depth * TAPS * TAPS * panel_tile.width // (line * self.points * row_tiles))
        with k.loop(self.points) as point:
            number: Operand = point
            if self.stride != 1:
                number = axis.weight(point / self.reach) * axis.weights + axis.weight(point % self.reach)
            here, weights = a + point * inputs.plane, memory + number * b_plane
            to = products.memory + point * products.plane
            # Rows up to a whole tile of sums are multiplied too: nobody reads them.
            with k.loop(count, step=self.mr, nonempty=True) as row:
                if ahead is not None:
                    start = ahead + (point * row_tiles + row / self.mr) * (lines * line)
                    with k.loop(lines) as number:
                        (start + number * line).prefetch()
                sums = Sums(k, panel_tile)
                sums.add_products(RegularRows(here + row * inputs.row, inputs.row, self.mr), weights, depth)
                place = to + row * products.row
                for i, vectors in enumerate(sums.totals()):
                    for j, total in enumerate(vectors):
                        offset = i * products.row + j * lanes
                        place.store(total if ahead is None else total + place.load(offset, lanes), offset)


class _Weights:
    """Weights at the points, made where need be."""

    def __init__(self, frame: Frame, spec: Winograd) -> None:
        self.k = frame.k
        self.spec = spec
        self.lanes = frame.target.lanes(spec.dtype)
        self.width = spec.width(frame.target)
        self.memory = frame.address("w", spec.dtype)
        self.depth = spec.depth or spec.channels
        self.count = -(-spec.channels // self.depth)
        self.points = spec.axis.weights**2
        self._made = None if spec.depth is None else Planes(frame, spec.dtype, self.points, self.depth, self.width)

    def ready(self, panel: Value, part: Operand) -> tuple[Pointer, int]:
        """One panel's weights at the points for a part of the depth, [points][depth][width], and the planes' stride."""
        spec, width = self.spec, self.width
        if self._made is None:
            size = spec.channels * width
            return self.memory + panel * (self.points * size), size
        taps, made, axis = self._taps(panel, part), self._made, spec.axis
        with self.k.loop(self.depth) as channel:
            for vector in range(0, width, self.lanes):
                here = taps + channel * (TAPS * TAPS * width)
                columns = [
                    axis.taps([here.load((i * TAPS + j) * width + vector, self.lanes) for i in range(TAPS)])
                    for j in range(TAPS)
                ]
                # Rows of a panel follow each other, as the products want them.
                to = made.memory + channel * width
                for i in range(axis.weights):
                    for j, value in enumerate(axis.taps([column[i] for column in columns])):
                        to.store(value, (i * axis.weights + j) * made.plane + vector)
        return made.memory, made.plane

    def _taps(self, panel: Value, part: Operand) -> Pointer:
        return self.memory + (panel * self.count + part) * (self.depth * TAPS * TAPS * self.width)

    def following(self, panel: Value, part: Operand) -> Pointer:
        """The taps that come next in memory."""
        return self._taps(panel, self.k.index(part) + 1)


@dataclass(frozen=True)
class _Grid:
    """The tiles of all images, numbered by image, row and column."""

    m: int
    out: tuple[Operand, Operand]
    images: Operand

    @property
    def per_image(self) -> Operand:
        return times(blocks_of(self.out[0], self.m), blocks_of(self.out[1], self.m))

    @property
    def count(self) -> Operand:
        return times(self.per_image, self.images)

    def place(self, number: Value) -> tuple[Value, Value, Value]:
        """(image, row, column) of a tile's first output pixel."""
        per_image, across = self.per_image, blocks_of(self.out[1], self.m)
        image, rest = number / per_image, number % per_image
        return image, rest / across * self.m, rest % across * self.m


class Source:
    """The input: where pixels lie, and the way to points."""

    def __init__(self, frame: Frame, spec: Winograd) -> None:
        self.k = k = frame.k
        self.spec = spec
        self.lanes = frame.target.lanes(spec.dtype)
        element = spec.dtype.bits // 8
        self.x, self.zero = k.index(frame.number("x")), k.index(frame.number("zero"))
        self.x_n = frame.number("x_n") * element
        self.steps = [frame.number(f"x_s{i}") * element for i in range(2)]
        self.image = [frame.number("in0"), frame.number("in1")]
        out = [frame.number(f"out{i}", spec.extents[i] if spec.extents else None) for i in range(2)]
        self.grid = _Grid(spec.tile, (out[0], out[1]), frame.number("images"))
        self.addresses = k.stack_array(INT64, spec.points)
        self.room = k.stack_array(spec.dtype, spec.points * self.lanes)
        self.align = self.lanes * element

    def transform(self, number: Value, to: Planes, row: Value) -> None:
        """Take one tile's input to points: to `row` of every plane."""
        k, spec, n = self.k, self.spec, self.spec.reach
        self._find(number)

        def vector(channel: Operand, here: Pointer, mask: Value | None) -> None:
            def load(i: int, j: Operand) -> Value:
                pixel = self.addresses.load_pointer(spec.dtype, j + i * n)
                return pixel.load(channel, self.lanes) if mask is None else pixel.load_masked(mask, channel)

            if n * n > _STRAIGHT_POINTS:
                with k.loop(n, nonempty=True) as column:
                    for i, value in enumerate(spec.axis.inputs([load(i, column) for i in range(n)])):
                        self.room.store(value, (column + i * n) * self.lanes, align=self.align)
                with k.loop(n, nonempty=True) as down:
                    line = self.room + down * (n * self.lanes)
                    values = [line.load(j * self.lanes, self.lanes, align=self.align) for j in range(n)]
                    for j, value in enumerate(spec.axis.inputs(values)):
                        here.store(value, (down * n + j) * to.plane)
                return
            columns = [spec.axis.inputs([load(i, j) for i in range(n)]) for j in range(n)]
            for i in range(n):
                for j, value in enumerate(spec.axis.inputs([columns[across][i] for across in range(n)])):
                    here.store(value, (i * n + j) * to.plane)

        depth = spec.depth or spec.channels
        start = to.memory + row * to.row
        whole = spec.channels // self.lanes * self.lanes

        # One loop over all parts: rounds of a loop over each would be too few to overlap.
        def at(channel: Value) -> Pointer:
            return start + channel / depth * to.size + channel % depth if depth < spec.channels else start + channel

        if whole:
            with k.loop(whole, step=self.lanes, nonempty=True) as channel:
                vector(channel, at(channel), None)
        # The rest of the last part's columns are zeros.
        padded = -(-spec.channels // depth) * depth
        if whole < padded:
            with k.loop(padded, start=whole, step=self.lanes, nonempty=True) as channel:
                vector(channel, at(channel), prefix_mask(spec.channels - channel, self.lanes))

    def _find(self, number: Value) -> None:
        """Write down the address of every pixel under a tile, of zeros outside the image."""
        k, n = self.k, self.spec.reach
        image, row, column = self.grid.place(number)
        corner = [start * self.spec.stride - pad for start, pad in zip((row, column), self.spec.pads, strict=True)]
        base = self.x + image * self.x_n
        inside: list[list[Value]] = []
        offsets: list[list[Value]] = []
        for axis in range(2):
            # A place before the image wraps to a large number, so that one comparison finds both sides.
            end = reinterpret(k.index(self.image[axis]), UINT64)
            places = [corner[axis] + i for i in range(n)]
            inside.append([reinterpret(place, UINT64) < end for place in places])
            start = corner[axis] * self.steps[axis]
            offsets.append([start + self.steps[axis] * i for i in range(n)])
        for i in range(n):
            line = base + offsets[0][i]
            for j in range(n):
                found = select(inside[0][i] & inside[1][j], line + offsets[1][j], self.zero)
                self.addresses.store(found, i * n + j)


@dataclass(frozen=True)
class Result:
    """The output: the way back from points, and the epilogue."""

    k: Function
    spec: Winograd
    lanes: int
    source: Source
    everywhere: Finish
    image_strides: tuple[Operand, ...]
    products: Planes

    def write(self, number: Value, row: Value, panel: Value) -> None:
        """One tile's pixels, for the outputs of a panel; `row` is the tile's in the block."""
        k, spec, n = self.k, self.spec, self.spec.reach
        image, top, left = self.source.grid.place(number)
        out = self.source.grid.out
        here = self.everywhere.moved(
            times(image, self.image_strides[0]), [times(image, s) for s in self.image_strides[1:]]
        )
        first = panel * spec.nv
        points = self.products.memory + row * self.products.row
        last = minimum(first + spec.nv, -(-spec.outputs // self.lanes))
        with k.loop(last, start=first, nonempty=True) as vector:
            place = points + (vector - first) * self.lanes
            columns = [
                spec.axis.outputs([place.load((i * n + j) * self.products.plane, self.lanes) for i in range(n)])
                for j in range(n)
            ]
            tile = Tile(spec.dtype, spec.tile, 1, self.lanes)
            lines = [_Line(tile, spec.axis.outputs([column[i] for column in columns])) for i in range(spec.tile)]
            channel = vector * self.lanes
            present = self.lanes if spec.outputs % self.lanes == 0 else k.index(spec.outputs) - channel
            targets = [here.at((top + i) * out[1] + left, channel, present) for i in range(spec.tile)]

            self._store(here, lines, targets, k.index(out[0]) - top, k.index(out[1]) - left)

    def _store(
        self, here: Finish, lines: Sequence[_Line], targets: Sequence[Destination], down: Value, across: Value
    ) -> None:
        """Write the lines of a tile, of which `down` rows and `across` columns are in the image."""
        k, m = self.k, self.spec.tile

        def whole() -> None:
            for line, target in zip(lines, targets, strict=True):
                here.store(line, target)

        if self.spec.extents is not None and not any(extent % m for extent in self.spec.extents):
            whole()
            return
        with k.when((down >= m) & (across >= m)):
            whole()
        with k.otherwise():
            for i, (line, target) in enumerate(zip(lines, targets, strict=True)):
                with k.when(down > i):
                    here.store_rows(line, target, minimum(across, m))


@dataclass(frozen=True)
class _Line:
    """A row of a finished tile: neighbouring pixels, one vector each."""

    tile: Tile
    pixels: list[Value]

    def totals(self) -> list[list[Value]]:
        return [[pixel] for pixel in self.pixels]


__all__ = ["Winograd", "pack_point_weights", "pack_tap_weights"]
