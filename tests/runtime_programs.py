"""Tiny programs, written by hand, for the tests of the native executor."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from whet.codegen.jit import Library
from whet.codegen.lang import convert
from whet.codegen.module import compile_source
from whet.codegen.target import host_target
from whet.dtypes import FLOAT32, INT64
from whet.kernels.base import BAD_VALUE, Frame, KernelSpec, build
from whet.runtime import program as table
from whet.runtime.context import RunContext
from whet.runtime.loaded import LoadedProgram
from whet.runtime.program import Program


@dataclass(frozen=True)
class Fill:
    """out[tile] = value + tile, after `work` rounds of arithmetic that the answer does not depend on."""

    work: int = 0

    def emit(self, frame: Frame) -> None:
        k = frame.k
        out, value = frame.address("out", INT64), frame.number("value")
        scratch = frame.scratch(INT64, 8)
        with frame.tiles() as tile:
            total = k.variable(value + tile)
            if self.work:
                # Through this thread's scratch memory: two threads that shared one would mix their numbers up.
                scratch.store(total.value)
                with k.loop(self.work):
                    scratch.store(scratch.load() * 3)
                    scratch.store(scratch.load() / 3)
                total.value = scratch.load()
            out.store(total.value, tile)


@dataclass(frozen=True)
class Count:
    """out[tile] += 1: whether each tile is done exactly once."""

    def emit(self, frame: Frame) -> None:
        out = frame.address("out", INT64)
        with frame.tiles() as tile:
            out.store(out.load(tile) + 1, tile)


@dataclass(frozen=True)
class Nothing:
    """Adds the number of its tiles to out[0], without looking at them."""

    def emit(self, frame: Frame) -> None:
        frame.address("out", INT64).atomic_add(frame.end - frame.begin, "monotonic")


@dataclass(frozen=True)
class Refuse:
    """Fails at each tile whose input is negative; the others are counted in out[0]."""

    def emit(self, frame: Frame) -> None:
        out, numbers = frame.address("out", INT64), frame.address("numbers", INT64)
        with frame.tiles() as tile:
            frame.fail_if(numbers.load(tile) < 0, BAD_VALUE, tile)
            out.atomic_add(1, "monotonic")


@dataclass(frozen=True)
class Halve:
    """out[tile] = a float32 smaller than every normal one, halved: 0 where denormals are flushed."""

    def emit(self, frame: Frame) -> None:
        out, source = frame.address("out", INT64), frame.address("source", FLOAT32)
        with frame.tiles() as tile, frame.k.loop(20_000):
            out.store(convert(source.load() * 0.5 > 0.0, INT64), tile)


_lock = threading.Lock()
_libraries: dict[KernelSpec, tuple[Library, str]] = {}


def address(spec: KernelSpec) -> int:
    """The code of a kernel; it stays for the life of the process."""
    with _lock:
        if spec not in _libraries:
            code = build(spec, host_target())
            _libraries[spec] = Library(compile_source(code.source), host_target()), code.symbol
        library, symbol = _libraries[spec]
    return library.address(symbol)


@dataclass
class Writer:
    """Collects a program's tables. Row 0 is `first`, the rest `rows`."""

    rows: list[list[int]] = field(default_factory=list)
    words: list[int] = field(default_factory=lambda: [0])
    slots: list[int] = field(default_factory=lambda: [0])
    symbols: tuple[str, ...] = ()
    code: list[list[int]] = field(default_factory=list)
    moves: list[list[int]] = field(default_factory=list)
    addresses: list[list[int]] = field(default_factory=list)
    io_addresses: list[list[int]] = field(default_factory=list)
    checks: list[list[int]] = field(default_factory=list)
    kernels: list[KernelSpec] = field(default_factory=list)
    inputs: int = 0
    outputs: int = 0
    weights: Sequence[int] = ()
    arena_bytes: int = 0
    scratch_bytes: int = 64
    first: list[int] | None = None
    """The ranges of row 0; everything if not given."""

    def program(self) -> Program:
        sizes = (len(self.code), len(self.moves), len(self.addresses), len(self.checks))
        ranges = self.first if self.first is not None else [n for size in sizes for n in (0, size)]
        rows = [[table.EVALUATE, *ranges], *self.rows]
        padded = [row + [0] * (table.ROW_NUMBERS - len(row)) for row in rows]
        return Program(
            rows=_table(padded, table.ROW_NUMBERS),
            words=np.array(self.words, np.int64),
            slots=np.array(self.slots, np.int64),
            symbols=self.symbols,
            code=_table(self.code, 4),
            moves=_table(self.moves, 2),
            addresses=_table(self.addresses, 4),
            io_addresses=_table(self.io_addresses, 4),
            checks=_table(self.checks, 3),
            kernels=tuple(str(spec) for spec in self.kernels),
            nodes=("node",),
            inputs=self.inputs,
            outputs=self.outputs,
            weights=len(self.weights),
            arena_bytes=self.arena_bytes,
            scratch_bytes=self.scratch_bytes,
        )

    def load(self) -> LoadedProgram:
        return LoadedProgram(self.program(), [address(spec) for spec in self.kernels], self.weights, None)

    def context(self, threads: int = 1) -> RunContext:
        return RunContext(self.load(), threads)


def one_kernel(spec: KernelSpec, tiles: int, shared: bool = True, steps: int = 1, value: int = 0) -> Writer:
    """`steps` rows of a kernel of (output, value) over `tiles` tiles."""
    return Writer(
        rows=[[table.KERNEL, 0, 0, 2, int(shared), 0]] * steps,
        words=[0, value, tiles],
        io_addresses=[[0, 1, 0, -1]],
        kernels=[spec],
        outputs=1,
    )


def _table(rows: list[list[int]], columns: int) -> table.Table:
    return np.array(rows, np.int64).reshape(-1, columns)
