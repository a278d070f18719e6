"""Pooling of tensors whose last spatial axis is contiguous: vectors lie along it.

A window is taken apart: first rows are combined, vector by vector, then neighbours along the row.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod

from whet.codegen.lang import (
    Function,
    Operand,
    Pointer,
    Value,
    convert,
    iota,
    maximum,
    minimum,
    select,
    shuffle,
)
from whet.dtypes import BOOL, INT32, DType
from whet.kernels.accumulate import Arithmetic
from whet.kernels.base import Frame
from whet.kernels.expression import Tape
from whet.kernels.pool import Kind, Taps, Window, finished, powered, taps_at
from whet.kernels.walk import Axes, apply, known_mask, load, over_vectors, plus, store, tiles, times, working

_VECTORS = 4
"""Vectors of a row that are combined at a time."""
_STRAIGHT_TAPS = 16
"""Windows up to this width are written without a loop along the row."""


@dataclass(frozen=True, slots=True)
class PoolRows:
    """out[n, c, o..] = maximum, average or p-norm of x[n, c, i..] over the taps of the window that lie inside x.

    As `Pool`, without `indices`. Words: `x`, `out`; `batch`, `channels`; `output0`.., `input0`.. extents of the spatial
    axes (the last ones are fixed by `columns`, (input, output)); strides `out_batch`, `out_channel`, `x_batch`,
    `x_channel`, and `out_space0`.., `x_space0`.. of all spatial axes but the last, which has stride 1. A tile is
    `chunk` positions of the last axis. Grid: batch * channels * output0 * .. * ceil(last output / chunk).
    """

    kind: Kind
    dtype: DType
    out: DType
    windows: tuple[Window, ...]
    count_include_pad: bool = False
    p: int = 2
    epilogue: Tape | None = None
    columns: tuple[int, int] | None = None
    never_empty: bool = False
    """Every window has a tap inside, and dilations are 1: a maximum takes rows twice rather than look for edges."""

    @property
    def chunk(self) -> int:
        """Positions of the last axis in one tile."""
        return max(64, 1024 // self.windows[-1].stride)

    def emit(self, frame: Frame) -> None:
        _Emission(self, frame).emit()


class _Emission:
    """One kernel being written."""

    def __init__(self, spec: PoolRows, frame: Frame) -> None:
        self.spec, self.frame, self.k = spec, frame, frame.k
        rank = len(spec.windows)
        into, out_of = (spec.columns[1], spec.columns[0]) if spec.columns else (None, None)
        self.x, self.out = frame.address("x", spec.dtype), frame.address("out", spec.out)
        images, channels = frame.number("batch"), frame.number("channels")
        outputs = [frame.number(f"output{i}", into if i == rank - 1 else None) for i in range(rank)]
        inputs = [frame.number(f"input{i}", out_of if i == rank - 1 else None) for i in range(rank)]
        places: dict[str, tuple[Operand, ...]] = {}
        steps: dict[str, list[Operand]] = {}
        for name in ("out", "x"):
            steps[name] = [frame.number(f"{name}_space{i}") for i in range(rank - 1)]
            inner = [*steps[name], 1] if name == "out" else [0] * rank
            places[name] = (frame.number(f"{name}_batch"), frame.number(f"{name}_channel"), *inner)
        self.rows = [self.k.index(e) for e in inputs[:-1]]
        self.row_steps = steps["x"]
        self.width: Operand = inputs[-1]
        self.over = Axes((images, channels, *outputs), places)
        self.dtype = working(spec.dtype)
        self.lanes = frame.target.lanes(self.dtype)
        self.arithmetic = Arithmetic("max" if spec.kind == "max" else "sum", self.dtype, self.dtype)
        self.window = window = spec.windows[-1]
        self.reach = (window.size - 1) * window.dilation + 1

    def emit(self) -> None:
        spec, window, lanes = self.spec, self.window, self.lanes
        short = False
        if spec.columns is not None and window.size <= _STRAIGHT_TAPS:
            count = spec.columns[1]
            short = count <= lanes and (count - 1) * window.stride + self.reach <= 2 * lanes
        span = (spec.chunk - 1) * window.stride + self.reach
        room = None if short else self.frame.scratch(self.dtype, span + (_VECTORS + 2) * lanes)
        with tiles(self.frame, self.over, spec.chunk) as (tile, _):
            taps = taps_at(spec.windows[:-1], self.rows, tile.coordinates[2:], spec.count_include_pad)
            row, target = self.x + tile.offsets["x"], self.out + tile.offsets["out"]
            if room is None:
                self._short_row(row, target, taps)
            else:
                known = spec.columns is not None and spec.columns[1] <= spec.chunk
                start: Operand = 0 if known else tile.start
                self._long_row(row, target, taps, room, start, tile.stop)

    def _short_row(self, row: Pointer, target: Pointer, taps: Taps) -> None:
        """A row whose combined rows are held in one or two registers."""
        assert self.spec.columns is not None
        window, lanes, count = self.window, self.lanes, self.spec.columns[1]
        span = (count - 1) * window.stride + self.reach
        columns = [v - window.before for v in range(0, span, lanes)]
        held = self._combined(row, taps, columns, [self._inside(c) for c in columns])

        def along(tap: int) -> Value:
            first = tap * window.dilation
            places = [first + (lane * window.stride if lane < count else 0) for lane in range(lanes)]
            return shuffle(held[0], held[1] if len(held) > 1 else None, places)

        total = along(0)
        for tap in range(1, window.size):
            total = self.arithmetic.join(total, along(tap))
        self._finish(total, target, taps, 0, 0, known_mask(self.k, count, lanes))

    def _long_row(self, row: Pointer, target: Pointer, taps: Taps, room: Pointer, start: Operand, stop: Value) -> None:
        k, window, lanes = self.k, self.window, self.lanes
        count = k.index(stop) - start
        first = plus(times(start, window.stride), -window.before)
        step = _VECTORS * lanes
        with k.loop((count - 1) * window.stride + self.reach, step=step) as p:
            columns = [p + first + v * lanes for v in range(_VECTORS)]

            def keep(masks: Sequence[Value | None]) -> None:
                for v, value in enumerate(self._combined(row, taps, columns, masks)):
                    room.store(value, p + v * lanes)

            with k.when((columns[0] >= 0) & (columns[0] + step <= self.width)):
                keep([None] * _VECTORS)
            with k.otherwise():
                keep([self._inside(c) for c in columns])

        def part(_: int, i: Operand, mask: Value | None) -> None:
            place = times(i, window.stride)
            if window.size <= _STRAIGHT_TAPS:
                total = self._along(room, place)
                for tap in range(1, window.size):
                    total = self.arithmetic.join(total, self._along(room, plus(place, tap * window.dilation)))
            else:
                found = k.variable(self._along(room, place))
                with k.loop(window.size, start=1) as number:
                    here = plus(place, number * window.dilation)
                    found.value = self.arithmetic.join(found.value, self._along(room, here))
                total = found.value
            self._finish(total, target, taps, start, i, mask)

        over_vectors(k, count, lanes, 1, part)

    def _along(self, room: Pointer, place: Operand) -> Value:
        """One tap of neighbouring windows."""
        stride, lanes = self.window.stride, self.lanes
        if stride == 1:
            return room.load(place, lanes, align=self.dtype.bits // 8)
        if stride == 2:
            pair = [room.load(plus(place, v * lanes), lanes, align=self.dtype.bits // 8) for v in range(2)]
            return shuffle(pair[0], pair[1], range(0, 2 * lanes, 2))
        return (room + place).gather(self.k.constant_vector(INT32, range(0, lanes * stride, stride)))

    def _inside(self, column: Operand) -> Value | None:
        """Lanes from `column` on that lie in the row; None where all are known to."""
        return _between(self.k, times(column, -1), plus(self.width, times(column, -1)), self.lanes)

    @contextmanager
    def _over(self, taps: Taps) -> Iterator[Operand]:
        """Loops over a window's rows: where they begin."""
        with ExitStack() as stack:
            offset: Operand = 0
            for axis, window in enumerate(self.spec.windows[:-1]):
                tap = stack.enter_context(self.k.loop(taps.last[axis], start=taps.first[axis]))
                position = taps.origin[axis] + tap * window.dilation
                offset = plus(offset, times(position, self.row_steps[axis]))
            yield offset

    def _combined(
        self, row: Pointer, taps: Taps, columns: Sequence[Operand], masks: Sequence[Value | None]
    ) -> list[Value]:
        """Vectors at `columns`, all rows of the window combined; what is outside adds nothing."""
        k, how, lanes, spec = self.k, self.arithmetic, self.lanes, self.spec
        nothing = how.identity(self.dtype)
        start = k.constant(self.dtype, nothing, lanes)

        def at(offset: Operand, column: Operand, mask: Value | None) -> Value:
            found = powered(load(row, plus(offset, column), lanes, mask), spec.kind, spec.p)
            return found if mask is None or nothing == 0 else select(mask, found, start)

        each = list(zip(columns, masks, strict=True))
        sizes = [window.size for window in spec.windows[:-1]]
        if spec.kind == "max" and spec.never_empty and prod(sizes) <= _STRAIGHT_TAPS:
            rows = [self._nearest_row(taps, tap) for tap in itertools.product(*map(range, sizes))]
            return [functools.reduce(how.join, [at(offset, *one) for offset in rows]) for one in each]
        totals = k.variables(dict.fromkeys(range(len(columns)), start))
        with self._over(taps) as offset:
            for v, one in enumerate(each):
                totals[v] = how.join(totals[v], at(offset, *one))
        return [totals[v] for v in totals]

    def _nearest_row(self, taps: Taps, tap: Sequence[int]) -> Operand:
        """Where the row of a tap begins, or of the nearest tap inside."""
        offset: Operand = 0
        for axis, number in enumerate(tap):
            inside = minimum(maximum(taps.first[axis], number), taps.last[axis] - 1)
            offset = plus(offset, times(taps.origin[axis] + inside, self.row_steps[axis]))
        return offset

    def _finish(
        self, total: Value, target: Pointer, taps: Taps, start: Operand, i: Operand, mask: Value | None
    ) -> None:
        spec = self.spec
        divisor = self._divisor(taps, plus(start, i)) if spec.kind == "average" else total
        value = finished(total, divisor, spec.kind, spec.p)
        if spec.epilogue is not None:
            value = apply(self.k, spec.epilogue, value)
        store(target, value, plus(start, i), mask)

    def _divisor(self, taps: Taps, position: Operand) -> Value:
        """By what the totals of neighbouring windows from `position` on are divided."""
        k, window, lanes = self.k, self.window, self.lanes
        rows = convert(k.index(taps.count), self.dtype)
        columns = k.constant(self.dtype, 0, lanes)
        corner = plus(times(position, window.stride), -window.before)
        for tap in range(window.size):
            column = plus(corner, tap * window.dilation)
            padding = self.spec.count_include_pad
            first: Operand = 0 if padding else _up(times(column, -1), window.stride)
            reach = plus(self.width, window.after) if padding else self.width
            last = _up(plus(reach, times(column, -1)), window.stride)
            inside = _between(k, first, last, lanes)
            one = k.constant(self.dtype, 1, lanes)
            columns = columns + (one if inside is None else select(inside, one, k.constant(self.dtype, 0, lanes)))
        return columns * rows


def _up(count: Operand, size: int) -> Operand:
    """count / size rounded up; 0 where count is negative."""
    if isinstance(count, Value):
        return (maximum(count, 0) + (size - 1)) / size
    return -(-max(int(count), 0) // size)


def _between(k: Function, first: Operand, last: Operand, lanes: int) -> Value | None:
    """A mask of the lanes `first` to `last` - 1, whatever lies outside of a vector; None where that is all of them."""
    if not isinstance(first, Value) and not isinstance(last, Value):
        if first <= 0 and last >= lanes:
            return None
        return k.constant_vector(BOOL, [int(first <= lane < last) for lane in range(lanes)])
    low, high = (convert(minimum(maximum(k.index(e), 0), lanes), INT32) for e in (first, last))
    lane = iota(k.constant(INT32, 0, lanes), INT32)
    return (lane >= low) & (lane < high)
