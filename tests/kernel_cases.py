"""Tables of kernel cases: each runs in one call and in several, in memory with poisoned surroundings."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from tests.kernel_tools import Array, Run, run_kernels
from whet.codegen.target import Target
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
from whet.kernels.base import KernelSpec

FLOATS = (FLOAT32, FLOAT64, FLOAT16, BFLOAT16)
INTEGERS = (INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64)
ALL_TYPES = (*FLOATS, *INTEGERS, BOOL)
LENGTHS = (*range(1, 20), 31, 32, 33, 47, 63, 64, 65, 70, 127, 128, 129, 300)
"""Lengths around every multiple of a vector, and past the unrolled loops."""

_MARGIN = 80


@dataclass
class Case:
    """A kernel with its words, and what it should leave in the arrays of those names.

    Floats may differ by rtol * |expected| + atol (default: some roundings of their type), other types not at all.
    """

    spec: KernelSpec
    words: Mapping[str, Array | int]
    tiles: int
    expected: Mapping[str, Array]
    rtol: float | None = None
    atol: float | None = None
    label: Any = None
    _before: dict[str, Array] = field(default_factory=dict)


def check(target: Target, cases: Sequence[Case]) -> None:
    """Run all cases, in one call each and then in three; compare with what is expected, and with each other."""
    for case in cases:
        case._before = {name: owner(case.words[name]).copy() for name in case.expected}
    assert not any(run_kernels(target, [Run(c.spec, c.words, c.tiles) for c in cases]))
    firsts = []
    for case in cases:
        for name, expected in case.expected.items():
            _compare(case, name, expected)
            _check_surroundings(case, name)
        firsts.append({name: owner(case.words[name]).copy() for name in case.expected})
        for name, before in case._before.items():
            owner(case.words[name])[...] = before
    assert not any(run_kernels(target, [Run(c.spec, c.words, c.tiles, calls=3) for c in cases]))
    for case, first in zip(cases, firsts, strict=True):
        for name, memory in first.items():
            assert owner(case.words[name]).tobytes() == memory.tobytes(), f"calls change bits: {case.label} {case.spec}"


def _compare(case: Case, name: str, expected: Array) -> None:
    found = case.words[name]
    assert isinstance(found, np.ndarray)
    assert found.shape == expected.shape, (case.label, case.spec, found.shape, expected.shape)
    where = f"{case.label} {case.spec} {name}"
    if not is_float(found.dtype):
        np.testing.assert_array_equal(found, expected, err_msg=where)
        return
    precision = float(ml_dtypes.finfo(found.dtype).eps)
    rtol = max(case.rtol or 0.0, precision) if case.rtol is not None else 4 * precision
    atol = case.atol if case.atol is not None else 4 * precision
    with np.errstate(over="ignore"):
        expected = expected.astype(found.dtype)  # past the type's range it is infinity
    np.testing.assert_allclose(wide(found), wide(expected), rtol=rtol, atol=atol, err_msg=where)


def _check_surroundings(case: Case, name: str) -> None:
    """Memory around and between the output's elements is as it was."""
    array = case.words[name]
    assert isinstance(array, np.ndarray)
    memory = owner(array)
    before = case._before[name].copy()
    start = array.ctypes.data - memory.ctypes.data
    flat = before.reshape(-1).view(np.uint8)
    view: Array = np.ndarray(array.shape, array.dtype, flat, start, array.strides)
    view[...] = array
    assert before.tobytes() == memory.tobytes(), f"written outside: {case.label} {case.spec} {name}"


def owner(array: Array | int) -> Array:
    """The whole memory that an array lies in."""
    assert isinstance(array, np.ndarray)
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether numbers of this type are floats, bfloat16 too."""
    return dtype.kind == "f" or dtype == np.dtype(ml_dtypes.bfloat16)


def poisoned(shape: Sequence[int], dtype: DType, gap: int = 0) -> Array:
    """An array inside larger memory that is NaN (floats) or 0xCC; `gap` elements follow each row of the last axis."""
    padded = [*shape[:-1], shape[-1] + gap]
    size = int(np.prod(padded))
    memory = np.empty(size + 2 * _MARGIN, dtype.numpy)
    memory.view(np.uint8)[:] = 0xFF if is_float(dtype.numpy) else 0x01 if dtype is BOOL else 0xCC
    return memory[_MARGIN : _MARGIN + size].reshape(padded)[..., : shape[-1]]


def placed(values: Array, dtype: DType, gap: int = 0) -> Array:
    """`values` as `dtype`, in memory as `poisoned` makes it."""
    array = poisoned(values.shape if values.ndim else (1,), dtype, gap)
    array[...] = values.astype(dtype.numpy)
    return array


def stride(array: Array, axis: int) -> int:
    """Elements from one position to the next along an axis."""
    return array.strides[axis] // array.itemsize


def strides(array: Array, operand: str, axes: Mapping[str, int]) -> dict[str, int]:
    """The stride words `{operand}_{name}` for axes by name."""
    return {f"{operand}_{name}": stride(array, axis) for name, axis in axes.items()}


def random_values(rng: np.random.Generator, shape: Sequence[int], dtype: DType) -> Array:
    """Numbers of either sign that `dtype` holds, small enough to be multiplied."""
    if dtype is BOOL:
        return rng.random(shape) < 0.3
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy)
    low = 0 if dtype.kind == "uint" else -100
    return rng.integers(low, 100, shape).astype(dtype.numpy)


def wide(array: Array) -> Array:
    """The same numbers as float64."""
    return array.astype(np.float64)


def guarded(values: Array) -> Array:
    """A copy of `values` whose end is the end of readable memory."""
    page = mmap.PAGESIZE
    room = -(-values.nbytes // page) * page
    memory = mmap.mmap(-1, room + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + room), ctypes.c_size_t(page), 0) == 0
    copy: Array = np.ndarray(values.shape, values.dtype, memory, room - values.nbytes)
    copy[...] = values
    return copy
