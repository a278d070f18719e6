"""Where things stand in the memory that Python and the native executor share. Positions count 64-bit words.

A *context block* belongs to one run context. Its *station* is what workers may look at: stations are never freed, so
that a worker that comes late reads old numbers and not foreign memory. A *worker block* is a worker's mailbox. Words
that several threads write lie 16 words apart: neighbouring cache lines are fetched in pairs.
"""

from __future__ import annotations


class Context:
    """Written by Python between runs, and by the run's own thread."""

    ROWS = 0
    ROW_COUNT = 1
    WORDS = 2
    SLOTS = 3
    BASES = 4
    CODE = 5
    MOVES = 6
    ADDRESSES = 7
    IO_ADDRESSES = 8
    IO_COUNT = 9
    CHECKS = 10
    KERNELS = 11
    """Addresses of the kernels."""
    SCRATCH = 12
    STATION = 13
    TOKEN = 14
    """What a leased worker's mailbox holds: the station's address + LEASED."""
    TEAM = 15
    THREADS = 16
    """Most threads of a run, the caller counted in."""
    PREPARED = 17
    """1 once row 0 succeeded."""
    TIMESTAMPS = 18
    """Address of [rows, 3], or 0. A run that ends clears it."""
    FAILED_ROW = 19
    FAILED_STATUS = 20
    LEASED = 21
    """Workers that the run holds."""
    OUTCOME = 22
    """How the last sample of a batch ended, where the context runs samples (see `streams`)."""
    SAMPLE = 23
    """Which sample that was."""
    SIZE = 32


class Station:
    """One for each run context. The step's words change only while no tile can be claimed."""

    KERNEL = 0
    WORDS = 1
    TILES = 2
    CLAIM = 3
    """Units that a thread takes at once, at most."""
    PARTS = 4
    """Threads that have a range of the open step."""
    SCRATCH = 5
    SCRATCH_BYTES = 6
    """Distance between the scratch memories of two threads."""
    DEADLINE = 7
    """In ns of `time.perf_counter_ns`, or 0. A run that ends clears it."""
    SYSTEM = 8
    GENERATION = 9
    """The number of the run: a worker that was leased for another one leaves."""
    LEADER_CPU = 10
    """Where the run's own thread was when it leased workers, or -1."""
    UNIT = 11
    """Tiles that are counted as one, so that a range's numbers fit."""
    CANCEL = 16
    EPOCH = 32
    """Changes when a step opens, its ranges written already, and when the run ends."""
    FINISHED = 48
    """Units of the open step that are done, or never will be."""
    LEADER_SLEEPS = 49
    SLEEPERS = 64
    """Workers that sleep on the epoch."""
    OUTCOME = 80
    STATUS = 81
    FIRST_RANGE = 96
    """The range of each thread of a run: epoch << 2 * RANGE_BITS | next << RANGE_BITS | end, in units."""
    RANGE_WORDS = 16

    @classmethod
    def size(cls, threads: int) -> int:
        """Words of a station for runs of so many threads."""
        return cls.FIRST_RANGE + cls.RANGE_WORDS * threads


RANGE_BITS = 18


class Team:
    """The count of workers; their blocks follow."""

    COUNT = 0
    FIRST = 16
    MOST_WORKERS = 1023
    SIZE = FIRST + 32 * MOST_WORKERS


class Worker:
    """A mailbox. `STATE` is IDLE, STOP, RESERVED, or a token: a station's address + LEASED or RUNNING."""

    STATE = 0
    GENERATION = 1
    INDEX = 2
    """Which of the context's scratch memories is this worker's."""
    STATION = 3
    SYSTEM = 4
    STOP = 5
    IDLE_SPIN = 6
    """ns to spin between runs before the worker sleeps."""
    RUN_SPIN = 7
    """ns to spin inside a run."""
    MASK = 8
    """Address of CPU_WORDS words with a bit for each CPU that the worker may run on, or 0."""
    THREAD = 9
    """The system's number of the worker's thread, or 0."""
    KEPT_AWAY = 10
    """1 where the worker may not run on the leader's CPU until it has started."""
    SLEEPING = 16
    SIZE = 32


CPU_WORDS = 16
"""Words of a set of CPUs, as Linux takes it."""
IDLE = 0
STOP = 1
RESERVED = 3
"""A run is about to write the mailbox."""
LEASED = 2
RUNNING = 6
"""Both are added to a multiple of 64: no token's low half, on which a worker sleeps, is 0."""


class System:
    """Addresses of the operating system's functions."""

    CLOCK = 0
    WAIT = 1
    WAKE = 2
    FREQUENCY = 3
    """Ticks of the clock in a second, where it does not count ns."""
    CURRENT_CPU = 4
    SET_AFFINITY = 5
    SIZE = 8
