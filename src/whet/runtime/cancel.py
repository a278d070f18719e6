"""Stopping a run from another thread: a flag that Python code polls and that native code is told of."""

from __future__ import annotations

import ctypes
import threading


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

    def watched(self, address: int) -> Watch:
        """A `with` block while which `set` writes 1 to the int64 at `address`; afterwards it holds 0."""
        return Watch(self, address)


class Watch:
    """See `CancelToken.watched`. A class, as a generator would cost a short run as much as the run."""

    __slots__ = ("_address", "_token", "_word")

    def __init__(self, token: CancelToken, address: int) -> None:
        self._token = token
        self._address = address
        self._word = ctypes.c_int64.from_address(address)

    def __enter__(self) -> None:
        token = self._token
        with token._lock:
            token._words.append(self._address)
            self._word.value = int(token._set)

    def __exit__(self, *_: object) -> None:
        token = self._token
        with token._lock:
            token._words.remove(self._address)
            self._word.value = 0
