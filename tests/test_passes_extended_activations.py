"""Activation functions from parts: every way of writing them is found, near misses are not, answers stay."""

from __future__ import annotations

import math
from math import pi, sqrt

import numpy as np
import pytest

from tests.pass_checks import answers, assert_same, build, load, ops, random_array, run_passes
from whet.formats.onnx import to_proto
from whet.ops.evaluate import evaluate_node
from whet.passes.base import PassDriver, PassReport
from whet.passes.basic.propagate import ShapePropagation
from whet.passes.extended import EXTENDED_PASSES

F = np.float32
C = {
    "half": F(0.5), "one": F(1), "three": F(3), "six": F(6), "zero": F(0), "two": F(2), "sixth": F(1 / 6),
    "root2": F(sqrt(2)), "invroot2": F(1 / sqrt(2)), "cubic": F(0.044715), "k": F(sqrt(2 / pi)), "k2": F(sqrt(8 / pi)),
    "quick": F(1.702), "tenth": F(0.1), "minus1": F(-1), "fifth": F(0.2),
}  # fmt: skip

GELU = "Gelu", {"approximate": "none"}
GELU_TANH = "Gelu", {"approximate": "tanh"}
SILU = "Swish", {"alpha": 1.0}
HARD_SWISH: tuple[str, dict[str, object]] = ("HardSwish", {})

CASES: dict[str, tuple[tuple[str, dict[str, object]], str]] = {
    "gelu torch": (GELU, "d=Div(x,root2) e=Erf(d) a=Add(e,one) m=Mul(x,a) y=Mul(m,half)"),
    "gelu tf": (GELU, "d=Mul(x,invroot2) e=Erf(d) a=Add(one,e) h=Mul(half,x) y=Mul(h,a)"),
    "gelu keras": (GELU, "d=Div(x,root2) e=Erf(d) a=Add(one,e) h=Mul(a,half) y=Mul(x,h)"),
    "gelu halved by two": (GELU, "d=Mul(invroot2,x) e=Erf(d) a=Add(e,one) m=Mul(a,x) y=Div(m,two)"),
    "gelu tanh pow": (
        GELU_TANH,
        "h=Mul(x,half) p=Pow(x,three) q=Mul(p,cubic) s=Add(x,q) t=Mul(s,k) u=Tanh(t) v=Add(u,one) y=Mul(h,v)",
    ),
    "gelu tanh products": (
        GELU_TANH,
        "p=Mul(x,x) p3=Mul(x,p) q=Mul(cubic,p3) s=Add(q,x) t=Mul(k,s) u=Tanh(t) v=Add(one,u) w=Mul(v,x) y=Mul(half,w)",
    ),
    "gelu fast": (
        GELU_TANH,
        "a=Mul(x,k) b=Mul(x,cubic) c=Mul(b,x) d=Add(one,c) e=Mul(a,d) u=Tanh(e) v=Add(one,u) h=Mul(x,half) y=Mul(h,v)",
    ),
    "gelu tanh as sigmoid": (
        GELU_TANH, "p=Pow(x,three) q=Mul(p,cubic) s=Add(x,q) t=Mul(s,k2) u=Sigmoid(t) y=Mul(x,u)",
    ),
    "silu": (SILU, "s=Sigmoid(x) y=Mul(x,s)"),
    "silu turned": (SILU, "s=Sigmoid(x) y=Mul(s,x)"),
    "silu by division": (SILU, "n=Neg(x) e=Exp(n) a=Add(one,e) y=Div(x,a)"),
    "silu from parts": (SILU, "n=Mul(x,minus1) e=Exp(n) a=Add(e,one) s=Reciprocal(a) y=Mul(x,s)"),
    "quick gelu": (("Swish", {"alpha": float(F(1.702))}), "q=Mul(quick,x) s=Sigmoid(q) y=Mul(x,s)"),
    "sigmoid": (("Sigmoid", {}), "n=Neg(x) e=Exp(n) a=Add(e,one) y=Div(one,a)"),
    "softplus": (("Softplus", {}), "e=Exp(x) a=Add(e,one) y=Log(a)"),
    "mish": (("Mish", {}), "s=Softplus(x) t=Tanh(s) y=Mul(x,t)"),
    "mish from parts": (("Mish", {}), "e=Exp(x) a=Add(one,e) s=Log(a) t=Tanh(s) y=Mul(t,x)"),
    "hard swish torch": (HARD_SWISH, "a=Add(x,three) c=Clip(a,zero,six) m=Mul(x,c) y=Div(m,six)"),
    "hard swish tf": (HARD_SWISH, "a=Add(x,three) r=Relu(a) c=Min(r,six) d=Mul(c,sixth) y=Mul(d,x)"),
    "hard swish minmax": (HARD_SWISH, "a=Add(three,x) r=Min(six,a) c=Max(zero,r) d=Div(c,six) y=Mul(x,d)"),
    "hard swish gate": (HARD_SWISH, "g=HardSigmoid<alpha: float=0.16666667, beta: float=0.5>(x) y=Mul(x,g)"),
    "hard sigmoid": (("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}), "a=Add(x,three) c=Clip(a,zero,six) y=Div(c,six)"),
    "hard sigmoid keras": (
        ("HardSigmoid", {"alpha": float(F(0.2)), "beta": 0.5}), "m=Mul(x,fifth) a=Add(m,half) y=Clip(a,zero,one)",
    ),
    "relu": (("Relu", {}), "y=Max(x,zero)"),
    "leaky relu": (("LeakyRelu", {"alpha": float(F(0.1))}), "m=Mul(x,tenth) y=Max(m,x)"),
    "leaky relu chosen": (("LeakyRelu", {"alpha": 2.0}), "g=Greater(x,zero) m=Mul(two,x) y=Where(g,x,m)"),
    "leaky relu chosen by less": (("LeakyRelu", {"alpha": 2.0}), "g=Less(x,zero) m=Mul(two,x) y=Where(g,m,x)"),
}  # fmt: skip


def fused(body: str, outputs: str = "float[7,13] y", **constants: object) -> tuple[dict[str, int], PassReport]:
    model = load(build("float[7,13] x", outputs, body.replace(") ", ")\n"), **{**C, **constants}))
    report = PassDriver(model, check_each_patch=True).run((ShapePropagation(), *EXTENDED_PASSES))
    return ops(model), report


@pytest.mark.parametrize("name", CASES)
def test_found_in_every_form(name: str) -> None:
    (operator, attributes), body = CASES[name]
    proto = build("float[7,13] x", "float[7,13] y", body.replace(") ", ")\n"), **C)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {operator: 1}
    node = model.graph.nodes[0]
    assert {k: v if isinstance(v, str) else pytest.approx(v, rel=1e-6) for k, v in attributes.items()} == {
        k: node.attributes[k] for k in attributes
    }
    x = random_array((7, 13)) * F(4)
    x[0, :4] = [0, 3, -3, 20]
    assert_same(proto, model, {"x": x}, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["gelu torch", "gelu fast", "silu by division", "mish from parts", "hard swish tf"])
def test_agrees_with_float64(name: str) -> None:
    """The fused operator, evaluated in float64, and the formula as written here agree to the constants' rounding."""
    x = np.linspace(-12, 12, 4001)
    erf = np.vectorize(math.erf)
    expected = {
        "gelu torch": x / 2 * (1 + erf(x / sqrt(2))),
        "gelu fast": x / 2 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
        "silu by division": x / (1 + np.exp(-x)),
        "mish from parts": x * np.tanh(np.log1p(np.exp(x))),
        "hard swish tf": x * np.clip(x / 6 + 0.5, 0, 1),
    }[name]
    proto = build("float[4001] x", "float[4001] y", CASES[name][1].replace(") ", ")\n"), **C)
    model = run_passes(proto, *EXTENDED_PASSES)
    (node,) = model.graph.nodes
    np.testing.assert_allclose(evaluate_node(node, [x])[0], expected, rtol=1e-6, atol=1e-7)


def test_prelu_of_keras() -> None:
    slope = -np.abs(random_array((13,), 3))
    proto = build(
        "float[7,13] x", "float[7,13] y", "p=Relu(x)\nn=Neg(x)\nr=Relu(n)\nm=Mul(slope,r)\ny=Add(p,m)", slope=slope
    )
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"PRelu": 1}
    assert_same(proto, model, {"x": random_array((7, 13))}, rtol=1e-6)


def test_scalar_shaped_one_keeps_the_rank_of_a_matrix_and_may_raise_that_of_a_scalar() -> None:
    body = "d=Div(x,root)\ne=Erf(d)\na=Add(e,one)\nm=Mul(x,a)\ny=Mul(m,half)"
    constants = {"root": F(sqrt(2)), "one": F([1]), "half": F([[0.5]])}
    model = run_passes(build("float[7,13] x", "float[7,13] y", body, **constants), *EXTENDED_PASSES)
    assert ops(model) == {"Gelu": 1}
    model = run_passes(build("float x", "float[1,1] y", body, **constants), *EXTENDED_PASSES)
    assert "Gelu" not in ops(model)


def reasons(report: PassReport, rewrite: str) -> str:
    return "; ".join(r.reason for r in report.refusals if r.rewrite == rewrite)


GELU_BODY = CASES["gelu torch"][1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("root2", "two"), "constant two counts as 2.0, expected 1.414"),
        (("Add(e,one)", "Add(e,two)"), "constant two counts as 2.0, expected 1.0"),
        (("Mul(m,half)", "Mul(m,three)"), "expected 0.5"),
        (("Mul(x,a)", "Mul(e,a)"), "x is both"),
    ],
)
def test_gelu_near_miss_says_why(change: tuple[str, str], reason: str) -> None:
    found, report = fused(GELU_BODY.replace(*change))
    assert "Gelu" not in found
    assert reason in reasons(report, "gelu")


def test_an_inner_value_with_another_reader_is_kept() -> None:
    found, report = fused(GELU_BODY + " z=Neg(e)", "float[7,13] y, float[7,13] z")
    assert "Gelu" not in found
    assert "e in its midst is also read by Neg" in reasons(report, "gelu")


def test_an_inner_value_that_is_an_output_is_kept() -> None:
    found, report = fused(GELU_BODY, "float[7,13] y, float[7,13] a")
    assert "Gelu" not in found
    assert "a in its midst is an output" in reasons(report, "gelu")


def test_a_quantized_inner_value_is_kept() -> None:
    found, _ = fused("t=Sigmoid(x) q=QuantizeLinear(t,tenth,zp) s=DequantizeLinear(q,tenth,zp) y=Mul(x,s)",
                     zp=np.uint8(3))  # fmt: skip
    assert found == {"Sigmoid": 1, "QuantizeLinear": 1, "DequantizeLinear": 1, "Mul": 1}


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("s=Sigmoid(x) n=Neg(x) y=Mul(n,s)", "Mul"),
        ("m=Mul(x,two) y=Max(m,x)", "Max"),
        ("g=HardSigmoid(x) y=Mul(x,g)", "HardSigmoid"),
        ("a=Add(x,three) c=Clip(a,zero,six) m=Mul(x,c) y=Div(m,three)", "Clip"),
        ("n=Neg(x) e=Exp(n) a=Add(e,two) y=Div(one,a)", "Exp"),
        ("n=Neg(x) e=Exp(n) a=Add(e,one) y=Div(a,one)", "Exp"),
        ("n=Neg(x) e=Exp(n) a=Sub(one,e) y=Div(one,a)", "Exp"),
        ("e=Exp(x) a=Sub(e,one) y=Log(a)", "Log"),
        ("g=Greater(x,one) m=Mul(two,x) y=Where(g,x,m)", "Where"),
        ("g=Less(x,zero) m=Mul(two,x) y=Where(g,x,m)", "Where"),
    ],
)
def test_other_formulas_are_left_alone(body: str, kept: str) -> None:
    proto = build("float[7,13] x", "float[7,13] y", body.replace(") ", ")\n"), **C)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert kept in ops(model)
    assert_same(proto, model, {"x": random_array((7, 13))}, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "raised"), [("silu", True), ("gelu tanh pow", True), ("hard swish torch", False), ("leaky relu", False)]
)
def test_doubles_are_raised_only_to_what_onnx_runtime_computes_in_double(name: str, raised: bool) -> None:
    (operator, _), body = CASES[name]
    constants = {k: np.float64(v) for k, v in C.items()}
    constants |= {"k": np.float64(sqrt(2 / pi)), "cubic": np.float64(0.044715)}
    proto = build("double[7,13] x", "double[7,13] y", body.replace(") ", ")\n"), **constants)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert (operator in ops(model)) == raised
    assert_same(proto, model, {"x": random_array((7, 13), dtype=np.float64)}, rtol=1e-6, atol=1e-9)


def test_integers_have_no_activation() -> None:
    model = run_passes(build("int64[5] x", "int64[5] y", "y=Max(x,zero)", zero=np.int64(0)), *EXTENDED_PASSES)
    assert ops(model) == {"Max": 1}


def test_inside_a_branch_and_across_its_border() -> None:
    body = """
        s = Sigmoid(x)
        y = If (c) <
            then_branch = t () => (float[7,13] ty) { ts = Sigmoid(x)
              ty = Mul(x, ts) },
            else_branch = e () => (float[7,13] ey) { ey = Mul(x, s) }
        >
    """
    proto = build("float[7,13] x, bool c", "float[7,13] y", body)
    model = run_passes(proto, *EXTENDED_PASSES)
    inner = sorted(n.op for n in model.graph.all_nodes())
    assert inner == ["If", "Mul", "Sigmoid", "Swish"]
    x = random_array((7, 13))
    for c in (True, False):
        feeds = {"x": x, "c": np.array(c)}
        after = answers(to_proto(model), feeds)[0]
        np.testing.assert_allclose(after, answers(proto, feeds)[0], rtol=1e-5, atol=1e-6)
