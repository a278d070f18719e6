"""Pooling of channels-last tensors: maxima (with positions), averages and p-norms over windows, vectors of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from whet.codegen.lang import (
    LanguageError,
    Operand,
    Pointer,
    Value,
    absolute,
    convert,
    iota,
    maximum,
    minimum,
    select,
    sqrt,
)
from whet.codegen.vecmath import exp2, log2, pow
from whet.dtypes import FLOAT32, INT64, DType
from whet.kernels.accumulate import SLOTS, Arithmetic
from whet.kernels.base import Frame
from whet.kernels.expression import Tape
from whet.kernels.walk import Axes, apply, load, over_vectors, plus, store, tiles, times, working


@dataclass(frozen=True, slots=True)
class Window:
    """A window along one spatial axis: `size` taps, `dilation` apart, `stride` from one output to the next; `before`
    and `after` are the padding that the operator states (what ceil_mode adds behind it is not part of `after`)."""

    size: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0


@dataclass(frozen=True, slots=True)
class Pool:
    """out[n, o..., c] = maximum, average or p-norm of x[n, i..., c] over the taps of the window that lie inside x.

    Words: `x`, `out` and, with `indices`, `indices` (int64) addresses; `batch`; `output0`.. extents of out's spatial
    axes (one for each of `windows`); strides `out_batch`, `out_space0`.. (of `indices` too), `x_batch`, `x_space0`..;
    `input0`.. extents of x's spatial axes; `channels`, of stride 1 everywhere; `tile`: positions of the last spatial
    axis in one tile. Grid: batch * output0 * ... * ceil(last output / tile).

    An average divides by the number of taps inside, with `count_include_pad` by that of taps inside the padded input.
    `indices` are positions in x as (batch, channels, spatial...), flattened with the last spatial axis innermost
    (storage_order 0) or the first one (1); of equal values the first is found, and NaN wins only where it comes first.
    Without `indices` a maximum is NaN where a tap is. A window of no taps gives the least value, 0 or, as average, NaN.
    `epilogue` has one input.
    """

    kind: Literal["max", "average", "lp"]
    dtype: DType
    out: DType
    windows: tuple[Window, ...]
    count_include_pad: bool = False
    p: int = 2
    indices: bool = False
    storage_order: Literal[0, 1] = 0
    epilogue: Tape | None = None

    def emit(self, frame: Frame) -> None:
        if self.kind != "max" and (self.indices or not working(self.dtype).is_float):
            raise LanguageError("only maxima have positions, and integers only maxima", found=self)
        _Emission(self, frame).emit()


@dataclass(frozen=True)
class Taps:
    """The taps of one window that lie inside x: numbers `first` to `last`-1 along each axis, and where tap 0 would
    be; `count` is what an average divides by."""

    first: tuple[Value, ...]
    last: tuple[Value, ...]
    origin: tuple[Value, ...]
    count: Operand


def taps_at(windows: Sequence[Window], inputs: Sequence[Value], position: Sequence[Value], padding: bool) -> Taps:
    """The taps of the windows at an output position; with `padding` those in stated padding count too."""
    first, last, origin = [], [], []
    count: Operand = 1
    for window, extent, o in zip(windows, inputs, position, strict=True):
        start = o * window.stride - window.before
        ahead = maximum(-start, 0) + (window.dilation - 1)
        low = minimum(ahead / window.dilation, window.size)
        high = minimum(maximum(extent - start + (window.dilation - 1), 0) / window.dilation, window.size)
        first.append(low)
        last.append(high)
        origin.append(start)
        inside = maximum(high - low, 0)
        if padding:
            padded = extent + (window.after + window.dilation - 1) - start
            inside = minimum(maximum(padded, 0) / window.dilation, window.size)
        count = times(count, inside)
    return Taps(tuple(first), tuple(last), tuple(origin), count)


Kind = Literal["max", "average", "lp"]


def powered(value: Value, kind: Kind, p: int) -> Value:
    """What an element adds to a total."""
    if kind != "lp":
        return value
    size = absolute(value)
    power = size
    for _ in range(p - 1):
        power = power * size
    return power


def finished(total: Value, count: Value, kind: Kind, p: int) -> Value:
    """A window's result from its total; an average is divided by `count`."""
    if kind == "average":
        return total / convert(count, total.dtype)
    if kind == "max" or p == 1:
        return total
    if p == 2:
        return sqrt(total)
    root = 1.0 / p
    return pow(total, root) if total.dtype is FLOAT32 else exp2(log2(total) * root)


class _Emission:
    """One kernel being written."""

    def __init__(self, spec: Pool, frame: Frame) -> None:
        self.spec, self.frame, self.k = spec, frame, frame.k
        space = range(len(spec.windows))
        self.x, self.out = frame.address("x", spec.dtype), frame.address("out", spec.out)
        self.indices = frame.address("indices", INT64) if spec.indices else None
        extents = (frame.number("batch"), *(frame.number(f"output{i}") for i in space))
        out = (frame.number("out_batch"), *(frame.number(f"out_space{i}") for i in space))
        self.x_batch = frame.number("x_batch")
        self.x_space = [frame.number(f"x_space{i}") for i in space]
        self.inputs = [self.k.index(frame.number(f"input{i}")) for i in space]
        self.channels = self.k.index(frame.number("channels"))
        self.tile = frame.number("tile")
        self.axes = Axes(extents, {"out": out})
        self.dtype = working(spec.dtype)
        self.lanes = frame.target.lanes(self.dtype)
        self.arithmetic = Arithmetic("max" if spec.kind == "max" else "sum", self.dtype, self.dtype)

    def emit(self) -> None:
        k = self.k
        with tiles(self.frame, self.axes, self.tile) as (tile, _), k.loop(tile.stop, start=tile.start) as last:
            image, *outer = tile.coordinates
            taps = self._taps([*outer, last])
            x = self.x + times(image, self.x_batch)
            place = plus(tile.offsets["out"], times(last, self.axes.strides["out"][-1]))
            main = self.channels & -(SLOTS * self.lanes)
            with k.loop(main, step=SLOTS * self.lanes) as c:
                self._channels(x, place, image, taps, c, SLOTS, None)
            over_vectors(
                k, self.channels - main, self.lanes, 1,
                self._single(x, place, image, taps, main),
            )  # fmt: skip

    def _single(
        self, x: Pointer, place: Operand, image: Value, taps: Taps, main: Value
    ) -> Callable[[int, Operand, Value | None], None]:
        return lambda _, i, mask: self._channels(x, place, image, taps, main + i, 1, mask)

    def _taps(self, position: Sequence[Value]) -> Taps:
        return taps_at(self.spec.windows, self.inputs, position, self.spec.count_include_pad)

    @contextmanager
    def _over(self, taps: Taps) -> Iterator[tuple[Operand, Operand]]:
        """Loops over a window's taps: the offset into x, and the flat position among x's spatial positions."""
        extents = self.inputs if self.spec.storage_order == 0 else self.inputs[::-1]
        flat_strides: list[Operand] = [1]
        for extent in extents[:0:-1]:
            flat_strides.insert(0, times(flat_strides[0], extent))
        if self.spec.storage_order == 1:
            flat_strides.reverse()
        with ExitStack() as stack:
            offset: Operand = 0
            flat: Operand = 0
            for axis, window in enumerate(self.spec.windows):
                tap = stack.enter_context(self.k.loop(taps.last[axis], start=taps.first[axis]))
                position = taps.origin[axis] + tap * window.dilation
                offset = plus(offset, times(position, self.x_space[axis]))
                flat = plus(flat, times(position, flat_strides[axis]))
            yield offset, flat

    def _channels(
        self, x: Pointer, place: Operand, image: Value, taps: Taps, c: Value, vectors: int, mask: Value | None
    ) -> None:
        if self.indices is not None:
            self._with_positions(x, place, image, taps, c, vectors, mask)
            return
        k, how, lanes = self.k, self.arithmetic, self.lanes
        start = k.constant(self.dtype, how.identity(self.dtype), lanes)
        totals = k.variables(dict.fromkeys(range(vectors), start))
        with self._over(taps) as (offset, _):
            source = x + plus(offset, c)
            for v in totals:
                totals[v] = how.join(
                    totals[v], powered(load(source, v * lanes, lanes, mask), self.spec.kind, self.spec.p)
                )
        for v, total in totals.items():
            self._write(
                plus(place, c + v * lanes), finished(total, k.index(taps.count), self.spec.kind, self.spec.p), mask
            )

    def _with_positions(
        self, x: Pointer, place: Operand, image: Value, taps: Taps, c: Value, vectors: int, mask: Value | None
    ) -> None:
        assert self.indices is not None
        k, lanes = self.k, self.lanes
        start = k.constant(self.dtype, self.arithmetic.identity(self.dtype), lanes)
        best = k.variables(dict.fromkeys(range(vectors), start))
        where = k.variables(dict.fromkeys(range(vectors), k.constant(INT64, -1, lanes)))
        with self._over(taps) as (offset, flat):
            source = x + plus(offset, c)
            for v in best:
                value = load(source, v * lanes, lanes, mask)
                better = (value > best[v]) | (where[v] < 0)
                best[v] = select(better, value, best[v])
                where[v] = select(better, flat, where[v])
        size: Operand = 1
        for extent in self.inputs:
            size = times(size, extent)
        for v, value in best.items():
            at = plus(place, c + v * lanes)
            self._write(at, value, mask)
            plane = iota(value, INT64) + (image * self.channels + c + v * lanes)
            store(self.indices, where[v] + plane * size, at, mask)

    def _write(self, place: Operand, value: Value, mask: Value | None) -> None:
        if self.spec.epilogue is not None:
            value = apply(self.k, self.spec.epilogue, value)
        store(self.out, value, place, mask)
