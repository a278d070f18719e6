"""Layer, root-mean-square, group and local response normalization against numpy in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_cases import FLOATS, LENGTHS, Case, check, guarded, placed, poisoned, stride, wide
from tests.kernel_tools import Array, Run, run_kernel, run_kernels
from whet.codegen.target import AVX2, AVX512, Target
from whet.dtypes import FLOAT16, FLOAT32, FLOAT64, DType
from whet.kernels.expression import Step, Tape
from whet.kernels.group_norm import GroupNormApply, GroupNormCombine, GroupNormParts
from whet.kernels.lrn import Lrn
from whet.kernels.norm import LayerNorm


def tolerance(dtype: DType) -> float:
    return {"float16": 3e-3, "bfloat16": 3e-2, "float32": 1e-5}.get(dtype.name, 1e-12)


def row_case(
    kind: str,
    dtype: DType,
    x: Array,
    fixed: bool,
    affine: bool = True,
    skip: bool = False,
    total: bool = False,
    statistics: bool = False,
    epsilon: float = 1e-5,
) -> Case:
    """One use of LayerNorm with everything that the flags ask for."""
    rng = np.random.default_rng(x.size)
    rows, n = x.shape
    source, out = placed(x, dtype, gap=3), poisoned(x.shape, dtype, gap=5)
    words: dict[str, Array | int] = {
        "x": source, "out": out, "kept0": rows, "x_kept0": stride(source, 0), "out_kept0": stride(out, 0), "tile": 2,
    }  # fmt: skip
    v = wide(source)
    if skip:
        residual, added = placed(rng.standard_normal(x.shape), dtype, gap=1), placed(rng.standard_normal(n), dtype)
        words |= {"skip": residual, "skip_bias": added, "skip_kept0": stride(residual, 0)}
        v = v + wide(residual) + wide(added)
    expected = {}
    if total:
        words["total"] = poisoned(x.shape, dtype, gap=2)
        words["total_kept0"] = stride(words["total"], 0)
        expected["total"] = v
    mean = v.mean(axis=1) if kind == "layer" else np.zeros(rows)
    centred = v - mean[:, None]
    deviation = 1 / np.sqrt((centred**2).mean(axis=1) + epsilon)
    result = centred * deviation[:, None]
    if affine:
        scale, bias = placed(rng.standard_normal(n), dtype), placed(rng.standard_normal(n), dtype)
        words |= {"scale": scale, "bias": bias}
        result = result * wide(scale) + wide(bias)
    if statistics:
        accumulated = FLOAT64 if dtype is FLOAT64 else FLOAT32
        for name, values in (("mean", mean), ("deviation", deviation)):
            if name == "deviation" or kind == "layer":
                words[name] = poisoned((rows,), accumulated)
                expected[name] = values
        words["statistics_kept0"] = 1
    if not fixed:
        words["length"] = n
    spec = LayerNorm(
        "layer" if kind == "layer" else "rms", dtype, dtype, epsilon, scale=dtype if affine else None,
        bias=dtype if affine else None, skip=dtype if skip else None, skip_bias=dtype if skip else None,
        total=dtype if total else None, statistics=statistics, length=n if fixed else None,
    )  # fmt: skip
    expected["out"] = result
    limit = tolerance(dtype)
    return Case(spec, words, -(-rows // 2), expected, rtol=limit, atol=limit, label=n)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_every_type(target: Target, kind: str) -> None:
    rng = np.random.default_rng(1)
    cases = []
    for dtype in FLOATS:
        for n in (2, 16, 33, 300):
            for fixed in (False, True):
                cases.append(row_case(kind, dtype, rng.standard_normal((5, n)) + 1, fixed))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_every_remainder(target: Target) -> None:
    rng = np.random.default_rng(2)
    cases = [row_case("layer", FLOAT32, rng.standard_normal((3, n)) + 1, fixed=False) for n in LENGTHS]
    cases += [row_case("layer", FLOAT32, rng.standard_normal((3, n)) + 1, fixed=True) for n in (15, 17, 31, 70, 257)]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("fixed", [False, True])
def test_residuals_and_statistics(target: Target, kind: str, fixed: bool) -> None:
    rng = np.random.default_rng(3)
    cases = []
    for dtype in (FLOAT32, FLOAT16):
        for n in (33, 200):
            x = rng.standard_normal((5, n))
            cases += [
                row_case(kind, dtype, x, fixed, affine=False, statistics=True),
                row_case(kind, dtype, x, fixed, skip=True),
                row_case(kind, dtype, x, fixed, skip=True, total=True, statistics=True),
            ]
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_expressions_behind(target: Target) -> None:
    """SiLU behind a layer norm and behind a group norm."""
    rng = np.random.default_rng(11)
    silu = Tape((FLOAT32,), (Step("silu", FLOAT32, (0,)),), (1,))
    cases = []
    for n in (20, 300):
        for fixed in (False, True):
            case = row_case("layer", FLOAT32, rng.standard_normal((3, n)), fixed)
            assert isinstance(case.spec, LayerNorm)
            case.spec = replace(case.spec, epilogue=silu)
            v = case.expected["out"]
            case.expected = {"out": v / (1 + np.exp(-v))}
            cases.append(case)
    x, coefficients = placed(rng.standard_normal((6, 70)), FLOAT32), placed(rng.standard_normal((2, 70)), FLOAT32)
    out = poisoned(x.shape, FLOAT32)
    words: dict[str, Array | int] = {
        "x": x, "out": out, "coefficients": coefficients, "batch": 1, "spatial": 6, "channels": 70, "x_batch": 0,
        "x_row": 70, "out_batch": 0, "out_row": 70, "tile": 4,
    }  # fmt: skip
    v = (wide(x) - wide(coefficients[0])) * wide(coefficients[1])
    expected = {"out": v / (1 + np.exp(-v))}
    cases.append(Case(GroupNormApply(FLOAT32, FLOAT32, epilogue=silu), words, 2, expected, rtol=1e-5, atol=1e-6))
    check(target, cases)


@pytest.mark.parametrize("target", TARGETS)
def test_far_from_zero(target: Target) -> None:
    """Where the mean is 1000 times the deviation, the difference of mean squares would have no digit left."""
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((3, 5000)) + 1000).astype(np.float32)
    case = row_case("layer", FLOAT32, x, fixed=False, affine=False, statistics=True)
    # An error of half a unit in the last place of the mean is 3e-5 deviations.
    case.rtol, case.atol = 1e-5, 4e-5
    check(target, [case])


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_the_output_may_be_the_input(target: Target) -> None:
    rng = np.random.default_rng(5)
    for fixed in (None, 100):
        x = rng.standard_normal((4, 100)).astype(np.float32)
        skip = rng.standard_normal((4, 100)).astype(np.float32)
        v = wide(x) + wide(skip)
        words: dict[str, Array | int] = {"x": x, "out": x, "skip": skip, "total": skip, "kept0": 4, "tile": 4}
        words |= {f"{name}_kept0": 100 for name in ("x", "out", "skip", "total")}
        words |= {} if fixed else {"length": 100}
        spec = LayerNorm("layer", FLOAT32, FLOAT32, 1e-5, skip=FLOAT32, total=FLOAT32, length=fixed)
        run_kernel(target, spec, words, 1)
        np.testing.assert_allclose(skip, v, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(
            x, (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=["avx512", "avx2"])
def test_nothing_behind_the_end_is_read(target: Target) -> None:
    for n in (1, 15, 17, 70):
        for fixed in (None, n):
            x, out = guarded(np.ones((3, n), np.float32)), guarded(np.zeros((3, n), np.float32))
            scale = guarded(np.ones(n, np.float32))
            words: dict[str, Array | int] = {
                "x": x, "out": out, "scale": scale, "kept0": 3, "x_kept0": n, "out_kept0": n, "tile": 3,
            }  # fmt: skip
            words |= {} if fixed else {"length": n}
            run_kernel(target, LayerNorm("rms", FLOAT32, FLOAT32, 0.0, scale=FLOAT32, length=fixed), words, 1)
            np.testing.assert_allclose(out, 1, rtol=1e-6)


# Group normalization


def group_norm(
    target: Target, dtype: DType, x: Array, groups: int, block: int, tile: int, affine: bool = True
) -> tuple[Array, Array]:
    """(what the three kernels give for x[N, S, C], what they should)."""
    rng = np.random.default_rng(7)
    batch, spatial, channels = x.shape
    source, out = placed(x, dtype, gap=3), poisoned(x.shape, dtype, gap=2)
    scale, bias = placed(rng.standard_normal(channels), dtype), placed(rng.standard_normal(channels), dtype)
    first, second = GroupNormParts(dtype), GroupNormCombine(dtype, 1e-5, dtype if affine else None)
    third = GroupNormApply(dtype, dtype, dtype if affine else None)
    blocks = -(-spatial // block)
    parts = poisoned((batch, blocks, 2, channels), first.parts_dtype)
    coefficients = poisoned((batch, 2, channels), first.parts_dtype)
    shape: dict[str, Array | int] = {"batch": batch, "spatial": spatial, "channels": channels}
    places: dict[str, Array | int] = {"x": source, "x_batch": stride(source, 0), "x_row": stride(source, 1)}
    runs = [
        Run(
            first, {**shape, **places, "parts": parts, "block": block, "tile": tile},
            batch * blocks * -(-channels // tile), calls=3,
        ),
        Run(
            second,
            {**shape, "parts": parts, "coefficients": coefficients, "groups": groups, "block": block, "tile": 2}
            | ({"scale": scale} if affine else {}),
            batch * -(-groups // 2), calls=2,
        ),
        Run(
            third,
            {**shape, **places, "coefficients": coefficients, "out": out, "out_batch": stride(out, 0),
             "out_row": stride(out, 1), "tile": 5} | ({"bias": bias} if affine else {}),
            batch * -(-spatial // 5), calls=3,
        ),
    ]  # fmt: skip
    assert run_kernels(target, runs) == [0, 0, 0]
    v = wide(source).reshape(batch, spatial, groups, channels // groups)
    mean, variance = v.mean(axis=(1, 3), keepdims=True), v.var(axis=(1, 3), keepdims=True)
    expected = ((v - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    return out, expected * wide(scale) + wide(bias) if affine else expected


@pytest.mark.parametrize("target", TARGETS)
def test_group_norm(target: Target) -> None:
    rng = np.random.default_rng(8)
    for dtype, batch, spatial, channels, groups, block, tile in (
        (FLOAT32, 2, 49, 64, 8, 10, 64), (FLOAT32, 1, 100, 70, 7, 100, 33), (FLOAT32, 2, 7, 6, 6, 2, 6),
        (FLOAT32, 3, 1, 100, 1, 4, 100), (FLOAT64, 2, 30, 12, 3, 7, 5), (FLOAT16, 2, 30, 40, 4, 16, 40),
    ):  # fmt: skip
        x = rng.standard_normal((batch, spatial, channels)) * 2 + 1
        found, expected = group_norm(target, dtype, x, groups, block, tile, affine=channels != 12)
        np.testing.assert_allclose(wide(found), expected, rtol=tolerance(dtype), atol=tolerance(dtype))


@pytest.mark.parametrize("target", TARGETS)
def test_group_norm_far_from_zero(target: Target) -> None:
    rng = np.random.default_rng(9)
    x = (rng.standard_normal((1, 3000, 4)) + 1000).astype(np.float32)
    found, expected = group_norm(target, FLOAT32, x, 2, 256, 4, affine=False)
    np.testing.assert_allclose(wide(found), expected, rtol=1e-5, atol=4e-5)


# Local response normalization


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("size", "beta"), [(1, 0.75), (5, 0.75), (4, 0.5), (7, 0.9)])
def test_lrn(target: Target, size: int, beta: float) -> None:
    rng = np.random.default_rng(10)
    cases = []
    for dtype in (FLOAT32, FLOAT64, FLOAT16):
        for channels in (1, 3, 16, 20, 33, 70, 100):
            x = placed(rng.standard_normal((5, channels)), dtype, gap=3)
            out = poisoned(x.shape, dtype, gap=1)
            padded = np.pad(wide(x) ** 2, ((0, 0), ((size - 1) // 2, size // 2)))
            total = sum(padded[:, i : i + channels] for i in range(size))
            words: dict[str, Array | int] = {
                "x": x, "out": out, "kept0": 5, "x_kept0": stride(x, 0), "out_kept0": stride(out, 0), "tile": 2,
                "channels": channels,
            }  # fmt: skip
            expected = wide(x) / (1.5 + 0.3 / size * np.asarray(total)) ** beta
            spec = Lrn(dtype, dtype, size, alpha=0.3, beta=beta, bias=1.5)
            limit = min(tolerance(dtype), 2e-3)
            cases.append(Case(spec, words, 3, {"out": expected}, rtol=limit, atol=limit / 10, label=channels))
    check(target, cases)
