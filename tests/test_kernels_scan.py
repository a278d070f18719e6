"""Running totals, the largest elements, and tensors written by rule, against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_cases import (
    ALL_TYPES,
    FLOATS,
    INTEGERS,
    Case,
    check,
    guarded,
    placed,
    poisoned,
    random_values,
    stride,
    wide,
)
from tests.kernel_tools import Array, run_kernel
from whet.codegen.target import AVX2, AVX512, Target
from whet.dtypes import BOOL, FLOAT16, FLOAT32, FLOAT64, INT64, UINT8, UINT64, DType
from whet.kernels.generate import EyeLike, OneHot, Range, Trilu
from whet.kernels.nonzero import NonZeroCount, NonZeroWrite
from whet.kernels.scan import Cumulative
from whet.kernels.topk import TopK


def running(kind: str, x: Array, axis: int, exclusive: bool, reverse: bool) -> Array:
    ufunc = np.add if kind == "sum" else np.multiply
    values = np.moveaxis(wide(x) if x.dtype.kind not in "iu" else x, axis, 0)
    values = values[::-1] if reverse else values
    result = np.empty_like(values)
    total = np.full(values.shape[1:], ufunc.identity, values.dtype)
    for i in range(len(values)):
        after = ufunc(total, values[i])
        result[i] = total if exclusive else after
        total = after
    return np.moveaxis(result[::-1] if reverse else result, 0, axis)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["sum", "prod"])
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative(target: Target, kind: str, exclusive: bool, reverse: bool) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for dtype in (*FLOATS, *INTEGERS):
        for length in (1, 9):
            x = placed(random_values(rng, (3, length, 20), dtype), dtype, gap=3)
            for layout in ("rows", "columns"):
                out = poisoned(x.shape, dtype, gap=1)
                words: dict[str, Array | int] = {
                    "x": x, "out": out, "kept0": 3, "kept1": 20, "x_kept0": stride(x, 0), "out_kept0": stride(out, 0),
                    "length": length, "x_axis": stride(x, 1), "out_axis": stride(out, 1), "tile": 7,
                }  # fmt: skip
                if layout == "rows":
                    words |= {"x_kept1": 1, "out_kept1": 1}
                spec = Cumulative("sum" if kind == "sum" else "prod", dtype, "rows", exclusive, reverse, 2)
                if layout == "columns":
                    spec = Cumulative(spec.kind, dtype, "columns", exclusive, reverse, 2)
                expected = {"out": running(kind, x, 1, exclusive, reverse)}
                cases.append(Case(spec, words, 9, expected, rtol=1e-6, atol=1e-6, label=length))
    check(target, cases)


# TopK


def top_case(dtype: DType, largest: bool, x: Array, count: int, axis: int = 1) -> Case:
    """The `count` first of x[rows, n] along an axis."""
    source = placed(x, dtype, gap=2)
    shape = (x.shape[0], count) if axis == 1 else (count, x.shape[1])
    values, indices = poisoned(shape, dtype), poisoned(shape, INT64)
    kept = 1 - axis
    words: dict[str, Array | int] = {
        "x": source, "values": values, "indices": indices, "kept0": x.shape[kept], "x_kept0": stride(source, kept),
        "out_kept0": stride(values, kept), "length": x.shape[axis], "x_axis": stride(source, axis),
        "out_axis": stride(values, axis), "count": count, "tile": 2,
    }  # fmt: skip
    rows = source if axis == 1 else source.T
    # Sorting by (key, position) in Python: NaN above everything.
    order = []
    for row in rows:
        numbers = [float(v) if dtype.is_float else int(v) for v in row]
        keys = [((v != v), 0.0 if v != v else v) for v in numbers]
        ranked = sorted(range(len(keys)), key=lambda i: keys[i])
        if largest:
            ranked = sorted(range(len(keys)), key=lambda i: keys[i], reverse=True)
        order.append(ranked[:count])
    found = np.array(order, np.int64).reshape(len(rows), count)
    expected = np.take_along_axis(np.asarray(rows), found, axis=1)
    if axis == 0:
        found, expected = found.T, expected.T
    tiles = -(-x.shape[kept] // 2)
    return Case(TopK(dtype, largest), words, tiles, {"values": expected, "indices": found}, label=(count, axis))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("largest", [True, False])
def test_top_k(target: Target, largest: bool) -> None:
    rng = np.random.default_rng(2)
    cases = []
    for dtype in (*FLOATS, *INTEGERS):
        low = 0 if dtype.kind == "uint" else -3
        for n, count in ((1, 1), (1, 0), (2, 2), (9, 3), (40, 40), (40, 7), (300, 5)):
            cases.append(top_case(dtype, largest, rng.integers(low, 4, (3, n)), count))
        cases.append(top_case(dtype, largest, rng.integers(low, 100, (30, 5)), 4, axis=0))
    limits = [[np.iinfo(np.uint64).max, 0, 1 << 63, (1 << 63) - 1, 5]]
    cases.append(top_case(UINT64, largest, np.array(limits, np.uint64), 5))
    inf, nan = np.inf, np.nan
    for dtype in (FLOAT32, FLOAT64, FLOAT16):
        x = np.array([[0.0, -0.0, nan, 1, -inf, inf, -nan, -1, nan, 0.0, -0.0]])
        cases += [top_case(dtype, largest, x, 11), top_case(dtype, largest, x, 4)]
        cases.append(top_case(dtype, largest, rng.standard_normal((2, 1000)), 100))
    check(target, cases)


# Tensors by rule


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("inner", [1, 5])
def test_one_hot(target: Target, inner: int) -> None:
    cases = []
    for index in (*FLOATS, *INTEGERS):
        depth = 6
        numbers = np.arange(7 * inner).reshape(7, inner) % 16 - (0 if index.kind == "uint" else 8)
        indices = placed(numbers, index)
        if index.is_float:
            indices[0, 0] = 1.5
            indices[1, 0] = np.nan
        if index is UINT64:
            indices[0, 0] = np.iinfo(np.uint64).max
        for dtype in ALL_TYPES if index is INT64 else (FLOAT32,):
            values = placed(np.array([3, 0]) if dtype is BOOL else np.array([3, 7]), dtype)
            expected = np.full((7, depth, inner), values[0], dtype.numpy)
            for o in range(7):
                for i in range(inner):
                    wanted = float(indices[o, i])
                    for d in range(depth):
                        if wanted in (d, d - depth):
                            expected[o, d, i] = values[1]
            words: dict[str, Array | int] = {
                "indices": indices, "values": values, "out": poisoned(expected.shape, dtype), "outer": 7,
                "depth": depth, "inner": inner, "tile": 2,
            }  # fmt: skip
            cases.append(Case(OneHot(index, dtype), words, 4, {"out": expected}, label=inner))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("upper", [True, False])
def test_trilu(target: Target, upper: bool) -> None:
    rng = np.random.default_rng(3)
    cases = []
    for dtype in ALL_TYPES:
        for shape in ((2, 3, 5), (1, 20, 70)) if dtype in (FLOAT32, UINT8) else ((2, 3, 5),):
            for diagonal in (0, 1, -1, 4, -4, 100, -100, (1 << 63) - 1, -(1 << 63)):
                x = placed(random_values(rng, shape, dtype), dtype, gap=3)
                out = poisoned(shape, dtype, gap=1)
                words: dict[str, Array | int] = {
                    "x": x, "out": out, "kept0": shape[0], "kept1": shape[1], "x_kept0": stride(x, 0),
                    "x_kept1": stride(x, 1), "out_kept0": stride(out, 0), "out_kept1": stride(out, 1),
                    "columns": shape[2], "diagonal": diagonal, "tile": 2,
                }  # fmt: skip
                limited = max(min(diagonal, 1000), -1000)
                expected = {"out": (np.triu if upper else np.tril)(x, limited)}
                tiles = shape[0] * -(-shape[1] // 2)
                cases.append(Case(Trilu(dtype, upper, 2), words, tiles, expected, label=(shape, diagonal)))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_range(target: Target) -> None:
    cases = []
    for dtype in (*FLOATS, *INTEGERS):
        for count in (0, 1, 16, 33, 100):
            start, delta = (placed(np.array([v]), dtype) for v in (3, 0.3 if dtype.is_float else 2))
            words: dict[str, Array | int] = {
                "start": start, "delta": delta, "out": poisoned((count,), dtype), "count": count, "tile": 40,
            }  # fmt: skip
            steps = np.arange(count)
            if dtype.is_float:
                expected = wide(start) + steps * wide(delta)
            else:
                expected = start + steps.astype(dtype.numpy) * delta
            case = Case(Range(dtype), words, -(-count // 40), {"out": expected}, rtol=0.0, atol=0.0, label=count)
            cases.append(case)
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_eye_like(target: Target) -> None:
    cases = []
    for dtype in ALL_TYPES:
        for rows, columns in ((1, 1), (3, 7), (7, 3), (4, 70)):
            for diagonal in (0, 2, -2, 100, -(1 << 63)):
                words: dict[str, Array | int] = {
                    "out": poisoned((rows, columns), dtype), "rows": rows, "columns": columns, "diagonal": diagonal,
                    "tile": 2,
                }  # fmt: skip
                expected = {"out": np.eye(rows, columns, max(diagonal, -1000)).astype(dtype.numpy)}
                cases.append(Case(EyeLike(dtype), words, -(-rows // 2), expected, label=(rows, columns, diagonal)))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_non_zero(target: Target) -> None:
    rng = np.random.default_rng(4)
    cases = []
    for dtype in ALL_TYPES:
        for shape in ((1,), (70,), (5, 13), (2, 3, 4, 5)):
            for share in (0.0, 0.1, 1.0):
                x = placed(np.where(rng.random(shape) < share, rng.integers(1, 5, shape), 0), dtype)
                if dtype.is_float and x.size > 3:
                    x.reshape(-1)[1:3] = [-0.0, np.nan]
                found = np.array(np.nonzero(x), np.int64)
                words: dict[str, Array | int] = {"x": x, "count": poisoned((1,), INT64), "size": x.size}
                expected = {"count": np.array([found.shape[1]])}
                cases.append(Case(NonZeroCount(dtype), words, 1, expected, label=(shape, share)))
                out = poisoned(found.shape, INT64, gap=2)
                words = {"x": x, "out": out, "out_row": stride(out, 0)}
                words |= {f"extent{i}": e for i, e in enumerate(shape)}
                case = Case(NonZeroWrite(dtype, len(shape)), words, 1, {"out": found}, label=(shape, share))
                cases.append(case)
    check(target, cases)


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_nothing_behind_the_end_is_read(target: Target) -> None:
    for n in (1, 15, 17, 33):
        x = guarded(np.ones(n, np.float32))
        count, out = guarded(np.zeros(1, np.int64)), guarded(np.zeros((1, n), np.int64))
        run_kernel(target, NonZeroCount(FLOAT32), {"x": x, "count": count, "size": n}, 1)
        assert count[0] == n
        run_kernel(target, NonZeroWrite(FLOAT32, 1), {"x": x, "out": out, "out_row": n, "extent0": n}, 1)
        np.testing.assert_array_equal(out[0], np.arange(n))
        y = guarded(np.zeros(n, np.float32))
        words: dict[str, Array | int] = {
            "x": x, "out": y, "kept0": n, "length": 1, "x_axis": n, "out_axis": n, "tile": n,
        }  # fmt: skip
        run_kernel(target, Cumulative("sum", FLOAT32, "columns"), words, 1)
        np.testing.assert_array_equal(y, 1)
