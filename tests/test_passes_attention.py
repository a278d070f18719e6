"""The attention fusion on graphs written by hand: forms, masks, and what it must leave alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.pass_checks import answers, build, load, ops, random_array
from whet.formats.onnx import to_proto
from whet.graph import Model, Node
from whet.passes.base import PassDriver
from whet.passes.basic.dead_code import DeadCode
from whet.passes.basic.propagate import ShapePropagation
from whet.passes.export import lower_for_onnxruntime
from whet.passes.extended.attention import FuseAttention
from whet.passes.pipeline import optimize
from whet.verify.levels import compare_level

B, H, S, T, D = 2, 4, 5, 7, 8
QKV = f"float[{B},{H},{S},{D}] q, float[{B},{H},{T},{D}] k, float[{B},{H},{T},{D}] v"
RESULT = f"float[{B},{H},{S},{D}] y"
PARTS = """
    kt = Transpose<perm=[0,1,3,2]>(k)
    s = MatMul(q, kt)
    {scores}
    p = Softmax<axis=-1>(m)
    y = MatMul(p, v)
"""
LOWER = np.tril(np.ones((S, S), np.bool_))
LOWEST = float(np.finfo(np.float32).min)


def qkv_feed(*, heads: int = H, rows: int = T, seed: int = 0) -> dict[str, Any]:
    shapes = {"q": (B, H, S, D), "k": (B, heads, rows, D), "v": (B, heads, rows, D)}
    return {name: random_array(shape, seed + i) for i, (name, shape) in enumerate(shapes.items())}


def fused(proto: onnx.ModelProto) -> tuple[Model, list[str]]:
    """The model after the fusion alone, with the reasons for what it declined."""
    model = load(proto)
    report = PassDriver(model, check_each_patch=True).run(
        (ShapePropagation(), FuseAttention(), DeadCode(), ShapePropagation())
    )
    return model, [r.reason for r in report.refusals]


def attention_of(model: Model) -> Node:
    found = [node for node in model.graph if node.op == "Attention"]
    assert len(found) == 1, [n.label for n in model.graph]
    return found[0]


def check(proto: onnx.ModelProto, feed: dict[str, Any], *, left: set[str] | None = None) -> Node:
    """Fuse, compare in ONNX Runtime and in float64, and return the attention."""
    model, reasons = fused(proto)
    assert "Softmax" not in ops(model), reasons
    node = attention_of(model)
    if left is not None:
        assert set(ops(model)) == {"Attention", *left}
    lowered, _ = fused(proto)
    lower_for_onnxruntime(lowered)
    for before, after in zip(answers(proto, feed), answers(to_proto(lowered), feed), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=2e-6 * max(float(np.ptp(before)), 1.0))
    for difference in compare_level(proto.SerializeToString(), feed, "extended"):
        assert difference.within(1e-9), difference
    return node


def parts(scores: str, inputs: str = "", result: str = RESULT, **constants: Any) -> onnx.ModelProto:
    """softmax over `m`, which the lines in `scores` make of the product `s`."""
    return build(QKV + (f", {inputs}" if inputs else ""), result, PARTS.format(scores=scores), **constants)


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ("m = Mul(s, c)", 0.25),
        ("m = Mul(c, s)", 0.25),
        ("m = Div(s, d)", 0.25),
        ("m = Identity(s)", 1.0),
        ("n = Mul(s, c)\nm = Div(n, d)", 0.0625),
    ],
)
def test_scale(scores: str, scale: float) -> None:
    node = check(parts(scores, c=np.float32(0.25), d=np.float32(4.0)), qkv_feed(), left=set())
    assert node.float_attr("scale", 0.0) == pytest.approx(scale)


def test_scales_on_query_and_key_join() -> None:
    proto = build(
        QKV,
        RESULT,
        """
        qs = Mul(q, c)
        kt = Transpose<perm=[0,1,3,2]>(k)
        ks = Mul(kt, c)
        s = MatMul(qs, ks)
        p = Softmax<axis=3>(s)
        y = MatMul(p, v)
        """,
        c=np.float32(0.5),
    )
    assert check(proto, qkv_feed(), left=set()).float_attr("scale", 0.0) == 0.25


@pytest.mark.parametrize(
    "shape", [(S, T), (1, T), (T,), (1, 1, S, T), (B, 1, 1, T), (1, H, S, T), (H, 1, T), (B, H, S, T)]
)
def test_additive_masks_of_every_shape(shape: tuple[int, ...]) -> None:
    dims = ",".join(map(str, shape))
    proto = parts("t = Mul(s, c)\nm = Add(t, a)", f"float[{dims}] a", c=np.float32(0.3))
    check(proto, {**qkv_feed(), "a": random_array(shape, 9)})


def test_mask_added_before_the_scale_is_scaled() -> None:
    proto = parts("t = Add(a, s)\nm = Mul(t, c)", f"float[{S},{T}] a", c=np.float32(0.3))
    check(proto, {**qkv_feed(), "a": random_array((S, T), 9)}, left={"Mul"})


def test_bias_and_mask_add_up() -> None:
    proto = parts("t = Add(s, a)\nm = Add(t, w)", f"float[1,{H},{S},{T}] a, float[{B},1,1,{T}] w")
    padding = np.where(np.random.default_rng(0).random((B, 1, 1, T)) < 0.5, 0, LOWEST).astype(np.float32)
    check(proto, {**qkv_feed(), "a": random_array((1, H, S, T), 9), "w": padding}, left={"Add"})


@pytest.mark.parametrize("keep", [True, False])
def test_boolean_mask_with_minus_infinity_stays_boolean(keep: bool) -> None:
    order = "s, f" if keep else "f, s"
    proto = parts(f"m = Where(a, {order})", f"bool[{B},1,{S},{T}] a", f=np.float32(-np.inf))
    allowed = np.random.default_rng(0).random((B, 1, S, T)) < 0.6
    allowed[..., 0] = True
    node = check(proto, {**qkv_feed(), "a": allowed == keep}, left=set() if keep else {"Not"})
    mask = node.inputs[3]
    assert mask is not None
    assert str(mask.type).startswith("bool")


def test_finite_fill_keeps_fully_masked_rows_uniform() -> None:
    proto = parts("m = Where(a, s, f)", f"bool[{B},1,{S},{T}] a", f=np.float32(LOWEST))
    allowed = np.random.default_rng(0).random((B, 1, S, T)) < 0.6
    allowed[0, 0, 2] = False
    check(proto, {**qkv_feed(), "a": allowed}, left={"Where"})


@pytest.mark.parametrize("made", ["constant", "chosen", "given"])
def test_fully_masked_rows_stay_uniform_when_saved(made: str) -> None:
    """ONNX Runtime takes a row of the lowest number for one without keys, wherever the mask comes from."""
    mask = np.zeros((S, T), np.float32)
    mask[2], mask[3, 2:] = LOWEST, LOWEST
    feed = qkv_feed()
    if made == "constant":
        check(parts("m = Add(s, a)", a=mask), feed, left=set())
    elif made == "given":
        check(parts("m = Add(s, a)", f"float[{S},{T}] a"), {**feed, "a": mask}, left=set())
    else:
        proto = parts("a = Where(x, z, f)\nm = Add(s, a)", f"bool[{S},{T}] x", z=np.float32(0), f=np.float32(LOWEST))
        check(proto, {**feed, "x": mask == 0}, left={"Where"})


def test_rows_without_keys_that_the_parts_set_to_zero_stay_zero() -> None:
    proto = build(
        f"{QKV}, float[{S},{T}] a",
        RESULT,
        """
        kt = Transpose<perm=[0,1,3,2]>(k)
        s = MatMul(q, kt)
        m = Add(s, a)
        e = Softmax<axis=-1>(m)
        n = IsNaN(e)
        p = Where(n, z, e)
        y = MatMul(p, v)
        """,
        z=np.float32(0),
    )
    mask = np.zeros((S, T), np.float32)
    mask[1] = -np.inf
    mask[2, 3:] = -np.inf
    node = check(proto, {**qkv_feed(), "a": mask}, left=set())
    assert len(node.inputs) == 4


@pytest.mark.parametrize(
    ("mask", "causal"),
    [
        (np.where(LOWER, 0, LOWEST), True),
        (np.where(LOWER, 0, -np.inf)[None, None], True),
        (np.where(LOWER, 0, -1e4), False),
        (np.where(LOWER.T, 0, LOWEST), False),
        (np.where(np.tril(LOWER, -1) | np.eye(S, k=1, dtype=bool), 0, LOWEST), False),
    ],
)
def test_constant_triangle_becomes_causal(mask: Any, causal: bool) -> None:
    square = QKV.replace(f"{T},{D}", f"{S},{D}")
    body = PARTS.format(scores="m = Add(s, a)")
    node = check(build(square, RESULT, body, a=mask.astype(np.float32)), qkv_feed(rows=S))
    assert node.int_attr("is_causal", 0) == int(causal)
    assert (len(node.inputs) == 3) == causal


def test_boolean_triangle_becomes_causal() -> None:
    square = QKV.replace(f"{T},{D}", f"{S},{D}")
    body = PARTS.format(scores="m = Where(a, f, s)")
    node = check(build(square, RESULT, body, a=~LOWER, f=np.float32(-np.inf)), qkv_feed(rows=S), left=set())
    assert node.int_attr("is_causal", 0) == 1


@pytest.mark.parametrize(("upper", "diagonal", "causal"), [(1, 1, True), (1, 0, False), (1, 2, False), (0, 1, False)])
def test_triangle_made_at_run_becomes_causal(upper: int, diagonal: int, causal: bool) -> None:
    body = (
        """
        h = Shape<start=2, end=3>(q)
        hw = Concat<axis=0>(h, h)
        full = Expand(low, hw)
        a = Trilu<upper=UPPER>(full, one)
        """.replace("UPPER", str(upper))
        + PARTS.format(scores="m = Add(s, a)")
    )
    square = "float[b,4,s,8] q, float[b,4,s,8] k, float[b,4,s,8] v"
    proto = build(square, "float[b,4,s,8] y", body, low=np.float32(LOWEST), one=np.int64(diagonal))
    node = check(proto, qkv_feed(rows=S))
    assert node.int_attr("is_causal", 0) == int(causal)


def test_rectangular_triangle_is_no_causal_mask_of_another_extent() -> None:
    """A mask of 5 queries and 7 keys is causal only where key <= query, which then leaves keys 5 and 6 out."""
    mask = np.where(np.tril(np.ones((S, T), bool)), 0, -np.inf).astype(np.float32)
    assert check(parts("m = Add(s, a)", a=mask), qkv_feed(), left=set()).int_attr("is_causal", 0) == 1
    shifted = np.where(np.tril(np.ones((S, T), bool), T - S), 0, -np.inf).astype(np.float32)
    assert check(parts("m = Add(s, a)", a=shifted), qkv_feed(), left=set()).int_attr("is_causal", 0) == 0


def test_soft_cap() -> None:
    scores = "t = Mul(s, c)\nu = Div(t, cap)\nw = Tanh(u)\nx = Mul(w, cap)\nm = Add(x, a)"
    proto = parts(scores, f"float[{S},{T}] a", c=np.float32(0.5), cap=np.float32(3.0))
    mask = np.where(np.random.default_rng(0).random((S, T)) < 0.6, 0, LOWEST).astype(np.float32)
    node = check(proto, {**qkv_feed(), "a": mask}, left=set())
    assert node.float_attr("softcap", 0.0) == 3.0
    assert node.float_attr("scale", 0.0) == pytest.approx(0.5)


def test_zero_addend_disappears() -> None:
    proto = parts("z = ConstantOfShape(n)\nw = Mul(z, c)\nm = Add(s, w)", c=np.float32(2.0), n=np.array([B, H, S, T]))
    model = load(proto)
    optimize(model, "extended")
    assert ops(model) == {"Attention": 1}


def test_merged_batch_and_heads_are_split() -> None:
    """Products over (batch * heads), as baddbmm is exported, with the mask added to split scores in between."""
    heads = """
        {x}4 = Reshape({x}, split)
        {x}s = Transpose<perm=[0,2,1,3]>({x}4)
        {x}b = Reshape({x}s, merged)
    """
    body = (
        "".join(heads.format(x=x) for x in "qkv")
        + """
        kt = Transpose<perm=[0,2,1]>(kb)
        s = MatMul(qb, kt)
        s4 = Reshape(s, apart)
        m4 = Add(s4, a)
        m = Reshape(m4, together)
        p = Softmax<axis=-1>(m)
        o = MatMul(p, vb)
        o4 = Reshape(o, apart_out)
        ot = Transpose<perm=[0,2,1,3]>(o4)
        y = Reshape(ot, flat)
        """
    )
    shape = f"float[{B},{S},{H * D}]"
    proto = build(
        f"{shape} q, {shape} k, {shape} v, float[{B},1,{S},{S}] a",
        f"{shape} y",
        body,
        split=np.array([0, 0, H, D]),
        merged=np.array([B * H, S, D]),
        apart=np.array([B, H, S, S]),
        together=np.array([B * H, S, S]),
        apart_out=np.array([B, H, S, D]),
        flat=np.array([0, 0, H * D]),
    )
    feed = {x: random_array((B, S, H * D), i) for i, x in enumerate("qkv")}
    node = check(proto, {**feed, "a": random_array((B, 1, S, S), 5)}, left=set())
    assert node.int_attr("q_num_heads", 0) == H


def test_one_head_without_an_axis() -> None:
    body = """
        kt = Transpose<perm=[0,2,1]>(k)
        s = MatMul(q, kt)
        m = Add(s, a)
        p = Softmax<axis=-1>(m)
        y = MatMul(p, v)
    """
    inputs = f"float[{B},{S},{D}] q, float[{B},{T},{D}] k, float[{B},{T},{D}] v, float[{B},{S},{T}] a"
    proto = build(inputs, f"float[{B},{S},{D}] y", body)
    shapes = {"q": (B, S, D), "k": (B, T, D), "v": (B, T, D), "a": (B, S, T)}
    feed = {name: random_array(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    node = check(proto, feed, left={"Unsqueeze"})
    assert (node.int_attr("q_num_heads", 0), node.int_attr("kv_num_heads", 0)) == (1, 1)


@pytest.mark.parametrize("swap", [False, True])
def test_einsum_as_keras_writes_it(swap: bool) -> None:
    """Heads beside rows; the first operand of the scores is the key in Keras, the query elsewhere."""
    scores = 's = Einsum<equation="aecd,abcd->acbe">(k, qs)'
    if swap:
        scores = 's = Einsum<equation="abcd,aecd->acbe">(qs, k)'
    body = f"""
        qs = Mul(q, c)
        {scores}
        m = Add(s, a)
        p = Softmax<axis=-1>(m)
        y = Einsum<equation="acbe,aecd->abcd">(p, v)
    """
    inputs = f"float[{B},{S},{H},{D}] q, float[{B},{T},{H},{D}] k, float[{B},{T},{H},{D}] v, float[{B},1,{S},{T}] a"
    proto = build(inputs, f"float[{B},{S},{H},{D}] y", body, c=np.float32(0.35))
    shapes = {"q": (B, S, H, D), "k": (B, T, H, D), "v": (B, T, H, D), "a": (B, 1, S, T)}
    feed = {name: random_array(shape, i) for i, (name, shape) in enumerate(shapes.items())}
    node = check(proto, feed, left={"Reshape"})
    assert node.int_attr("q_num_heads", 0) == H


def test_tensorflow_bert() -> None:
    """tf2onnx: hidden states of rank 2, transposed keys, the mask as (1 - mask) * -10000 added to scaled scores."""
    lines = [
        f"{x}m = MatMul(h, w{x})\n{x}a = Add({x}m, b{x})\n{x}4 = Reshape({x}a, split)\n"
        f"{x}t = Transpose<perm={'[0,2,3,1]' if x == 'k' else '[0,2,1,3]'}>({x}4)"
        for x in "qkv"
    ]
    body = (
        "\n".join(lines)
        + """
        s = MatMul(qt, kt)
        t = Mul(s, c)
        f = Cast<to=1>(mask)
        g = Reshape(f, wide)
        n = Sub(one, g)
        a = Mul(n, low)
        m = Add(t, a)
        p = Softmax<axis=-1>(m)
        o = MatMul(p, vt)
        ot = Transpose<perm=[0,2,1,3]>(o)
        y = Reshape(ot, flat)
    """
    )
    weights = {f"w{x}": random_array((H * D, H * D), i) / 6 for i, x in enumerate("qkv")}
    biases = {f"b{x}": random_array((H * D,), i + 5) for i, x in enumerate("qkv")}
    proto = build(
        f"float[{B * S},{H * D}] h, int32[{B},{S}] mask",
        f"float[{B * S},{H * D}] y",
        body,
        **weights,
        **biases,
        split=np.array([B, S, H, D]),
        wide=np.array([B, 1, 1, S]),
        flat=np.array([B * S, H * D]),
        c=np.float32(D**-0.5),
        one=np.float32(1),
        low=np.float32(-1e4),
    )
    mask = np.ones((B, S), np.int32)
    mask[1, 3:] = 0
    node = check(proto, {"h": random_array((B * S, H * D), 11), "mask": mask})
    assert node.int_attr("q_num_heads", 0) == H


GROUPED = f"float[{B},{H},{S},{D}] q, float[{B},2,{T},{D}] k, float[{B},2,{T},{D}] v"


def grouped(repeat: str, **constants: Any) -> onnx.ModelProto:
    """Keys and values of 2 heads, repeated to 4 by the lines in `repeat` ({x} to {x}r)."""
    body = repeat.replace("{x}", "k") + "\n" + repeat.replace("{x}", "v") + PARTS.format(scores="m = Mul(s, c)")
    body = body.replace("(k)\n    s", "(kr)\n    s").replace("MatMul(p, v)", "MatMul(p, vr)")
    return build(GROUPED, RESULT, body, c=np.float32(0.35), **constants)


EXPANDED = """
    {x}u = Unsqueeze({x}, two)
    {x}e = Expand({x}u, wide)
    {x}r = Reshape({x}e, full)
"""


def test_repeated_heads_are_grouped() -> None:
    proto = grouped(EXPANDED, two=np.array([2]), wide=np.array([B, 2, 2, T, D]), full=np.array([B, H, T, D]))
    check(proto, qkv_feed(heads=2), left=set())


def test_gathered_heads_are_grouped() -> None:
    proto = grouped("{x}r = Gather<axis=1>({x}, order)", order=np.array([0, 0, 1, 1]))
    check(proto, qkv_feed(heads=2), left=set())


def test_heads_repeated_in_another_order_stay_repeated() -> None:
    """Tiling heads as 0, 1, 0, 1 is not the grouping that Attention means."""
    proto = grouped("{x}r = Gather<axis=1>({x}, order)", order=np.array([0, 1, 0, 1]))
    check(proto, qkv_feed(heads=2), left={"Gather"})
    tiled = EXPANDED.replace("Unsqueeze({x}, two)", "Unsqueeze({x}, one)")
    proto = grouped(tiled, one=np.array([1]), wide=np.array([B, 2, 2, T, D]), full=np.array([B, H, T, D]))
    check(proto, qkv_feed(heads=2), left={"Unsqueeze", "Expand", "Reshape"})


CACHED = (
    f"float[b,{H},s,{D}] q, float[b,{H},s,{D}] k, float[b,{H},s,{D}] v, float[b,{H},p,{D}] pk, float[b,{H},p,{D}] pv"
)


def test_cache() -> None:
    body = """
        nk = Concat<axis=2>(pk, k)
        nv = Concat<axis=-2>(pv, v)
        kt = Transpose<perm=[0,1,3,2]>(nk)
        s = MatMul(q, kt)
        p = Softmax<axis=-1>(s)
        y = MatMul(p, nv)
    """
    present = f"float[b,{H},t,{D}]"
    proto = build(CACHED, f"float[b,{H},s,{D}] y, {present} nk, {present} nv", body)
    feed = {**qkv_feed(rows=S), "pk": random_array((B, H, 3, D), 7), "pv": random_array((B, H, 3, D), 8)}
    node = check(proto, feed, left=set())
    assert len(node.inputs) == 6
    assert [v.name for v in node.outputs[1:]] == ["nk", "nv"]


def test_a_mask_made_from_the_present_keys_keeps_the_cache_outside() -> None:
    """The attention cannot make what its own mask is made from."""
    body = """
        nk = Concat<axis=2>(pk, k)
        nv = Concat<axis=2>(pv, v)
        first = Slice(nk, zero, one, three)
        bias4 = Transpose<perm=[0,1,3,2]>(first)
        kt = Transpose<perm=[0,1,3,2]>(nk)
        s = MatMul(q, kt)
        m = Add(s, bias4)
        p = Softmax<axis=-1>(m)
        y = MatMul(p, nv)
    """
    constants = {"zero": np.array([0]), "one": np.array([1]), "three": np.array([3])}
    proto = build(CACHED, f"float[b,{H},s,{D}] y", body, **constants)
    feed = {**qkv_feed(rows=S), "pk": random_array((B, H, 3, D), 7), "pv": random_array((B, H, 3, D), 8)}
    node = check(proto, feed, left={"Concat", "Slice", "Transpose"})
    assert len(node.inputs) == 4


def test_joined_streams_are_no_cache() -> None:
    """Keys of two projections side by side: neither of them is state."""
    body = """
        kx = Relu(k)
        vx = Relu(v)
        nk = Concat<axis=2>(kx, k)
        nv = Concat<axis=2>(vx, v)
        kt = Transpose<perm=[0,1,3,2]>(nk)
        s = MatMul(q, kt)
        p = Softmax<axis=-1>(s)
        y = MatMul(p, nv)
    """
    node = check(build(QKV, RESULT, body), qkv_feed(), left={"Concat", "Relu"})
    assert len(node.inputs) == 3


def test_packed_projection_is_cut_once() -> None:
    body = """
        x5 = Reshape(x, split)
        xt = Transpose<perm=[2,0,3,1,4]>(x5)
        q = Gather<axis=0>(xt, zero)
        k = Gather<axis=0>(xt, one)
        v = Gather<axis=0>(xt, two)
        qs = Mul(q, c)
        kt = Transpose<perm=[0,1,3,2]>(k)
        s = MatMul(qs, kt)
        p = Softmax<axis=-1>(s)
        o = MatMul(p, v)
        ot = Transpose<perm=[0,2,1,3]>(o)
        y = Reshape(ot, flat)
    """
    constants = {name: np.int64(i) for i, name in enumerate(("zero", "one", "two"))}
    proto = build(
        f"float[b,s,{3 * H * D}] x",
        f"float[b,s,{H * D}] y",
        body,
        split=np.array([0, 0, 3, H, D]),
        flat=np.array([0, 0, H * D]),
        c=np.float32(0.35),
        **constants,
    )
    check(proto, {"x": random_array((B, S, 3 * H * D))}, left={"Split"})


def test_half_precision_with_a_softmax_in_single() -> None:
    body = """
        kt = Transpose<perm=[0,1,3,2]>(k)
        s = MatMul(q, kt)
        w = Cast<to=1>(s)
        e = Softmax<axis=-1>(w)
        p = Cast<to=10>(e)
        y = MatMul(p, v)
    """
    proto = build(QKV.replace("float[", "float16["), RESULT.replace("float[", "float16["), body)
    model, _ = fused(proto)
    assert attention_of(model).int_attr("softmax_precision", 0) == onnx.TensorProto.FLOAT
    feed = {k: v.astype(np.float16) for k, v in qkv_feed().items()}
    before, after = answers(proto, feed)[0], answers(to_proto(model), feed)[0]
    np.testing.assert_allclose(after.astype(np.float32), before.astype(np.float32), rtol=0, atol=1e-2)


def test_an_attention_inside_a_branch() -> None:
    """Query, key and value come from the graph around; the cache's Concat stays there."""
    then = """
        kt = Transpose<perm=[0,1,3,2]>(nk)
        s = MatMul(q, kt)
        p = Softmax<axis=-1>(s)
        yes = MatMul(p, nv)
    """
    text = f"""
        nk = Concat<axis=2>(pk, k)
        nv = Concat<axis=2>(pv, v)
        y = If(test) <
            then_branch = t () => (float[b,{H},s,{D}] yes) {{ {then} }},
            else_branch = e () => (float[b,{H},s,{D}] no) {{ no = Identity(q) }}
        >
    """
    proto = build(f"bool test, {CACHED}", f"float[b,{H},s,{D}] y", text)
    model, reasons = fused(proto)
    inner = [node for node in model.graph.all_nodes() if node.op == "Attention"]
    assert len(inner) == 1, reasons
    assert len(inner[0].inputs) == 3
    feed = {**qkv_feed(rows=S), "pk": random_array((B, H, 3, D), 7), "pv": random_array((B, H, 3, D), 8)}
    for test in (True, False):
        given = {**feed, "test": np.array(test)}
        np.testing.assert_allclose(answers(to_proto(model), given)[0], answers(proto, given)[0], rtol=0, atol=2e-6)
