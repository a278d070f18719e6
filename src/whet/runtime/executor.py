"""The native executor, compiled once per target or taken from the object cache."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass

from whet.codegen.cache import ObjectCache
from whet.codegen.compiler import compile_sources
from whet.codegen.jit import Library
from whet.codegen.target import Target, host_target
from whet.runtime.layout import System
from whet.runtime.memory import Words, aligned_words
from whet.runtime.system import system_addresses
from whet.runtime.walker import executor_module

Native = Callable[[object], int]
"""A native function of one address (a `ctypes.c_void_p`); the global interpreter lock is released while it runs."""


@dataclass(frozen=True, slots=True, eq=False)
class Executor:
    """Native functions in this process. They stay for the life of the process: workers stand in them."""

    target: Target
    library: Library
    system: Words
    prepare: Native
    run: Native
    worker: Native
    stop: Native
    stream: int
    """The address of a kernel."""


_lock = threading.Lock()
_executors: dict[Target, Executor] = {}


def executor(target: Target | None = None) -> Executor:
    """The executor for `target`, by default the host."""
    wanted = host_target() if target is None else target
    found = _executors.get(wanted)
    if found is not None:
        return found
    with _lock:
        if wanted not in _executors:
            _executors[wanted] = _load(wanted)
        return _executors[wanted]


def _load(target: Target) -> Executor:
    (data,) = compile_sources([executor_module(target).source()], ObjectCache())
    library = Library(data, target)
    system = aligned_words(System.SIZE)
    system[:] = system_addresses(target.system)
    # `prepare` takes less time than to release the interpreter's lock and to get it back.
    prepare = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(library.address("prepare"))
    run, worker, stop = (
        ctypes.CFUNCTYPE(ctypes.c_int64 if name == "run" else None, ctypes.c_void_p)(library.address(name))
        for name in ("run", "worker", "stop")
    )
    return Executor(target, library, system, prepare, run, worker, stop, library.address("stream"))
