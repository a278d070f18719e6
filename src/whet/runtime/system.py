"""What the native executor needs of processor and operating system: clock, waiting, waking, pauses, rounding modes."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from whet.codegen.lang import Function, LanguageError, Module, Pointer, Value, convert
from whet.codegen.target import System as SystemName
from whet.dtypes import INT32, INT64, UINT8, UINT32, UINT64
from whet.runtime.layout import CPU_WORDS, Station, System

_FUTEX_NUMBER = {"x86_64": 202, "aarch64": 98}
_FUTEX_WAIT_PRIVATE = 128
_FUTEX_WAKE_PRIVATE = 129
_CLOCK_MONOTONIC = 1
_CLOCK_UPTIME_RAW = 8
"""macOS's name for the clock behind `time.perf_counter_ns`."""
_NS = 1_000_000_000

_MXCSR_DEFAULT = 0x1F80
_MXCSR_CONTROL = 0xFFC0
"""All but the sticky exception flags."""
_ISB_SY = 15


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """Functions of the module: `now(system)` in ns, `wait(system, address, expected)`, `wake(system, address)`.

    `wait` sleeps while the 32-bit word at `address` holds `expected`; it may return early. `wake` wakes all sleepers.
    """

    now: Function
    wait: Function
    wake: Function


def define_system_calls(module: Module) -> SystemCalls:
    """Write the functions for the module's target."""
    system = module.target.system
    with module.function("now", returns=INT64, internal=True) as now:
        _NOW[system](now, now.pointer("system", INT64, align=64))
    with module.function("wait", internal=True) as wait:
        block = wait.pointer("system", INT64, align=64)
        address = wait.pointer("address", INT32, align=4)
        _WAIT[system](wait, block, address, wait.argument("expected"))
    with module.function("wake", internal=True) as wake:
        block = wake.pointer("system", INT64, align=64)
        _WAKE[system](wake, block, wake.pointer("address", INT32, align=4))
    return SystemCalls(now, wait, wake)


def _now_posix(k: Function, system: Pointer) -> None:
    clock = _CLOCK_UPTIME_RAW if k.target.system == "macos" else _CLOCK_MONOTONIC
    time = k.stack_array(INT64, 2)
    k.call_address(system.load_pointer(UINT8, System.CLOCK), INT32, k.constant(INT32, clock), time)
    k.return_(time.load(0) * _NS + time.load(1))


def _now_windows(k: Function, system: Pointer) -> None:
    ticks = k.stack_array(INT64, 1)
    k.call_address(system.load_pointer(UINT8, System.CLOCK), INT32, ticks)
    count, frequency = ticks.load(0), system.load(System.FREQUENCY)
    k.return_(count / frequency * _NS + count % frequency * _NS / frequency)


def _futex(k: Function, function: Pointer, address: Pointer, operation: int, value: Value) -> None:
    number = k.constant(INT64, _FUTEX_NUMBER[k.target.architecture])
    zero = k.index(0)
    k.call_address(function, INT64, number, address, k.index(operation), value, zero, zero, zero)


def _wait_linux(k: Function, system: Pointer, address: Pointer, expected: Value) -> None:
    _futex(k, system.load_pointer(UINT8, System.WAIT), address, _FUTEX_WAIT_PRIVATE, expected & 0xFFFFFFFF)


def _wake_linux(k: Function, system: Pointer, address: Pointer) -> None:
    _futex(k, system.load_pointer(UINT8, System.WAKE), address, _FUTEX_WAKE_PRIVATE, k.index(0x7FFFFFFF))


def _wait_macos(k: Function, system: Pointer, address: Pointer, expected: Value) -> None:
    flags = k.constant(UINT32, 0)
    value = expected & 0xFFFFFFFF
    k.call_address(system.load_pointer(UINT8, System.WAIT), INT32, address, value, k.index(4), flags)


def _wake_macos(k: Function, system: Pointer, address: Pointer) -> None:
    k.call_address(system.load_pointer(UINT8, System.WAKE), INT32, address, k.index(4), k.constant(UINT32, 0))


def _wait_windows(k: Function, system: Pointer, address: Pointer, expected: Value) -> None:
    compared = k.stack_array(INT64, 1)
    compared.store(expected)
    forever = k.constant(UINT32, 0xFFFFFFFF)
    k.call_address(system.load_pointer(UINT8, System.WAIT), INT32, address, compared, k.constant(UINT64, 4), forever)


def _wake_windows(k: Function, system: Pointer, address: Pointer) -> None:
    k.call_address_void(system.load_pointer(UINT8, System.WAKE), address)


_NOW = {"linux": _now_posix, "macos": _now_posix, "windows": _now_windows}
_WAIT = {"linux": _wait_linux, "macos": _wait_macos, "windows": _wait_windows}
_WAKE = {"linux": _wake_linux, "macos": _wake_macos, "windows": _wake_windows}


def system_addresses(system: SystemName) -> list[int]:
    """The words of the System block in this process, which runs on `system`."""
    frequency = ctypes.c_int64(_NS)
    places: list[Any] = []
    if system == "linux":
        libc = ctypes.CDLL(None)
        functions = [libc.clock_gettime, libc.syscall, libc.syscall]
        places = [libc.sched_getcpu, libc.sched_setaffinity]
    elif system == "macos":
        libc = ctypes.CDLL(None)
        functions = [libc.clock_gettime, libc.os_sync_wait_on_address, libc.os_sync_wake_by_address_all]
    else:
        base = ctypes.CDLL("kernelbase.dll")
        functions = [base.QueryPerformanceCounter, base.WaitOnAddress, base.WakeByAddressAll]
        base.QueryPerformanceFrequency(ctypes.byref(frequency))
    first, last = ([ctypes.cast(f, ctypes.c_void_p).value or 0 for f in group] for group in (functions, places))
    block = [*first, frequency.value, *last]
    return [*block, *([0] * (System.SIZE - len(block)))]


def current_cpu(k: Function, station: Pointer) -> Value:
    """The CPU that the thread runs on, or -1 where the system does not tell."""
    if k.target.system != "linux":
        return k.index(-1)
    system = station.load_pointer(INT64, Station.SYSTEM)
    return convert(k.call_address(system.load_pointer(UINT8, System.CURRENT_CPU), INT32), INT64)


def set_affinity(k: Function, station: Pointer, thread: Value, cpus: Pointer) -> None:
    """Let a thread run on a set of CPU_WORDS words only; where the system does not know of that, nothing happens."""
    if k.target.system != "linux":
        return
    system = station.load_pointer(INT64, Station.SYSTEM)
    number, size = convert(thread, INT32), k.constant(UINT64, 8 * CPU_WORDS)
    k.call_address(system.load_pointer(UINT8, System.SET_AFFINITY), INT32, number, size, cpus)


def pause(k: Function) -> None:
    """Tell the processor that this is a waiting loop."""
    if k.target.architecture == "x86_64":
        k.intrinsic("llvm.x86.sse2.pause", "void", [])
    else:
        # `yield` does nothing on most cores; the barrier waits about as long as x86's pause.
        k.intrinsic("llvm.aarch64.isb", "void", [("i32", str(_ISB_SY))])


def set_float_defaults(k: Function) -> Value:
    """Round to nearest and keep denormals; the result is what was set before, for `restore_float_mode`."""
    if k.target.architecture != "x86_64":
        before = Value(k, INT64, 1, k.intrinsic("llvm.aarch64.get.fpcr", "i64", []))
        with k.when(before != 0):
            k.intrinsic("llvm.aarch64.set.fpcr", "void", [("i64", "0")])
        return before
    place = k.stack_array(INT32, 2)
    k.intrinsic("llvm.x86.sse.stmxcsr", "void", [("ptr", place.name)])
    before = place.load(0)
    with k.when((before & _MXCSR_CONTROL) != _MXCSR_DEFAULT):
        place.store(_MXCSR_DEFAULT, 1)
        k.intrinsic("llvm.x86.sse.ldmxcsr", "void", [("ptr", (place + 1).name)])
    return before


def restore_float_mode(k: Function, before: Value) -> None:
    """Undo `set_float_defaults`."""
    if k.target.architecture != "x86_64":
        with k.when(before != 0):
            k.intrinsic("llvm.aarch64.set.fpcr", "void", [("i64", before.name)])
        return
    if before.dtype is not INT32:
        raise LanguageError("not a mode that was read", found=before)
    with k.when((before & _MXCSR_CONTROL) != _MXCSR_DEFAULT):
        place = k.stack_array(INT32, 1)
        place.store(before)
        k.intrinsic("llvm.x86.sse.ldmxcsr", "void", [("ptr", place.name)])
