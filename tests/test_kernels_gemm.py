"""Matrix products against numpy in float64: every remainder of rows, columns and depth, every epilogue operand."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS, aligned
from tests.kernel_tools import Run, run_kernel, run_kernels
from whet.codegen.target import AVX2, AVX512, NEON, Target, host_target
from whet.dtypes import FLOAT32, FLOAT64, INT32, DType
from whet.kernels.expression import Step, Tape
from whet.kernels.gemm import Gemm, PackB, pack_b
from whet.kernels.gemm_tile import Problem, candidates, choose_tile, rests
from whet.kernels.tile import Epilogue

Array = np.ndarray[Any, Any]
F = FLOAT32

BIAS_RELU = Epilogue(Tape((F, F), (Step("add", F, (0, 1)), Step("relu", F, (2,))), (3,)), ("column",))
RESIDUAL = Epilogue(Tape((F, F), (Step("add", F, (0, 1)),), (2,)), ("full",))
SILU = Epilogue(
    Tape((F, F), (Step("add", F, (0, 1)), Step("sigmoid", F, (2,)), Step("mul", F, (2, 3))), (4,)), ("row",)
)
SCALED_TO_INT = Epilogue(Tape((F, F), (Step("mul", F, (0, 1)), Step("cast", INT32, (2,))), (3,)), ("scalar",))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def random(rng: np.random.Generator, *shape: int, dtype: DType = FLOAT32) -> Array:
    return rng.standard_normal(shape).astype(dtype.numpy)


def unused(*shape: int, dtype: DType = FLOAT32) -> Array:
    """Memory that a kernel must overwrite: NaN, or a number that does not occur."""
    return np.full(shape, np.nan if dtype.is_float else -(10**9), dtype.numpy)


def check(got: Array, a: Array, b: Array, where: object, expected: Array | None = None) -> None:
    """Within 1e-5 (float64: 1e-14) of the sum of the products' sizes, which bounds rounding in any order of adding."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    bound = (1e-14 if got.dtype == np.float64 else 1e-5) * (np.abs(a) @ np.abs(b) + 1)
    assert not np.isnan(got).any(), where
    worst = np.abs(got - (a @ b if expected is None else expected)) - bound
    assert worst.size == 0 or worst.max() <= 0, where


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fixed", [False, True], ids=["sizes at run time", "sizes fixed"])
def test_every_remainder(target: Target, fixed: bool) -> None:
    rng = np.random.default_rng(0)
    mr, nv = (5, 2) if target is AVX2 else (7, 2)
    nr = nv * target.lanes(FLOAT32)
    runs, checks = [], []
    if fixed:
        sizes = [(m, n, k) for m, n, k in [(1, nr, 4), (mr, nr - 1, 5), (2 * mr + 3, 2 * nr, 6), (mr + 1, nr + 1, 7)]]
    else:
        sizes = [
            *((m, nr + 1, 5) for m in range(1, 2 * mr + 3)),
            *((mr + 1, n, 6) for n in (1, 2, nr - 1, nr, nr + 1, 2 * nr, 4 * nr + 3)),
            *((mr, nr - 1, k) for k in range(10)),
        ]
    for m, n, k in sizes:
        a, b = random(rng, m, k + 2), random(rng, k, n)
        c = unused(m, n + 3)
        spec = Gemm(mr=mr, nv=nv, m_block=2 * mr, panels=2)
        words: dict[str, Any] = {"a": a, "b": pack_b(b, nr), "c": c, "ldc": n + 3, "m": m, "n": n, "k": k, "lda": k + 2}
        if fixed:
            spec = Gemm(mr=mr, nv=nv, m_block=2 * mr, panels=2, m=m, n=n, k=k, lda=k + 2)
            words = {name: words[name] for name in ("a", "b", "c", "ldc")}
        runs.append(Run(spec, words, spec.tiles(target, m, n), calls=2))
        checks.append((c, a[:, :k], b))
    assert not any(run_kernels(target, runs))
    for (c, a, b), size in zip(checks, sizes, strict=True):
        check(c[:, : b.shape[1]], a, b, size)
        assert np.isnan(c[:, b.shape[1] :]).all(), size


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", [1, 2, 3, 4, 30])
def test_the_tile_that_is_chosen(target: Target, m: int) -> None:
    rng = np.random.default_rng(m)
    n, k = 75, 50
    tile = choose_tile(target, Problem(n, k, m))
    spec = Gemm(
        mr=tile.mr, nv=tile.nv, m_block=tile.m_block, panels=tile.panels, m=m, n=n, k=k, lda=k, ahead=tile.ahead
    )  # fmt: skip
    a, b, c = random(rng, m, k), random(rng, k, n), unused(m, n)
    words = {"a": a, "b": pack_b(b, spec.width(target)), "c": c, "ldc": n}
    assert run_kernel(target, spec, words, spec.tiles(target, m, n)) == 0
    check(c, a, b, m)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("panels", [1, 2])
def test_what_is_fetched_ahead_changes_nothing(target: Target, panels: int) -> None:
    rng = np.random.default_rng(panels)
    mr, nv, multiple = 4, 2, 7
    nr = nv * target.lanes(FLOAT32)
    runs, checks = [], []
    for ahead, (m, m_block), n, k in itertools.product((1, 3), ((7, 7), (21, 14), (14, 10)), (nr - 1, 3 * nr), (3, 18)):
        a, b, c = random(rng, m, k), random(rng, k, n), unused(m, n)
        spec = Gemm(mr=mr, nv=nv, m_block=m_block, panels=panels, ahead=ahead, multiple=multiple)
        words = {"a": a, "b": pack_b(b, nr), "c": c, "m": m, "n": n, "k": k, "lda": k, "ldc": n}
        runs.append(Run(spec, words, spec.tiles(target, m, n), calls=2))
        checks.append((c, a, b, (ahead, m, m_block, n, k)))
    assert not any(run_kernels(target, runs))
    for case in checks:
        check(*case)


def test_rests_of_blocks() -> None:
    assert rests(48, 6, 49, 1) == [1]
    assert rests(49, 10, None, 49) == [9], "a batch of images of 49 pixels is cut in images"
    assert rests(48, 6, None, 196) == [2, 4]
    assert rests(48, 6, None, 1) is None
    for m_block, mr, multiple in itertools.product((1, 5, 12, 14), (1, 4, 5), (1, 3, 7, 12)):
        found = rests(m_block, mr, None, multiple)
        left = {min(m_block, m - start) % mr for m in range(0, 500, multiple) for start in range(0, m, m_block)} - {0}
        assert found is None or left <= set(found)


@pytest.mark.parametrize("target", TARGETS)
def test_epilogues(target: Target) -> None:
    rng = np.random.default_rng(2)
    m, k = 17, 9
    nr = 2 * target.lanes(FLOAT32)
    runs, checks = [], []
    for n, (name, epilogue) in itertools.product(
        (nr, nr + 5), {"bias": BIAS_RELU, "residual": RESIDUAL, "silu": SILU, "integer": SCALED_TO_INT}.items()
    ):
        a, b = random(rng, m, k), random(rng, k, n)
        c = unused(m, n, dtype=epilogue.result)
        product = a.astype(np.float64) @ b
        e0 = {
            "bias": random(rng, n),
            "residual": random(rng, m, n + 1),
            "silu": random(rng, m),
            "integer": random(rng, 1),
        }
        operand = e0[name]
        expected = {
            "bias": np.maximum(product + e0["bias"], 0),
            "residual": product + e0["residual"][:, :n],
            "silu": (product + e0["silu"][:, None]) * sigmoid(product + e0["silu"][:, None]),
            "integer": product * e0["integer"],
        }[name]
        words: dict[str, Any] = {"a": a, "b": pack_b(b, nr), "c": c, "ldc": n, "m": m, "n": n, "k": k, "lda": k}
        words |= {"e0": operand} | ({"e0_s": n + 1} if name == "residual" else {})
        spec = Gemm(mr=4, nv=2, m_block=8, panels=1, epilogue=epilogue)
        runs.append(Run(spec, words, spec.tiles(target, m, n)))
        checks.append((c, a, b, expected, (name, n)))
    assert not any(run_kernels(target, runs))
    for c, a, b, expected, where in checks:
        if c.dtype == np.int32:
            near = np.abs(expected - np.round(expected)) < 1e-3
            assert (c == np.trunc(expected))[~near].all(), where
        else:
            check(c, a, b, where, expected)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "in place"])
def test_batches_with_shared_operands(target: Target, packed: bool) -> None:
    rng = np.random.default_rng(3)
    outer, inner, m, k = 2, 3, 6, 11
    nr = target.lanes(FLOAT32)
    spec = Gemm(mr=4, nv=1, m_block=4, panels=1, batch=True, epilogue=RESIDUAL, b_packed=packed)
    runs, checks = [], []
    for n in (nr - 1, 2 * nr, 2 * nr + 1):
        a, b, e = random(rng, outer, inner, m, k), random(rng, outer, 1, k, n), random(rng, 1, inner, m, n)
        c = unused(outer, inner, m, n)
        b_words: dict[str, Any] = {"b": b, "b_batch0": k * n, "b_batch1": 0, "ldb": n}
        if packed:
            panels = np.stack([pack_b(matrix[0], nr) for matrix in b])
            b_words = {"b": panels, "b_batch0": panels[0].size, "b_batch1": 0}
        words = b_words | {
            "a": a, "a_batch0": inner * m * k, "a_batch1": m * k, "c": c, "c_batch0": inner * m * n, "c_batch1": m * n,
            "e0": e, "e0_s": n, "e0_batch0": 0, "e0_batch1": m * n, "batch1": inner, "m": m, "n": n, "k": k, "lda": k,
            "ldc": n,
        }  # fmt: skip
        runs.append(Run(spec, words, spec.tiles(target, m, n, outer * inner), calls=3))
        checks.append((c, a, np.broadcast_to(b, (outer, inner, k, n)), e))
    assert not any(run_kernels(target, runs))
    for c, a, b, e in checks:
        check(c, a, b, b.shape, a.astype(np.float64) @ b + e)


@pytest.mark.parametrize("target", TARGETS)
def test_double_precision(target: Target) -> None:
    rng = np.random.default_rng(4)
    spec = Gemm(dtype=FLOAT64, mr=3, nv=2, m_block=6, panels=1)
    m, n, k = 8, 2 * target.lanes(FLOAT64) + 1, 10
    a, b, c = random(rng, m, k, dtype=FLOAT64), random(rng, k, n, dtype=FLOAT64), unused(m, n, dtype=FLOAT64)
    words = {"a": a, "b": pack_b(b, spec.width(target)), "c": c, "m": m, "n": n, "k": k, "lda": k, "ldc": n}
    assert run_kernel(target, spec, words, spec.tiles(target, m, n)) == 0
    check(c, a, b, "float64")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT64], ids=str)
def test_packing_at_run_time(target: Target, dtype: DType) -> None:
    rng = np.random.default_rng(5)
    lanes = target.lanes(dtype)
    runs, checks = [], []
    for unit, n, k in itertools.product((None, "k", "n"), (1, 2 * lanes, 2 * lanes + 3), (0, 3, 2 * lanes + 1)):
        spec = PackB(nv=2, unit=unit, dtype=dtype, batch=True)
        width = spec.width(target)
        b = random(rng, 2, 2, k, n, dtype=dtype)
        memory = {"n": b, "k": b.swapaxes(2, 3).copy(), None: np.repeat(b, 2, axis=3)}[unit]
        packed = aligned(unused(4 * spec.packed_elements(target, n, k) + 1, dtype=dtype))
        words: dict[str, Any] = {"b": memory, "packed": packed, "k": k, "n": n, "batch1": 2}
        words |= {"b_batch0": memory[0].size, "b_batch1": memory[0, 0].size}
        words |= {None: {"b_k": 2 * n, "b_n": 2}, "k": {"b_n": k}, "n": {"b_k": n}}[unit]
        runs.append(Run(spec, words, spec.tiles(target, n, 4), calls=2))
        checks.append((packed, np.stack([pack_b(m, width) for m in b.reshape(4, k, n)]), (unit, n, k)))
    assert not any(run_kernels(target, runs))
    for packed, expected, where in checks:
        assert np.array_equal(packed[:-1], expected.reshape(-1)), where
        assert np.isnan(packed[-1]), where


def test_panels_of_packed_weights() -> None:
    b = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert pack_b(b, 2).tolist() == [[[0, 1], [3, 4]], [[2, 0], [5, 0]]]
    assert pack_b(b, 2).ctypes.data % 64 == 0


def test_chosen_tiles_fit_the_registers() -> None:
    for target, (m, multiple), n, k in itertools.product(
        (AVX512, AVX2, NEON),
        ((None, 1), (None, 49), (None, 197), (0, 1), (1, 1), (3, 1), (49, 1), (4096, 1)),
        (0, 1, 24, 96, 1000),
        (0, 3, 4096),
    ):
        for tile in candidates(target, Problem(n, k, m, multiple, threads=3)):
            mr, nv = tile.mr, tile.nv
            assert 1 <= mr <= tile.m_block, "a block has at least one tile"
            assert mr * nv + nv < target.vector_registers, "sums, a row of B and one element of A are in registers"
            assert tile.panels >= 1


@pytest.mark.parametrize("target", TARGETS[:2])
@pytest.mark.parametrize("front", [False, True], ids=["behind", "before"])
def test_nothing_outside_the_operands_is_touched(target: Target, front: bool) -> None:
    if not target.runs_on(host_target()):
        pytest.skip("guard pages are this process's own")
    rng = np.random.default_rng(6)
    nr = target.lanes(FLOAT32)
    m, n, k = 5, nr + 3, 7
    for packed in (True, False):
        spec = Gemm(mr=4, nv=1, m_block=4, panels=2, b_packed=packed, epilogue=BIAS_RELU)
        a, b = random(rng, m, k), random(rng, k, n)
        arrays = (a, pack_b(b, nr) if packed else b, unused(m, n), random(rng, n))
        guarded_a, guarded_b, c, bias = (guarded(x, front) for x in arrays)
        words = {"a": guarded_a, "b": guarded_b, "c": c, "e0": bias, "m": m, "n": n, "k": k, "lda": k, "ldc": n}
        words |= {} if packed else {"ldb": n}
        assert run_kernel(target, spec, words, spec.tiles(target, m, n)) == 0
        check(c, a, b, packed, np.maximum(a.astype(np.float64) @ b + bias, 0))


def guarded(array: Array, front: bool = False) -> Array:
    """A copy that ends (`front`: begins) where memory does: touching what is beyond ends the process."""
    page = mmap.PAGESIZE
    size = -(-array.nbytes // page) * page
    room = np.frombuffer(mmap.mmap(-1, size + 2 * page), np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for start in (0, page + size):
        assert protect(ctypes.c_void_p(room.ctypes.data + start), ctypes.c_size_t(page), 0) == 0
    first = page if front else page + size - array.nbytes
    copy = room[first : first + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
