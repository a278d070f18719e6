"""Softmax, log-softmax and hardmax against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_cases import FLOATS, LENGTHS, Case, check, guarded, placed, poisoned, stride, wide
from tests.kernel_tools import Array, run_kernel
from whet.codegen.lang import LanguageError
from whet.codegen.target import AVX2, AVX512, Target
from whet.dtypes import FLOAT16, FLOAT32, FLOAT64, DType
from whet.kernels.base import build
from whet.kernels.softmax import Softmax, SoftmaxKind

KINDS: tuple[SoftmaxKind, ...] = ("softmax", "log_softmax", "hardmax")


def reference(kind: SoftmaxKind, x: Array, axis: int) -> Array:
    x = wide(x)
    if kind == "hardmax":
        result = np.zeros(x.shape)
        np.put_along_axis(result, np.expand_dims(x.argmax(axis=axis), axis), 1.0, axis)
        return result
    with np.errstate(all="ignore"):
        shifted = x - x.max(axis=axis, keepdims=True)
        total = np.exp(shifted).sum(axis=axis, keepdims=True)
        return np.asarray(np.exp(shifted) / total if kind == "softmax" else shifted - np.log(total))


def row_case(kind: SoftmaxKind, dtype: DType, x: Array, fixed: bool, in_place: bool = False) -> Case:
    rows, n = x.shape
    source = placed(x, dtype, gap=3)
    expected = reference(kind, source, 1)
    out = source if in_place else poisoned(x.shape, dtype, gap=5)
    words: dict[str, Array | int] = {
        "x": source, "out": out, "kept0": rows, "x_kept0": stride(source, 0), "out_kept0": stride(out, 0), "tile": 2,
    }  # fmt: skip
    if not fixed:
        words["length"] = n
    spec = Softmax(kind, dtype, dtype, length=n if fixed else None)
    return Case(spec, words, -(-rows // 2), {"out": expected}, atol=_least(dtype), rtol=3e-6, label=n)


def _least(dtype: DType) -> float:
    """Of float16's smallest numbers one unit; results near 0 of a logarithm carry the error of the sum."""
    return {"float16": 1e-3, "bfloat16": 8e-3, "float32": 1e-6}.get(dtype.name, 1e-14)


def column_case(kind: SoftmaxKind, dtype: DType, x: Array) -> Case:
    n, columns = x.shape
    source, out = placed(x, dtype, gap=3), poisoned(x.shape, dtype, gap=5)
    words: dict[str, Array | int] = {
        "x": source, "out": out, "kept0": columns, "x_axis": stride(source, 0), "out_axis": stride(out, 0), "length": n,
        "tile": 40,
    }  # fmt: skip
    expected = {"out": reference(kind, source, 0)}
    spec = Softmax(kind, dtype, dtype, layout="columns")
    return Case(spec, words, -(-columns // 40), expected, atol=_least(dtype), rtol=3e-6, label=n)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_type(target: Target, kind: SoftmaxKind) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for dtype in FLOATS:
        for n in (1, 5, 16, 33, 300):
            cases += [
                row_case(kind, dtype, rng.standard_normal((5, n)) * 5, fixed=False),
                row_case(kind, dtype, rng.standard_normal((5, n)) * 5, fixed=True),
                row_case(kind, dtype, rng.standard_normal((3, n)), fixed=False, in_place=kind != "hardmax"),
                column_case(kind, dtype, rng.standard_normal((n, 7)) * 5),
            ]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_every_remainder(target: Target) -> None:
    rng = np.random.default_rng(2)
    cases = []
    for n in LENGTHS:
        cases += [
            row_case("softmax", FLOAT32, rng.standard_normal((3, n)) * 8, fixed=False),
            column_case("softmax", FLOAT32, rng.standard_normal((3, n)) * 8),
        ]
    for n in (2, 15, 17, 31, 64, 70, 129, 257):
        cases.append(row_case("softmax", FLOAT32, rng.standard_normal((3, n)) * 8, fixed=True))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity(target: Target, kind: SoftmaxKind) -> None:
    inf, nan = np.inf, np.nan
    rows = [
        [1, nan, 3], [-inf, 1, 2], [-inf, -inf, -inf], [inf, 1, 2], [nan, inf, 1], [1e38, -1e38, 1e38],
        [1000, 0, -1000],
    ]  # fmt: skip
    cases = []
    for repeats in (1, 25):
        x = np.tile(np.array(rows), (1, repeats))
        for dtype in (FLOAT32, FLOAT64):
            cases += [
                row_case(kind, dtype, x, fixed=False),
                row_case(kind, dtype, x, fixed=True),
                column_case(kind, dtype, np.ascontiguousarray(x.T)),
            ]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_scale_and_mask(target: Target) -> None:
    """Scores of attention: [batch, heads, rows, n] with one mask row for each batch."""
    rng = np.random.default_rng(3)
    cases = []
    for n in (5, 64, 100):
        for fixed in (False, True):
            x = placed(rng.standard_normal((2, 3, 4, n)), FLOAT32)
            mask = placed(np.where(rng.random((2, n)) < 0.3, -10000.0, 0.0), FLOAT32)
            mask[:, 0] = 0
            out = poisoned(x.shape, FLOAT32)
            words: dict[str, Array | int] = {"x": x, "out": out, "mask": mask, "tile": 3}
            for i in range(3):
                words |= {f"kept{i}": x.shape[i], f"x_kept{i}": stride(x, i), f"out_kept{i}": stride(out, i)}
                words[f"mask_kept{i}"] = n if i == 0 else 0
            if not fixed:
                words["length"] = n
            spec = Softmax(
                "softmax", FLOAT32, FLOAT32, kept_rank=3, length=n if fixed else None, scale=0.125, mask=FLOAT32
            )
            expected = reference("softmax", wide(x) * 0.125 + wide(mask)[:, None, None], 3)
            cases.append(Case(spec, words, 2 * 3 * 2, {"out": expected}, rtol=3e-6, atol=1e-9, label=n))
    check(target, cases)


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_nothing_behind_the_end_is_read(target: Target) -> None:
    rng = np.random.default_rng(4)
    for dtype in (FLOAT32, FLOAT16):
        for n in (1, 15, 17, 70):
            for length in (None, n):
                x = guarded(rng.standard_normal((3, n)).astype(dtype.numpy))
                out = guarded(np.zeros((3, n), dtype.numpy))
                words: dict[str, Array | int] = {
                    "x": x, "out": out, "kept0": 3, "x_kept0": n, "out_kept0": n, "tile": 3,
                }  # fmt: skip
                words |= {} if length else {"length": n}
                run_kernel(target, Softmax("softmax", dtype, dtype, length=length), words, 1)
                np.testing.assert_allclose(wide(out).sum(axis=1), 1, rtol=1e-2)


def test_a_mask_needs_rows() -> None:
    with pytest.raises(LanguageError, match="mask"):
        build(Softmax("softmax", FLOAT32, FLOAT32, layout="columns", mask=FLOAT32), AVX2)
