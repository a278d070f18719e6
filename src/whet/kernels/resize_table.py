"""The tables of a Resize whose extents only a run knows: where each output element lies on the input axis."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import Value, absolute, ceil, clamp, convert, floor, maximum, minimum, select
from whet.dtypes import FLOAT64, INT32, DType
from whet.kernels.base import Frame


@dataclass(frozen=True, slots=True)
class ResizeTable:
    """index[t, i] and weight[t, i] of every tap t of output element i along one axis, computed in float64.

    The attributes are those of Resize(19); `scale` is None where it is size / extent. Mode "nearest" has one tap and
    no weights. With `region` (tf_crop_and_resize), index[0, i] is -1 where an element lies outside of the axis.

    Words: `index` (int32) and `weight` addresses (the latter not for "nearest"); `size`, `extent` (0 only where size
    is 0); `taps`, `low` (the first tap's offset; both not for "nearest"); `tile`: elements in one tile. Grid:
    ceil(size / tile).
    """

    mode: str
    coordinates: str
    scale: float | None
    weights: DType
    nearest_mode: str = "round_prefer_floor"
    antialias: bool = False
    exclude_outside: bool = False
    cubic_coeff_a: float = -0.75
    region: tuple[float, float] | None = None

    def emit(self, frame: Frame) -> None:
        k = frame.k
        index = frame.address("index", INT32)
        nearest = self.mode == "nearest"
        weight = index if nearest else frame.address("weight", self.weights)
        size, extent = k.index(frame.number("size")), k.index(frame.number("extent"))
        taps = k.index(1) if nearest else k.index(frame.number("taps"))
        low = k.index(0) if nearest else k.index(frame.number("low"))
        tile = frame.number("tile")
        last = convert(extent - 1, FLOAT64)
        scale = k.constant(FLOAT64, self.scale) if self.scale is not None else _float(size) / _float(extent)
        with frame.tiles() as number, k.loop(minimum((number + 1) * tile, size), start=number * tile) as i:
            place = self._place(frame, i, size, extent, scale)
            outside = (place < 0.0) | (place > last)
            if nearest:
                found = convert(clamp(self._rounded(place), 0.0, last), INT32)
                index.store(select(outside, -1, found) if self.region is not None else found, i)
            else:
                base = floor(place)
                stretch = minimum(scale, 1.0) if self.antialias else k.constant(FLOAT64, 1.0)
                total = k.variable(k.constant(FLOAT64, 0.0))
                with k.loop(taps) as t:
                    total.value = total.value + self._weight(base + _float(t + low), place, stretch, last)
                divisor = total.value
                # Weights that add up to 1 as they are stay so.
                if not self.exclude_outside:
                    divisor = select(stretch < 1.0, divisor, 1.0)
                divisor = select(divisor == 0.0, 1.0, divisor)
                with k.loop(taps) as t:
                    at = base + _float(t + low)
                    weight.store(convert(self._weight(at, place, stretch, last) / divisor, self.weights), t * size + i)
                    index.store(convert(clamp(at, 0.0, last), INT32), t * size + i)
                if self.region is not None:
                    with k.when(outside):
                        index.store(-1, i)

    def _place(self, frame: Frame, i: Value, size: Value, extent: Value, scale: Value) -> Value:
        x, e = _float(i), _float(extent)
        length = scale * e
        if self.coordinates == "align_corners":
            return select(length == 1.0, 0.0, x * ((e - 1.0) / (length - 1.0)))
        if self.coordinates == "asymmetric":
            return x / scale
        if self.coordinates == "tf_crop_and_resize":
            start, end = self.region or (0.0, 1.0)
            spread = (e - 1.0) * start + x * (end - start) * (e - 1.0) / (length - 1.0)
            return select(length == 1.0, (e - 1.0) * (start + end) / 2.0, spread)
        # From a size the ratio is exact; from a scale it is the scale's inverse.
        s = _float(size)
        place = (x + 0.5) * select(s == length, e / s, 1.0 / scale) - 0.5
        if self.coordinates == "pytorch_half_pixel":
            return select(length == 1.0, 0.0, place)
        if self.coordinates == "half_pixel_symmetric":
            return place + e / 2.0 * (1.0 - s / length)
        return place

    def _rounded(self, place: Value) -> Value:
        if self.nearest_mode == "floor":
            return floor(place)
        if self.nearest_mode == "ceil":
            return ceil(place)
        return ceil(place - 0.5) if self.nearest_mode == "round_prefer_floor" else floor(place + 0.5)

    def _weight(self, at: Value, place: Value, stretch: Value, last: Value) -> Value:
        d = absolute((at - place) * stretch)
        if self.mode == "linear":
            weight = maximum(1.0 - d, 0.0)
        else:
            a = self.cubic_coeff_a
            near = (d * (a + 2.0) - (a + 3.0)) * d * d + 1.0
            far = ((d * a - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
            weight = select(d <= 1.0, near, select(d < 2.0, far, 0.0))
        if self.exclude_outside:
            weight = select((at < 0.0) | (at > last), 0.0, weight)
        return weight


def _float(number: Value) -> Value:
    return convert(number, FLOAT64)
