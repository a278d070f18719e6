"""The kernel language's control flow, memory and rules, on every target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS, Call, aligned, run
from whet import dtypes
from whet.codegen import lang
from whet.codegen.emitter import Emitter
from whet.codegen.jit import build
from whet.codegen.module import assembly, compile_source
from whet.codegen.target import AVX2, NEON, Target, host_target
from whet.dtypes import BOOL, FLOAT32, INT32, INT64, UINT8, UINT64
from whet.errors import Fail


@pytest.mark.parametrize("target", TARGETS)
def test_loops_count_like_range(target: Target) -> None:
    module = lang.Module(target)
    ranges = [(0, 7, 1), (3, 20, 4), (5, 5, 1), (9, 2, 3), (0, 16, 16), (-8, 9, 3)]
    calls = []
    for index, (start, stop, step) in enumerate(ranges):
        for fixed in (True, False):
            with module.function(f"loop{index}_{fixed}") as k:
                out = k.pointer("out", INT64)
                numbers: list[Any] = [k.argument(name) for name in ("start", "stop", "step")]
                if fixed:
                    numbers = [start, stop, step]
                count, total = k.variable(k.index(0)), k.variable(k.index(0))
                with k.loop(numbers[1], numbers[0], numbers[2]) as i:
                    count.value = count.value + 1
                    total.value = total.value * 3 + i
                out.store(count.value)
                out.store(total.value, 1)
            calls.append(Call(f"loop{index}_{fixed}", [np.full(2, -1), start, stop, step]))
    run(module, calls)
    for call, numbers in zip(calls, [r for r in ranges for _ in (0, 1)], strict=True):
        total = 0
        for i in range(*numbers):
            total = total * 3 + i
        assert call.arguments[0].tolist() == [len(range(*numbers)), total], call


@pytest.mark.parametrize("target", TARGETS)
def test_nested_loops_branches_and_leaving(target: Target) -> None:
    """Collatz lengths: a repeat inside a loop, a branch inside that, variables assigned in some places only."""
    module = lang.Module(target)
    with module.function("collatz") as k:
        out, n = k.pointer("out", INT64), k.argument("n")
        longest, untouched = k.variable(k.index(0)), k.variable(k.index(77))
        with k.loop(n) as i:
            x, steps = k.variable(i + 1), k.variable(k.index(0))
            with k.repeat():
                k.leave_if(x.value == 1)
                with k.when((x.value & 1) == 0):
                    x.value = x.value >> 1
                with k.otherwise():
                    x.value = x.value * 3 + 1
                steps.value = steps.value + 1
                with k.when(steps.value > 40):
                    steps.value = k.index(-1)
                    k.leave()
            out.store(steps.value, i)
            with k.when(steps.value > longest.value):
                longest.value = steps.value
        out.store(longest.value, n)
        out.store(untouched.value, n + 1)
    found = np.zeros(52, np.int64)
    run(module, [Call("collatz", [found, 50])])
    want = []
    for x in range(1, 51):
        steps = 0
        while x != 1:
            x, steps = x // 2 if x % 2 == 0 else 3 * x + 1, steps + 1
            if steps > 40:
                steps = -1
                break
        want.append(steps)
    assert found.tolist() == [*want, max(want), 77]


@pytest.mark.parametrize("target", TARGETS)
def test_functions_call_each_other_and_return_early(target: Target) -> None:
    module = lang.Module(target)
    with module.function("power", returns=INT64, internal=True) as power:
        base, exponent = power.argument("base"), power.argument("exponent")
        with power.when(exponent == 0):
            power.return_(1)
        half = power.call(power, base, exponent / 2)
        square = half * half
        with power.when(exponent % 2 == 1):
            power.return_(square * base)
        power.return_(square)
    with module.function("main") as k:
        out, work = k.pointer("out", INT64), k.stack_array(INT64, 8)
        with k.loop(8) as i:
            work.store(k.call(power, 3, i), i)
        with k.loop(8) as i:
            out.store(work.load(i), i)
    found = np.zeros(8, np.int64)
    run(module, [Call("main", [found])])
    assert found.tolist() == [3**i for i in range(8)]


@pytest.mark.parametrize("target", TARGETS)
def test_scalar_choice_of_vectors_and_pointers_as_variables(target: Target) -> None:
    module = lang.Module(target)
    with module.function("f") as k:
        x, out, n = k.pointer("x", FLOAT32), k.pointer("out", FLOAT32), k.argument("n")
        place, total = k.variable(x), k.variable(k.constant(FLOAT32, 0, 4))
        with k.loop(n):
            v = place.value.load(0, 4)
            total.value = total.value + lang.select(v.lane(0) > 0.0, v, 100.0)
            place.value = place.value + 4
        out.store(total.value)
    rows = np.arange(-8, 8, dtype=np.float32)
    found = np.zeros(4, np.float32)
    run(module, [Call("f", [rows, found, 4])])
    np.testing.assert_array_equal(found, sum(r if r[0] > 0 else np.full(4, 100) for r in rows.reshape(4, 4)))


@pytest.mark.parametrize("dtype", [t for t in dtypes.ALL if t.kind in ("int", "uint", "float") and t.bits >= 8
                                   and not t.name.startswith("float8")] + [BOOL], ids=str)  # fmt: skip
@pytest.mark.parametrize("target", TARGETS)
def test_masked_and_scattered_memory(target: Target, dtype: dtypes.DType) -> None:
    """Tails of every length; what lies behind them is neither read into the result nor written."""
    rng = np.random.default_rng(3)
    module = lang.Module(target)
    with module.function("tail") as k:
        x, out, n = k.pointer("x", dtype), k.pointer("out", dtype), k.argument("n")
        mask = lang.prefix_mask(n, 16)
        out.store_masked(mask, x.load_masked(mask))
    with module.function("shuffle") as k:
        x, out, order = k.pointer("x", dtype), k.pointer("out", dtype), k.pointer("order", INT32)
        places = order.load(0, 16)
        out.scatter(places, x.gather(places, places < 11), places >= 3)
    x = rng.integers(0, 2 if dtype is BOOL else 100, 16).astype(dtype.numpy)
    order = rng.permutation(16).astype(np.int32)
    filler = np.ones(16, dtype.numpy)
    calls = [Call("tail", [x, filler.copy(), n]) for n in (-3, 0, 1, 7, 15, 16, 99)]
    run(module, [*calls, last := Call("shuffle", [x, filler.copy(), order])])
    for call in calls:
        n = min(max(int(call.arguments[2]), 0), 16)
        assert call.arguments[1].tolist() == [*x[:n].tolist(), *filler[n:].tolist()]
    want = [x[i] if 3 <= i < 11 else x.dtype.type(0) if i >= 11 else filler[0] for i in range(16)]
    assert last.arguments[1].tolist() == np.array(want, dtype.numpy).tolist()


@pytest.mark.parametrize("target", TARGETS)
def test_pointers_in_memory_tables_and_atomics(target: Target) -> None:
    module = lang.Module(target)
    with module.function("f") as k:
        out, x = k.pointer("out", INT64), k.pointer("x", FLOAT32, align=64, alone=True)
        words = k.stack_array(UINT64, 4)
        words.store_pointer(x + 3, 2)
        primes = k.table("primes", UINT8, [2, 3, 5, 7, 255])
        out.store(lang.convert(primes.load(4), INT64))
        out.store(lang.convert(words.load_pointer(FLOAT32, 2).load(), INT64), 1)
        counter = out + 2
        before = counter.atomic_add(5, "acq_rel")
        old, done = counter.compare_exchange(k.index(15), 40, "acq_rel")
        failed_old, failed = counter.compare_exchange(k.index(15), 50, "seq_cst")
        (out + 3).atomic_store(before * 100 + old, "release")
        (out + 4).store(failed_old * 10 + lang.convert(done, INT64) * 2 + lang.convert(failed, INT64))
        (out + 5).store((out + 3).atomic_load("acquire"))
        x.prefetch(16)
    found = np.array([0, 0, 10, 0, 0, 0])
    run(module, [Call("f", [found, aligned(np.arange(32, dtype=np.float32))])])
    assert found.tolist() == [255, 3, 40, 1015, 402, 1015]


def test_calling_an_address() -> None:
    target = host_target()
    module = lang.Module(target)
    with module.function("callee", returns=INT64) as k:
        k.return_(k.argument("a") * 7)
    with module.function("caller", returns=INT64) as k:
        table, a = k.pointer("table", UINT64), k.argument("a")
        k.return_(k.call_address(table.load_pointer(UINT8, 1), INT64, a + 1))
    kernels = build(module)
    table = np.array([0, kernels["callee"].address], np.uint64)
    assert kernels["caller"](table.ctypes.data, 5) == 42


def test_a_gemm_microkernel_with_every_remainder() -> None:
    """The language at work: a packed A panel times a packed B panel, in as many registers as the target has."""
    target = host_target() if host_target().architecture == "x86_64" else NEON
    lanes = target.lanes(FLOAT32)
    rows = 14 if target.vector_bits == 512 else 6
    tile = [(i, j) for i in range(rows) for j in range(2)]
    module = lang.Module(target)
    with module.function("gemm") as k:
        a, b, c = (k.pointer(name, FLOAT32, align=64, alone=True) for name in "abc")
        depth = k.argument("depth")
        acc = k.variables(dict.fromkeys(tile, k.constant(FLOAT32, 0, lanes)))
        with k.loop(depth) as p:
            b_row = [b.load((p * 2 + j) * lanes, lanes, align=lanes * 4) for j in range(2)]
            for i in range(rows):
                a_ip = a.load(p * rows + i)
                for j in range(2):
                    acc[i, j] = lang.fma(a_ip, b_row[j], acc[i, j])
        for (i, j), total in acc.items():
            c.store(total, (i * 2 + j) * lanes)
    rng = np.random.default_rng(1)
    for depth in (0, 1, 2, 63):
        panels = [rng.normal(size=shape).astype(np.float32) for shape in ((depth, rows), (depth, 2 * lanes))]
        arrays = [aligned(m) for m in (*panels, np.ones((rows, 2 * lanes), np.float32))]
        run(module, [Call("gemm", [*arrays, depth])])
        want = panels[0].T.astype(np.float64) @ panels[1].astype(np.float64)
        np.testing.assert_allclose(arrays[2], want, rtol=1e-5, atol=1e-5)
    text = assembly(module.source())
    if target.vector_bits == 512:
        assert text.count("vfmadd") == rows * 2, "one instruction for each accumulator"
        assert "(%rsp)" not in text, "no accumulator is spilled"


def _unfinished(target: Target = AVX2) -> lang.Function:
    return lang.Function("f", target, {}, None, internal=False)


def test_rules_are_enforced_where_they_are_broken() -> None:
    k = _unfinished()
    f, i = k.constant(FLOAT32, 1), k.argument("i")
    x = k.pointer("x", FLOAT32)
    broken: list[Any] = [
        lambda: f + i,
        lambda: f & 1,
        lambda: i + 0.5,
        lambda: k.constant(UINT8, 256),
        lambda: i << 64,
        lambda: bool(f < 1.0),
        lambda: {f: 1},
        lambda: k.constant(FLOAT32, 0, 8) + k.constant(FLOAT32, 0, 4),
        lambda: k.constant(dtypes.BFLOAT16, 1.0),
        lambda: k.constant(dtypes.INT4, 1),
        lambda: x.load(0, 8).lane(8),
        lambda: x.store(i),
        lambda: lang.sqrt(i),
        lambda: lang.reduce_sum(k.constant(FLOAT32, 0, 6)),
        lambda: lang.dot_u8s8(k.constant(INT32, 0, 16), k.constant(UINT8, 0, 64), k.constant(UINT8, 0, 64)),
        lambda: k.stack_array(FLOAT32, 1 << 20),
        lambda: k.leave(),
        lambda: k.argument("i"),
        lambda: k.return_(1),
        lambda: x.gather(i),
        lambda: x.load(0, align=3),
    ]
    for breach in broken:
        with pytest.raises(TypeError):
            breach()


def test_variables_end_with_their_block_and_keep_their_type() -> None:
    k = _unfinished()
    n = k.argument("n")
    with k.loop(n):
        inner = k.variable(n)
    with pytest.raises(lang.LanguageError, match="outside the block"):
        _ = inner.value
    outer = k.variable(n)
    with pytest.raises(lang.LanguageError, match="keeps its type"):
        outer.value = k.constant(FLOAT32, 1)


def test_code_that_cannot_be_reached_and_misplaced_otherwise() -> None:
    k = _unfinished()
    n = k.argument("n")
    with k.when(n > 0):
        k.return_()
        with pytest.raises(lang.LanguageError, match="reached"):
            _ = n + 1
    _ = n + 2
    with pytest.raises(lang.LanguageError, match="follows"), k.otherwise():
        pass


def test_a_value_outside_its_block_is_refused_before_llvm_compiles() -> None:
    module = lang.Module(AVX2)
    with module.function("f") as k:
        out, n = k.pointer("out", INT64), k.argument("n")
        with k.when(n > 0):
            inside = n * 3
        out.store(inside)
    with pytest.raises(Fail, match=r"not valid.*dominate"):
        compile_source(module.source())


def test_code_that_needs_a_library_is_refused() -> None:
    module = lang.Module(AVX2)
    with module.function("f") as k:
        x = k.pointer("x", FLOAT32)
        x.store(x.load().result(f"frem float {x.load().name}, {x.load().name}"))
    with pytest.raises(Fail, match="fmodf"):
        compile_source(module.source())


def test_loops_carry_only_what_they_change() -> None:
    """A variable that no block of a loop assigns costs no phi: registers would be copied around for nothing."""
    k = _unfinished()
    n = k.argument("n")
    kept, changed = k.variable(n), k.variable(n)
    with k.loop(n), k.loop(n):
        changed.value = changed.value + kept.value
    k.finish()
    phis = [line for line in Emitter.body_text(k).splitlines() if " phi " in line]
    # Two counters, the changed variable in two headers and behind two loops.
    assert len(phis) == 6
