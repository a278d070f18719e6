"""Runs functions of the kernel language: on this machine where it can, else as a program under user-mode QEMU."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet.codegen.jit import build
from whet.codegen.lang import Module
from whet.codegen.module import compile_source
from whet.codegen.target import AVX2, AVX512, NEON, Target, host_target

Argument = np.ndarray[Any, Any] | int | float
TARGETS = [pytest.param(AVX512, id="avx512"), pytest.param(AVX2, id="avx2"), pytest.param(NEON, id="neon")]


@dataclass
class Call:
    """A function to call; arrays are passed by address and written in place."""

    name: str
    arguments: Sequence[Argument]


def run(module: Module, calls: Sequence[Call]) -> None:
    """Make the calls in order. Skips the test where the module's target cannot run here."""
    target = module.target
    if target.runs_on(host_target()):
        kernels = build(module)
        for call in calls:
            kernels[call.name](*(a.ctypes.data if isinstance(a, np.ndarray) else a for a in call.arguments))
    elif target.architecture == "aarch64":
        _run_emulated(module, calls)
    else:
        pytest.skip(f"this CPU lacks {', '.join(target.features)}")


def aligned(array: np.ndarray[Any, Any], bytes_: int = 64) -> np.ndarray[Any, Any]:
    """A copy that starts at a multiple of `bytes_`."""
    room = np.zeros(array.nbytes + bytes_, np.uint8)
    start = -room.ctypes.data % bytes_
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def elementwise(
    target: Target, functions: dict[str, Callable[..., Any]], dtypes: dict[str, Sequence[Any]], lanes: dict[str, int]
) -> Module:
    """A module with a loop for each of `functions` over arrays of dtypes[name] (inputs, then the output)."""
    module = Module(target)
    for name, function in functions.items():
        with module.function(name) as k:
            pointers = [k.pointer(f"p{i}", dtype) for i, dtype in enumerate(dtypes[name])]
            with k.loop(k.argument("count"), step=lanes[name]) as i:
                result = function(*(p.load(i, lanes[name]) for p in pointers[:-1]))
                pointers[-1].store(result, i)
    return module


def _run_emulated(module: Module, calls: Sequence[Call]) -> None:
    tools = [shutil.which(name) for name in ("qemu-aarch64", "aarch64-linux-gnu-as", "aarch64-linux-gnu-ld")]
    if None in tools:
        pytest.skip("needs qemu-aarch64 and aarch64 binutils (Debian: qemu-user, binutils-aarch64-linux-gnu)")
    emulator, assembler, linker = tools
    offsets: dict[int, int] = {}
    arrays: list[np.ndarray[Any, Any]] = []
    size = 0
    for call in calls:
        for argument in call.arguments:
            if isinstance(argument, np.ndarray) and id(argument) not in offsets:
                offsets[id(argument)] = size
                arrays.append(argument)
                size += -(-argument.nbytes // 64) * 64
    with tempfile.TemporaryDirectory() as folder:
        text, start, code, program = (Path(folder) / name for name in ("start.s", "start.o", "code.o", "program"))
        text.write_text(_start_text(calls, offsets, size))
        code.write_bytes(compile_source(module.source()))
        subprocess.run([assembler, "-o", start, text], check=True)
        subprocess.run([linker, "-static", "-o", program, start, code], check=True)
        memory = bytearray(size)
        for array in arrays:
            at = offsets[id(array)]
            memory[at : at + array.nbytes] = array.tobytes()
        done = subprocess.run([emulator, program], input=bytes(memory), stdout=subprocess.PIPE, check=True)
    assert len(done.stdout) == size
    for array in arrays:
        at = offsets[id(array)]
        array[...] = np.frombuffer(done.stdout[at : at + array.nbytes], array.dtype).reshape(array.shape)


def _start_text(calls: Sequence[Call], offsets: dict[int, int], size: int) -> str:
    """A program without a C library: read all memory from standard input, make the calls, write it all back."""
    lines = []
    for call in calls:
        for register, argument in enumerate(call.arguments):
            if isinstance(argument, np.ndarray):
                lines += [f"ldr x{register}, =memory + {offsets[id(argument)]}"]
            else:
                assert isinstance(argument, int), "the emulated calls pass addresses and integers"
                lines += [f"ldr x{register}, ={argument}"]
        # Constants are placed between the calls, near enough for `ldr`.
        lines += [f"bl {call.name}", "b 1f", ".ltorg", "1:"]

    def move(system_call: int, file: int) -> list[str]:
        return [
            "ldr x19, =memory", f"ldr x20, =memory + {size}",
            f"1: mov x0, {file}", "mov x1, x19", "sub x2, x20, x19", f"mov x8, {system_call}", "svc 0",
            "cmp x0, 0", "b.le 9f", "add x19, x19, x0", "cmp x19, x20", "b.lo 1b", "b 2f", ".ltorg",
            "9: mov x0, 1", "mov x8, 93", "svc 0", "2:",
        ]  # fmt: skip

    body = [*move(63, 0), *lines, *move(64, 1), "mov x0, 0", "mov x8, 93", "svc 0"]
    return "\n".join(
        [".text", ".global _start", "_start:", *body, ".bss", ".balign 64", "memory:", f".skip {size}", ""]
    )
