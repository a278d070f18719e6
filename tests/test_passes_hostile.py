"""Graphs that look like a pattern but are none, or that would make a matcher work forever: answers and time stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.pass_checks import answers, assert_same, build, load, ops, random_array
from whet.formats.onnx import to_proto
from whet.graph import Model
from whet.ops.evaluate import evaluate_node
from whet.passes.basic.pairs import RedundantPairs
from whet.passes.export import lower_for_onnxruntime
from whet.passes.pipeline import optimize

F = np.float32


def extended(proto: onnx.ModelProto) -> Model:
    """The model after all passes of the extended level, each patch checked."""
    model = load(proto)
    optimize(model, "extended", check_each_patch=True)
    return model


def run(model: Model, feeds: dict[str, Any]) -> Any:
    """The model's one output, node by node with Whet's own kernels."""
    known = {value: feeds[value.name] for value in model.graph.inputs}
    for node in model.graph:
        inputs = [None if v is None else v.array if v.data is not None else known[v] for v in node.inputs]
        known.update(zip(node.outputs, evaluate_node(node, inputs), strict=True))
    return known[model.graph.outputs[0]]


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


HEADS = "float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v"
SCORES = "t = Transpose<perm = [0,1,3,2]>(k)\nr = MatMul(q, t)\ns = Mul(r, factor)\n"
LEAST = F(np.finfo(F).min)


@pytest.mark.parametrize(
    ("kind", "masks"),
    [
        ("float", "m = Where(causal, s, least)\nz = Add(m, mask)"),
        ("bool", "m = Where(causal, s, least)\nz = Where(mask, m, least)"),
        ("bool", "m = Where(mask, s, least)\nz = Where(causal, m, least)"),
        ("bool", "n = Not(mask)\nm = Where(n, least, s)\nz = Where(causal, m, least)"),
        ("float", "n = Add(s, mask)\nz = Where(causal, n, least)"),
    ],
)
@pytest.mark.parametrize("padded", [1, 2])
def test_causal_attention_over_padding_on_the_left(kind: str, masks: str, padded: int) -> None:
    # Every key that the first query may see is padding: finite masks leave a mean over what else they removed.
    columns = np.arange(4) >= padded
    mask = columns if kind == "bool" else np.where(columns, F(0), LEAST)
    constants = {"causal": np.tril(np.ones((1, 1, 4, 4), bool)), "least": LEAST, "factor": F(0.35)}
    body = f"{SCORES}{masks}\np = Softmax(z)\ny = MatMul(p, v)"
    proto = build(f"{HEADS}, {kind}[1,1,1,4] mask", "float[1,2,4,8] y", body, **constants)
    model = extended(proto)
    assert ops(model)["Attention"] == 1
    feeds = {name: random_array((1, 2, 4, 8), seed) for seed, name in enumerate("qkv")}
    feeds["mask"] = mask.reshape(1, 1, 1, 4)
    (expected,) = answers(proto, feeds)
    np.testing.assert_allclose(run(model, feeds), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("batch", "rows", "keys"), [(0, 4, 3), (2, 0, 3), (2, 4, 0), (2, 4, 3)])
@pytest.mark.parametrize("flat", [False, True])
def test_attention_of_nothing(batch: int, rows: int, keys: int, flat: bool) -> None:
    body = SCORES + "p = Softmax(s)\ny = MatMul(p, v)"
    inputs, output = "float[B,2,R,8] q, float[B,2,T,8] k, float[B,2,T,8] v", "float[B,2,R,8] y"
    shapes = {"q": (batch, 2, rows, 8), "k": (batch, 2, keys, 8), "v": (batch, 2, keys, 8)}
    if flat:
        split = "".join(f"{n}4 = Reshape(x{n}, heads)\n{n} = Transpose<perm = [0,2,1,3]>({n}4)\n" for n in shapes)
        body = split + body.replace("y =", "y4 =") + "\nyt = Transpose<perm = [0,2,1,3]>(y4)\ny = Reshape(yt, width)"
        inputs, output = "float[B,R,16] xq, float[B,T,16] xk, float[B,T,16] xv", "float[B,R,16] y"
        shapes = {f"x{n}": (batch, s[2], 16) for n, s in shapes.items()}
    constants: dict[str, Any] = {"factor": F(0.35)}
    if flat:
        constants |= {"heads": np.array([0, 0, 2, 8]), "width": np.array([0, 0, 16])}
    proto = build(inputs, output, body, **constants)
    model = extended(proto)
    assert ops(model)["Attention"] == 1
    feeds = {name: random_array(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    (expected,) = answers(proto, feeds)
    np.testing.assert_allclose(run(model, feeds), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.timeout(60)
def test_a_long_chain_of_concats_becomes_one() -> None:
    chain = [f"v{i + 1} = Concat<axis = {(0, -2)[i % 2]}>(v{i}, x)" for i in range(3000)]
    body = "\n".join(["v0 = Relu(x)", *chain, "w = Concat<axis = 1>(v3000, v3000)", "y = Concat<axis = 1>(w, v3000)"])
    proto = build("float[1,2] x", "float[3001,6] y", body)
    model = load(proto)
    optimize(model, "basic")
    assert ops(model) == {"Relu": 1, "Concat": 2}
    assert_same(proto, model, {"x": random_array((1, 2))})


@pytest.mark.timeout(60)
def test_many_outputs_keep_their_names() -> None:
    count = 4000
    body = "\n".join(f"y{i} = Add(x, zero)" for i in range(count))
    proto = build("float[2] x", ", ".join(f"float[2] y{i}" for i in range(count)), body, zero=np.zeros(2, F))
    model = load(proto)
    optimize(model, "basic")
    assert [v.name for v in model.graph.outputs] == [f"y{i}" for i in range(count)]
    assert all(v.graph_outputs == 1 and v.producer is not None for v in model.graph.outputs)


@pytest.mark.parametrize("batch", [0, 2])
def test_a_saved_group_norm_takes_a_batch_of_nothing(batch: int) -> None:
    body = "y = GroupNormalization<num_groups = 2>(x, scale, bias)"
    constants = {"scale": random_array((4,), 1), "bias": random_array((4,), 2)}
    proto = build("float[N,4,5] x", "float[N,4,5] y", body, **constants)
    model = extended(proto)
    lower_for_onnxruntime(model)
    # ONNX Runtime refuses an empty batch in the operator itself.
    x = random_array((batch, 4, 5))
    parts = x.astype(np.float64).reshape(batch, 2, 10)
    normal = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + 1e-5)
    scale, bias = (constants[n][:, None] for n in ("scale", "bias"))
    (found,) = answers(to_proto(model), {"x": x})
    np.testing.assert_allclose(found, normal.reshape(x.shape) * scale + bias, rtol=1e-5, atol=1e-5)
