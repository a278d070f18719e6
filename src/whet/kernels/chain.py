"""Chains of convolutions in bands of rows: what stands between them stays in cache.

A chain is a 1x1 convolution (`expand`), a depthwise one, and a 1x1 convolution (`project`); the first or the last may
be missing. A task walks down some output rows. What the depthwise convolution reads lies in a ring of rows of the
thread's scratch memory, for a panel of channels at a time, with the image's padding around it: so its inner loop checks
nothing. Its results lie there too until a few rows are projected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from whet.codegen.lang import Function, Operand, Pointer, Value, maximum, minimum
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, DType
from whet.kernels.base import Frame
from whet.kernels.conv import Window
from whet.kernels.pairs import PairSums, in_pairs
from whet.kernels.tile import (
    CACHE_LINE_BITS,
    Epilogue,
    Finish,
    RegularRows,
    Sums,
    Tile,
    blocks_of,
    finish,
    inner_finish,
    multiply_add,
    over_rows,
    plus,
    times,
)

MOST_TAPS = 25
"""Of a depthwise convolution: all are written out."""


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A 1x1 convolution of a chain: the channels on its other side, and what it does to its sums."""

    channels: int
    epilogue: Epilogue | None = None


@dataclass(frozen=True, slots=True)
class Shape:
    """How a chain's work is cut up.

    Channels in the middle are taken in panels of `vectors` vectors, expanded `expand_rows` pixels at a time; the
    depthwise convolution keeps `pixels` sums. A tile is `band` output rows of an image x `panels` panels (all of them
    where the chain projects), `rows` output rows at a time; those are projected in tiles of `project_rows` pixels x
    `project_vectors` vectors.
    """

    vectors: int
    panels: int
    expand_rows: int
    pixels: int
    rows: int
    band: int
    project_rows: int = 1
    project_vectors: int = 1


@dataclass(frozen=True, slots=True)
class Chain:
    """expand, depthwise with `window`, project; channels last, `channels` of them in the middle.

    `image` and `out` are the spatial extents of input and output, `steps` elements from one row and pixel of the input
    to the next. `channels` is a multiple of the panels' width. Words: x, x_n (elements from one image to the next);
    wx (`pack_conv_weights` for panels of the middle), x0, ... (operands of expand's epilogue, none of them full);
    wd (`pack_depthwise_weights`), d0, ... (of the depthwise convolution's, where it is not last); wp (`pack_b` for
    panels of `project_vectors`, or `pack_pairs` where `in_pairs`); c, ldc, c_n (the output and elements from one pixel,
    and image, to the next), e0, e0_s, e0_n, ... (of the last epilogue, as for `Conv`).

    `totals`, where the depthwise convolution is last: words totals, totals_n come behind the others. Each tile adds its
    results up, channel by channel, and writes what it finds at totals + image * totals_n + (number of its band) *
    channels + channel; results have type `dtype`.
    """

    window: Window
    channels: int
    image: tuple[int, int]
    out: tuple[int, int]
    steps: tuple[int, int]
    shape: Shape
    expand: Pointwise | None = None
    epilogue: Epilogue | None = None
    project: Pointwise | None = None
    dtype: DType = FLOAT32
    totals: bool = False

    def width(self, target: Target) -> int:
        """Channels of a panel."""
        return self.shape.vectors * target.lanes(self.dtype)

    def in_pairs(self, target: Target) -> bool:
        """Whether wp is packed by `pack_pairs`."""
        outputs = 0 if self.project is None else self.project.channels
        return in_pairs(target, self.dtype, outputs, self.shape.project_vectors)

    def tiles(self, target: Target, images: int) -> int:
        """images * ceil(panels / shape.panels) * ceil(output rows / shape.band)."""
        panels = self.channels // self.width(target)
        return images * -(-panels // self.shape.panels) * -(-self.out[0] // self.shape.band)

    def emit(self, frame: Frame) -> None:
        _Walk(frame, self).emit()


@dataclass(frozen=True)
class Ring:
    """Rows of a panel's input in scratch memory, as the depthwise convolution of some rows at a time reads them."""

    rows: int
    """Rows of the ring: what `Shape.rows` output rows read."""
    columns: int
    """Pixels of a row, padding included."""
    left: int
    """Pixels of padding at a row's start."""
    inside: int
    """Pixels of the image in a row."""

    @property
    def right(self) -> int:
        return self.columns - self.left - self.inside


def ring_of(window: Window, image: tuple[int, int], out: tuple[int, int], rows: int) -> Ring:
    """The ring for `rows` output rows at a time."""
    reach = [(window.kernel[i] - 1) * window.dilations[i] + 1 for i in range(2)]
    columns = (out[1] - 1) * window.strides[1] + reach[1]
    left = min(window.pads[1], columns)
    return Ring((rows - 1) * window.strides[0] + reach[0], columns, left, min(image[1], columns - left))


class _Walk:
    """One kernel: its words, and the walk down a band of rows."""

    def __init__(self, frame: Frame, spec: Chain) -> None:
        self.frame, self.spec = frame, spec
        k, shape, dtype = frame.k, spec.shape, spec.dtype
        self.k: Function = k
        self.lanes = lanes = frame.target.lanes(dtype)
        self.width = spec.width(frame.target)
        self.panels = spec.channels // self.width
        self.ring = ring_of(spec.window, spec.image, spec.out, shape.rows)
        self.line = self.ring.columns * self.width
        """Elements of a row of the ring."""
        self.x, self.x_n = frame.address("x", dtype), frame.number("x_n")
        self.lines = frame.scratch(dtype, shape.panels * self.ring.rows * self.line)
        self.expand_tile = Tile(dtype, shape.expand_rows, shape.vectors, lanes)
        self.depthwise_tile = Tile(dtype, shape.pixels, 1, lanes)
        self.project_tile = Tile(dtype, shape.project_rows, shape.project_vectors, lanes)
        if spec.expand is not None:
            self.expand_weights = frame.address("wx", dtype)
            self.expanded = inner_finish(
                frame, self.expand_tile, spec.expand.epilogue, self.lines, self.width, "x"
            )  # fmt: skip
        self.depthwise_weights = frame.address("wd", dtype)
        last = spec.epilogue
        if spec.project is not None:
            self.middle = frame.scratch(dtype, shape.rows * spec.out[1] * spec.channels)
            self.filtered = inner_finish(
                frame, self.depthwise_tile, spec.epilogue, self.middle, spec.channels, "d"
            )  # fmt: skip
            self.project_weights = frame.address("wp", dtype)
            last = spec.project.epilogue
        self.final = finish(frame, self.depthwise_tile if spec.project is None else self.project_tile, last)
        self.image_strides = [frame.number("c_n")]
        for i, kind in enumerate(last.operands if last else ()):
            self.image_strides.append(frame.number(f"e{i}_n") if kind == "full" else 0)
        if spec.totals:
            self.totals, self.totals_n = frame.address("totals", dtype), frame.number("totals_n")
            self.added = frame.scratch(dtype, shape.panels * self.width)

    def emit(self) -> None:
        k, spec, shape = self.k, self.spec, self.spec.shape
        groups, bands = -(-self.panels // shape.panels), -(-spec.out[0] // shape.band)
        stride = spec.window.strides[0]
        reach = (spec.window.kernel[0] - 1) * spec.window.dilations[0] + 1
        with self.frame.tiles() as number:
            # Bands run fastest: tiles that follow each other share their weights.
            rest, band = number / bands, number % bands
            group, image = rest % groups, rest / groups
            final = self.final.moved(
                times(image, self.image_strides[0]), [times(image, s) for s in self.image_strides[1:]]
            )
            x = self.x + image * self.x_n
            first_panel = group * shape.panels
            last_panel = minimum(first_panel + shape.panels, self.panels)
            first_row = band * shape.band
            last_row = minimum(first_row + shape.band, spec.out[0])
            self._clear_sides(last_panel - first_panel)
            channels = (last_panel - first_panel) * self.width
            if spec.totals:
                self._clear(self.added, channels)
            # Rows are counted with the padding above the image from here on.
            made = k.variable(first_row * stride)
            with k.loop(last_row, start=first_row, step=shape.rows, nonempty=True) as row:
                stop = minimum(row + shape.rows, last_row)
                begin, end = maximum(made.value, row * stride), (stop - 1) * stride + reach
                with k.loop(last_panel, start=first_panel, nonempty=True) as panel:
                    ring = (panel - first_panel) * (self.ring.rows * self.line)
                    with k.loop(end, start=begin) as line:
                        self._make_line(x, panel, line, ring + (line % self.ring.rows) * self.line)
                    with k.loop(stop, start=row, nonempty=True) as at:
                        self._filter_row(at, row, panel, ring, final, (panel - first_panel) * self.width)
                made.value = end
                if spec.project is not None:
                    self._project(row, stop - row, final)
            if spec.totals:
                place = self.totals + image * self.totals_n + band * spec.channels + first_panel * self.width
                with k.loop(channels, step=self.lanes, nonempty=True) as i:
                    place.store(self.added.load(i, self.lanes, align=self._align()), i)

    # The ring

    def _clear_sides(self, panels: Value) -> None:
        """The padding left and right of the image, which nothing writes later."""
        ring = self.ring
        for start, pixels in ((0, ring.left), (ring.left + ring.inside, ring.right)):
            if pixels:
                with self.k.loop(panels * ring.rows, nonempty=True) as line:
                    self._clear(self.lines + line * self.line + start * self.width, pixels * self.width)

    def _clear(self, start: Pointer, count: Operand) -> None:
        with self.k.loop(count, step=self.lanes, nonempty=True) as i:
            start.store(self.k.constant(self.spec.dtype, 0, self.lanes), i, align=self._align())

    def _align(self) -> int:
        return self.lanes * (self.spec.dtype.bits // 8)

    def _make_line(self, x: Pointer, panel: Value, line: Value, place: Value) -> None:
        """Fill the row of the ring at `place` with row `line` of the padded input."""
        k, spec, ring = self.k, self.spec, self.ring
        above = spec.window.pads[0]
        inside = place + ring.left * self.width
        with k.when((line >= above) & (line < above + spec.image[0])):
            pixels = x + (line - above) * spec.steps[0]
            if spec.expand is not None:
                self._fetch(pixels + spec.steps[0])
                self._expand(pixels, panel, inside, spec.expand.channels)
            else:
                source, target = pixels + panel * self.width, self.lines + inside
                with k.loop(ring.inside, nonempty=True) as pixel:
                    for vector in range(0, self.width, self.lanes):
                        value = source.load(pixel * spec.steps[1] + vector, self.lanes)
                        target.store(value, pixel * self.width + vector, align=self._align())
        with k.otherwise():
            self._clear(self.lines + inside, ring.inside * self.width)

    def _fetch(self, pixels: Pointer) -> None:
        """Ask for a row of the image that is wanted next: another core may have written it. It need not exist."""
        count = self.ring.inside * self.spec.steps[1]
        with self.k.loop(count, step=4 * CACHE_LINE_BITS // self.spec.dtype.bits) as start:
            for line in range(4):
                pixels.prefetch(start + line * CACHE_LINE_BITS // self.spec.dtype.bits, locality=2)

    def _expand(self, pixels: Pointer, panel: Value, inside: Value, depth: int) -> None:
        k, step = self.k, self.spec.steps[1]
        weights = self.expand_weights + panel * (depth * self.width)
        column = panel * self.width
        # A tile's place counts the columns of the epilogue's operands in.
        here = self.expanded.moved(inside - column, [0] * len(self.expanded.operands))

        def multiply(pixel: Operand, count: int) -> None:
            sums = Sums(k, self.expand_tile.with_rows(count))
            sums.add_products(RegularRows(pixels + times(pixel, step), step, count), weights, depth)
            here.store(sums, here.at(pixel, column, self.width))

        over_rows(k, self.ring.inside, self.spec.shape.expand_rows, multiply)

    # The depthwise convolution

    def _filter_row(self, at: Value, first: Value, panel: Value, ring: Value, final: Finish, own: Value) -> None:
        """Output row `at` of a panel, whose channels are `own` and more in the tile; `first` is the first row kept."""
        k, spec, window = self.k, self.spec, self.spec.window
        lines = [
            self.lines + (ring + ((at * window.strides[0] + i * window.dilations[0]) % self.ring.rows) * self.line)
            for i in range(window.kernel[0])
        ]
        done = final if spec.project is None else self.filtered
        row = at if spec.project is None else at - first
        with k.loop(spec.shape.vectors, nonempty=True) as vector:
            channel = panel * self.width + vector * self.lanes
            weights = self.depthwise_weights + channel * window.taps
            held = self._taps(weights, range(window.taps)) if window.taps <= self._most_held() else None
            here = [line + vector * self.lanes for line in lines]
            added = self.added + (own + vector * self.lanes) if spec.totals else None
            body = partial(self._filter, here, weights, held, done, row * spec.out[1], channel, added)
            over_rows(k, spec.out[1], spec.shape.pixels, body)

    def _most_held(self) -> int:
        """How many vectors of weights stay in registers beside the sums and a few pixels."""
        return self.frame.target.vector_registers - self.spec.shape.pixels - 4

    def _taps(self, weights: Pointer, taps: Sequence[int]) -> dict[int, Value]:
        return {tap: weights.load(tap * self.lanes, self.lanes) for tap in taps}

    def _filter(
        self, lines: Sequence[Pointer], weights: Pointer, held: dict[int, Value] | None, done: Finish, place: Operand,
        channel: Value, added: Pointer | None, pixel: Operand, count: int,
    ) -> None:  # fmt: skip
        """`count` pixels of one vector of channels, `added` to others. Each pixel goes into all its sums."""
        window = self.spec.window
        kernel, stride, dilation = window.kernel[1], window.strides[1], window.dilations[1]
        users: dict[int, list[tuple[int, int]]] = {}
        for i in range(count):
            for tap in range(kernel):
                users.setdefault(i * stride + tap * dilation, []).append((i, tap))
        sums: dict[int, Value] = {}
        for number, line in enumerate(lines):
            first = number * kernel
            taps = held or self._taps(weights, range(first, first + kernel))
            start = line + times(pixel, stride * self.width)
            for column in sorted(users):
                value = start.load(column * self.width, self.lanes, align=self._align())
                for i, tap in users[column]:
                    weight = taps[first + tap]
                    sums[i] = multiply_add(value, weight, sums[i]) if i in sums else value * weight
        line_of = _Line(self.depthwise_tile.with_rows(count), [sums[i] for i in range(count)])
        to = done.at(plus(place, pixel), channel, self.lanes)
        done.store(line_of, to)
        if added is not None:
            results = [to.start.load(times(to.stride, i), self.lanes) for i in range(count)]
            while len(results) > 1:
                results = [a + b for a, b in zip(results[::2], results[1::2], strict=False)] + results[
                    len(results) & ~1 :
                ]
            added.store(added.load(0, self.lanes, align=self._align()) + results[0], align=self._align())

    # The projection

    def _project(self, first: Value, rows: Value, final: Finish) -> None:
        """`rows` rows of output from `first` on."""
        k, spec, tile = self.k, self.spec, self.project_tile
        assert spec.project is not None
        outputs, width = spec.project.channels, spec.out[1]
        counts = {min(spec.shape.band, spec.out[0] - start) for start in range(0, spec.out[0], spec.shape.band)}
        sizes = {min(spec.shape.rows, count - at) for count in counts for at in range(0, count, spec.shape.rows)}
        rests = sorted({size * width % tile.rows for size in sizes})
        with k.loop(blocks_of(outputs, tile.width), nonempty=True) as panel:
            column = panel * tile.width
            columns = tile.width if outputs % tile.width == 0 else outputs - column
            weights = self.project_weights + column * spec.channels

            def multiply(pixel: Operand, count: int) -> None:
                make = PairSums if spec.in_pairs(self.frame.target) else Sums
                sums = make(k, tile.with_rows(count))
                rows_at = RegularRows(self.middle + times(pixel, spec.channels), spec.channels, count)
                sums.add_products(rows_at, weights, spec.channels)
                final.store(sums, final.at(plus(first * width, pixel), column, columns))

            over_rows(k, rows * width, tile.rows, multiply, rests)


@dataclass(frozen=True)
class _Line:
    """A finished run of neighbouring pixels, one vector each."""

    tile: Tile
    sums: Sequence[Value]

    def totals(self) -> list[list[Value]]:
        return [[total] for total in self.sums]
