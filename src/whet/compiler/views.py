"""Memory as the compiler sees it: buffers, and strided views of them whose extents may be symbolic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from whet.dtypes import DType
from whet.graph.dims import Expr, Known, exact_div, maximum, minimum

Place = Literal["arena", "input", "output", "weight"]

HINT_EXTENT = 64
"""What a free extent is taken to be where only an order of magnitude matters: layouts, and whether threads pay."""


@dataclass(eq=False, slots=True)
class Buffer:
    """A span of memory. `index` numbers the inputs, outputs and weights; `elements` is its size."""

    place: Place
    dtype: DType
    elements: Known
    index: int = 0
    label: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """A strided window on a buffer: offset and strides in elements, a stride for each dimension of `shape`."""

    buffer: Buffer
    shape: tuple[Known, ...]
    strides: tuple[Known, ...]
    offset: Known = 0
    dtype: DType | None = None
    """The type of the elements where it is not the buffer's (the same bits, as another type of the same size)."""

    @property
    def element(self) -> DType:
        return self.dtype or self.buffer.dtype

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Known:
        return product(self.shape)

    def transpose(self, order: Sequence[int]) -> View:
        """The same elements with the dimensions in another order."""
        return replace(
            self, shape=tuple(self.shape[i] for i in order), strides=tuple(self.strides[i] for i in order)
        )  # fmt: skip

    def expand_dims(self, axis: int) -> View:
        """A dimension of extent 1 inserted at `axis`."""
        shape, strides = list(self.shape), list(self.strides)
        shape.insert(axis, 1)
        strides.insert(axis, 0)
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def drop(self, axis: int) -> View:
        """The first slice along `axis`, without the dimension."""
        shape, strides = list(self.shape), list(self.strides)
        del shape[axis], strides[axis]
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def slice(self, axis: int, start: Known, length: Known, step: int = 1) -> View:
        """`length` elements along `axis` from `start` on, every `step`-th; a negative step walks back."""
        shape, strides = list(self.shape), list(self.strides)
        offset = self.offset + start * strides[axis]
        shape[axis], strides[axis] = length, strides[axis] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=offset)

    def broadcast(self, shape: Sequence[Known]) -> View:
        """The view repeated to `shape`, as numpy broadcasts: repeated dimensions have stride 0."""
        missing = len(shape) - self.rank
        strides: list[Known] = [0] * missing
        for own, wanted, stride in zip(self.shape, shape[missing:], self.strides, strict=True):
            if own == wanted or own == 1:
                strides.append(0 if own != wanted else stride)
            else:
                strides.append(stride * is_not_one(own))
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def is_dense(self) -> bool:
        """Whether the elements lie in C order without gaps (dimensions of extent 1 do not count)."""
        return all(
            extent == 1 or stride == wanted
            for extent, stride, wanted in zip(self.shape, self.strides, dense_strides(self.shape), strict=True)
        )

    def unit(self, axis: int) -> bool:
        """Whether neighbours along `axis` are neighbours in memory."""
        return self.strides[axis] == 1 or self.shape[axis] == 1

    def reshape(self, shape: Sequence[Known]) -> View | None:
        """The same elements in C order under another shape, or None where that needs a copy."""
        strides = _reshaped_strides(self.shape, self.strides, tuple(shape))
        if strides is None:
            return None
        return replace(self, shape=tuple(shape), strides=strides)


def is_not_one(extent: Known) -> Known:
    """0 where the extent is 1, and 1 where it is not."""
    return minimum(maximum(extent - 1, 1 - extent), 1)


def product(extents: Iterable[Known]) -> Known:
    """The product of all extents."""
    total: Known = 1
    for extent in extents:
        total = total * extent
    return total


def dense_strides(shape: Sequence[Known], order: Sequence[int] | None = None) -> tuple[Known, ...]:
    """Strides without gaps; `order` lists the dimensions from the slowest to the fastest (C order unless given)."""
    strides: list[Known] = [0] * len(shape)
    step: Known = 1
    for axis in reversed(order if order is not None else range(len(shape))):
        strides[axis] = step
        step = step * shape[axis]
    return tuple(strides)


def hint(value: Known, extents: Mapping[str, int] | None = None) -> int:
    """A number for an extent: itself, or what it would be with every free extent at HINT_EXTENT."""
    if isinstance(value, int):
        return value
    names = {name: (extents or {}).get(name, HINT_EXTENT) for name in value.names()}
    return value.evaluate(names)


def memory_order(view: View) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest in memory; C order among equals."""
    return tuple(sorted(range(view.rank), key=lambda axis: (-abs(hint(view.strides[axis])), axis)))


def collapse(
    shape: Sequence[Known], strides: Sequence[Sequence[Known]], order: Sequence[int]
) -> list[tuple[Known, list[Known]]]:
    """Loop dimensions from outer to inner as (extent, stride of each operand); neighbours joined where all allow it."""
    dims: list[tuple[Known, list[Known]]] = []
    for axis in order:
        extent, here = shape[axis], [s[axis] for s in strides]
        if dims:
            before, outer = dims[-1]
            if all(o == s * extent for o, s in zip(outer, here, strict=True)):
                dims[-1] = (before * extent, here)
                continue
        dims.append((extent, here))
    return dims


def _reshaped_strides(
    shape: tuple[Known, ...], strides: tuple[Known, ...], wanted: tuple[Known, ...]
) -> tuple[Known, ...] | None:
    """Strides of a reshape without a copy, or None (numpy's rule, over symbolic extents)."""
    if any(extent == 0 for extent in (*shape, *wanted)):
        return dense_strides(wanted)
    old = [(e, s) for e, s in zip(shape, strides, strict=True) if e != 1]
    result: list[Known] = [0] * len(wanted)
    new = [axis for axis, extent in enumerate(wanted) if extent != 1]
    i = j = 0
    while j < len(new):
        if i >= len(old):
            return None
        # Take dimensions from both sides until the products agree.
        left, right = [i], [new[j]]
        have, want = old[i][0], wanted[new[j]]
        i, j = i + 1, j + 1
        while have != want:
            if _divides(have, want) and i < len(old):
                left.append(i)
                have = have * old[i][0]
                i += 1
            elif j < len(new):
                right.append(new[j])
                want = want * wanted[new[j]]
                j += 1
            elif i < len(old):
                left.append(i)
                have = have * old[i][0]
                i += 1
            else:
                return None
        for first, second in pairwise(left):
            if old[first][1] != old[second][1] * old[second][0]:
                return None
        step = old[left[-1]][1]
        for axis in reversed(right):
            result[axis] = step
            step = step * wanted[axis]
    return tuple(result) if i == len(old) else None


def _divides(part: Known, whole: Known) -> bool:
    """Whether `whole` is known to be a multiple of `part` that is not `part` itself."""
    if isinstance(part, int) and isinstance(whole, int):
        return part < whole
    if isinstance(part, Expr) and isinstance(whole, int):
        return False
    return exact_div(whole, part) is not None
