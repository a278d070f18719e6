"""Stopping a run from another thread: a flag that Python code polls and that native code is told of."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CancelToken:
    """A flag for any number of runs at once. Setting it stops them; it stays set until cleared."""

    def __init__(self) -> None:
        self._set = False
        self._lock = threading.Lock()
        self._words: list[int] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        """Stop the runs that watch this token, and those that start before it is cleared."""
        with self._lock:
            self._set = True
            for address in self._words:
                ctypes.c_int64.from_address(address).value = 1

    def clear(self) -> None:
        """Let later runs go on."""
        with self._lock:
            self._set = False

    @contextmanager
    def watched(self, address: int) -> Iterator[None]:
        """While the block runs, `set` writes 1 to the int64 at `address`; afterwards it holds 0."""
        word = ctypes.c_int64.from_address(address)
        with self._lock:
            self._words.append(address)
            word.value = int(self._set)
        try:
            yield
        finally:
            with self._lock:
                self._words.remove(address)
                word.value = 0
