"""The second half of a transposed convolution: every output pixel is the sum of the taps that fall on it.

The first half is a matrix product that gives, for each input pixel, its share in the outputs under each tap. Here the
shares are gathered, so that every output is written once and no two threads meet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import gcd, prod

from whet.codegen.lang import Function, Operand, Pointer, Value, broadcast, maximum, minimum, select
from whet.dtypes import FLOAT32, DType
from whet.kernels.base import Frame
from whet.kernels.tile import Epilogue, multiply_add, plus, times
from whet.kernels.walk import Axes, known_mask, tiles

_VECTORS = 4
"""Vectors of channels that are summed at a time."""


@dataclass(frozen=True, slots=True)
class TapSum:
    """out[n, o.., g, c] = epilogue(sum over taps t of z[n, i.., g, t, c]) where o = i * stride + t * dilation - before.

    Only input pixels i inside the image count; a sum of none is 0. With `weighted` z is the input itself, one channel
    a group (`groups` of them become the channels), and each tap's share is z[n, i.., c] * w[t, c].

    Words: `z`, `c` (addresses; the channels of both are neighbours), with `weighted` `w`; for each epilogue operand
    `e{i}`; `batch`; `out{i}`, `in{i}`, `before{i}` for each spatial axis; strides `z_n`, `z_s{i}`, `c_n`, `c_s{i}`
    (from one image, and one place along each axis, to the next) and the same of each full epilogue operand; `tile`:
    positions of the last spatial axis in one tile.
    Grid: batch * groups (1 if `weighted`) * out0 * .. * ceil(last out / tile).
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    channels: int
    groups: int = 1
    weighted: bool = False
    dtype: DType = FLOAT32
    epilogue: Epilogue | None = None

    def emit(self, frame: Frame) -> None:
        _Emission(self, frame).emit()


@dataclass(frozen=True)
class _Reach:
    """The taps of one axis on an output place: `first` to `last` - 1 of every `_Axis.tap_step`-th from `tap` on, and
    the input place under the tap of number 0."""

    first: Value
    last: Value
    tap: Value
    place: Value


@dataclass(frozen=True)
class _Axis:
    """How taps of one axis meet places: o + before = i * stride + tap * dilation."""

    taps: int
    stride: int
    dilation: int

    @property
    def shared(self) -> int:
        return gcd(self.stride, self.dilation)

    @property
    def tap_step(self) -> int:
        """From a tap that meets an input place to the next such tap."""
        return self.stride // self.shared

    @property
    def place_step(self) -> int:
        """Input places from such a tap to the one before."""
        return self.dilation // self.shared

    def reach(self, k: Function, moved: Value, extent: Operand) -> _Reach:
        """The taps that meet `moved` = o + before, which is not negative."""
        rest = moved % self.stride
        tap: Value = rest / self.shared
        if self.tap_step > 1:
            inverse = pow(self.place_step, -1, self.tap_step)
            tap = (tap * inverse) % self.tap_step if inverse != 1 else tap % self.tap_step
        else:
            tap = k.index(0)
        place = (moved - tap * self.dilation) / self.stride
        last = minimum(
            (maximum(k.index(self.taps) - tap, 0) + (self.tap_step - 1)) / self.tap_step,
            (maximum(place + 1, 0) + (self.place_step - 1)) / self.place_step,
        )
        if self.shared > 1:
            last = select(rest % self.shared == 0, last, 0)
        first = (maximum(place + 1 - extent, 0) + (self.place_step - 1)) / self.place_step
        return _Reach(first, last, tap, place)


class _Emission:
    """One kernel being written."""

    def __init__(self, spec: TapSum, frame: Frame) -> None:
        self.spec, self.frame, self.k = spec, frame, frame.k
        space = range(len(spec.kernel))
        epilogue = spec.epilogue
        self.z = frame.address("z", spec.dtype)
        self.out = frame.address("c", spec.dtype if epilogue is None else epilogue.result)
        self.weights = frame.address("w", spec.dtype) if spec.weighted else None
        self.kinds = () if epilogue is None else epilogue.operands
        self.operands = [] if epilogue is None else [
            frame.address(f"e{i}", dtype) for i, dtype in enumerate(epilogue.tape.inputs[1:])
        ]  # fmt: skip
        images = frame.number("batch")
        outs = [frame.number(f"out{i}") for i in space]
        self.inputs = [self.k.index(frame.number(f"in{i}")) for i in space]
        self.before = [frame.number(f"before{i}") for i in space]
        self.taps = prod(spec.kernel)
        self.z_strides = [frame.number("z_n"), *(frame.number(f"z_s{i}") for i in space)]
        places: dict[str, tuple[Operand, ...]] = {}
        for name in ("c", *(f"e{i}" for i, kind in enumerate(self.kinds) if kind == "full")):
            steps = [frame.number(f"{name}_s{i}") for i in space]
            places[name] = (frame.number(f"{name}_n"), spec.channels, *steps)
        self.tile = frame.number("tile")
        self.over = Axes((images, 1 if spec.weighted else spec.groups, *outs), places)
        self.lanes = frame.target.lanes(spec.dtype)
        self.axes = [_Axis(*each) for each in zip(spec.kernel, spec.strides, spec.dilations, strict=True)]

    def emit(self) -> None:
        k, spec = self.k, self.spec
        count = spec.groups if spec.weighted else spec.channels
        with tiles(self.frame, self.over, self.tile) as (tile, _):
            image, group, *outer = tile.coordinates
            z = self.z + (image * self.z_strides[0] + group * (self.taps * spec.channels))
            fixed = [self._reach(axis, place) for axis, place in enumerate(outer)]
            with k.loop(tile.stop, start=tile.start) as last:
                reaches = [*fixed, self._reach(len(outer), last)]
                places = {
                    name: plus(offset, times(last, self.over.strides[name][-1]))
                    for name, offset in tile.offsets.items()
                }
                whole = count // (_VECTORS * self.lanes) * (_VECTORS * self.lanes)
                first_channel = group * spec.channels
                with k.loop(whole, step=_VECTORS * self.lanes) as c:
                    self._channels(z, reaches, places, first_channel, c, [None] * _VECTORS)
                rest = count - whole
                if rest:
                    masks = [known_mask(k, rest - v, self.lanes) for v in range(0, rest, self.lanes)]
                    self._channels(z, reaches, places, first_channel, k.index(whole), masks)

    def _reach(self, axis: int, place: Value) -> _Reach:
        return self.axes[axis].reach(self.k, place + self.before[axis], self.inputs[axis])

    @contextmanager
    def _over(self, reaches: Sequence[_Reach]) -> Iterator[tuple[Operand, Operand]]:
        """Loops over the taps on a pixel: the number of the tap, and the offset of the input pixel under it."""
        with ExitStack() as loops:
            tap: Operand = 0
            offset: Operand = 0
            for axis, reach, stride in zip(self.axes, reaches, self.z_strides[1:], strict=True):
                number = loops.enter_context(self.k.loop(reach.last, start=reach.first))
                tap = plus(times(tap, axis.taps), reach.tap + number * axis.tap_step)
                offset = plus(offset, times(reach.place - number * axis.place_step, stride))
            yield tap, offset

    def _channels(
        self, z: Pointer, reaches: Sequence[_Reach], places: dict[str, Operand], first_channel: Operand, c: Value,
        masks: Sequence[Value | None],
    ) -> None:  # fmt: skip
        k, spec, lanes = self.k, self.spec, self.lanes
        zero = k.constant(spec.dtype, 0, lanes)
        sums = k.variables(dict.fromkeys(range(len(masks)), zero))
        with self._over(reaches) as (tap, offset):
            for v, mask in enumerate(masks):
                if self.weights is None:
                    share = _load(z, plus(offset, times(tap, spec.channels)) + (c + v * lanes), lanes, mask)
                    sums[v] = sums[v] + share
                else:
                    x = _load(z, plus(offset, c + v * lanes), lanes, mask)
                    w = _load(self.weights, times(tap, spec.groups) + (c + v * lanes), lanes, mask)
                    sums[v] = multiply_add(x, w, sums[v])
        for v, mask in enumerate(masks):
            self._finish(sums[v], places, first_channel, c + v * lanes, mask)

    def _finish(
        self, total: Value, places: dict[str, Operand], first_channel: Operand, c: Value, mask: Value | None
    ) -> None:
        lanes = self.lanes
        result = total
        if self.spec.epilogue is not None:
            values = [total]
            for i, (kind, start) in enumerate(zip(self.kinds, self.operands, strict=True)):
                if kind == "scalar":
                    values.append(start.load())
                    continue
                place = places[f"e{i}"] if kind == "full" else first_channel
                values.append(_load(start, plus(place, c), lanes, mask))
            result = self.spec.epilogue.tape.emit(self.k, values, lanes)[0]
        result = result if result.lanes == lanes else broadcast(result, lanes)
        place = plus(places["c"], c)
        if mask is None:
            self.out.store(result, place)
        elif mask.name.startswith("<i1 true, i1 false"):
            # See `walk.store`: a narrowed store by a constant mask of one lane.
            self.out.store(result.lane(0), place)
        else:
            self.out.store_masked(mask, result, place)


def _load(pointer: Pointer, offset: Operand, lanes: int, mask: Value | None) -> Value:
    return pointer.load(offset, lanes) if mask is None else pointer.load_masked(mask, offset)
