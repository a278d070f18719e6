"""Variances from two sums, in the centred form: the formula, its conditions, and the digits that it saves."""

from __future__ import annotations

import numpy as np
import pytest

from tests.pass_checks import answers, assert_same, build, ops, random_array, run_passes
from whet.formats.onnx import to_proto
from whet.passes.extended.variance import CentreVariance

SUMS = (
    "s = ReduceSum<keepdims = {k}>(x, axes) m = Mul(s, f) q = Mul(x, x) r = ReduceSum<keepdims = {k}>(q, axes) "
    "a = Mul(r, f) b = Mul(m, m) y = Sub(a, b)"
)
MEANS = (
    "m = ReduceMean<keepdims = {k}>(x, axes) q = Pow(x, two) a = ReduceMean<keepdims = {k}>(q, axes) "
    "b = Pow(m, two) y = Sub(a, b)"
)


def model(body: str, keep: int, axes: list[int], factor: float, kind: str = "float") -> object:
    numpy = np.float64 if kind == "double" else np.float32
    constants = {"axes": np.array(axes, np.int64), "f": numpy(factor), "two": numpy(2)}
    used = {name: value for name, value in constants.items() if name in body}
    proto = build(f"{kind}[3,8,5] x", f"{kind} y", body.format(k=keep), **used)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize(("axes", "count"), [([1], 8), ([-1], 5), ([0, 2], 15), ([1, -1], 40)])
@pytest.mark.parametrize("body", [SUMS, MEANS, SUMS.replace("Mul(s, f)", "Mul(f, s)") + " z = Neg(m)"])
def test_the_centred_form(body: str, axes: list[int], count: int, keep: int) -> None:
    proto = model(body, keep, axes, 1 / count)
    optimized = run_passes(proto, CentreVariance())
    found = ops(optimized)
    assert found.get("Unsqueeze", 0) == 1 - keep
    assert found["Sub"] == 1
    assert_same(proto, optimized, {"x": random_array((3, 8, 5))}, rtol=1e-5, atol=1e-6)


def test_it_keeps_the_digits() -> None:
    proto = model(SUMS, 1, [1], 1 / 8)
    x = (1000.0 + random_array((3, 8, 5))).astype(np.float32)
    expected = x.astype(np.float64).var(axis=1, keepdims=True)
    (before,) = answers(proto, {"x": x})
    (after,) = answers(to_proto(run_passes(proto, CentreVariance())), {"x": x})
    assert np.abs(before - expected).max() > 1e-3
    np.testing.assert_allclose(after, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "body",
    [
        SUMS.replace("a = Mul(r, f)", "a = Mul(r, two)"),
        SUMS.replace("b = Mul(m, m)", "b = Mul(m, a)"),
        MEANS.replace("q = Pow(x, two)", "q = Pow(x, m)"),
        SUMS.replace("q = Mul(x, x)", "q = Mul(x, f)"),
        SUMS.replace("y = Sub(a, b)", "y = Sub(b, a)"),
        SUMS.replace("r = ReduceSum<keepdims = {k}>(q, axes)", "r = ReduceSum<keepdims = {k}>(q)"),
    ],
)
def test_other_formulas_stay(body: str) -> None:
    proto = model(body, 1, [1], 1 / 8)
    assert ops(run_passes(proto, CentreVariance())) == ops(run_passes(proto))


def test_a_factor_that_makes_no_mean_stays() -> None:
    proto = model(SUMS, 1, [1], 1 / 7)
    assert ops(run_passes(proto, CentreVariance())) == ops(run_passes(proto))
