"""Export for ONNX Runtime: every lowering and fusion loads there, with and without its own optimizer, and agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.pass_checks import answers, build, load, ops, random_array
from whet.formats.onnx import to_proto
from whet.graph import Model
from whet.graph.copy import copy_model
from whet.graph.text import format_graph
from whet.graph.verify import verify
from whet.passes.base import PassDriver
from whet.passes.basic.propagate import ShapePropagation
from whet.passes.export import lower_for_onnxruntime

F = np.float32
LEVELS = (onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)


def exported(
    inputs: str,
    outputs: str,
    body: str,
    feeds: dict[str, Any],
    *,
    opset: int = 24,
    fuse: bool = True,
    tolerance: float = 1e-5,
    **constants: Any,
) -> Model:
    """The model after export, once ONNX Runtime has given the answers of the model before at both of its levels."""
    proto = build(inputs, outputs, body, opset=opset, **constants)
    model = load(proto)
    PassDriver(model).run((ShapePropagation(),))
    copy = copy_model(model)
    text = format_graph(model.graph)
    lower_for_onnxruntime(copy, fuse=fuse)
    verify(copy)
    assert format_graph(model.graph) == text
    expected = answers(proto, feeds)
    for level in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 4
        data = to_proto(copy).SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        for found, wanted in zip(session.run(None, feeds), expected, strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)
    return copy


IMAGE = random_array((2, 6, 9, 7), 1)
W = random_array((4, 6, 3, 3), 2) * F(0.2)
B = random_array((4,), 3)
CONV = {"w": W, "b": B}


@pytest.mark.parametrize("alpha", [1.0, 1.702, -0.5])
def test_swish_becomes_quick_gelu(alpha: float) -> None:
    body = f"y=Swish<alpha: float={alpha}>(x)"
    model = exported("float[N,6,9,7] x", "float[N,6,9,7] y", body, {"x": IMAGE * F(4)}, fuse=False)
    assert ops(model) == {"com.microsoft.QuickGelu": 1}
    assert model.opset_imports["com.microsoft"] == 1


def test_swish_in_a_branch() -> None:
    body = "y = If (c) < then_branch = t () => (ty) { ty = Swish(x) }, else_branch = e () => (ey) { ey = Neg(x) } >"
    for c in (True, False):
        model = exported("float[3] x, bool c", "float[3] y", body, {"x": F([-1, 0, 2]), "c": np.array(c)})
        assert sorted(n.op for n in model.graph.all_nodes()) == ["If", "Neg", "com.microsoft.QuickGelu"]


@pytest.mark.parametrize("dims", ["2,6,9,7", "N,6,9,7", "N,6,H,W"])
def test_group_norm_becomes_instance_norm(dims: str) -> None:
    body = "y=GroupNormalization<num_groups: int=3, epsilon: float=0.01>(x,s,b)"
    parameters = {"s": random_array((6,), 4), "b": random_array((6,), 5)}
    model = exported(f"float[{dims}] x", f"float[{dims}] y", body, {"x": IMAGE}, fuse=False, **parameters)
    found = ops(model)
    assert found.pop("Shape", 0) == (1 if "H" in dims else 0)
    assert found == {"Reshape": 2, "InstanceNormalization": 1, "Mul": 1, "Add": 1}


def test_group_norm_with_computed_parameters_and_one_spatial_axis() -> None:
    body = "y=GroupNormalization<num_groups: int=2>(x,s,b)"
    feeds = {"x": IMAGE[:, :, :, 0], "s": random_array((6,), 4), "b": random_array((6,), 5)}
    model = exported("float[N,6,L] x, float[6] s, float[6] b", "float[N,6,L] y", body, feeds)
    assert "GroupNormalization" not in ops(model)


@pytest.mark.parametrize(
    "activation",
    [
        "Relu(c)",
        "Sigmoid(c)",
        "Tanh(c)",
        "LeakyRelu<alpha: float=0.2>(c)",
        "HardSigmoid<alpha: float=0.3, beta: float=0.4>(c)",
        "HardSwish(c)",
        "Clip(c,low,high)",
        "Clip(c,low)",
        "Clip(c,,high)",
    ],
)
def test_convolution_and_activation(activation: str) -> None:
    constants = {**CONV, "low": F(-0.5), "high": F(0.7)}
    body = f"c=Conv<pads: ints=[1,0,1,0], strides: ints=[2,1]>(x,w,b)\ny={activation}"
    model = exported("float[2,6,9,7] x", "float[2,4,5,5] y", body, {"x": IMAGE}, **constants)
    assert ops(model) == {"com.microsoft.FusedConv": 1}
    assert len(exported("float[2,6,9,7] x", "float[2,4,5,5] y", body, {"x": IMAGE}, fuse=False, **constants).graph) == 2


@pytest.mark.parametrize("bias", ["x,w,b", "x,w"])
@pytest.mark.parametrize("order", ["c,z", "z,c"])
def test_convolution_residual_and_activation(bias: str, order: str) -> None:
    body = f"c=Conv({bias})\na=Add({order})\ny=Relu(a)"
    feeds = {"x": IMAGE, "z": random_array((2, 4, 7, 5), 6)}
    model = exported("float[2,6,9,7] x, float[2,4,7,5] z", "float[2,4,7,5] y", body, feeds, **CONV)
    assert ops(model) == {"com.microsoft.FusedConv": 1}
    assert len(model.graph.nodes[0].inputs) == 4


def test_a_residual_that_broadcasts_stays_outside() -> None:
    body = "c=Conv(x,w,b)\na=Add(c,z)\ny=Relu(a)"
    feeds = {"x": IMAGE, "z": random_array((1, 4, 1, 1), 6)}
    model = exported("float[2,6,9,7] x, float[1,4,1,1] z", "float[2,4,7,5] y", body, feeds, **CONV)
    assert ops(model) == {"Conv": 1, "Add": 1, "Relu": 1}


def test_a_convolution_with_another_reader_stays() -> None:
    outputs = "float[2,4,7,5] y, float[2,4,7,5] z"
    model = exported("float[2,6,9,7] x", outputs, "c=Conv(x,w,b)\ny=Relu(c)\nz=Neg(c)", {"x": IMAGE}, **CONV)
    assert ops(model) == {"Conv": 1, "Relu": 1, "Neg": 1}


@pytest.mark.parametrize(
    "activation",
    ["Relu(g)", "Sigmoid(g)", "Tanh(g)", "LeakyRelu<alpha: float=0.2>(g)", "HardSigmoid<alpha: float=0.3>(g)",
     "Elu<alpha: float=0.5>(g)", "Softplus(g)", "Softsign(g)"],
)  # fmt: skip
def test_gemm_and_activation(activation: str) -> None:
    body = f"g=Gemm<alpha: float=0.5, transB: int=1>(x,w,b)\ny={activation}"
    constants = {"w": random_array((4, 8), 1), "b": B}
    model = exported("float[5,8] x", "float[5,4] y", body, {"x": random_array((5, 8), 2)}, **constants)
    assert ops(model) == {"com.microsoft.FusedGemm": 1}


A3, B3 = random_array((2, 5, 8), 1), random_array((2, 4, 8), 2)


@pytest.mark.parametrize(
    ("body", "a", "b", "left"),
    [
        ("t=Transpose<perm: ints=[0,2,1]>(b)\ny=MatMul(a,t)", A3, B3, 1),
        ("t=Transpose<perm: ints=[0,2,1]>(a)\ny=MatMul(t,b)", A3.swapaxes(1, 2), B3.swapaxes(1, 2), 1),
        ("t=Transpose<perm: ints=[0,2,1]>(b)\np=MatMul(a,t)\ny=Mul(p,f)", A3, B3, 1),
        ("t=Transpose<perm: ints=[0,2,1]>(b)\np=MatMul(a,t)\ny=Div(p,f)", A3, B3, 1),
        ("s=Mul(f,a)\nt=Transpose<perm: ints=[0,2,1]>(b)\nu=Mul(t,f)\ny=MatMul(s,u)", A3, B3, 1),
        ("u=Mul(b,f)\nt=Transpose<perm: ints=[0,2,1]>(u)\ny=MatMul(a,t)", A3, B3, 1),
        ("p=MatMul(a,b)\ny=Mul(p,f)", A3, B3.swapaxes(1, 2), 1),
        ("p=MatMul(a,b)\ny=Mul(p,wide)", A3, B3.swapaxes(1, 2), 2),
        ("t=Transpose<perm: ints=[1,0,2]>(b)\ny=MatMul(a,t)", A3, B3.transpose(2, 0, 1), 2),
        ("y=MatMul(a,b)", A3, B3.swapaxes(1, 2), 1),
    ],
)
def test_matrix_products(body: str, a: Any, b: Any, left: int) -> None:
    dims = ["[" + ",".join(map(str, v.shape)) + "]" for v in (a, b)]
    constants = {"f": F(0.3), "wide": random_array((4,), 9)}
    feeds = {"a": np.ascontiguousarray(a), "b": np.ascontiguousarray(b)}
    model = exported(f"float{dims[0]} a, float{dims[1]} b", "float[2,5,4] y", body, feeds, **constants)
    assert len(model.graph) == left
    assert ("com.microsoft.FusedMatMul" in ops(model)) == (left == 1 and body != "y=MatMul(a,b)")


def test_a_transpose_with_another_reader_stays() -> None:
    body = "t=Transpose<perm: ints=[0,2,1]>(b)\ny=MatMul(a,t)\nz=Neg(t)"
    outputs = "float[2,5,4] y, float[2,8,4] z"
    model = exported("float[2,5,8] a, float[2,4,8] b", outputs, body, {"a": A3, "b": B3})
    assert ops(model) == {"Transpose": 1, "MatMul": 1, "Neg": 1}


def test_bias_and_gelu() -> None:
    for approximate, op in (("none", "BiasGelu"), ("tanh", "FastGelu")):
        body = f'a=Add(b,x)\ny=Gelu<approximate="{approximate}">(a)'
        constants = {"b": random_array((8,), 3)}
        model = exported("float[2,5,8] x", "float[2,5,8] y", body, {"x": A3}, tolerance=2e-5, **constants)
        assert ops(model) == {f"com.microsoft.{op}": 1}
    body = "a=Add(x,z)\ny=Gelu(a)"
    model = exported("float[2,5,8] x, float[2,5,8] z", "float[2,5,8] y", body, {"x": A3, "z": A3})
    assert ops(model) == {"Add": 1, "Gelu": 1}


NORM = {"g": random_array((8,), 4), "b": random_array((8,), 5), "bias": random_array((8,), 6)}
PAIR = {"x": A3, "z": random_array((2, 5, 8), 7)}
PAIR_INPUTS = "float[2,5,8] x, float[2,5,8] z"


@pytest.mark.parametrize(
    ("norm", "op"),
    [
        ("LayerNormalization<epsilon: float=0.01>(a,g,b)", "SkipLayerNormalization"),
        ("LayerNormalization<epsilon: float=0.01>(a,g)", "SkipLayerNormalization"),
        ("RMSNormalization<epsilon: float=0.01>(a,g)", "SkipSimplifiedLayerNormalization"),
    ],
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_residual_and_normalization(norm: str, op: str, bias: bool, shared: bool) -> None:
    body = ("c=Add(bias,x)\na=Add(c,z)\n" if bias else "a=Add(x,z)\n") + f"y={norm}"
    outputs = "float[2,5,8] y"
    if shared:
        body, outputs = body + "\nr=Neg(a)", outputs + ", float[2,5,8] r"
    model = exported(PAIR_INPUTS, outputs, body, PAIR, **NORM)
    assert ops(model) == {f"com.microsoft.{op}": 1} | ({"Neg": 1} if shared else {})


@pytest.mark.parametrize(
    ("inputs", "body", "feeds"),
    [
        ("float[2,5,8] x, float[1,5,8] z", "a=Add(x,z)\ny=LayerNormalization(a,g,b)", {"x": A3, "z": A3[:1]}),
        ("float[N,5,8] x, float[M,5,8] z", "a=Add(x,z)\ny=LayerNormalization(a,g,b)", {"x": A3, "z": A3[:1]}),
        (PAIR_INPUTS, "a=Add(x,z)\ny=LayerNormalization<axis: int=1>(a,gg)", PAIR),
    ],
)
def test_residuals_that_broadcast_and_wider_normalizations_stay(inputs: str, body: str, feeds: dict[str, Any]) -> None:
    constants = {**NORM, "gg": random_array((5, 8), 8)}
    model = exported(inputs, "float[2,5,8] y", body, feeds, **constants)
    assert ops(model) == {"Add": 1, "LayerNormalization": 1}


def test_doubles_are_not_fused() -> None:
    feeds = {"x": PAIR["x"].astype(np.float64), "z": PAIR["z"].astype(np.float64)}
    body = "a=Add(x,z)\nn=LayerNormalization(a,g,b)\ns=Swish(n)\ny=Mul(s,f)"
    constants = {k: v.astype(np.float64) for k, v in NORM.items()} | {"f": np.float64(2)}
    inputs = PAIR_INPUTS.replace("float", "double")
    model = exported(inputs, "double[2,5,8] y", body, feeds, tolerance=1e-6, **constants)
    assert ops(model) == {"Add": 1, "LayerNormalization": 1, "com.microsoft.QuickGelu": 1, "Mul": 1}
