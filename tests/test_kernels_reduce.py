"""Reductions and positions of extremes against numpy in float64 (integers: in their own type)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_cases import (
    ALL_TYPES,
    FLOATS,
    LENGTHS,
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
from whet.dtypes import BOOL, FLOAT16, FLOAT32, FLOAT64, INT8, INT32, INT64, UINT8, UINT32, UINT64, DType
from whet.kernels.expression import Step, Tape
from whet.kernels.extreme import ArgReduce
from whet.kernels.reduce import Reduce, ReduceKind

KINDS: tuple[ReduceKind, ...] = (
    "sum", "mean", "max", "min", "prod", "sum_square", "l1", "l2", "log_sum", "log_sum_exp",
)  # fmt: skip
FULL_INTEGERS = (INT32, INT64, UINT32, UINT64)


def reference(kind: ReduceKind, x: Array, axes: tuple[int, ...]) -> Array:
    """A reduction as the standard has it."""
    dtype = x.dtype
    if dtype == np.bool_:
        return np.asarray((np.logical_or if kind == "max" else np.logical_and).reduce(x, axis=axes))
    with np.errstate(all="ignore"):
        if dtype.kind in "iu":
            return _integers(kind, x, axes).astype(dtype)
        x = wide(x)
        if kind in ("max", "min"):
            ufunc, start = (np.maximum, -np.inf) if kind == "max" else (np.minimum, np.inf)
            return np.asarray(ufunc.reduce(x, axis=axes, initial=start))
        if kind == "mean":
            return np.asarray(x.sum(axis=axes) / np.prod([x.shape[a] for a in axes]))
        if kind == "log_sum_exp":
            return np.asarray(np.log(np.exp(x).sum(axis=axes)))
        functions: dict[str, Any] = {
            "sum": lambda: x.sum(axis=axes), "prod": lambda: x.prod(axis=axes), "l1": lambda: abs(x).sum(axis=axes),
            "sum_square": lambda: (x * x).sum(axis=axes), "l2": lambda: np.sqrt((x * x).sum(axis=axes)),
            "log_sum": lambda: np.log(x.sum(axis=axes)),
        }  # fmt: skip
        return np.asarray(functions[kind]())


def _integers(kind: ReduceKind, x: Array, axes: tuple[int, ...]) -> Array:
    def total(values: Array) -> Array:
        return np.asarray(values.sum(axis=axes, dtype=x.dtype))

    if kind in ("max", "min"):
        info = np.iinfo(x.dtype)
        ufunc, start = (np.maximum, info.min) if kind == "max" else (np.minimum, info.max)
        return np.asarray(ufunc.reduce(x, axis=axes, initial=start))
    if kind == "mean":
        sums = np.asarray(x.astype(object).sum(axis=axes))
        count = int(np.prod([x.shape[a] for a in axes]))
        return np.asarray(np.vectorize(lambda v: int(abs(v) // count) * (1 if v >= 0 else -1), otypes=[object])(sums))
    if kind == "log_sum_exp":
        return np.trunc(np.log(np.exp(wide(x)).sum(axis=axes)))
    functions: dict[str, Any] = {
        "sum": lambda: total(x), "prod": lambda: x.prod(axis=axes, dtype=x.dtype), "l1": lambda: total(abs(x)),
        "sum_square": lambda: total(x * x), "l2": lambda: np.trunc(np.sqrt(wide(total(x * x)))),
        "log_sum": lambda: np.trunc(np.log(wide(total(x)))),
    }  # fmt: skip
    return np.asarray(functions[kind]())


def row_case(kind: ReduceKind, dtype: DType, x: Array, label: object = None) -> Case:
    """[rows, n] with gaps between rows, reduced along n."""
    rows, n = x.shape
    source, out = placed(x, dtype, gap=3), poisoned((rows,), dtype)
    words: dict[str, Array | int] = {
        "x": source, "out": out, "kept0": rows, "reduced0": n, "x_kept0": stride(source, 0), "out_kept0": 1, "tile": 2,
    }  # fmt: skip
    if kind == "mean":
        words["count"] = n
    spec = Reduce(kind, dtype, dtype, "rows")
    return Case(spec, words, -(-rows // 2), {"out": reference(kind, source, (1,))}, **_tolerance(kind, n), label=label)


def column_case(kind: ReduceKind, dtype: DType, x: Array, label: object = None) -> Case:
    """[n, columns] with gaps between rows, reduced along n."""
    n, columns = x.shape
    source, out = placed(x, dtype, gap=3), poisoned((columns,), dtype)
    words: dict[str, Array | int] = {
        "x": source, "out": out, "kept0": columns, "reduced0": n, "x_reduced0": stride(source, 0), "tile": 200,
    }  # fmt: skip
    if kind == "mean":
        words["count"] = n
    spec = Reduce(kind, dtype, dtype, "columns")
    tiles = -(-columns // 200)
    return Case(spec, words, tiles, {"out": reference(kind, source, (0,))}, **_tolerance(kind, n), label=label)


def _tolerance(kind: ReduceKind, n: int) -> dict[str, Any]:
    # Sums of both signs cancel: the error belongs to the sum of sizes. Products round once an element.
    return {"rtol": 3e-7 * max(n, 4) if kind == "prod" else 1e-6, "atol": 1e-6 * max(n, 1) if kind != "prod" else 0.0}


def values(rng: np.random.Generator, kind: ReduceKind, shape: tuple[int, ...], dtype: DType) -> Array:
    """Elements that the kind does not drive out of the type's range, with a positive sum for logarithms."""
    x = random_values(rng, shape, dtype)
    if kind == "log_sum" or (kind == "log_sum_exp" and dtype.is_integer):
        return (abs(wide(x)) + 1 if dtype.is_float else wide(x) % 7 + 1).astype(dtype.numpy)
    if kind == "prod" and dtype.is_float:
        return (wide(x) * 0.03 + np.sign(wide(x))).astype(dtype.numpy)
    return x


def types_of(kind: ReduceKind) -> tuple[DType, ...]:
    if kind in ("max", "min"):
        return ALL_TYPES
    return (*FLOATS, *FULL_INTEGERS)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_type(target: Target, kind: ReduceKind) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for dtype in types_of(kind):
        for n in (1, 7, 16, 33, 150):
            cases.append(row_case(kind, dtype, values(rng, kind, (5, n), dtype), f"{n} in a row"))
            cases.append(column_case(kind, dtype, values(rng, kind, (9, n), dtype), f"{n} columns"))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["sum", "max", "log_sum_exp"])
def test_every_remainder(target: Target, kind: ReduceKind) -> None:
    rng = np.random.default_rng(2)
    cases = []
    for n in LENGTHS:
        cases.append(row_case(kind, FLOAT32, values(rng, kind, (3, n), FLOAT32), n))
        cases.append(column_case(kind, FLOAT32, values(rng, kind, (3, n), FLOAT32), n))
        cases.append(column_case(kind, FLOAT32, values(rng, kind, (n, 5), FLOAT32), n))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_over_nothing(target: Target, kind: ReduceKind) -> None:
    cases = []
    for dtype in types_of(kind):
        if dtype.is_integer and kind in ("mean", "log_sum", "log_sum_exp"):
            continue  # a mean of no integers is refused before, and the logarithm of 0 is no integer
        cases += [
            row_case(kind, dtype, np.zeros((3, 0), dtype.numpy)),
            column_case(kind, dtype, np.zeros((0, 3), dtype.numpy)),
        ]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_nan_and_infinity(target: Target) -> None:
    inf, nan = np.inf, np.nan
    rows = [
        [1, nan, 3], [nan, 1, 2], [1, 2, nan], [inf, 1, 2], [-inf, 1, 2], [-inf, -inf, -inf], [inf, inf, 1],
        [inf, nan, -inf],
    ]  # fmt: skip
    x = np.tile(np.array(rows), (1, 13))
    cases = []
    for kind in ("max", "min", "sum", "log_sum_exp"):
        for dtype in (FLOAT32, FLOAT64, FLOAT16):
            cases += [row_case(kind, dtype, x), column_case(kind, dtype, np.ascontiguousarray(x.T))]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_log_sum_exp_of_large_numbers(target: Target) -> None:
    x = np.array([[1000.0, 1000.0, 999.0], [-1000.0, -1001.0, -1000.5]], np.float32)
    case = row_case("log_sum_exp", FLOAT32, x)
    top = wide(x).max(axis=1)
    case.expected = {"out": top + np.log(np.exp(wide(x) - top[:, None]).sum(axis=1))}
    check(target, [case])


@pytest.mark.parametrize("target", TARGETS)
def test_many_axes(target: Target) -> None:
    rng = np.random.default_rng(3)
    x = placed(rng.standard_normal((2, 3, 4, 5, 6, 7)), FLOAT32)
    cases = []
    # Rows: axes 1, 3 and 5 are reduced; columns: axes 0, 2 and 4.
    out = poisoned((2, 4, 6), FLOAT32)
    words: dict[str, Array | int] = {"x": x, "out": out, "tile": 5}
    for i, axis in enumerate((0, 2, 4)):
        words |= {f"kept{i}": x.shape[axis], f"x_kept{i}": stride(x, axis), f"out_kept{i}": stride(out, i)}
    for i, axis in enumerate((1, 3, 5)):
        words |= {f"reduced{i}": x.shape[axis]} | ({f"x_reduced{i}": stride(x, axis)} if i < 2 else {})
    expected = {"out": reference("sum", x, (1, 3, 5))}
    cases.append(Case(Reduce("sum", FLOAT32, FLOAT32, "rows", 3, 3), words, 2 * 4 * 2, expected, atol=1e-4))
    out = poisoned((3, 5, 7), FLOAT32)
    words = {"x": x, "out": out, "tile": 5}
    for i, axis in enumerate((1, 3, 5)):
        words[f"kept{i}"] = x.shape[axis]
        if i < 2:
            words |= {f"x_kept{i}": stride(x, axis), f"out_kept{i}": stride(out, i)}
    for i, axis in enumerate((0, 2, 4)):
        words |= {f"reduced{i}": x.shape[axis], f"x_reduced{i}": stride(x, axis)}
    expected = {"out": reference("max", x, (0, 2, 4))}
    cases.append(Case(Reduce("max", FLOAT32, FLOAT32, "columns", 3, 3), words, 3 * 5 * 2, expected))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_stages(target: Target, kind: ReduceKind) -> None:
    """Parts of a long row, then their combination, give the result of one stage; late parts may be short or empty."""
    rng = np.random.default_rng(4)
    for dtype in (FLOAT32, FLOAT64, INT32):
        x = placed(values(rng, kind, (1000,), dtype), dtype)
        first = Reduce(kind, dtype, dtype, "rows", stage="parts")
        parts = poisoned((5, 1), first.total_dtype)
        words: dict[str, Array | int] = {
            "x": x, "out": parts, "kept0": 1, "reduced0": 1000, "x_kept0": 0, "out_kept0": 1, "tile": 1,
            "part_extent": 300, "out_part": 1,
        }  # fmt: skip
        run_kernel(target, first, words, 5, calls=3)
        out = poisoned((1,), dtype)
        second = Reduce(kind, first.total_dtype, dtype, "columns", stage="combine")
        words = {"x": parts, "out": out, "kept0": 1, "reduced0": 5, "x_reduced0": 1, "tile": 1}
        if kind == "mean":
            words["count"] = 1000
        expected = {"out": reference(kind, x, (0,)).reshape(1)}
        check(target, [Case(second, words, 1, expected, **_tolerance(kind, 1000))])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_expressions_before_and_behind(target: Target, layout: Literal["rows", "columns"]) -> None:
    """The mean of squared differences from 3, as its root, of float16; and a comparison that is counted."""
    rng = np.random.default_rng(8)
    before = Tape(
        (FLOAT32,),
        (Step("constant", FLOAT32, (), (3.0,)), Step("sub", FLOAT32, (0, 1)), Step("mul", FLOAT32, (2, 2))),
        (3,),
    )
    x = placed(rng.standard_normal((30, 40)), FLOAT16)
    axis = 1 if layout == "rows" else 0
    cases = []
    for epilogue_type in (FLOAT32, FLOAT64):
        behind = Tape((epilogue_type,), (Step("sqrt", epilogue_type, (0,)),), (1,))
        out = poisoned((x.shape[1 - axis],), FLOAT16)
        words: dict[str, Array | int] = {
            "x": x, "out": out, "kept0": x.shape[1 - axis], "reduced0": x.shape[axis], "tile": 16,
            "count": x.shape[axis],
        }  # fmt: skip
        words |= {"x_kept0": 40, "out_kept0": 1} if layout == "rows" else {"x_reduced0": 40}
        spec = Reduce("mean", FLOAT16, FLOAT16, layout, prologue=before, epilogue=behind)
        expected = {"out": np.sqrt(((wide(x) - 3) ** 2).mean(axis=axis))}
        cases.append(Case(spec, words, -(-x.shape[1 - axis] // 16), expected))
    is_large = Tape(
        (FLOAT32,),
        (Step("constant", FLOAT32, (), (0.5,)), Step("greater", BOOL, (0, 1)), Step("cast", INT64, (2,))),
        (3,),
    )
    out = poisoned((x.shape[1 - axis],), INT64)
    words = {key: value for key, value in words.items() if key != "count"} | {"out": out}
    spec = Reduce("sum", FLOAT16, INT64, layout, prologue=is_large)
    cases.append(Case(spec, words, -(-x.shape[1 - axis] // 16), {"out": (wide(x) > 0.5).sum(axis=axis)}))
    check(target, cases)


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_million_float32(target: Target, layout: str) -> None:
    """Numbers of one sign, all rounding the same way, which is the worst for a running sum."""
    x = np.full((1_000_000, 1), 0.1, np.float32)
    x[::3] = 0.7
    case = row_case("sum", FLOAT32, np.ascontiguousarray(x.T)) if layout == "rows" else column_case("sum", FLOAT32, x)
    case.rtol, case.atol = 1e-6, 0.0
    check(target, [case])


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_nothing_behind_the_end_is_read(target: Target) -> None:
    rng = np.random.default_rng(5)
    for n in (1, 15, 17, 33, 70):
        for dtype in (FLOAT32, FLOAT16, UINT8):
            x = guarded(random_values(rng, (3, n), dtype))
            for layout, kept, reduced in (("rows", 3, n), ("columns", n, 3)):
                out = guarded(np.zeros(kept, dtype.numpy))
                words: dict[str, Array | int] = {"x": x, "out": out, "kept0": kept, "reduced0": reduced, "tile": 64}
                words |= {"x_kept0": n, "out_kept0": 1} if layout == "rows" else {"x_reduced0": n}
                run_kernel(target, Reduce("max", dtype, dtype, layout), words, -(-kept // 64))
                np.testing.assert_array_equal(out, x.max(axis=1 if layout == "rows" else 0))


# Positions


def position_case(dtype: DType, largest: bool, last: bool, layout: str, x: Array, label: object = None) -> Case:
    """The extreme along axis 1 of [rows, n] (rows), or along axis 0 of [n, columns] (columns)."""
    source = placed(x, dtype, gap=3)
    axis = 1 if layout == "rows" else 0
    kept, length = x.shape[1 - axis], x.shape[axis]
    out = poisoned((kept,), INT64)
    words: dict[str, Array | int] = {"x": source, "out": out, "kept0": kept, "length": length, "tile": 20}
    step = stride(source, 0)
    words |= {"x_kept0": step, "out_kept0": 1} if layout == "rows" else {"x_axis": step}
    view = wide(source) if source.dtype.kind not in "iub" else source
    view = np.flip(view, axis) if last else view
    found = view.argmax(axis=axis) if largest else view.argmin(axis=axis)
    expected = length - 1 - found if last else found
    spec = ArgReduce(dtype, largest, last, layout)
    return Case(spec, words, -(-kept // 20), {"out": expected.astype(np.int64)}, label=label)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("largest", [False, True])
def test_positions(target: Target, layout: str, last: bool, largest: bool) -> None:
    rng = np.random.default_rng(6)
    cases = []
    for dtype in ALL_TYPES[:-1]:
        for n in (1, 2, 15, 16, 17, 40, 130):
            # Few different values, so that most extremes are ties.
            x = (rng.integers(0, 5, (5, n)) if dtype.kind == "uint" else rng.integers(-2, 3, (5, n))).astype(np.int64)
            cases.append(position_case(dtype, largest, last, layout, x, n))
    for n in LENGTHS:
        cases.append(position_case(FLOAT32, largest, last, layout, rng.standard_normal((3, n)), n))
    limits = np.array([[127, -128, -128, 127, 0]] * 3)
    cases.append(position_case(INT8, largest, last, layout, limits, "limits"))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("last", [False, True])
def test_positions_of_nan_and_infinity(target: Target, last: bool) -> None:
    inf, nan = np.inf, np.nan
    rows = [[1, nan, 3, nan], [-inf, -inf, -inf, -inf], [inf, inf, 1, -inf], [nan, nan, nan, nan], [inf, nan, -inf, 1]]
    cases = []
    for repeats in (1, 9):
        x = np.tile(np.array(rows), (1, repeats))
        for largest in (False, True):
            for dtype in (FLOAT32, FLOAT64, FLOAT16):
                cases.append(position_case(dtype, largest, last, "rows", x))
                cases.append(position_case(dtype, largest, last, "columns", np.ascontiguousarray(x.T)))
    check(target, cases)


def test_bool_results_are_zero_or_one() -> None:
    """Any byte but 0 is true in memory; a result is 0 or 1."""
    x = np.array([[0, 2, 0, 255]], np.uint8).view(np.bool_)
    out = np.full(1, 7, np.uint8).view(np.bool_)
    words: dict[str, Array | int] = {
        "x": x, "out": out, "kept0": 1, "reduced0": 4, "x_kept0": 4, "out_kept0": 1, "tile": 1,
    }  # fmt: skip
    run_kernel(AVX2, Reduce("max", BOOL, BOOL, "rows"), words, 1)
    assert out.view(np.uint8)[0] == 1
