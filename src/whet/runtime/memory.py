"""Memory that native code uses: aligned blocks of 64-bit words, and large areas whose untouched pages cost nothing."""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from typing import Any

import numpy as np

from whet.config import MIB
from whet.errors import Fail
from whet.runtime.addresses import data_address

ALIGNMENT = 64
_HUGE_PAGE = 2 * MIB
_SMALL = 32768
"""Bytes of an array for which the time to align it is not gained back."""

Words = np.ndarray[Any, np.dtype[np.int64]]


def aligned_words(count: int) -> Words:
    """`count` int64 zeros that start at a cache line; they live as long as the array."""
    spare = ALIGNMENT // 8
    memory = np.zeros(count + spare, np.int64)
    skip = -memory.ctypes.data % ALIGNMENT // 8
    return memory[skip : skip + count]


def result_array(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """An array with any content; one that is not small starts at a cache line, as stores of whole vectors like it."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < _SMALL:
        return np.empty(shape, dtype)
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    return np.ndarray(shape, dtype, room, -data_address(room) % ALIGNMENT)


class Area:
    """`nbytes` of private memory at `address`, aligned to 64 bytes, or to huge pages where it is worth it.

    It lives as long as this object. Raises Fail where the system does not give that much.
    """

    __slots__ = ("_map", "address", "nbytes")

    def __init__(self, nbytes: int) -> None:
        huge = nbytes >= 2 * _HUGE_PAGE and hasattr(mmap, "MADV_HUGEPAGE")
        # An own mapping is given back to the system when it is dropped, and no page of it exists before it is touched.
        total = max(nbytes, 1) + (_HUGE_PAGE if huge else 0)
        self._map = _map(total)
        if huge:
            self._advise()
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self.address: int = start + (-start % _HUGE_PAGE if huge else 0)
        self.nbytes = nbytes

    def _advise(self) -> None:
        try:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        except OSError:
            return  # a kernel without huge pages: small ones do


def _map(nbytes: int) -> mmap.mmap:
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, nbytes)
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise Fail("not enough memory for a run", found=str(error), expected=f"{nbytes} bytes") from error
