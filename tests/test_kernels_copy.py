"""Copies between strided layouts on every target, against numpy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernels
from whet.codegen.target import Target
from whet.kernels.copy import Fill, StridedCopy

RNG = np.random.default_rng(11)
Array = np.ndarray[Any, Any]

MARK = 0x7B
"""What memory holds that a kernel must not write."""


def random_bytes(shape: tuple[int, ...], size: int) -> Array:
    """Random elements of `size` bytes."""
    return RNG.integers(0, 256, (*shape, size), np.uint8).view(f"u{size}").reshape(shape)


def marked(shape: tuple[int, ...], size: int) -> Array:
    """Memory full of MARK."""
    return np.full((*shape, size), MARK, np.uint8).view(f"u{size}").reshape(shape)


def copy_run(source: Array, out: Array, known: tuple[set[int], set[int]], block: int, across: int, calls: int) -> Run:
    """A copy from one view to another of the same shape; `known` are the dimensions with fixed strides of each."""
    size = source.itemsize
    steps = [[s // size for s in view.strides] for view in (source, out)]
    fixed = [tuple(s if d in known[i] else None for d, s in enumerate(each)) for i, each in enumerate(steps)]
    spec = StridedCopy(size, fixed[0], fixed[1])
    words: dict[str, Array | int] = {"in0": source, "out0": out, "block": block}
    for name, each, strides in (("in0", steps[0], fixed[0]), ("out0", steps[1], fixed[1])):
        words |= {f"{name}_s{d}": each[d] for d, s in enumerate(strides) if s is None}
    words |= {f"n{d}": n for d, n in enumerate(source.shape)}
    if spec.is_transposed:
        words["across"] = across
    return Run(spec, words, spec.tiles(source.shape, block, across), calls)


def check(target: Target, cases: list[tuple[Run, Array, Array, Array]]) -> None:
    """Run all; each case is (run, memory written to, the view in it, what the view must hold)."""
    before = [np.array(memory) for _, memory, _, _ in cases]
    assert run_kernels(target, [case[0] for case in cases]) == [0] * len(cases)
    for (run, memory, view, want), old in zip(cases, before, strict=True):
        np.testing.assert_array_equal(view, want, err_msg=str(run.spec))
        view[...] = marked(view.shape, view.itemsize)
        np.testing.assert_array_equal(memory, old, err_msg=f"{run.spec} wrote beside its output")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_transposes_of_every_remainder(target: Target, size: int) -> None:
    cases = []
    for rows, columns in itertools.product((1, 2, 3, 7, 8, 15, 16, 17, 33), (1, 3, 5, 16, 19, 34)):
        source = random_bytes((rows, columns + 2), size)[:, :columns]
        memory = marked((columns, rows + 3), size)
        out = memory[:, :rows]
        run = copy_run(source.T, out, ({0}, {1}), block=16, across=20, calls=2)
        assert run.spec.is_transposed  # type: ignore[attr-defined]
        cases.append((run, memory, out, source.T.copy()))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_layouts_of_images_both_ways(target: Target) -> None:
    cases = []
    for n, c, h, w in ((2, 3, 5, 7), (1, 64, 4, 5), (2, 17, 6, 6)):
        for size in (4, 1):
            image = random_bytes((n, c, h * w), size)
            last = marked((n, h * w, c), size)
            run = copy_run(image.transpose(0, 2, 1), last, ({1}, {2}), block=32, across=32, calls=3)
            cases.append((run, last, last, image.transpose(0, 2, 1).copy()))
            first = marked((n, c, h * w), size)
            pixels = random_bytes((n, h * w, c), size)
            run = copy_run(pixels.transpose(0, 2, 1), first, ({1}, {2}), block=32, across=32, calls=1)
            cases.append((run, first, first, pixels.transpose(0, 2, 1).copy()))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_rows_gaps_reversals_and_repeats(target: Target) -> None:
    cases = []
    for size, length in itertools.product((1, 2, 4, 8), (1, 3, 15, 16, 17, 63, 64, 65, 70, 260)):
        source = random_bytes((3, length), size)
        memory = marked((3, length + 1), size)
        out = memory[:, :length]
        cases.append((copy_run(source, out, ({1}, {1}), 100, 0, 2), memory, out, source.copy()))
        memory = marked((3, length), size)
        # Backwards, and every other element, at strides that are known at run time only.
        wide = random_bytes((3, 2 * length), size)
        cases.append((copy_run(wide[:, ::-2], memory, (set(), {1}), 64, 0, 1), memory, memory, wide[:, ::-2].copy()))
        memory = marked((3, 3 * length), size)
        out = memory[::-1, ::3]
        cases.append((copy_run(source, out, ({1}, set()), 64, 0, 1), memory, out, source.copy()))
        memory = marked((3, length), size)
        repeated = np.broadcast_to(source[:, :1], (3, length))
        cases.append((copy_run(repeated, memory, ({1}, {1}), 64, 0, 1), memory, memory, repeated.copy()))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_heads_are_split_and_ranks_reach_eight(target: Target) -> None:
    cases = []
    tokens = random_bytes((2, 5, 3, 20), 4)
    memory = marked((2, 3, 5, 20), 4)
    view = tokens.transpose(0, 2, 1, 3)
    cases.append((copy_run(view, memory, ({3}, {3}), 64, 0, 4), memory, memory, view.copy()))
    deep = random_bytes((2, 1, 3, 2, 2, 1, 3, 5), 2)
    order = (7, 0, 2, 1, 6, 5, 3, 4)
    view = deep.transpose(order)
    for known in ({0}, set()):
        memory = marked(view.shape, 2)
        cases.append((copy_run(view, memory, (known, {7}), 64, 64, 3), memory, memory, view.copy()))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_empty_copies_touch_nothing(target: Target) -> None:
    memory = marked((0, 4), 4)
    source = random_bytes((0, 4), 4)
    check(target, [(copy_run(source, memory, ({1}, {1}), 8, 8, 1), memory, memory, source)])


@pytest.mark.parametrize("target", TARGETS)
def test_fill(target: Target) -> None:
    runs, memories = [], []
    for size, count in itertools.product((1, 2, 4, 8), (1, 5, 64, 259)):
        bits = 0x8182838485868788 >> (64 - 8 * size)
        memories.append((marked((count + 1,), size), bits))
        words = {"out0": memories[-1][0], "n0": count, "block": 50}
        runs.append(Run(Fill(size, bits), words, Fill.tiles(count, 50), 2))
    assert run_kernels(target, runs) == [0] * len(runs)
    for memory, bits in memories:
        assert (memory[:-1] == bits).all()
        assert memory[-1] == marked((1,), memory.itemsize)[0]
