"""Gathers and scatters on every target, against numpy; indices out of bounds are refused with their position."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, code_and_element, run_kernels
from whet.codegen.target import AVX2, AVX512, Target
from whet.dtypes import FLOAT32, INT32, INT64, from_numpy
from whet.kernels.base import INDEX_OUT_OF_BOUNDS
from whet.kernels.gather import Gather, GatherElements, GatherND
from whet.kernels.scatter import ScatterElements, ScatterND

RNG = np.random.default_rng(12)
Array = np.ndarray[Any, Any]

COMBINE: dict[str, Any] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def indices_of(shape: tuple[int, ...], extent: int, dtype: Any) -> Array:
    """Random indices, negative ones among them."""
    return RNG.integers(-extent, extent, shape).astype(dtype)


def strides_of(array: Array) -> list[int]:
    """Strides in elements."""
    return [s // array.itemsize for s in array.strides]


def named(prefix: str, numbers: Any) -> dict[str, int]:
    """The numbers under prefix0, prefix1, ..."""
    return {f"{prefix}{i}": int(n) for i, n in enumerate(numbers)}


def gather_run(data: Array, indices: Array, out: Array, block: int = 1 << 20, calls: int = 1) -> Run:
    """A Gather of data[outer, axis, inner]."""
    outer, axis, inner = data.shape
    spec = Gather(data.itemsize, from_numpy(indices.dtype), 1 if inner == 1 else None)  # type: ignore[arg-type]
    words = {"data": data, "indices": indices, "out": out, "outer": outer, "axis": axis, "count": indices.size}
    words |= {"block": block} | ({} if inner == 1 else {"inner": inner})
    return Run(spec, words, Gather.tiles(outer, indices.size, inner, block), calls)


@pytest.mark.parametrize("target", TARGETS)
def test_gather(target: Target) -> None:
    runs, wants = [], []
    for inner in (1, 2, 3, 16, 17, 31, 70):
        for size, index in ((4, np.int64), (1, np.int32), (8, np.int32), (2, np.int64)):
            data = RNG.integers(0, 256, (3, 5, inner, size), np.uint8).view(f"u{size}")[..., 0]
            indices = indices_of((7,), 5, index)
            out = np.zeros((3, 7, inner), data.dtype)
            runs.append(gather_run(data, indices, out, block=20, calls=4))
            wants.append(data[:, indices])
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wants, strict=True):
        np.testing.assert_array_equal(run.words["out"], want, err_msg=str(run.spec))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("wrong", [5, -6, 2**31 - 1, -(2**31)])
def test_an_index_out_of_bounds_is_named(target: Target, wrong: int) -> None:
    data = np.zeros((2, 5, 4), np.float32)
    nan = np.full((2, 3, 4), np.nan, np.float32)
    indices = np.array([4, wrong, -5], np.int32)
    elements = np.array([[0, 1, wrong, 2]], np.int64)
    pairs = np.array([[1, 4], [-2, -5], [1, wrong]], np.int64)
    flat = np.zeros((2, 5), np.float32)
    out_words = {"out": flat.copy(), "axis": 5, **named("n", (1, 4)), **named("out_s", (5, 1))}
    runs = [
        gather_run(data, indices, nan),
        Run(GatherElements(4, INT64, 2, 1),
            {"data": flat, "indices": elements, "out": nan, "axis": 5, **named("n", (1, 4)),
             **named("data_s", (5, 1))}, 1),
        Run(GatherND(4, INT64, 2),
            {"data": flat, "indices": pairs, "out": nan, "per_batch": 3, "batch_stride": 0, "inner": 1,
             **named("axis", (2, 5)), **named("data_s", (5, 1))}, 3),
        Run(ScatterElements(FLOAT32, INT64, 2, 1), {**out_words, "indices": elements, "updates": nan}, 4 - 3),
        Run(ScatterND(FLOAT32, INT64, 2, "add"),
            {"out": flat.copy(), "indices": pairs, "updates": nan, "count": 3, "inner": 1, "block": 1,
             **named("axis", (2, 5)), **named("out_s", (5, 1))}, 1),
    ]  # fmt: skip
    found = [code_and_element(s) for s in run_kernels(target, runs)]
    assert found == [(INDEX_OUT_OF_BOUNDS, p) for p in (1, 2, 5, 2, 5)]


def test_int64_indices_near_their_limits_are_refused() -> None:
    data = np.zeros((1, 5, 1), np.float32)
    for target in (AVX512, AVX2):
        for wrong in (2**63 - 1, -(2**63), 2**32):
            run = gather_run(data, np.array([0, wrong], np.int64), np.zeros((1, 2, 1), np.float32))
            assert code_and_element(run_kernels(target, [run])[0]) == (INDEX_OUT_OF_BOUNDS, 1)


@pytest.mark.parametrize("target", TARGETS)
def test_gather_elements(target: Target) -> None:
    runs, wants = [], []
    for data_shape, shape, axis in (
        ((6,), (9,), 0), ((4, 6), (3, 9), 1), ((4, 6), (9, 5), 0), ((3, 4, 5), (2, 7, 5), 1), ((3, 4, 5), (2, 4, 8), 2),
        ((2, 3, 4, 5), (6, 3, 2, 5), 0),
    ):  # fmt: skip
        for dtype, index in ((np.float32, np.int64), (np.int8, np.int32), (np.float64, np.int32)):
            data = RNG.integers(-100, 100, data_shape).astype(dtype)
            indices = indices_of(shape, data_shape[axis], index)
            out = np.zeros(shape, dtype)
            spec = GatherElements(data.itemsize, from_numpy(index), len(shape), axis)  # type: ignore[arg-type]
            words = {"data": data, "indices": indices, "out": out, "axis": data_shape[axis]}
            words |= named("n", shape) | named("data_s", strides_of(data))
            runs.append(Run(spec, words, GatherElements.tiles(shape), 2))
            cut = tuple(slice(None) if d == axis else slice(n) for d, n in enumerate(shape))
            wants.append(np.take_along_axis(data[cut], indices.astype(np.int64), axis))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wants, strict=True):
        np.testing.assert_array_equal(run.words["out"], want, err_msg=str(run.spec))


@pytest.mark.parametrize("target", TARGETS)
def test_gather_nd(target: Target) -> None:
    runs, wants = [], []
    for data_shape, tuples, width, batch in (
        ((5,), (4,), 1, 0), ((3, 5), (6,), 2, 0), ((3, 5), (2, 3), 1, 0), ((3, 4, 17), (7,), 2, 0),
        ((3, 4, 5, 2), (3, 6), 2, 1), ((2, 3, 4, 33), (2, 3, 2), 1, 2),
    ):  # fmt: skip
        for dtype, index in ((np.float32, np.int64), (np.int16, np.int32)):
            data = RNG.integers(-100, 100, data_shape).astype(dtype)
            parts = data_shape[batch : batch + width]
            indices = np.stack([indices_of(tuples, n, index) for n in parts], -1)
            lead = np.indices(tuples)[:batch]
            want = data[(*lead, *np.moveaxis(indices, -1, 0))]
            inner = int(np.prod(data_shape[batch + width :], dtype=int))
            per_batch = int(np.prod(tuples[batch:], dtype=int))
            words: dict[str, Any] = {"data": data, "indices": indices, "out": np.zeros_like(want), "inner": inner}
            words |= {"per_batch": per_batch, "batch_stride": int(np.prod(data_shape[batch:], dtype=int))}
            words |= named("axis", parts) | named("data_s", strides_of(data)[batch : batch + width])
            spec = GatherND(data.itemsize, from_numpy(index), width)  # type: ignore[arg-type]
            runs.append(Run(spec, words, int(np.prod(tuples)), 3))
            wants.append(want)
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wants, strict=True):
        np.testing.assert_array_equal(run.words["out"], want, err_msg=str(run.spec))


def combine_in_order(out: Array, key: Any, updates: Array, reduction: str) -> None:
    """What numpy's ufunc.at does, for every type and one update after the other."""
    for place, update in zip(key, updates, strict=True):
        if reduction == "none":
            out[place] = update
        elif out.dtype == np.bool_:
            out[place] = (out[place] | update) if reduction in ("add", "max") else (out[place] & update)
        else:
            wide = np.float32 if out.dtype.itemsize == 2 and out.dtype.kind in "fV" else out.dtype
            with np.errstate(over="ignore"):
                out[place] = COMBINE[reduction](out[place].astype(wide), update.astype(wide)).astype(out.dtype)


TYPES = [np.float32, np.float64, np.int8, np.uint16, np.int64, np.bool_, np.float16, ml_dtypes.bfloat16]


def values(shape: tuple[int, ...], dtype: Any) -> Array:
    """Small numbers, exact in every type; NaN among floats of 32 bits and more."""
    x = RNG.integers(0, 9, shape).astype(dtype)
    if np.dtype(dtype).kind == "f" and x.size > 3:
        x.reshape(-1)[RNG.integers(0, x.size)] = np.nan
    return x


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_elements_with_duplicates(target: Target, reduction: Any) -> None:
    runs, wants = [], []
    for dtype in TYPES:
        for data_shape, shape, axis in (((3, 4), (2, 9), 1), ((4, 6), (9, 5), 0), ((3, 4, 5), (2, 7, 5), 1)):
            data, updates = values(data_shape, dtype), values(shape, dtype)
            indices = indices_of(shape, data_shape[axis], np.int64)
            want = data.copy()
            grid = list(np.indices(shape).reshape(len(shape), -1))
            grid[axis] = indices.reshape(-1)
            combine_in_order(want, zip(*grid, strict=True), updates.reshape(-1), reduction)
            kind = from_numpy(np.dtype(dtype))
            assert kind is not None
            spec = ScatterElements(kind, INT64, len(shape), axis, reduction)
            words = {"out": data, "indices": indices, "updates": updates, "axis": data_shape[axis]}
            words |= named("n", shape) | named("out_s", strides_of(data))
            runs.append(Run(spec, words, spec.tiles(shape), 2))
            wants.append(want)
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wants, strict=True):
        np.testing.assert_array_equal(_plain(run.words["out"]), _plain(want), err_msg=str(run.spec))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatter_nd_with_duplicates(target: Target, reduction: Any) -> None:
    runs, wants = [], []
    for dtype in TYPES:
        for data_shape, count, width in (((5,), 12, 1), ((2, 3), 9, 2), ((2, 3, 37), 8, 2)):
            data = values(data_shape, dtype)
            updates = values((count, *data_shape[width:]), dtype)
            indices = np.stack([indices_of((count,), n, np.int32) for n in data_shape[:width]], -1)
            want = data.copy()
            combine_in_order(want, [tuple(t) for t in indices], updates, reduction)
            inner = int(np.prod(data_shape[width:], dtype=int))
            kind = from_numpy(np.dtype(dtype))
            assert kind is not None
            words: dict[str, Any] = {"out": data, "indices": indices, "updates": updates, "count": count}
            words |= {"inner": inner, "block": 10}
            words |= named("axis", data_shape[:width]) | named("out_s", strides_of(data)[:width])
            runs.append(Run(ScatterND(kind, INT32, width, reduction), words, ScatterND.tiles(inner, 10), 2))
            wants.append(want)
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, want in zip(runs, wants, strict=True):
        np.testing.assert_array_equal(_plain(run.words["out"]), _plain(want), err_msg=str(run.spec))


def _plain(x: Any) -> Array:
    # numpy does not know bfloat16's NaNs as equal.
    return np.asarray(x.astype(np.float32) if x.dtype == ml_dtypes.bfloat16 else x)
