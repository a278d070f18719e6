"""The process's native worker threads, from which runs lease helpers."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import signal
import threading
import time
import warnings

import numpy as np

from whet.runtime.cores import core_budget
from whet.runtime.executor import Executor, executor
from whet.runtime.layout import CPU_WORDS, Worker
from whet.runtime.layout import Team as TeamBlock
from whet.runtime.memory import Words, aligned_words

MOST_THREADS = TeamBlock.MOST_WORKERS + 1
"""Most threads of one run."""
IDLE_SPIN_NS = 150_000
RUN_SPIN_NS = 50_000
_STOP_SECONDS = 2.0
"""How long the process's end waits for workers that are in a run of a daemon thread's."""

_FAULTS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGABRT")
"""Signals that a thread gets for its own deeds. Blocked, they end the process without a word."""


class Team:
    """Workers in native code, one mailbox each, started when a run context first asks for them.

    The first ones, up to the process's core budget less the caller, spin a little before they sleep; any above it sleep
    at once. Forked children start with none.
    """

    def __init__(self, native: Executor) -> None:
        self._native = native
        self._block = aligned_words(TeamBlock.SIZE)
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self.spinning = max(0, core_budget() - 1)
        """How many workers may spin."""
        self._idle_spin_ns = IDLE_SPIN_NS
        self._closed = False
        self._cpus = _allowed_cpus()
        self.generation = 0
        """Changes when the workers are gone: who counts on some must call `ensure` again."""

    @property
    def address(self) -> int:
        """Where the native code finds the mailboxes; the same for the life of the process."""
        return int(self._block.ctypes.data)

    @property
    def workers(self) -> int:
        """Workers that were started."""
        return len(self._threads)

    def mailbox(self, index: int) -> Words:
        """The block of a worker, by the positions in `layout.Worker`."""
        base = _worker(index)
        return self._block[base : base + Worker.SIZE]

    def ensure(self, workers: int) -> None:
        """Start workers until there are as many. Where the system allows no more threads, warns and leaves it at fewer.

        Runs are right with any number of workers.
        """
        if len(self._threads) >= workers:
            return
        with self._lock:
            while len(self._threads) < min(workers, TeamBlock.MOST_WORKERS) and not self._closed:
                if not self._start(len(self._threads)):
                    return

    def set_idle_spin(self, nanoseconds: int) -> None:
        """How long workers wait for a next run before they sleep: 0 leaves the cores to others (throughput)."""
        with self._lock:
            self._idle_spin_ns = max(0, nanoseconds)
            for index in range(min(len(self._threads), self.spinning)):
                self.mailbox(index)[Worker.IDLE_SPIN] = self._idle_spin_ns

    def stop(self) -> None:
        """End all workers, those that are in a run once it is done. No more are started."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
            self._block[TeamBlock.COUNT] = 0
        for index in range(len(threads)):
            self._native.stop(ctypes.c_void_p(self.mailbox(index).ctypes.data))
        end = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def after_fork(self) -> None:
        """For the child of a fork, where no worker exists."""
        self._lock = threading.Lock()
        self._threads = []
        self._block[:] = 0
        self.generation += 1

    def _start(self, index: int) -> bool:
        block = self.mailbox(index)
        spins = index < self.spinning
        block[Worker.SYSTEM] = self._native.system.ctypes.data
        block[Worker.IDLE_SPIN] = self._idle_spin_ns if spins else 0
        block[Worker.RUN_SPIN] = RUN_SPIN_NS if spins else 0
        if self._cpus is not None:
            block[Worker.MASK] = self._cpus.ctypes.data
        address = ctypes.c_void_p(block.ctypes.data)
        thread = threading.Thread(
            target=_live, args=(self._native, address, block), name=f"whet-{index + 1}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            warnings.warn(f"runs get {index} worker threads, no more: {error}", RuntimeWarning, stacklevel=4)
            return False
        self._threads.append(thread)
        self._block[TeamBlock.COUNT] = len(self._threads)
        return True


def _allowed_cpus() -> Words | None:
    """The CPUs that this process may use, a bit each, or None where the system does not tell or has too many."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cpus = os.sched_getaffinity(0)
    if max(cpus) >= 64 * CPU_WORDS:
        return None
    words = aligned_words(CPU_WORDS)
    bits = words.view(np.uint64)
    for cpu in cpus:
        bits[cpu // 64] |= np.uint64(1 << (cpu % 64))
    return words


def _worker(index: int) -> int:
    return TeamBlock.FIRST + index * Worker.SIZE


def _live(native: Executor, address: ctypes.c_void_p, block: Words) -> None:
    if hasattr(signal, "pthread_sigmask"):
        faults = {getattr(signal, name) for name in _FAULTS if hasattr(signal, name)}
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
    block[Worker.THREAD] = threading.get_native_id()
    native.worker(address)


_lock = threading.Lock()
_team: Team | None = None


def team() -> Team:
    """The team of this process."""
    global _team
    found = _team
    if found is not None:
        return found
    native = executor()
    with _lock:
        if _team is None:
            _team = Team(native)
            atexit.register(_team.stop)
        return _team


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    if _team is not None:
        _team.after_fork()


with contextlib.suppress(AttributeError):  # a system without fork
    os.register_at_fork(after_in_child=_after_fork)
