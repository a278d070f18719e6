"""Memory with guard pages: slots whose first and last byte border on pages that may not be touched.

Slots for inputs are mapped twice: this process writes through one address, a kernel gets another, which is read-only.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
PAGE = mmap.PAGESIZE
_GUARD_PAGES = 16
_SLOT_PAGES = (1, 4, 32, 256)
_SLOTS = (28, 20, 12, 8)
_PROT_READ, _PROT_WRITE = 1, 2
_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS = 1, 2, 0x20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@dataclass
class Slot:
    """Some pages between guard pages: `address` is the kernel's, `bytes` are this process's view."""

    address: int
    bytes: Array


class NoRoom(Exception):
    """An operand is larger than every slot, or there are too many."""


class Slots:
    """The slots of one process, for inputs or for outputs, by size; `reset` frees them all."""

    def __init__(self, read_only: bool) -> None:
        total = sum((pages + _GUARD_PAGES) * count for pages, count in zip(_SLOT_PAGES, _SLOTS, strict=True))
        total = (total + _GUARD_PAGES) * PAGE
        if read_only:
            file = os.memfd_create("kernel-fuzz")
            os.ftruncate(file, total)
            writable = _map(total, _PROT_READ | _PROT_WRITE, _MAP_SHARED, file)
            seen = _map(total, _PROT_READ, _MAP_SHARED, file)
            os.close(file)
        else:
            seen = writable = _map(total, _PROT_READ | _PROT_WRITE, _MAP_PRIVATE | _MAP_ANONYMOUS, -1)
        self._slots: list[list[Slot]] = []
        start = 0
        for pages, count in zip(_SLOT_PAGES, _SLOTS, strict=True):
            group = []
            for _ in range(count):
                _forbid(seen + start, _GUARD_PAGES * PAGE)
                start += _GUARD_PAGES * PAGE
                memory = (ctypes.c_ubyte * (pages * PAGE)).from_address(writable + start)
                group.append(Slot(seen + start, np.frombuffer(memory, np.uint8)))
                start += pages * PAGE
            self._slots.append(group)
        _forbid(seen + start, _GUARD_PAGES * PAGE)
        self._used = [0] * len(_SLOTS)

    def reset(self) -> None:
        """All slots are free."""
        self._used = [0] * len(_SLOTS)

    def take(self, size: int) -> Slot:
        """The smallest free slot that holds `size` bytes."""
        for index, pages in enumerate(_SLOT_PAGES):
            if size <= pages * PAGE and self._used[index] < _SLOTS[index]:
                self._used[index] += 1
                return self._slots[index][self._used[index] - 1]
        raise NoRoom(f"no slot for {size} bytes")


def _map(size: int, protection: int, flags: int, file: int) -> int:
    address = _libc.mmap(None, size, protection, flags, file, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    return int(address)


def _forbid(address: int, size: int) -> None:
    if _libc.mprotect(address, size, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
