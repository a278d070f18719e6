"""One call of a kernel as data: operands with the places of their elements, words, and what should come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from whet.codegen.target import Target
from whet.kernels.base import KernelSpec

from .draw import Draw

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Window:
    """Where a tensor's elements lie: `extents`, and `strides` in elements, which may be 0 or negative for inputs."""

    extents: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_empty(self) -> bool:
        return 0 in self.extents

    @property
    def origin(self) -> int:
        """Where element 0 lies, counted from the lowest."""
        if self.is_empty:
            return 0
        return -sum((e - 1) * s for e, s in zip(self.extents, self.strides, strict=True) if s < 0)

    @property
    def size(self) -> int:
        """Elements from the lowest to the highest."""
        if self.is_empty:
            return 0
        return 1 + sum((e - 1) * abs(s) for e, s in zip(self.extents, self.strides, strict=True))

    def places(self) -> Array:
        """Every element's place, counted from the lowest, in the tensor's shape."""
        total = np.full((), self.origin, np.int64)
        for extent, stride in zip(self.extents, self.strides, strict=True):
            total = np.add.outer(total, np.arange(extent, dtype=np.int64) * stride)
        return np.asarray(total)


def dense(extents: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of contiguous memory."""
    strides: list[int] = []
    step = 1
    for extent in reversed(extents):
        strides.insert(0, step)
        step *= max(extent, 1)
    return tuple(strides)


@dataclass
class Operand:
    """Memory that a kernel reads ("in"), writes ("out": poison before, every element of the window after, none beside
    it) or both ("update"). `expected` (None: any values) is compared within rtol * |expected| + atol."""

    role: Literal["in", "out", "update"]
    dtype: np.dtype[Any]
    window: Window
    values: Array | None = None
    expected: Array | None = None
    rtol: float = 0.0
    atol: float = 0.0
    align: int = 1

    def __post_init__(self) -> None:
        if self.values is not None:
            assert self.values.shape == self.window.extents, (self.values.shape, self.window)
            assert self.values.dtype == self.dtype, (self.values.dtype, self.dtype)
        if self.expected is not None:
            assert self.expected.shape == self.window.extents, (self.expected.shape, self.window)

    @property
    def bits(self) -> np.dtype[Any]:
        """An unsigned type of an element's size."""
        return np.dtype(f"u{self.dtype.itemsize}")

    @property
    def bytes(self) -> int:
        return self.window.size * self.dtype.itemsize

    def strides(self, *names: str) -> dict[str, int]:
        """Words for the window's strides; a name of "" has none."""
        return {name: s for name, s in zip(names, self.window.strides, strict=True) if name}


@dataclass
class Call:
    """A kernel's arguments. With `fails`, the status must have one of these codes, and only the surroundings of the
    outputs are checked; else it must be 0."""

    words: Mapping[str, Operand | int]
    tiles: int
    fails: tuple[int, ...] = ()

    def operands(self) -> list[Operand]:
        """Every operand once, however many words name it."""
        found: list[Operand] = []
        for word in self.words.values():
            if isinstance(word, Operand) and not any(word is other for other in found):
                found.append(word)
        return found


@dataclass(frozen=True)
class Family:
    """One kind of kernel: how a spec is drawn, and a call of it."""

    name: str
    spec: Callable[[Draw, Target], KernelSpec]
    call: Callable[[Draw, Any, Target], Call]
    weight: float = 1
    """How often it is drawn."""
    cost: float = 1.0
    """How much longer one of its calls takes to prepare than others': it gets fewer calls."""
