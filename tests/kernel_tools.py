"""Runs kernels on numpy arrays for any target: on this machine where it can, else under user-mode QEMU."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet.codegen.function import Parameter
from whet.codegen.jit import Kernel, Library
from whet.codegen.lang import Source
from whet.codegen.module import Signature, compile_source
from whet.codegen.target import Target, host_target
from whet.dtypes import INT64, UINT8
from whet.kernels.base import STATUS_CODE_BITS, KernelCode, KernelSpec, build

Array = np.ndarray[Any, Any]

_SIGNATURE = Signature(
    (
        Parameter("words", INT64, 0, ""),
        Parameter("begin", INT64, None, ""),
        Parameter("end", INT64, None, ""),
        Parameter("scratch", UINT8, 0, ""),
    ),
    INT64,
)


@dataclass
class Run:
    """One use of a kernel: `words` by name (an array stands for its address), tiles 0 to `tiles`-1.

    The tiles are done in `calls` calls, the last ones first, as threads might do them. Arrays are written in place.
    """

    spec: KernelSpec
    words: Mapping[str, Array | int]
    tiles: int
    calls: int = 1


def run_kernel(target: Target, spec: KernelSpec, words: Mapping[str, Array | int], tiles: int, calls: int = 1) -> int:
    """Run one kernel; the status (0, or the first call's that failed)."""
    return run_kernels(target, [Run(spec, words, tiles, calls)])[0]


def run_kernels(target: Target, runs: Sequence[Run]) -> list[int]:
    """Run kernels in order; their statuses. Skips the test where the target cannot run here. One emulated program
    does all of `runs`, so that many cases in one call are much faster there."""
    if target.runs_on(host_target()):
        return [_run_here(target, r) for r in runs]
    if target.architecture == "aarch64":
        return _run_emulated(target, runs)
    pytest.skip(f"this CPU lacks {', '.join(target.features)}")


def code_and_element(status: int) -> tuple[int, int]:
    """A status taken apart: the code and the element's position."""
    return status & ((1 << STATUS_CODE_BITS) - 1), status >> STATUS_CODE_BITS


def compiled(spec: KernelSpec, target: Target) -> tuple[KernelCode, Kernel]:
    """A kernel that can be called on this machine: kernel(words_address, begin, end, scratch_address)."""
    code = build(spec, target)
    return code, _load(code.symbol, code.source)


@functools.lru_cache(maxsize=4096)
def _load(symbol: str, source: Source) -> Kernel:
    return Library(_object(source), source.target).kernel(symbol, _SIGNATURE)


@functools.lru_cache(maxsize=4096)
def _object(source: Source) -> bytes:
    return compile_source(source)


def ranges(tiles: int, calls: int) -> list[tuple[int, int]]:
    """The tiles cut into `calls` parts, last part first; empty parts stay."""
    edges = [tiles * i // calls for i in range(calls + 1)]
    return list(pairwise(edges))[::-1]


def word_values(code: KernelCode, words: Mapping[str, Array | int]) -> list[Array | int]:
    """The arguments in the kernel's order; extra names are refused, so that a test cannot pass by a misspelt word."""
    assert set(code.words) == set(words), f"the kernel wants {sorted(code.words)}, the test gives {sorted(words)}"
    return [words[name] for name in code.words]


def scratch_memory(code: KernelCode) -> Array:
    """Scratch memory as a kernel may find it: aligned, and full of rubbish."""
    room = np.full(code.scratch_bytes + 128, 0xA5, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + code.scratch_bytes + 64]


def _run_here(target: Target, run: Run) -> int:
    code, kernel = compiled(run.spec, target)
    values = [v.ctypes.data if isinstance(v, np.ndarray) else v for v in word_values(code, run.words)]
    words = np.array([v - (1 << 64) if v >= 1 << 63 else v for v in values] or [0], np.int64)
    scratch = scratch_memory(code)
    status = 0
    for begin, end in ranges(run.tiles, run.calls):
        scratch[:] = 0xA5
        status = status or kernel(words.ctypes.data, begin, end, scratch.ctypes.data)
    return int(status)


def _owner(array: Array) -> Array:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class _Memory:
    """Where the arrays of all runs lie in the emulated program: whole owners, so that views keep their strides."""

    def __init__(self) -> None:
        self.size = 0
        self.owners: dict[int, tuple[Array, int]] = {}

    def offset(self, array: Array) -> int:
        owner = _owner(array)
        if id(owner) not in self.owners:
            assert owner.flags.c_contiguous
            # As much out of alignment as in this process.
            self.size += owner.ctypes.data % 64
            self.owners[id(owner)] = (owner, self.size)
            self.size = -(-(self.size + owner.nbytes) // 64) * 64 + 64
        found, start = self.owners[id(owner)]
        return start + array.ctypes.data - found.ctypes.data

    def image(self) -> bytearray:
        image = bytearray(self.size)
        for owner, start in self.owners.values():
            image[start : start + owner.nbytes] = owner.tobytes()
        return image

    def read_back(self, image: bytes) -> None:
        for owner, start in self.owners.values():
            owner.reshape(-1).view(np.uint8)[:] = np.frombuffer(image[start : start + owner.nbytes], np.uint8)


def _run_emulated(target: Target, runs: Sequence[Run]) -> list[int]:
    tools = [shutil.which(name) for name in ("qemu-aarch64", "aarch64-linux-gnu-as", "aarch64-linux-gnu-ld")]
    if None in tools:
        pytest.skip("needs qemu-aarch64 and aarch64 binutils (Debian: qemu-user, binutils-aarch64-linux-gnu)")
    emulator, assembler, linker = tools
    memory = _Memory()
    data: list[str] = []
    text: list[str] = []
    scratch_bytes = 64
    statuses: list[Array] = []
    objects: dict[str, Source] = {}
    for number, run in enumerate(runs):
        code = build(run.spec, target)
        objects[code.symbol] = code.source
        scratch_bytes = max(scratch_bytes, code.scratch_bytes)
        values = word_values(code, run.words)
        quads = [f"memory + {memory.offset(v)}" if isinstance(v, np.ndarray) else str(v) for v in values]
        data += [f"words{number}:", *(f".quad {q}" for q in quads)]
        parts = ranges(run.tiles, run.calls)
        status = np.zeros(len(parts), np.int64)
        statuses.append(status)
        for index, (begin, end) in enumerate(parts):
            text += [
                f"ldr x0, =words{number}", f"ldr x1, ={begin}", f"ldr x2, ={end}", "ldr x3, =scratch",
                f"bl {code.symbol}", f"ldr x1, =memory + {memory.offset(status) + 8 * index}", "str x0, [x1]",
                "b 1f", ".ltorg", "1:",
            ]  # fmt: skip
    image = memory.image()
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for symbol, source in objects.items():
            files.append(Path(folder) / f"{symbol}.o")
            files[-1].write_bytes(_object(source))
        start_text, start, program = (Path(folder) / name for name in ("start.s", "start.o", "program"))
        start_text.write_text(_program(text, data, len(image), scratch_bytes))
        subprocess.run([assembler, "-o", start, start_text], check=True)
        subprocess.run([linker, "-static", "-o", program, start, *files], check=True)
        done = subprocess.run([emulator, program], input=bytes(image), stdout=subprocess.PIPE, check=True)
    assert len(done.stdout) == len(image)
    memory.read_back(done.stdout)
    return [int(next((s for s in status if s), 0)) for status in statuses]


def _program(calls: Sequence[str], data: Sequence[str], size: int, scratch_bytes: int) -> str:
    """A program without a C library: read all memory from standard input, make the calls, write it all back."""

    def move(system_call: int, file: int) -> list[str]:
        return [
            "ldr x19, =memory", f"ldr x20, =memory + {size}",
            f"1: mov x0, {file}", "mov x1, x19", "sub x2, x20, x19", f"mov x8, {system_call}", "svc 0",
            "cmp x0, 0", "b.le 9f", "add x19, x19, x0", "cmp x19, x20", "b.lo 1b", "b 2f", ".ltorg",
            "9: mov x0, 1", "mov x8, 93", "svc 0", "2:",
        ]  # fmt: skip

    body = [*move(63, 0), *calls, *move(64, 1), "mov x0, 0", "mov x8, 93", "svc 0"]
    memory = [".bss", ".balign 64", "memory:", f".skip {size}", ".balign 64", "scratch:", f".skip {scratch_bytes}"]
    return "\n".join([".text", ".global _start", "_start:", *body, ".data", ".balign 8", *data, *memory, ""])
