"""The native executor: slot code, control rows, errors, stops, threads, forks; programs written by hand."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from tests.runtime_programs import Count, Fill, Halve, Nothing, Refuse, Writer, one_kernel
from whet.codegen.jit import Kernel, build
from whet.codegen.lang import Module
from whet.codegen.module import compile_source
from whet.codegen.target import AVX2, NEON, Target, host_target
from whet.dtypes import INT32
from whet.errors import InvalidArgument
from whet.kernels.base import BAD_VALUE, STATUS_CODE_BITS
from whet.runtime.context import RunContext
from whet.runtime.executor import executor
from whet.runtime.layout import IDLE, Worker
from whet.runtime.program import (
    ADD,
    CANCELLED,
    CHECK_FAILED,
    COPY,
    DONE,
    EVALUATE,
    FLOOR_DIVIDE,
    JUMP,
    JUMP_IF_ZERO,
    KERNEL,
    KERNEL_FAILED,
    LATE,
    LOAD_BOOL,
    LOAD_INT32,
    LOAD_INT64,
    LOAD_SLOT,
    MAXIMUM,
    MINIMUM,
    MULTIPLY,
    SUBTRACT,
)  # fmt: skip
from whet.runtime.team import team
from whet.runtime.walker import executor_module

STOP_SECONDS = 5.0
"""Far above any stop on a busy machine, far below the programs that are stopped."""
ENDLESS = Fill(work=200_000)


def _out(count: int = 1) -> np.ndarray:
    return np.zeros(count, np.int64)


def _floor_divide(a: int, b: int) -> int:
    return a // b if b else 0


OPERATIONS = {
    ADD: lambda a, b: a + b,
    SUBTRACT: lambda a, b: a - b,
    MULTIPLY: lambda a, b: a * b,
    FLOOR_DIVIDE: _floor_divide,
    MINIMUM: min,
    MAXIMUM: max,
    COPY: lambda a, b: a,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_slot_code(operation: int) -> None:
    context = Writer(slots=[0, 0, 0], symbols=("a", "b"), code=[[operation, 2, 0, 1]]).context()
    for a in (-7, -6, -1, 0, 1, 6, 7, 2**40):
        for b in (-3, -1, 0, 1, 3, 2**20):
            assert context.prepare((a, b)) == DONE
            assert context.slot(2) == OPERATIONS[operation](a, b), (a, b)


def test_copy_does_not_look_at_its_second_operand() -> None:
    context = Writer(slots=[0, 0], symbols=("a",), code=[[COPY, 1, 0, 1 << 60]]).context()
    assert (context.prepare((5,)), context.slot(1)) == (DONE, 5)


def test_division_of_the_smallest_number_does_not_trap() -> None:
    context = Writer(slots=[0, 0, 0], symbols=("a", "b"), code=[[FLOOR_DIVIDE, 2, 0, 1]]).context()
    assert context.prepare((-(2**63), -1)) == DONE
    assert context.slot(2) == -(2**63)


def test_moves_addresses_and_weights() -> None:
    """out[slot..] gets weight's number, moved words and constants in place."""
    out, weight = _out(8), np.arange(4, dtype=np.int64)
    writer = Writer(
        rows=[[KERNEL, 0, 0, 2, 0, 0], [KERNEL, 0, 3, 5, 0, 0], [LOAD_SLOT, 3, 6, LOAD_INT64, 0]],
        words=[0, 0, 2, 0, 100, 1, 0],
        slots=[0, 0, 8, 0],
        symbols=("n", "value"),
        code=[[MULTIPLY, 0, 0, 2]],
        moves=[[1, 1]],
        addresses=[[3, 0, 64, 0], [6, 2, 8, 0]],
        io_addresses=[[0, 1, 8, 0]],
        kernels=[Fill()],
        outputs=1,
        weights=[weight.ctypes.data],
        arena_bytes=256,
    )
    context = writer.context()
    assert context.prepare((2, 40)) == DONE
    assert context.run([], [out.ctypes.data]) == DONE
    assert out.tolist() == [0, 0, 0, 40, 41, 0, 0, 0]  # from byte 8 + 2*8 on
    arena = (ctypes.c_int64 * 32).from_address(context.arena.address)
    assert (arena[9], arena[10], arena[11]) == (0, 100, 0)  # byte 64 + 2*8
    assert context.slot(3) == 3  # byte 8 + 2*8 of the weight


def test_inputs_and_outputs_keep_their_order() -> None:
    numbers, out = np.array([1, 2, -3, 4], np.int64), _out()
    writer = Writer(
        rows=[[KERNEL, 0, 0, 2, 0, 0]], words=[0, 0, 2], io_addresses=[[0, 2, 0, -1], [1, 1, 0, -1]],
        kernels=[Refuse()], inputs=1, outputs=1,
    )  # fmt: skip
    context = writer.context()
    context.prepare(())
    assert context.run([numbers.ctypes.data], [out.ctypes.data]) == DONE
    assert out[0] == 2
    assert context.run([numbers.ctypes.data + 8], [out.ctypes.data]) == KERNEL_FAILED
    with pytest.raises(InvalidArgument, match="0 and 1"):
        context.run([], [out.ctypes.data])


def test_checks_bound_the_slots_and_an_unprepared_program_does_not_run() -> None:
    writer = one_kernel(Fill(), 1, value=3)
    writer.slots, writer.symbols, writer.checks = [0], ("n",), [[0, 2, 5]]
    out, context = _out(), writer.context()
    assert context.run([], [out.ctypes.data]) == CHECK_FAILED
    for number, outcome in ((2, DONE), (1, CHECK_FAILED), (5, DONE), (6, CHECK_FAILED)):
        out[0] = -1
        assert context.prepare([number]) == outcome
        assert context.run([], [out.ctypes.data]) == outcome
        assert out[0] == (3 if outcome == DONE else -1)
    with pytest.raises(InvalidArgument, match="found: 2; expected: 1"):
        context.prepare((1, 2))


def _loop_writer() -> Writer:
    """sum = 0; i = n; while i != 0: out[0] = value..., sum += i, i -= 1."""
    return Writer(
        rows=[
            [JUMP_IF_ZERO, 5, 1],
            [EVALUATE, 2, 4, 0, 1, 0, 0, 0, 0],
            [KERNEL, 0, 0, 2, 0, 0],
            [JUMP, 1],
        ],
        words=[0, 0, 1],
        slots=[0, 0, 0, 1, 0],
        symbols=("n",),
        code=[[COPY, 1, 0, 0], [COPY, 2, 4, 0], [ADD, 2, 2, 1], [SUBTRACT, 1, 1, 3]],
        moves=[[1, 2]],
        io_addresses=[[0, 1, 0, -1]],
        kernels=[Fill()],
        outputs=1,
        first=[0, 2, 0, 1, 0, 0, 0, 0],
    )


def test_loops_start_afresh_in_every_run() -> None:
    out, context = _out(), _loop_writer().context()
    for n in (4, 4, 0, 100):
        out[0] = -1
        assert context.prepare((n,)) == DONE
        assert context.run([], [out.ctypes.data]) == DONE
        assert out[0] == (n * (n + 1) // 2 if n else -1)
        assert context.slot(2) == n * (n + 1) // 2


@pytest.mark.parametrize(
    ("kind", "memory", "number"),
    [
        (LOAD_INT64, np.array([-(2**40)], np.int64), -(2**40)),
        (LOAD_INT32, np.array([-5, 77], np.int32), -5),
        (LOAD_BOOL, np.array([2, 255], np.uint8), 1),
        (LOAD_BOOL, np.array([0, 255], np.uint8), 0),
    ],
)
def test_slots_from_memory(kind: int, memory: np.ndarray, number: int) -> None:
    writer = Writer(rows=[[LOAD_SLOT, 0, 0, kind, 0]], slots=[9], io_addresses=[[0, 1, 0, -1]], inputs=1)
    context = writer.context()
    context.prepare(())
    assert context.run([memory.ctypes.data], []) == DONE
    assert context.slot(0) == number


def test_a_failed_check_in_the_middle_ends_the_run() -> None:
    writer = one_kernel(Fill(), 1)
    writer.slots, writer.symbols, writer.checks = [0], ("n",), [[0, 0, 1]]
    writer.first = [0] * 8
    writer.rows = [[EVALUATE, 0, 0, 0, 0, 0, 0, 0, 1], *writer.rows]
    out, context = np.full(1, -1, np.int64), writer.context()
    assert context.prepare((2,)) == DONE
    assert context.run([], [out.ctypes.data]) == CHECK_FAILED
    assert (context.failed_row, out[0]) == (1, -1)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_an_error_names_its_row_and_status(threads: int) -> None:
    numbers, out = np.zeros(1000, np.int64), _out()
    writer = Writer(
        rows=[[KERNEL, 0, 0, 2, 1, 0]] * 4, words=[0, 0, 1000], io_addresses=[[0, 2, 0, -1], [1, 1, 0, -1]],
        kernels=[Refuse()], inputs=1, outputs=1,
    )  # fmt: skip
    context = writer.context(threads)
    context.prepare(())
    assert context.run([numbers.ctypes.data], [out.ctypes.data]) == DONE
    assert out[0] == 4000
    numbers[700] = -1
    for _ in range(200):
        out[0] = 0
        assert context.run([numbers.ctypes.data], [out.ctypes.data]) == KERNEL_FAILED
        assert context.failed_row == 1
        assert context.failed_status == (700 << STATUS_CODE_BITS) | BAD_VALUE
        assert out[0] < 1000
    numbers[700], numbers[0] = 0, -1
    done = []
    for _ in range(200):
        out[0] = 0
        assert context.run([numbers.ctypes.data], [out.ctypes.data]) == KERNEL_FAILED
        done.append(int(out[0]))
    assert min(done) < 500  # the first tile's error keeps others from starting
    numbers[0] = out[0] = 0
    assert context.run([numbers.ctypes.data], [out.ctypes.data]) == DONE
    assert (out[0], context.failed_status) == (4000, 0)


def test_steps_without_tiles_do_nothing() -> None:
    out = np.full(1, -1, np.int64)
    for tiles in (0, -3):
        context = one_kernel(Fill(), tiles).context(2)
        context.prepare(())
        assert context.run([], [out.ctypes.data]) == DONE
        assert out[0] == -1


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("tiles", [2, 3, 17, 64, 1001, 20_000])
def test_every_tile_is_done_once(tiles: int, threads: int) -> None:
    out, context = _out(tiles + 1), one_kernel(Count(), tiles, steps=5).context(threads)
    context.prepare(())
    for _ in range(20):
        assert context.run([], [out.ctypes.data]) == DONE
    assert (out[:-1] == 100).all()
    assert out[-1] == 0


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_answers_do_not_depend_on_the_threads(threads: int) -> None:
    tiles = 300
    out, context = _out(tiles), one_kernel(Fill(work=300), tiles, steps=3, value=5).context(threads)
    context.prepare(())
    for _ in range(30):
        out.fill(0)
        assert context.run([], [out.ctypes.data]) == DONE
        assert (out == np.arange(tiles) + 5).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_more_tiles_than_32_bits_hold(threads: int) -> None:
    tiles = 2**33 + 7
    out, context = _out(), one_kernel(Nothing(), tiles).context(threads)
    context.prepare(())
    assert context.run([], [out.ctypes.data]) == DONE
    assert out[0] == tiles


def _write(address: int, number: int) -> None:
    ctypes.c_int64.from_address(address).value = number


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("tiles", [3, 100_000])
def test_a_run_can_be_cancelled(threads: int, tiles: int) -> None:
    """Minutes of work, in one step of many tiles or in many steps of few."""
    steps = 200_000 // tiles + 1
    out, context = _out(tiles), one_kernel(ENDLESS, tiles, steps=steps).context(threads)
    context.prepare(())
    timer = threading.Timer(0.05, _write, (context.cancel_address, 1))
    timer.start()
    start = time.perf_counter()
    assert context.run([], [out.ctypes.data]) == CANCELLED
    assert time.perf_counter() - start < STOP_SECONDS
    timer.join()
    context.rebind(one_kernel(Fill(), 1, value=4).load())
    context.prepare(())
    assert context.run([], [out.ctypes.data]) == DONE
    assert out[0] == 4


def test_a_run_that_is_cancelled_before_it_starts_does_nothing() -> None:
    out, context = np.full(1, -1, np.int64), one_kernel(Fill(), 1).context()
    context.prepare(())
    _write(context.cancel_address, 1)
    assert context.run([], [out.ctypes.data]) == CANCELLED
    assert (context.failed_row, out[0]) == (1, -1)
    assert context.run([], [out.ctypes.data]) == DONE
    assert out[0] == 0


def test_a_loop_without_kernels_can_be_cancelled() -> None:
    context = Writer(rows=[[JUMP, 1]]).context()
    context.prepare(())
    timer = threading.Timer(0.05, _write, (context.cancel_address, 1))
    timer.start()
    assert context.run([], []) == CANCELLED
    timer.join()


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("tiles", [3, 100_000])
def test_a_run_ends_at_its_deadline(threads: int, tiles: int) -> None:
    steps = 200_000 // tiles + 1
    out, context = _out(tiles), one_kernel(ENDLESS, tiles, steps=steps).context(threads)
    context.prepare(())
    start = time.perf_counter()
    assert context.run([], [out.ctypes.data], deadline_ns=time.perf_counter_ns() + 50_000_000) == LATE
    assert 0.05 <= time.perf_counter() - start < STOP_SECONDS
    assert context.run([], [out.ctypes.data], deadline_ns=1) == LATE
    context.rebind(one_kernel(Fill(), 1).load())
    context.prepare(())
    assert context.run([], [out.ctypes.data]) == DONE  # the deadline was for one run


def test_time_stamps() -> None:
    out, context = _out(), _loop_writer().context()
    stamps = np.full((5, 3), 99, np.int64)
    context.prepare((4,))
    before = time.perf_counter_ns()
    assert context.run([], [out.ctypes.data], timestamps=stamps) == DONE
    after = time.perf_counter_ns()
    assert stamps[:, 2].tolist() == [0, 5, 4, 4, 4]
    assert stamps[0].tolist() == [0, 0, 0]
    assert (stamps[1:, 0] >= before).all()
    assert (np.diff(stamps[1:, 0]) >= 0).all()
    assert 0 < stamps[1:, 1].sum() <= after - before
    kept = stamps.copy()
    context.prepare((4,))
    context.run([], [out.ctypes.data])
    assert (stamps == kept).all()  # they were for one run
    with pytest.raises(InvalidArgument, match=r"\(5, 3\)"):
        context.run([], [out.ctypes.data], timestamps=stamps[:4])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_contexts_run_side_by_side(threads: int) -> None:
    """Thousands of short runs on four Python threads that fight for the same workers."""
    tiles = 24
    wrong: list[object] = []

    def work(seed: int) -> None:
        out = _out(tiles)
        context = one_kernel(Fill(work=20), tiles, steps=3, value=seed).context(threads)
        context.prepare(())
        expected = np.arange(tiles) + seed
        for _ in range(3000):
            out.fill(-1)
            outcome = context.run([], [out.ctypes.data])
            if outcome != DONE or not (out == expected).all():
                wrong.append((outcome, out.copy()))
                return

    runners = [threading.Thread(target=work, args=(1000 * i,)) for i in range(4)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert wrong == []


def test_contexts_that_come_and_go_reuse_stations() -> None:
    """A late worker of a dead context meets the station under its next owner."""
    for seed in range(400):
        tiles = 40
        out, context = _out(tiles), one_kernel(Fill(work=50), tiles, value=seed).context(4)
        context.prepare(())
        assert context.run([], [out.ctypes.data]) == DONE
        assert (out == np.arange(tiles) + seed).all()


def test_a_run_does_not_wait_for_busy_workers() -> None:
    """All workers are held by an endless run; another run is done without them."""
    tiles = 100_000
    busy = one_kernel(ENDLESS, tiles).context(max(2, team().workers + 1))
    busy.prepare(())
    out, outcomes = _out(tiles), []
    runner = threading.Thread(target=lambda: outcomes.append(busy.run([], [out.ctypes.data])))
    runner.start()
    while not (out[1 : tiles // 2].any()):
        time.sleep(0.001)
    small, context = _out(100), one_kernel(Fill(), 100, value=1).context(2)
    context.prepare(())
    for _ in range(50):
        assert context.run([], [small.ctypes.data]) == DONE
    assert (small == np.arange(100) + 1).all()
    assert runner.is_alive()
    _write(busy.cancel_address, 1)
    runner.join()
    assert outcomes == [CANCELLED]


def _idle_again() -> bool:
    """Whether all workers wait for a run before long."""
    crew, end = team(), time.monotonic() + STOP_SECONDS
    while time.monotonic() < end:
        if all(int(crew.mailbox(i)[Worker.STATE]) == IDLE for i in range(crew.workers)):
            return True
        time.sleep(0.001)
    return False


def test_workers_come_back_from_a_run_that_they_slept_through() -> None:
    """The second step is not shared and takes longer than workers spin; nothing is published behind it."""
    writer = one_kernel(Fill(work=1000), 40)
    writer.rows.append([KERNEL, 0, 0, 3, 0, 0])
    writer.words.append(1000)
    out, context = _out(1000), writer.context(4)
    context.prepare(())
    for _ in range(5):
        assert context.run([], [out.ctypes.data]) == DONE
        assert _idle_again()


def _float_mode() -> tuple[Kernel, Kernel]:
    """Functions that read and set this thread's x86 control register."""
    module = Module(host_target())
    with module.function("read", returns=INT32) as k:
        place = k.stack_array(INT32, 1)
        k.intrinsic("llvm.x86.sse.stmxcsr", "void", [("ptr", place.name)])
        k.return_(place.load())
    with module.function("set") as k:
        place = k.stack_array(INT32, 1)
        place.store(k.argument("mode", INT32))
        k.intrinsic("llvm.x86.sse.ldmxcsr", "void", [("ptr", place.name)])
    made = build(module)
    return made["read"], made["set"]


def _halve_under_flushing(threads: int, runs: int) -> None:
    """Halve denormals while the caller's mode flushes them to zero: run after run every one must stay."""
    source, tiles = np.array([4], np.uint32).view(np.float32), 500
    writer = one_kernel(Halve(), tiles)
    writer.io_addresses = [[0, 2, 0, -1], [1, 1, 0, -1]]
    writer.inputs = 1
    read, change = _float_mode()
    flushing, before = 0x9FC0, read()
    change(flushing)
    try:
        context = writer.context(threads)
        context.prepare(())
        for _ in range(runs):
            out = np.zeros(tiles, np.int64)
            outcome, after = context.run([source.ctypes.data], [out.ctypes.data]), read()
            assert (outcome, after & 0xFFC0) == (DONE, flushing)
            assert out.all()
    finally:
        change(before)


needs_x86 = pytest.mark.skipif(host_target().architecture != "x86_64", reason="sets x86's control register")


@needs_x86
def test_denormals_are_kept_whatever_the_caller_has_set() -> None:
    _halve_under_flushing(threads=1, runs=1)


@needs_x86
def test_workers_do_not_inherit_the_mode_in_which_they_start() -> None:
    """In a process of its own, whose first worker starts under a caller that flushes denormals."""
    _in_process("from tests.test_runtime_executor import _halve_under_flushing as f; f(2, 20); print('fine')", ["fine"])


def _in_process(script: str, lines: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    )  # fmt: skip
    assert (done.returncode, done.stdout.splitlines()) == (0, lines), done.stderr


def test_rebinding_keeps_memory_that_is_large_enough() -> None:
    writer = one_kernel(Fill(), 1, value=1)
    writer.arena_bytes = 1000
    context = writer.context()
    arena = context.arena
    assert arena.address % 64 == 0
    writer.arena_bytes, writer.words[1] = 900, 2
    context.rebind(writer.load())
    assert context.arena is arena
    out = _out()
    assert context.run([], [out.ctypes.data]) == CHECK_FAILED  # not yet prepared
    context.prepare(())
    assert context.run([], [out.ctypes.data]) == DONE
    assert out[0] == 2
    writer.arena_bytes = 2000
    context.rebind(writer.load())
    assert context.arena.nbytes == 2000
    assert RunContext(writer.load(), 1, arena=context.arena).arena is context.arena


def test_workers_beyond_the_budget_never_spin() -> None:
    one_kernel(Fill(), 1).context(8)
    crew = team()
    crew.set_idle_spin(150_000)  # a session for throughput, in another test, may have switched it off
    assert crew.workers >= 7
    spins = [int(crew.mailbox(i)[Worker.IDLE_SPIN]) for i in range(crew.workers)]
    assert all(spins[: crew.spinning])
    assert not any(spins[crew.spinning :])
    crew.set_idle_spin(0)
    assert not any(int(crew.mailbox(i)[Worker.IDLE_SPIN]) for i in range(crew.workers))
    crew.set_idle_spin(150_000)


@pytest.mark.parametrize(
    "target", [NEON, replace(NEON, system="macos"), replace(AVX2, system="windows"), AVX2], ids=lambda t: t.triple
)
def test_the_executor_stands_alone_on_every_target(target: Target) -> None:
    assert compile_source(executor_module(target).source())


def test_the_executor_is_made_once() -> None:
    assert executor() is executor()


FORK = """
import atexit, ctypes, os, signal, sys, threading, time
import numpy as np

def workers():
    return [t.name for t in threading.enumerate() if t.name.startswith("whet-")]

atexit.register(lambda: print("left:", workers()))  # runs behind the team's own handler
from tests.runtime_programs import Fill, one_kernel
from whet.runtime.team import team

def check(context):
    out = np.zeros(400, np.int64)
    for _ in range(50):
        out.fill(0)
        assert context.run([], [out.ctypes.data]) == 0
        assert (out == np.arange(400) + 9).all()

context = one_kernel(Fill(work=50), 400, value=9).context(3)
context.prepare(())
check(context)
assert len(workers()) == 2
out = np.zeros(100_000, np.int64)
endless = one_kernel(Fill(work=200_000), 100_000).context(3)
endless.prepare(())
runner = threading.Thread(target=endless.run, args=([], [out.ctypes.data]), daemon=True)
runner.start()
while not all(team().mailbox(i)[0] for i in range(2)):
    time.sleep(0.001)
child = os.fork()
if child == 0:
    assert team().workers == 0
    check(context)
    assert team().workers == len(workers()) == 2
    end = time.monotonic() + 5
    while any(team().mailbox(i)[0] for i in range(2)):
        assert time.monotonic() < end, "a worker never came back"
    new = one_kernel(Fill(work=50), 400, value=9).context(3)
    new.prepare(())
    check(new)
    sys.exit(7)
check(context)
ctypes.c_int64.from_address(endless.cancel_address).value = 1
runner.join()
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 7
# A signal goes to the thread that waits for it, and not to a worker.
caught = []
signal.signal(signal.SIGALRM, lambda *_: caught.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.05)
signal.pause()
check(context)
assert caught == [1]
print("fine")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_forked_children_get_their_own_workers_and_exit_in_peace() -> None:
    _in_process(FORK, ["left: []", "fine", "left: []"])
