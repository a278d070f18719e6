"""Calls of a kernel under user-mode QEMU, all of them in one program.

The program is data: it reads an image of its memory, takes access away from guard pages and the right to write from
inputs (the table `protections`), makes the calls of a table, and writes the image back.
"""

from __future__ import annotations

import functools
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from whet.codegen.module import compile_source
from whet.kernels.base import KernelCode

from .call import Array, Call, Operand
from .layout import Mismatch, Variant, check_same, check_statuses, check_values, fill, start_of, taken, variants
from .memory import PAGE

if TYPE_CHECKING:
    from .case import Case, Result

_BASE = 0x200000000
"""Where the program's memory lies."""
_IMAGE_BYTES = 48 << 20
_TOOLS = ("qemu-aarch64", "aarch64-linux-gnu-as", "aarch64-linux-gnu-ld")
_SECONDS = 120.0
_HEADER = struct.Struct("<5q")
"""Bytes of the image; where the protections are and how many; where the calls are and how many."""

_PROGRAM = """
.text
.global _start
_start:
  ldr x0, ={base}
  ldr x1, ={size}
  mov x2, 3
  mov x3, 0x32           // private, fixed, anonymous
  mov x4, -1
  mov x5, 0
  mov x8, 222
  svc 0
  ldr x19, ={base}
  ldr x20, ={base} + {size}
1: mov x0, 0
  mov x1, x19
  sub x2, x20, x19
  mov x8, 63
  svc 0
  cmp x0, 0
  b.le 9f
  add x19, x19, x0
  cmp x19, x20
  b.lo 1b
  ldr x19, ={base}
  ldr x20, [x19, 8]
  ldr x21, [x19, 16]
  ldr x22, [x19, 24]
  ldr x23, [x19, 32]
2: cbz x21, 3f           // protections: address, length, access
  ldp x0, x1, [x20]
  ldr x2, [x20, 16]
  mov x8, 226
  svc 0
  cbnz x0, 9f
  add x20, x20, 24
  sub x21, x21, 1
  b 2b
3: cbz x23, 4f           // calls: words, begin, end, scratch, status
  ldp x0, x1, [x22]
  ldp x2, x3, [x22, 16]
  bl {symbol}
  str x0, [x22, 32]
  add x22, x22, 40
  sub x23, x23, 1
  b 3b
4: ldr x0, ={base}
  ldr x1, ={size}
  mov x2, 3
  mov x8, 226
  svc 0
  ldr x19, ={base}
  ldr x20, ={base} + {size}
5: mov x0, 1
  mov x1, x19
  sub x2, x20, x19
  mov x8, 64
  svc 0
  cmp x0, 0
  b.le 9f
  add x19, x19, x0
  cmp x19, x20
  b.lo 5b
  mov x0, 0
  b 8f
9: mov x0, 77
8: mov x8, 93
  svc 0
"""


@functools.cache
def available() -> bool:
    """Whether the emulator and the tools for its programs are here."""
    return all(shutil.which(name) for name in _TOOLS)


class Died(Exception):
    """The emulated program did not end well."""


@dataclass
class _Placed:
    """An operand in the image: its room (bytes), and where its elements start in that."""

    operand: Operand
    offset: int
    room: int
    start: int
    places: Array


@dataclass
class _Entry:
    """A variant of a call in the image."""

    number: int
    call: Call
    variant: Variant
    placed: list[_Placed]
    words: int
    scratch: tuple[int, int, int]
    calls: int


class _Image:
    """The memory of one program."""

    def __init__(self, code: KernelCode) -> None:
        self.code = code
        self.size = 0
        self.fills: list[tuple[int, Array]] = []
        self.protections: list[tuple[int, int, int]] = []
        self.entries: list[_Entry] = []
        self._guard()

    def _guard(self) -> None:
        self.protections.append((_BASE + self.size, PAGE, 0))
        self.size += PAGE

    def _room(self, size: int, read_only: bool) -> tuple[int, Array]:
        """(offset, memory) of whole pages, a guard page behind them."""
        room = max(-(-size // PAGE), 1) * PAGE
        offset = self.size
        self.size += room
        memory = np.empty(room, np.uint8)
        self.fills.append((offset, memory))
        if read_only:
            self.protections.append((_BASE + offset, room, 1))
        self._guard()
        return offset, memory

    def add(self, number: int, call: Call, variant: Variant) -> None:
        addresses: dict[int, int] = {}
        placed = []
        for operand in call.operands():
            places = operand.window.places() if operand.bytes else np.zeros(0, np.int64)
            offset, memory = self._room(operand.bytes, operand.role == "in")
            start = start_of(operand, variant.at_end, memory.size)
            fill(operand, memory, start, variant.poison, places)
            addresses[id(operand)] = _BASE + offset + start + operand.window.origin * operand.dtype.itemsize
            placed.append(_Placed(operand, offset, memory.size, start, places))
        words = [call.words[name] for name in self.code.words]
        values = np.array([addresses[id(w)] if isinstance(w, Operand) else w for w in words], np.int64)
        offset, memory = self._room(values.nbytes, True)
        at = memory.size - values.nbytes
        memory[:at] = variant.poison
        memory[at:] = values.view(np.uint8)
        scratch, room = self._room(self.code.scratch_bytes, False)
        room[:] = variant.poison
        start = room.size - self.code.scratch_bytes if variant.at_end else 0
        self.entries.append(_Entry(
            number, call, variant, placed, _BASE + offset + at, (scratch, room.size, start), len(variant.pieces)
        ))  # fmt: skip

    def bytes(self) -> tuple[Array, int]:
        """The image, and where its table of calls is."""
        protections = np.array(self.protections, np.int64)
        calls = np.array([
            (e.words, begin, end, _BASE + e.scratch[0] + e.scratch[2], 0) for e in self.entries
            for begin, end in e.variant.pieces
        ], np.int64)  # fmt: skip
        tables = PAGE + protections.nbytes + calls.nbytes
        # The header's page comes first, the tables last, behind everything that guard pages surround.
        total = -(-(PAGE + self.size + tables) // PAGE) * PAGE
        image = np.zeros(total, np.uint8)
        first = self.size
        image[first : first + protections.nbytes] = protections.reshape(-1).view(np.uint8)
        second = first + protections.nbytes
        image[second : second + calls.nbytes] = calls.reshape(-1).view(np.uint8)
        for offset, memory in self.fills:
            image[offset : offset + memory.size] = memory
        header = _HEADER.pack(total, _BASE + first, len(protections), _BASE + second, len(calls))
        image[: _HEADER.size] = np.frombuffer(header, np.uint8)
        return image, second


def run(
    case: Case, code: KernelCode, entries: int, result: Result, note: Callable[[int, int], None], only: int | None
) -> None:
    """Make calls until there were `entries` entries, in programs of some megabytes each."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = time.perf_counter()
        (Path(folder) / "kernel.o").write_bytes(compile_source(code.source))
        result.compile_seconds = time.perf_counter() - compiled
        number = 0 if only is None else only
        while result.calls < entries and not result.failures:
            image = _Image(code)
            numbers = []
            planned = result.calls
            while planned < entries and image.size < _IMAGE_BYTES:
                draw = case.draw(number)
                call = case.call(draw)
                if set(code.words) != set(call.words):
                    raise AssertionError(f"the kernel wants {code.words}, the call has {sorted(call.words)}")
                for variant in variants(draw, call):
                    image.add(number, call, variant)
                    planned += len(variant.pieces)
                numbers.append(number)
                number += 1
                if only is not None:
                    break
            note(numbers[0], 0)
            try:
                memory, statuses = _execute(Path(folder), code, image)
            except Died as problem:
                result.failures.append(_first_that_dies(Path(folder), case, code, numbers, problem))
                return
            _check(case, image, memory, statuses, result)
            result.calls = planned
            if only is not None:
                return


def _execute(folder: Path, code: KernelCode, image: _Image) -> tuple[Array, Array]:
    """(the image afterwards, the statuses)."""
    data, calls = image.bytes()
    text = _PROGRAM.format(base=_BASE, size=len(data), symbol=code.symbol)
    (folder / "start.s").write_text(text)
    emulator, assembler, linker = (str(shutil.which(name)) for name in _TOOLS)
    subprocess.run([assembler, "-o", folder / "start.o", folder / "start.s"], check=True)
    objects = [folder / "start.o", folder / "kernel.o"]
    subprocess.run([linker, "-static", "-o", folder / "program", *objects], check=True)
    data.tofile(folder / "image")
    with open(folder / "image", "rb") as given:
        try:
            done = subprocess.run(
                [emulator, folder / "program"], stdin=given, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                timeout=_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Died(f"no end within {_SECONDS:.0f} s") from None
    if done.returncode:
        name = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        raise Died(f"killed by {name}" if done.returncode < 0 else name)
    memory = np.frombuffer(bytearray(done.stdout), np.uint8)
    if memory.size != data.size:
        raise Died(f"{memory.size} bytes came back instead of {data.size}")
    count = sum(e.calls for e in image.entries)
    return memory, memory[calls : calls + 40 * count].view(np.int64).reshape(-1, 5)[:, 4]


def _check(case: Case, image: _Image, memory: Array, statuses: Array, result: Result) -> None:
    first = 0
    results: dict[int, dict[str, Array]] = {}
    for entry in image.entries:
        mine = statuses[first : first + entry.calls].tolist()
        first += entry.calls
        names = {id(word): name for name, word in entry.call.words.items() if isinstance(word, Operand)}
        try:
            check_statuses(entry.call, mine)
            offset, room, start = entry.scratch
            scratch = memory[offset : offset + room]
            scratch[start : start + image.code.scratch_bytes] = entry.variant.poison
            if np.any(scratch != entry.variant.poison):
                raise Mismatch("memory beside the scratch memory changed")
            found = {}
            for p in entry.placed:
                if p.operand.role != "in":
                    name = names[id(p.operand)]
                    part = memory[p.offset : p.offset + p.room]
                    found[name] = taken(name, p.operand, part, p.start, entry.variant.poison, p.places)
            if entry.call.fails:
                continue
            before = results.setdefault(entry.number, found)
            for p in entry.placed:
                if p.operand.role != "in":
                    name = names[id(p.operand)]
                    if before is not found:
                        check_same(name, p.operand, before[name], found[name])
                    check_values(name, p.operand, found[name])
        except Mismatch as problem:
            result.failures.append(f"{problem}\n{case.describe(entry.number)}")
            if len(result.failures) >= 3:
                return


def _first_that_dies(folder: Path, case: Case, code: KernelCode, numbers: list[int], problem: Died) -> str:
    """A report of the first call that ends the program when it is alone in it."""
    for number in numbers:
        draw = case.draw(number)
        call = case.call(draw)
        image = _Image(code)
        for variant in variants(draw, call):
            image.add(number, call, variant)
        try:
            _execute(folder, code, image)
        except Died as alone:
            return f"{alone}\n{case.describe(number)}"
    return f"{problem}, but no call alone does it: {numbers[0]} to {numbers[-1]}\n{case.describe(numbers[0])}"
