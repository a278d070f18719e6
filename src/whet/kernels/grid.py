"""How a kernel walks its tiles: positions and element offsets that are divided out once and then counted up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whet.codegen.lang import Function, Operand, Value


def ceil_div(k: Function, count: Operand, size: Operand) -> Value:
    """count / size rounded up, for numbers that are not negative; 0 where size is 0."""
    wide = k.index(count)
    return (wide + (k.index(size) - 1)) / size


class Walk:
    """A multi-index over `extents` (last fastest) that starts at `position` and steps forward by one.

    `strides` gives, by name, elements per step of each dimension; `offset(name)` is the sum over the dimensions of
    index times stride. Make it before the loop over tiles and call `advance` at the loop's end: there is one division
    per dimension and call of the kernel, none per tile.
    """

    def __init__(
        self, k: Function, extents: Sequence[Operand], strides: Mapping[str, Sequence[Operand]], position: Value
    ) -> None:
        self.k = k
        self._extents = [k.index(e) for e in extents]
        self._strides = {name: list(s) for name, s in strides.items()}
        starts: list[Value] = []
        rest = position
        for extent in self._extents[:0:-1]:
            quotient = rest / extent
            starts.insert(0, rest - quotient * extent)
            rest = quotient
        starts.insert(0, rest)
        self._wraps = {
            name: [None if _is_zero(s) else e * s for e, s in zip(self._extents, each, strict=True)]
            for name, each in self._strides.items()
        }
        self._index = [k.variable(s) for s in starts]
        self._offset = {name: k.variable(_dot(k, starts, each)) for name, each in self._strides.items()}

    def index(self, dimension: int) -> Value:
        """The index along a dimension, here and now."""
        return self._index[dimension].value

    def offset(self, name: str) -> Value:
        """The offset that belongs to the strides called `name`, here and now."""
        return self._offset[name].value

    def advance(self) -> None:
        """Go to the next position. Behind the last, the first index leaves its extent."""
        self._step(len(self._index) - 1)

    def _step(self, dimension: int) -> None:
        index = self._index[dimension]
        index.value = index.value + 1
        for name, strides in self._strides.items():
            if not _is_zero(strides[dimension]):
                self._offset[name].value = self._offset[name].value + strides[dimension]
        if dimension == 0:
            return
        with self.k.when(index.value >= self._extents[dimension]):
            index.value = self.k.index(0)
            for name in self._strides:
                wrap = self._wraps[name][dimension]
                if wrap is not None:
                    self._offset[name].value = self._offset[name].value - wrap
            self._step(dimension - 1)


def _is_zero(stride: Operand) -> bool:
    return not isinstance(stride, Value) and stride == 0


def _dot(k: Function, index: Sequence[Value], strides: Sequence[Operand]) -> Value:
    total = k.index(0)
    for i, s in zip(index, strides, strict=True):
        if not _is_zero(s):
            total = total + i * s
    return total
