"""Constants of a program in memory, packed as kernels want them; each packing of a constant exists once."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

ALIGNMENT = 64


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Uninitialized memory in C order that starts at a multiple of ALIGNMENT."""
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + nbytes].view(dtype).reshape(shape)


def aligned(array: Array) -> Array:
    """`array` in C order at an aligned address: itself where it is both already."""
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


class Weight:
    """A packed constant; it lives as long as a program that reads it."""

    __slots__ = ("__weakref__", "array")

    def __init__(self, array: Array) -> None:
        self.array = array


class WeightStore:
    """Packed constants by (what it is, how it is packed), shared by every program that is alive. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._weights: weakref.WeakValueDictionary[Hashable, Weight] = weakref.WeakValueDictionary()

    def get(self, key: Hashable, make: Callable[[], Array]) -> Weight:
        """The weight of `key`, made by `make` where nobody holds it."""
        with self._lock:
            found = self._weights.get(key)
        if found is not None:
            return found
        made = Weight(aligned(make()))
        with self._lock:
            return self._weights.setdefault(key, made)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights that are alive."""
        with self._lock:
            return sum(w.array.nbytes for w in self._weights.values())


STORE = WeightStore()
"""The process's weights."""
