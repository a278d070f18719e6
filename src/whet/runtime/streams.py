"""Runs of a batch a sample at a time: each thread walks the whole program for samples of its own.

The threads meet once, at the end, and not at each step; and the values between the steps of a sample stay in the caches
of one core. An outer program of one step has the samples as its tiles; the step's kernel, `stream` of the executor,
walks the program of one sample in the calling thread's own context. All of them look at the outer run's station, so
that one cancel word and one deadline stop them all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np

from whet.errors import InvalidArgument
from whet.runtime import program as p
from whet.runtime.context import RunContext
from whet.runtime.executor import executor
from whet.runtime.layout import Context
from whet.runtime.loaded import LoadedProgram
from whet.runtime.memory import ALIGNMENT
from whet.runtime.program import Program, Table


class StreamContext:
    """One batch at a time of a program that is made for one sample."""

    def __init__(self, loaded: LoadedProgram, threads: int) -> None:
        program = loaded.program
        self._values = program.inputs + program.outputs
        self._outer = RunContext(LoadedProgram(_outer_program(program), [executor().stream], [], loaded), threads)
        self._loaded = loaded
        self.parts = [RunContext(loaded, 1, station=self._outer.station) for _ in range(threads)]
        """The contexts of the threads."""
        for index, part in enumerate(self.parts):
            place = self._outer.scratch.address + index * ALIGNMENT
            ctypes.c_int64.from_address(place).value = int(part.block.ctypes.data)
        self.cancel_address = self._outer.cancel_address
        """Where an int64 other than 0 stops the run, as in a RunContext."""
        self.failed: RunContext | None = None
        """The context in which the last run that was not DONE stopped."""
        self.failed_status = 0
        self.failed_sample = 0

    @property
    def arena_bytes(self) -> int:
        """Bytes of the values between the steps."""
        return sum(part.arena.nbytes for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of the contexts' own memory, the arenas left out."""
        return sum(context.nbytes for context in (self._outer, *self.parts))

    def prepare(self, symbols: Sequence[int]) -> int:
        """Give the program's symbols their numbers, those of one sample; an outcome as RunContext's."""
        for part in self.parts:
            outcome = part.prepare(symbols)
            if outcome != p.DONE:
                return outcome
        return p.DONE

    def run(
        self, samples: int, inputs: Sequence[int], outputs: Sequence[int], steps: Sequence[int],
        deadline_ns: int = 0, timestamps: Table | None = None,
    ) -> int:  # fmt: skip
        """Run the program on `samples` samples; how it ended (DONE, ...).

        `inputs` and `outputs` are the addresses of the first sample's values, `steps` the bytes from each of them to
        the next sample's, 0 for a value that all share. `timestamps` ([rows, 3], as RunContext's) gets the first start
        of each row, and the time of all threads together.
        """
        if len(steps) != self._values:
            raise InvalidArgument("not one step for each value", found=len(steps), expected=self._values)
        outcome = self._outer.prepare((samples, *steps))
        if outcome != p.DONE:
            return outcome
        stamps = [] if timestamps is None else [np.zeros_like(timestamps) for _ in self.parts]
        for part, own in zip(self.parts, stamps, strict=False):
            part.record(own)
        outcome = self._outer.run(inputs, outputs, deadline_ns)
        for part in self.parts:
            part.block[Context.TIMESTAMPS] = 0
        if timestamps is not None:
            merge(stamps, timestamps)
        return outcome if outcome == p.DONE else self._failure(outcome)

    def _failure(self, outcome: int) -> int:
        """How the threads ended: what a kernel had to say comes before a stop."""
        self.failed, self.failed_status = None, self._outer.failed_status
        ends = [(part, int(part.block[Context.OUTCOME])) for part in self.parts]
        for part in self.parts:
            part.block[Context.OUTCOME] = p.DONE
        # The status that stands is the first: a stop's where that came before a kernel's failure.
        failures = [end for end in ends if end[1] == p.KERNEL_FAILED and self.failed_status > 0]
        stops = [end for end in ends if end[1] in (p.CANCELLED, p.LATE)]
        for part, ended in (*failures, *stops):
            self.failed, self.failed_sample = part, int(part.block[Context.SAMPLE])
            return ended
        return outcome


def _outer_program(program: Program) -> Program:
    """One step, shared by the threads. Its symbols: the number of samples, and each value's step in bytes."""
    values = program.inputs + program.outputs
    symbols = ("samples", *(f"step {i}" for i in range(values)))
    empty = np.zeros((0, 4), np.int64)
    # Words: the samples, which are the tiles; the number of values; each one's address and step.
    rows = np.zeros((2, p.ROW_NUMBERS), np.int64)
    rows[0, :5] = p.EVALUATE, 0, 0, 0, values + 1
    rows[1, :6] = p.KERNEL, 0, 1, 0, 1, 0
    words = np.zeros(2 + 2 * values, np.int64)
    words[1] = values
    moves = [(0, 0), *((3 + 2 * i, 1 + i) for i in range(values))]
    addresses = [(2 + 2 * i, 1 + i, 0, -1) for i in range(values)]
    return Program(
        rows=rows, words=words, slots=np.zeros(len(symbols), np.int64), symbols=symbols, code=empty,
        moves=np.array(moves, np.int64), addresses=empty, io_addresses=np.array(addresses, np.int64).reshape(-1, 4),
        checks=np.zeros((0, 3), np.int64), kernels=("stream",), nodes=("the samples of a batch",),
        inputs=program.inputs, outputs=program.outputs, weights=0, arena_bytes=0, scratch_bytes=ALIGNMENT,
    )  # fmt: skip


def merge(stamps: Sequence[Table], into: Table) -> None:
    """Add time stamps of the same rows up, from the first start."""
    for own in stamps:
        done = own[:, 2] > 0
        first = done & ((into[:, 2] == 0) | (own[:, 0] < into[:, 0]))
        into[first, 0] = own[first, 0]
        into[done, 1:] += own[done, 1:]
