"""Graphs that look like a pattern but are none, or that would make a matcher work forever: answers and time stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.pass_checks import assert_same, build, load, ops, random_array
from whet.formats.onnx import to_proto
from whet.graph import Model
from whet.ops.evaluate import evaluate_node
from whet.passes.basic.pairs import RedundantPairs
from whet.passes.pipeline import optimize

F = np.float32


def extended(proto: onnx.ModelProto) -> Model:
    """The model after all passes of the extended level, each patch checked."""
    model = load(proto)
    optimize(model, "extended", check_each_patch=True)
    return model


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (
            "a = Div(x, root)\nb = Erf(a)\nc = Add(b, one)\nd = Mul(x, c)\ny = Mul(d, half)",
            {"root": F(np.sqrt(2)), "one": F(1), "half": F(np.nan)},
        ),
        ("y = Max(x, zero)", {"zero": F(np.nan)}),
        ("y = Clip(x, zero)", {"zero": F(np.nan)}),
    ],
)
def test_nan_is_no_patterns_constant(body: str, constants: dict[str, Any]) -> None:
    proto = build("float[4] x", "float[4] y", body, **constants)
    model = extended(proto)
    assert not {"Gelu", "Relu"} & set(ops(model))
    assert_same(proto, model, {"x": random_array((4,))})


def test_a_scale_stays_outside_when_the_mean_is_read() -> None:
    body = "a, mean = LayerNormalization(x, ones)\ny = Mul(a, scale)"
    constants = {"ones": np.ones(4, F), "scale": random_array((4,), 1)}
    proto = build("float[2,4] x", "float[2,4] y, float[2,1] mean", body, **constants)
    assert_same(proto, extended(proto), {"x": random_array((2, 4))}, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "weight", "scale", "x"),
    [
        ("a = MatMul(x, w)\ny = Mul(a, s)", 1e30, 1e10, 1e-25),
        ("a = Mul(x, s)\ny = MatMul(a, w)", 1e30, 1e10, 1e-25),
        ("a = MatMul(x, w)\ny = Mul(a, s)", 1e-30, 1e-10, 1e30),
        ("a = MatMul(x, w)\nc = Add(a, b)\ny = Mul(c, s)", 1e-30, 1e20, 1e20),
    ],
)
def test_weights_that_the_factor_would_push_out_of_range_stay(body: str, weight: float, scale: float, x: float) -> None:
    constants = {"w": np.full((2, 2), weight, F), "s": F(scale), "b": np.full(2, 1e19, F)}
    if "b)" not in body:
        del constants["b"]
    proto = build("float[1,2] x", "float[1,2] y", body, **constants)
    model = extended(proto)
    assert "Mul" in ops(model)
    assert_same(proto, model, {"x": np.full((1, 2), x, F)}, rtol=1e-6)


def test_text_of_a_number_keeps_the_type_between() -> None:
    proto = build("int32[3] x", "string[3] y", "a = Cast<to = 11>(x)\ny = Cast<to = 8>(a)")
    model = load(proto)
    optimize(model, "basic")
    assert ops(model) == {"Cast": 2}
    assert RedundantPairs.name not in str([n.provenance for n in model.graph])
    value: Any = np.array([1, 2, 3], np.int32)
    for node in model.graph:
        (value,) = evaluate_node(node, [value])
    direct = build("double[3] x", "string[3] y", "y = Cast<to = 8>(x)")
    assert value.tolist() == evaluate_node(next(iter(load(direct).graph)), [np.array([1.0, 2.0, 3.0])])[0].tolist()


def test_long_chains_of_reciprocals() -> None:
    chain = ["a0 = Reciprocal(x)", *(f"a{i} = Reciprocal(a{i - 1})" for i in range(1, 2000)), "y = Mul(x, a1999)"]
    model = extended(build("float[2] x", "float[2] y", "\n".join(chain)))
    assert ops(model) == {"Reciprocal": 2000, "Mul": 1}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "step",
    ["a{i} = Add(a{j}, a{j})", "b{i} = Mul(a{j}, two)\nc{i} = Mul(a{j}, three)\na{i} = Add(b{i}, c{i})"],
)
@pytest.mark.parametrize("length", [60, 2000])
def test_doubling_sums_before_a_softmax(step: str, length: int) -> None:
    chain = ["a0 = Relu(x)", *(step.format(i=i, j=i - 1) for i in range(1, length))]
    body = "\n".join([*chain, f"p = Softmax(a{length - 1})", "y = MatMul(p, v)"])
    constants = {} if "two" not in step else {"two": F(2), "three": F(3)}
    proto = build("float[1,2,3,3] x, float[1,2,3,3] v", "float[1,2,3,3] y", body, **constants)
    assert "Attention" not in ops(extended(proto))


@pytest.mark.timeout(60)
def test_doubling_products_under_a_mask() -> None:
    chain = [
        "a0 = ConstantOfShape<value = float[1] {-2.0}>(n)",
        *(f"a{i} = Mul(a{i - 1}, a{i - 1})" for i in range(1, 60)),
    ]
    body = "\n".join([*chain, "s = MatMul(q, k)", "m = Where(keep, s, a59)", "p = Softmax(m)", "y = MatMul(p, v)"])
    inputs = "float[1,2,3,4] q, float[1,2,4,3] k, float[1,2,3,4] v, bool[3,3] keep, int64[2] n"
    model = extended(build(inputs, "float[1,2,3,4] y", body))
    assert "Attention" not in ops(model)
    assert to_proto(model).graph.node
