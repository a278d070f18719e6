"""What the C library does with memory that was freed. Only glibc is told; other systems' allocators are left alone."""

from __future__ import annotations

import contextlib
import ctypes
from typing import Any

KEPT_BYTES = 128 << 20
"""Freed memory that each arena keeps at hand."""

MAPPED_BYTES = 32 << 20
"""Blocks from this size on are mapped, and unmapped when they are freed; glibc allows no more."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed() -> None:
    """Keep freed memory at hand, up to KEPT_BYTES.

    By default glibc returns the memory of a tensor of some 100 kB to the system as soon as it is freed, and the next
    request's tensor is paid for page by page: for an image of 600 kB 220 us, where copying it takes 10.
    """
    if _mallopt is not None:
        _mallopt(_MMAP_THRESHOLD, MAPPED_BYTES)
        _mallopt(_TRIM_THRESHOLD, KEPT_BYTES)


def give_back() -> None:
    """Return freed memory to the system. Takes a few milliseconds; other threads run meanwhile.

    For what a model held: models are loaded by whichever thread is free, so each arena would in time hold the memory
    of the largest model that it ever saw.
    """
    if _trim is not None:
        _trim(0)


_mallopt: Any = None
_trim: Any = None
with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or another system
    _mallopt, _trim = (getattr(ctypes.CDLL(None), name) for name in ("mallopt", "malloc_trim"))
    _trim.argtypes = [ctypes.c_size_t]
