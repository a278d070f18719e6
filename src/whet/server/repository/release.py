"""What a model held goes back to the system when it goes, and not some time later."""

from __future__ import annotations

import contextlib
import ctypes
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def give_back() -> None:
    """Return freed memory to the system. Takes a few milliseconds; other threads run meanwhile.

    glibc keeps what was freed in the arena of the thread that asked for it. Models are loaded by whichever thread is
    free, so each arena would in time hold the memory of the largest model that it ever saw. Other systems' allocators
    are left alone.
    """
    if _trim is not None:
        _trim(0)


def without_frames(error: E) -> E:
    """The same error without its tracebacks: their frames hold the half-loaded model for as long as it is kept."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        found.__traceback__ = None
        found = found.__cause__ or found.__context__
    return error


_trim = None
with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, or another system
    _trim = ctypes.CDLL(None).malloc_trim
    _trim.argtypes = [ctypes.c_size_t]
