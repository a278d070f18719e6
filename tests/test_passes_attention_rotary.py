"""Rotary and embedding fusions on graphs written by hand: forms and near misses."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.pass_checks import answers, build, load, ops, random_array
from whet.formats.onnx import to_proto
from whet.graph import Model, Node
from whet.passes.base import Pass, PassDriver
from whet.passes.basic.dead_code import DeadCode
from whet.passes.basic.propagate import ShapePropagation
from whet.passes.extended.embedding import FuseEmbedLayerNorm
from whet.passes.extended.rotary import FuseRotary
from whet.verify.levels import compare_level

B, H, S, D = 2, 4, 5, 8
END = 2**62


def fused(proto: onnx.ModelProto, fusion: Pass) -> tuple[Model, list[str]]:
    model = load(proto)
    report = PassDriver(model, check_each_patch=True).run((ShapePropagation(), fusion, DeadCode(), ShapePropagation()))
    return model, [r.reason for r in report.refusals]


def check(proto: onnx.ModelProto, fusion: Pass, op: str, feed: dict[str, Any], left: set[str]) -> Node:
    """Fuse, compare in ONNX Runtime and in float64, and return the fused node."""
    model, reasons = fused(proto, fusion)
    assert set(ops(model)) == {op, *left}, reasons
    for before, after in zip(answers(proto, feed), answers(to_proto(model), feed), strict=True):
        np.testing.assert_allclose(after, before, rtol=0, atol=3e-6 * max(float(np.ptp(before)), 1.0))
    for difference in compare_level(proto.SerializeToString(), feed, "extended"):
        assert difference.within(1e-9), difference
    return next(node for node in model.graph if node.op == op)


def refused(proto: onnx.ModelProto, fusion: Pass, op: str, reason: str | None) -> None:
    model, reasons = fused(proto, fusion)
    assert op not in ops(model)
    if reason is not None:
        assert any(reason in r for r in reasons), reasons


HALVES = """
    x1 = Slice(x, zero, half, last, one)
    x2 = Slice(x, half, end, last, one)
    n = Neg(x2)
    r = Concat<axis=-1>(n, x1)
    a = Mul(x, cos)
    b = Mul(r, sin)
    y = Add(a, b)
"""
PAIRS = """
    x1 = Slice(x, zero, end, last, two)
    x2 = Slice(x, one, end, last, two)
    n = Neg(x2)
    nu = Unsqueeze(n, minus)
    x1u = Unsqueeze(x1, minus)
    c = Concat<axis=-1>(nu, x1u)
    r = Reshape(c, shape)
    a = Mul(x, cos)
    b = Mul(r, sin)
    y = Add(b, a)
"""
SLICES = {
    "zero": np.array([0]), "half": np.array([D // 2]), "end": np.array([END]), "last": np.array([3]),
    "one": np.array([1]), "two": np.array([2]), "minus": np.array([-1]), "shape": np.array([B, H, S, D]),
}  # fmt: skip
HEADS_FIRST = f"float[{B},{H},{S},{D}] x"


def angles(*shape: int, seed: int = 3) -> tuple[Any, Any]:
    angle = random_array(shape, seed)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotary(body: str, inputs: str = HEADS_FIRST, **constants: Any) -> onnx.ModelProto:
    used = {k: v for k, v in SLICES.items() if k in body.replace("(", " ").replace(")", " ").replace(",", " ").split()}
    return build(inputs, f"{inputs.split(' ')[0]} y", body, **used, **constants)


@pytest.mark.parametrize("shape", [(S, D // 2), (1, 1, S, D // 2), (1, S, D // 2)])
def test_constant_tables_by_halves(shape: tuple[int, ...]) -> None:
    cos, sin = (np.concatenate([t, t], -1) for t in angles(*shape))
    node = check(
        rotary(HALVES, cos=cos, sin=sin),
        FuseRotary(),
        "RotaryEmbedding",
        {"x": random_array((B, H, S, D))},
        {"Expand", "Shape", "Concat"}
        | ({"Squeeze"} if len(shape) == 4 else set() if len(shape) == 3 else {"Unsqueeze"}),
    )
    assert node.int_attr("interleaved", 1) == 0


def test_constant_tables_by_pairs() -> None:
    cos, sin = (np.repeat(t, 2, -1) for t in angles(S, D // 2))
    left = {"Expand", "Shape", "Concat", "Unsqueeze"}
    feed = {"x": random_array((B, H, S, D))}
    node = check(rotary(PAIRS, cos=cos, sin=sin), FuseRotary(), "RotaryEmbedding", feed, left)
    assert node.int_attr("interleaved", 0) == 1


def test_tables_looked_up_by_position() -> None:
    body = (
        """
        cr = Gather(table_c, ids)
        cos = Unsqueeze(cr, one)
        sr = Gather(table_s, ids)
        sin = Unsqueeze(sr, one)
    """
        + HALVES
    )
    cos, sin = (np.concatenate([t, t], -1) for t in angles(11, D // 2))
    proto = build(
        f"{HEADS_FIRST}, int64[{B},{S}] ids",
        f"float[{B},{H},{S},{D}] y",
        body,
        table_c=cos,
        table_s=sin,
        **{k: SLICES[k] for k in ("zero", "half", "end", "last", "one")},
    )
    feed = {"x": random_array((B, H, S, D)), "ids": np.random.default_rng(0).integers(0, 11, (B, S))}
    check(proto, FuseRotary(), "RotaryEmbedding", feed, {"Gather"})


def test_products_of_halves() -> None:
    """(x1 cos - x2 sin, x2 cos + x1 sin) with tables half as wide, for heads beside rows."""
    body = """
        x1, x2 = Split<axis=-1, num_outputs=2>(x)
        a = Mul(x1, cos)
        b = Mul(x2, sin)
        c = Mul(x2, cos)
        d = Mul(sin, x1)
        real = Sub(a, b)
        imaginary = Add(c, d)
        y = Concat<axis=-1>(real, imaginary)
    """
    cos, sin = angles(1, S, 1, D // 2)
    proto = rotary(body, f"float[{B},{S},{H},{D}] x", cos=cos, sin=sin)
    left = {"Reshape", "Squeeze", "Expand", "Shape", "Concat"}
    node = check(proto, FuseRotary(), "RotaryEmbedding", {"x": random_array((B, S, H, D))}, left)
    assert node.int_attr("num_heads", 0) == H


def test_first_columns_only() -> None:
    body = """
        f = Slice(x, zero, half, last, one)
        rest = Slice(x, half, end, last, one)
        f1 = Slice(f, zero, two, last, one)
        f2 = Slice(f, two, end, last, one)
        n = Neg(f2)
        r = Concat<axis=-1>(n, f1)
        a = Mul(f, cos)
        b = Mul(r, sin)
        o = Add(a, b)
        y = Concat<axis=-1>(o, rest)
    """
    cos, sin = (np.concatenate([t, t], -1) for t in angles(S, D // 4))
    left = {"Expand", "Shape", "Concat", "Unsqueeze"}
    feed = {"x": random_array((B, H, S, D))}
    node = check(rotary(body, cos=cos, sin=sin), FuseRotary(), "RotaryEmbedding", feed, left)
    assert node.int_attr("rotary_embedding_dim", 0) == D // 2


def test_angles_that_do_not_repeat() -> None:
    cos, sin = angles(S, D)
    refused(rotary(HALVES, cos=cos, sin=sin), FuseRotary(), "RotaryEmbedding", "each angle twice")
    # Pairs in the tables, halves in the rotation.
    cos, sin = (np.repeat(t, 2, -1) for t in angles(S, D // 2))
    refused(rotary(HALVES, cos=cos, sin=sin), FuseRotary(), "RotaryEmbedding", "each angle twice")


def test_angles_of_each_head() -> None:
    cos, sin = (np.concatenate([t, t], -1) for t in angles(1, H, S, D // 2))
    refused(rotary(HALVES, cos=cos, sin=sin), FuseRotary(), "RotaryEmbedding", "the same for all heads")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("n = Neg(x2)", "n = Neg(x1)"),
        ("Concat<axis=-1>(n, x1)", "Concat<axis=-1>(x1, n)"),
        ("n = Neg(x2)", "n = Abs(x2)"),
        ("a = Mul(x, cos)", "o = Abs(x)\na = Mul(o, cos)"),
        ("y = Add(a, b)", "y = Sub(a, b)"),
    ],
)
def test_other_arithmetic_is_no_rotation(old: str, new: str) -> None:
    cos, sin = (np.concatenate([t, t], -1) for t in angles(S, D // 2))
    assert old in HALVES
    refused(rotary(HALVES.replace(old, new), cos=cos, sin=sin), FuseRotary(), "RotaryEmbedding", None)


W = 16
INDICES = {"Cast", "Less", "Add", "Where"}
"""What counts an index from the front."""
TABLES = {"words": (30, W), "places": (12, W), "kinds": (3, W)}


def embedding(body: str, inputs: str, outputs: str = f"float[b,s,{W}] y", **constants: Any) -> onnx.ModelProto:
    used = {name: random_array(shape, 20 + i) for i, (name, shape) in enumerate(TABLES.items()) if name in body}
    scale, bias = random_array((W,), 30), random_array((W,), 31)
    return build(inputs, outputs, body, **used, scale=scale, bias=bias, **constants)


THREE = """
    w = Gather(words, ids)
    k = Gather(kinds, kind)
    p = Gather(places, place)
    wk = Add(w, k)
    t = Add(wk, p)
    y = LayerNormalization<axis=-1, epsilon=1e-5>(t, scale, bias)
"""
IDS = "int64[b,s] ids, int64[b,s] kind"


def ids_feed() -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {"ids": generator.integers(-30, 30, (B, S)), "kind": generator.integers(-3, 3, (B, S))}


@pytest.mark.parametrize(("dims", "shape"), [("b,s", (B, S)), ("1,s", (1, S)), ("s", (S,))])
def test_embeddings_by_given_positions(dims: str, shape: tuple[int, ...]) -> None:
    feed = {**ids_feed(), "place": np.random.default_rng(1).integers(-12, 12, shape)}
    left = {*INDICES, "Unsqueeze"} if len(shape) == 1 else INDICES
    proto = embedding(THREE, f"{IDS}, int64[{dims}] place")
    node = check(proto, FuseEmbedLayerNorm(), "com.microsoft.EmbedLayerNormalization", feed, left)
    words = node.inputs[2]
    assert words is not None
    assert words.name == "words"
    assert node.float_attr("epsilon", 0.0) == pytest.approx(1e-5)


def test_embeddings_by_counted_positions_and_a_sum_that_is_read() -> None:
    body = """
        n = Shape<start=1, end=2>(ids)
        place = Slice(counted, zero, n, one)
        w = Gather(words, ids)
        p = Gather(places, place)
        t = Add(p, w)
        y = LayerNormalization<axis=-1>(t, scale)
        z = Relu(t)
    """
    proto = embedding(
        body, "int64[b,s] ids", f"float[b,s,{W}] y, float[b,s,{W}] z",
        counted=np.arange(12)[None], zero=np.array([0]), one=np.array([1]),
    )  # fmt: skip
    feed = {"ids": ids_feed()["ids"]}
    node = check(proto, FuseEmbedLayerNorm(), "com.microsoft.EmbedLayerNormalization", feed, {*INDICES, "Relu"})
    assert len(node.inputs) == 7


def test_positions_that_were_folded_to_rows() -> None:
    body = "w = Gather(words, ids)\nt = Add(w, rows)\ny = LayerNormalization<axis=2>(t, scale, bias)"
    proto = embedding(body, f"int64[b,{S}] ids", f"float[b,{S},{W}] y", rows=random_array((1, S, W)))
    feed = {"ids": ids_feed()["ids"]}
    check(proto, FuseEmbedLayerNorm(), "com.microsoft.EmbedLayerNormalization", feed, INDICES)


@pytest.mark.parametrize(
    ("body", "inputs", "reason"),
    [
        (THREE.replace("axis=-1", "axis=1"), f"{IDS}, int64[b,s] place", "not normalized over columns"),
        (THREE, f"{IDS}, int64[1,1] place", "one row a column"),
        (THREE, f"{IDS}, int64[1,r] place", "words, positions"),
        (THREE.replace("Gather(kinds, kind)", "Gather(kinds, place)"), f"{IDS}, int64[1,s] place", "words, positions"),
        ("w = Gather(words, ids)\nt = Add(w, x)\ny = LayerNormalization(t, scale)", f"int64[b,s] ids, float[b,s,{W}] x",
         "no constant"),
    ],
)  # fmt: skip
def test_other_sums_are_no_embeddings(body: str, inputs: str, reason: str) -> None:
    outputs = f"float[b,s,{W}] y"
    constants = {"scale": random_array((S, W))} if "axis=1" in body else {}
    proto = embedding(body, inputs.replace("b,s", f"b,{S}") if constants else inputs, outputs)
    refused(proto, FuseEmbedLayerNorm(), "com.microsoft.EmbedLayerNormalization", reason)


def test_indices_that_are_never_negative_are_taken_as_they_are() -> None:
    body = (
        """
        n = Shape(ids)
        kind = Expand(kind_one, n)
        """
        + THREE
    )
    proto = embedding(body, "int64[b,s] ids, int64[1,s] place", kind_one=np.array([[1]]))
    model, _ = fused(proto, FuseEmbedLayerNorm())
    assert ops(model)["Less"] == 2


def test_an_index_past_the_table_is_still_refused() -> None:
    proto = embedding(THREE, f"{IDS}, int64[1,s] place")
    model, _ = fused(proto, FuseEmbedLayerNorm())
    feed = {**ids_feed(), "place": np.zeros((1, S), np.int64)}
    for wrong in (30, -31):
        feed["ids"][0, 0] = wrong
        for given in (proto, to_proto(model)):
            with pytest.raises(Exception, match=r"out of|bounds"):
                answers(given, feed)
