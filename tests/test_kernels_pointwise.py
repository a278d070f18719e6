"""The loops of pointwise kernels on every target: lengths, strides, broadcasts, types, tiles and memory's edges."""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernel, run_kernels
from whet.codegen.lang import LanguageError
from whet.codegen.target import AVX2, AVX512, Target, host_target
from whet.dtypes import (
    BFLOAT16,
    BOOL,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    DType,
)
from whet.kernels.expression import Step, Tape, identity
from whet.kernels.pointwise import Pointwise
from whet.kernels.rows import split
from whet.kernels.scalar_ops import CONSTANT

RNG = np.random.default_rng(21)
Array = np.ndarray[Any, Any]

ADD = Tape((FLOAT32, FLOAT32), (Step("add", FLOAT32, (0, 1)),), (2,))
LENGTHS = [*range(1, 36), 47, 48, 49, 63, 64, 65, 70, 127, 128, 129, 255, 256, 257]
KINDS = [FLOAT32, FLOAT64, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, BOOL, FLOAT16, BFLOAT16]


def operand(tape_type: DType, shape: tuple[int, ...]) -> Array:
    """Small whole numbers, exact in every type."""
    return RNG.integers(0, 2 if tape_type is BOOL else 50, shape).astype(tape_type.numpy)


def pointwise_run(
    tape: Tape, inputs: list[Array], outputs: list[Array], block: int, calls: int = 1, known: str = "01"
) -> Run:
    """A kernel over views of the outputs' shape. Strides are fixed where they are 0 or 1 and `known` has that digit."""
    shape = outputs[0].shape
    words: dict[str, Array | int] = {"block": block} | {f"n{d}": n for d, n in enumerate(shape)}
    strides = []
    for i, view in enumerate([*inputs, *outputs]):
        name = f"in{i}" if i < len(inputs) else f"out{i - len(inputs)}"
        steps = [s // view.itemsize for s in view.strides]
        # Broadcast dimensions of extent 1 may have any stride: numpy's own is what the compiler would give.
        fixed = tuple(s if str(s) in known and s in (0, 1) else None for s in steps)
        words[name] = view
        words |= {f"{name}_s{d}": s for d, (s, f) in enumerate(zip(steps, fixed, strict=True)) if f is None}
        strides.append(fixed)
    spec = Pointwise(tape, len(shape), tuple(strides[: len(inputs)]), tuple(strides[len(inputs) :]))
    return Run(spec, words, Pointwise.tiles(shape, block), calls)


def guarded(shape: tuple[int, ...], dtype: Any) -> tuple[Array, Array]:
    """(memory with rubbish round it, the middle of it)."""
    size = math.prod(shape)
    memory = np.full((size + 32) * np.dtype(dtype).itemsize, 0x7B, np.uint8).view(dtype)
    return memory, memory[16 : 16 + size].reshape(shape)


@pytest.mark.parametrize("target", TARGETS)
def test_every_length_in_blocks(target: Target) -> None:
    runs, wants, memories = [], [], []
    for n in LENGTHS:
        a, b = (RNG.standard_normal(n).astype(np.float32) for _ in "ab")
        memory, out = guarded((n,), np.float32)
        runs.append(pointwise_run(ADD, [a, b], [out], block=24 if n % 2 else 1 << 20, calls=3 if n % 2 else 1))
        wants.append(a + b)
        memories.append(memory)
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want, memory in zip(runs, wants, memories, strict=True):
        np.testing.assert_array_equal(run.words["out0"], want)
        assert (memory.view(np.uint8)[[*range(64), *range(-64, 0)]] == 0x7B).all(), len(want)


@pytest.mark.parametrize("target", TARGETS)
def test_every_type_moves_and_converts(target: Target) -> None:
    runs, wants = [], []
    for source, to in itertools.product(KINDS, repeat=2):
        if source is not to and FLOAT32 not in (source, to) and INT8 not in (source, to):
            continue
        tape = identity(source) if source is to else Tape((source,), (Step("cast", to, (0,)),), (1,))
        for n in (3, 37, 150):
            x = operand(source, (n,))
            _, out = guarded((n,), to.numpy)
            runs.append(pointwise_run(tape, [x], [out], block=64, calls=2))
            wants.append(x.astype(np.float64).astype(to.numpy))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wants, strict=True):
        np.testing.assert_array_equal(run.words["out0"], want, err_msg=str(run.spec))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [FLOAT32, INT8, FLOAT64, BOOL], ids=str)
def test_strides_of_every_kind(target: Target, dtype: DType) -> None:
    tape = Tape((dtype, dtype), (Step("equal", BOOL, (0, 1)), Step("where", dtype, (2, 1, 0))), (3, 2))
    runs, wants = [], []
    for n in (1, 2, 5, 16, 33, 70):
        wide = operand(dtype, (3, 2 * n))
        column = operand(dtype, (3, 1))
        row = operand(dtype, (1, n))
        single = operand(dtype, (1, 1))
        for a, b in (
            (wide[:, ::2], np.broadcast_to(column, (3, n))),
            (np.broadcast_to(row, (3, n)), wide[:, n:]),
            (wide[::-1, ::-2], np.broadcast_to(single, (3, n))),
            (np.broadcast_to(single, (3, n)), np.broadcast_to(single, (3, n))),
            (operand(dtype, (n, 3)).T, operand(dtype, (3, n))),
        ):
            for known in ("01", "0", ""):
                first = np.zeros((3, 3 * n), dtype.numpy)[::-1, ::3] if known == "0" else np.zeros((3, n), dtype.numpy)
                outputs = [first, np.zeros((3, n), np.bool_)]
                runs.append(pointwise_run(tape, [a, b], outputs, block=32, calls=2, known=known))
                wants.append((np.where(a == b, b, a), a == b))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, (first, second) in zip(runs, wants, strict=True):
        np.testing.assert_array_equal(run.words["out0"], first, err_msg=str(run.spec))
        np.testing.assert_array_equal(run.words["out1"], second, err_msg=str(run.spec))


@pytest.mark.parametrize("target", TARGETS)
def test_ranks_tiles_and_small_rows(target: Target) -> None:
    runs, wants = [], []
    for shape in ((4, 3), (5, 1), (3, 4, 7), (2, 3, 4, 5), (2, 1, 3, 2, 6), (3, 2, 40)):
        for block, calls in ((1 << 20, 1), (4, 5), (16, 3)):
            a = RNG.standard_normal(shape).astype(np.float32)
            for axis in range(len(shape)):
                small = RNG.standard_normal([n if d == axis else 1 for d, n in enumerate(shape)]).astype(np.float32)
                out = np.zeros(shape, np.float32)
                runs.append(pointwise_run(ADD, [a, np.broadcast_to(small, shape)], [out], block, calls))
                wants.append(a + small)
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wants, strict=True):
        np.testing.assert_array_equal(run.words["out0"], want, err_msg=str(run.spec))


@pytest.mark.parametrize("target", TARGETS)
def test_in_place(target: Target) -> None:
    tape = Tape((FLOAT32,), (Step("mul", FLOAT32, (0, 0)), Step("add", FLOAT32, (1, 0))), (2,))
    runs, wants = [], []
    for shape in ((1,), (50,), (300,), (5, 3), (4, 70)):
        x = RNG.standard_normal(shape).astype(np.float32)
        wants.append(x * x + x)
        runs.append(pointwise_run(tape, [x], [x], block=40, calls=2))
    transposed = RNG.standard_normal((6, 30)).astype(np.float32).T
    wants.append(transposed * transposed + transposed)
    runs.append(pointwise_run(tape, [transposed], [transposed], block=40, calls=2))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wants, strict=True):
        np.testing.assert_array_equal(run.words["out0"], want)


@pytest.mark.parametrize("target", TARGETS)
def test_no_elements_are_no_work(target: Target) -> None:
    a, b = np.zeros((0,), np.float32), np.zeros((4, 0), np.float32)
    runs = [
        pointwise_run(ADD, [a, a], [a], block=8),
        pointwise_run(ADD, [b, b], [b], block=8),
        pointwise_run(ADD, [b.T, b.T], [b.T], block=8),
    ]
    assert run_kernels(target, runs) == [0, 0, 0]


@pytest.mark.parametrize("target", TARGETS)
def test_constants_and_uniform_parts(target: Target) -> None:
    """scale * (bias + 1) is computed once a row; the second output is the same for the whole row."""
    steps = (
        Step(CONSTANT, FLOAT32, (), (1.0,)),
        Step("add", FLOAT32, (1, 3)),
        Step("mul", FLOAT32, (2, 4)),
        Step("mul", FLOAT32, (0, 5)),
        Step("sin", FLOAT32, (5,)),
        Step(CONSTANT, INT8, (), (-3,)),
    )
    tape = Tape((FLOAT32, FLOAT32, FLOAT32), steps, (6, 7, 8, 1))
    runs, wants = [], []
    for n in (2, 19, 70):
        x = RNG.standard_normal((3, n)).astype(np.float32)
        bias, scale = (RNG.standard_normal((3, 1)).astype(np.float32) for _ in "bs")
        outputs = [np.zeros((3, n), t) for t in (np.float32, np.float32, np.int8, np.float32)]
        inputs = [x, np.broadcast_to(bias, (3, n)), np.broadcast_to(scale, (3, n))]
        runs.append(pointwise_run(tape, inputs, outputs, block=32))
        factor = scale * (bias + np.float32(1))
        wants.append((x * factor, np.sin(factor) + 0 * x, np.full((3, n), -3), bias + 0 * x))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wants, strict=True):
        for i, values in enumerate(want):
            np.testing.assert_allclose(run.words[f"out{i}"], values, rtol=3e-7, err_msg=f"output {i}")


def test_a_tape_splits_at_what_is_uniform() -> None:
    steps = (
        Step(CONSTANT, FLOAT32, (), (2.0,)),
        Step("mul", FLOAT32, (1, 2)),
        Step("add", FLOAT32, (0, 3)),
    )
    head, body = split(Tape((FLOAT32, FLOAT32), steps, (4,)), (False, True))
    assert head.inputs == (FLOAT32,)
    assert [s.op for s in head.steps] == [CONSTANT, "mul"]
    assert [s.op for s in body.steps] == [CONSTANT, "add"]
    assert body.steps[1].args == (0, 1)
    assert len(body.outputs) == 1


def test_strides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LanguageError):
        Pointwise(ADD, 1, ((1,),), ((1,),))
    with pytest.raises(LanguageError):
        Pointwise(ADD, 2, ((1,), (1,)), ((1,),))


def _before_a_guard_page(count: int, dtype: Any) -> Array:
    """An array that ends where memory that cannot be touched begins."""
    page = mmap.PAGESIZE
    size = count * np.dtype(dtype).itemsize
    room = mmap.mmap(-1, -(-size // page) * page + page)
    array = np.frombuffer(room, np.uint8)
    end = array.ctypes.data + len(array) - page
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(end), ctypes.c_size_t(page), 0) == 0
    return array[len(array) - page - size : len(array) - page].view(dtype)


@pytest.mark.skipif(host_target().system != "linux", reason="protects pages as Linux does")
@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
@pytest.mark.parametrize("dtype", [FLOAT32, INT8, INT64, FLOAT16, BOOL], ids=str)
def test_nothing_is_touched_behind_the_end(target: Target, dtype: DType) -> None:
    if not target.runs_on(host_target()):
        pytest.skip("this CPU lacks the target's instructions")
    tape = identity(dtype)
    for n in (1, 3, 15, 17, 31, 33, 65, 130):
        source, out = _before_a_guard_page(n, dtype.numpy), _before_a_guard_page(n, dtype.numpy)
        source[...] = operand(dtype, (n,))
        for views in ((source, out), (source[::-1], out), (source[::2], out[-len(source[::2]) :])):
            run = pointwise_run(tape, [views[0]], [views[1]], block=1000)
            assert run_kernel(target, run.spec, run.words, run.tiles) == 0
            np.testing.assert_array_equal(views[1], views[0])
