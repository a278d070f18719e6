"""Run contexts: a program's state of one run, and the calls into the native executor."""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.runtime.executor import executor
from whet.runtime.layout import LEASED, Context, Station
from whet.runtime.loaded import LoadedProgram
from whet.runtime.memory import ALIGNMENT, Area, Words, aligned_words
from whet.runtime.program import DONE, Table
from whet.runtime.team import MOST_THREADS, team

_free_stations: defaultdict[int, deque[Words]] = defaultdict(deque)
"""By the number of threads that they have room for."""
_stations: list[Words] = []
"""Keeps every station for the life of the process: a late worker may still look at it."""


class RunContext:
    """One run at a time of a loaded program. Contexts are independent of each other, so runs need no lock.

    `threads` is the most threads of a run, the caller counted in. `arena` (another context's `arena`) is used instead
    of a new one where it is large enough; contexts that share one must not run at the same time. With `station`,
    another context's, this one runs as a part of that one's runs, on one thread (see `streams`).

    Time is that of `time.perf_counter_ns` (on Linux also `time.monotonic_ns`).
    """

    def __init__(
        self, loaded: LoadedProgram, threads: int, arena: Area | None = None, station: Words | None = None
    ) -> None:
        if not 1 <= threads <= MOST_THREADS:
            raise InvalidArgument("no such number of threads", found=threads, expected=f"1 to {MOST_THREADS}")
        native = executor()
        self._native_run, self._native_prepare = native.run, native.prepare
        self._threads = threads
        self._team = team()
        self._is_part = station is not None
        self._station = _take_station(int(native.system.ctypes.data), threads) if station is None else station
        if station is None:
            weakref.finalize(self, _free_stations[threads].append, self._station).atexit = False
        self.cancel_address: int = int(self._station.ctypes.data) + 8 * Station.CANCEL
        """Where an int64 other than 0 stops the run, from any thread, as long as the context lives.

        One that is written between two runs stops the next before its first row. A run that ends clears it.
        """
        self._block = aligned_words(Context.SIZE)
        self._address = ctypes.c_void_p(self._block.ctypes.data)
        self._block[Context.STATION] = self._station.ctypes.data
        self._block[Context.TOKEN] = self._station.ctypes.data + LEASED
        self._block[Context.TEAM] = self._team.address
        self._block[Context.THREADS] = threads
        self._arena = arena if arena is not None else Area(0)
        self._scratch = Area(0)
        self._generation: int | None = None
        self._attach()
        self.rebind(loaded)

    def rebind(self, loaded: LoadedProgram) -> None:
        """Go on with another program. Memory is kept where it is large enough."""
        program = loaded.program
        self._loaded = loaded
        self._words = program.words.copy()
        self._slots = program.slots.copy()
        bases = aligned_words(1 + program.inputs + program.outputs + program.weights)
        if self._arena.nbytes < program.arena_bytes:
            self._arena = Area(program.arena_bytes)
        stride = -(-program.scratch_bytes // ALIGNMENT) * ALIGNMENT
        if self._scratch.nbytes < stride * self._threads:
            self._scratch = Area(stride * self._threads)
        bases[0] = self._arena.address
        bases[1 + program.inputs + program.outputs :] = loaded.weights
        self._bases = bases
        start = int(bases.ctypes.data) + 8
        # Views of `bases`: to assign to a slice of ctypes' array is the fastest way from a sequence into memory.
        self._inputs: Any = (ctypes.c_int64 * program.inputs).from_address(start)
        self._outputs: Any = (ctypes.c_int64 * program.outputs).from_address(start + 8 * program.inputs)
        self._symbol_count = len(program.symbols)
        self._symbols: tuple[int, ...] | None = None
        block = self._block
        for position, table in loaded.tables:
            block[position] = table.ctypes.data
        block[Context.WORDS] = self._words.ctypes.data
        block[Context.SLOTS] = self._slots.ctypes.data
        block[Context.BASES] = bases.ctypes.data
        block[Context.ROW_COUNT] = len(program.rows)
        block[Context.IO_COUNT] = len(program.io_addresses)
        block[Context.SCRATCH] = self._scratch.address
        block[Context.PREPARED] = 0
        if not self._is_part:
            self._station[Station.SCRATCH] = self._scratch.address
            self._station[Station.SCRATCH_BYTES] = stride

    @property
    def block(self) -> Words:
        """The numbers by the positions of `layout.Context`."""
        return self._block

    @property
    def station(self) -> Words:
        """What workers of this context's runs look at."""
        return self._station

    @property
    def arena(self) -> Area:
        """The memory of the values between the steps."""
        return self._arena

    @property
    def scratch(self) -> Area:
        """The memory of the threads' kernels, one part for each thread."""
        return self._scratch

    @property
    def failed_row(self) -> int:
        """The row at which the last run that was not DONE stopped."""
        return int(self._block[Context.FAILED_ROW])

    @property
    def failed_status(self) -> int:
        """The status of the kernel that made the last run end with KERNEL_FAILED."""
        return int(self._block[Context.FAILED_STATUS])

    def prepare(self, symbols: Sequence[int]) -> int:
        """Give the program's symbols their numbers: DONE, or CHECK_FAILED where the program does not fit them.

        Does nothing where they are those of the last success and runs leave the slots as they are.
        """
        wanted = tuple(symbols)
        if wanted == self._symbols:
            return DONE
        if len(wanted) != self._symbol_count:
            raise InvalidArgument("not one number for each symbol", found=len(wanted), expected=self._symbol_count)
        self._slots[: len(wanted)] = wanted
        outcome = self._native_prepare(self._address)
        self._symbols = wanted if outcome == DONE and self._loaded.keeps_slots else None
        return outcome

    @property
    def slots(self) -> Words:
        """All slots, after `prepare` or `run`; of this context, so only to be read."""
        return self._slots

    @property
    def nbytes(self) -> int:
        """Bytes of the context's own memory, the arena left out."""
        station = 0 if self._is_part else self._station.nbytes
        return station + sum(a.nbytes for a in (self._words, self._slots, self._bases, self._block, self._scratch))

    def slot(self, index: int) -> int:
        """A slot's number, after `prepare` or `run`."""
        return int(self._slots[index])

    def run(
        self, inputs: Sequence[int], outputs: Sequence[int], deadline_ns: int = 0, timestamps: Table | None = None
    ) -> int:
        """Run the program on the memory at these addresses; how it ended (DONE, ...).

        CHECK_FAILED without a successful `prepare`. `deadline_ns` other than 0 is the time at which the run is to stop.
        `timestamps` (int64, [rows, 3]) gets each row's first start, its total duration (both in ns) and how often
        it was done; it must stay alive during the run.
        """
        if self._generation != self._team.generation:
            self._attach()
        try:
            self._inputs[:] = inputs
            self._outputs[:] = outputs
        except ValueError as error:
            raise InvalidArgument(
                "not one address for each input and output",
                found=f"{len(inputs)} and {len(outputs)}",
                expected=f"{len(self._inputs)} and {len(self._outputs)}",
            ) from error
        if deadline_ns:
            self._station[Station.DEADLINE] = deadline_ns
        if timestamps is not None:
            self.record(timestamps)
        return self._native_run(self._address)

    def record(self, timestamps: Table) -> None:
        """Let the next run, or what this context does of another's until then, leave its times."""
        self._block[Context.TIMESTAMPS] = self._checked(timestamps)

    def _checked(self, timestamps: Table) -> int:
        rows = len(self._loaded.program.rows)
        fits = timestamps.dtype == np.int64 and timestamps.shape == (rows, 3) and timestamps.flags.c_contiguous
        if not (fits and timestamps.flags.writeable):
            raise InvalidArgument(
                "no room for time stamps",
                found=f"{timestamps.dtype} {timestamps.shape}",
                expected=f"a writable contiguous int64 array ({rows}, 3)",
            )
        timestamps.fill(0)
        return int(timestamps.ctypes.data)

    def _attach(self) -> None:
        """See to it that the workers exist: at first, and in the child of a fork."""
        before, self._generation = self._generation, self._team.generation
        self._team.ensure(self._threads - 1)
        if before not in (None, self._generation):
            # In the child of a fork: whoever slept there is gone. Elsewhere a late worker may still count itself.
            self._station[Station.SLEEPERS] = 0


def _take_station(system: int, threads: int) -> Words:
    try:
        station = _free_stations[threads].pop()
    except IndexError:
        station = aligned_words(Station.size(threads))
        station[Station.SYSTEM] = system
        _stations.append(station)
    station[Station.CANCEL] = 0
    station[Station.DEADLINE] = 0
    return station
