"""Removal of nodes that give back their input, and of redundant pairs: each rewrite, and its near misses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.pass_checks import assert_same, build, ops, random_array, run_passes
from whet.dtypes import ALL
from whet.passes.basic.identity import NoOpRemoval
from whet.passes.basic.pairs import RedundantPairs, clamp_of_clamp, lossless

I64 = np.int64


def vector(*numbers: int) -> Any:
    return np.array(numbers, I64)


# Name, body from x to m (an optional declared type of x), constants. All end in y = Neg(m).
NO_OPS: list[tuple[str, str, dict[str, Any]]] = [
    ("identity", "m = Identity(x)", {}),
    ("dropout", "m = Dropout(x)", {}),
    ("dropout with ratio", "m = Dropout(x, ratio, training)", {"ratio": np.float32(0.4), "training": np.bool_(False)}),
    ("cast", "m = Cast<to = 1>(x)", {}),
    ("reshape to its shape", "s = Shape(x) m = Reshape(x, s)", {}),
    ("reshape copying", "m = Reshape(x, t)", {"t": vector(0, 3, -1)}),
    ("expand by ones", "m = Expand(x, t)", {"t": vector(1, 1)}),
    ("expand to its shape", "s = Shape(x) m = Expand(x, s)", {}),
    ("slice of all", "m = Slice(x, a, b)", {"a": vector(0, 0), "b": vector(2**63 - 1, 2**31 - 1)}),
    ("slice to the extent", "m = Slice(x, a, b, c)", {"a": vector(0), "b": vector(4), "c": vector(2)}),
    ("pad by nothing", "m = Pad(x, p)", {"p": vector(0, 0, 0, 0, 0, 0)}),
    ("tile once", "m = Tile(x, r)", {"r": vector(1, 1, 1)}),
    ("concat of one", "m = Concat<axis = 1>(x)", {}),
    ("split into one", "m = Split<axis = 1, num_outputs = 1>(x)", {}),
    ("sum of one", "m = Sum(x)", {}),
    ("max of one", "m = Max(x)", {}),
    ("transpose in order", "m = Transpose<perm = [0, 1, 2]>(x)", {}),
    ("resize by one", 'm = Resize<mode = "linear">(x, , s)', {"s": np.ones(3, np.float32)}),
    ("clip without bounds", "m = Clip(x)", {}),
    ("add zero", "m = Add(zero, x)", {"zero": np.zeros((1, 1), np.float32)}),
    ("add a zero vector", "m = Add(x, zero)", {"zero": np.zeros(4, np.float32)}),
    ("subtract zero", "m = Sub(x, zero)", {"zero": np.float32(0)}),
    ("multiply by one", "m = Mul(x, one)", {"one": np.ones((3, 4), np.float32)}),
    ("divide by one", "m = Div(x, one)", {"one": np.float32(1)}),
    ("first power", "m = Pow(x, one)", {"one": np.float32(1)}),
    ("where true", "m = Where(c, x, other)", {"c": np.ones((3, 4), bool), "other": np.float32(2)}),
    ("where of one value", "c = Greater(x, other) m = Where(c, x, x)", {"other": np.float32(2)}),
    ("unsqueeze no axis", "m = Unsqueeze(x, a)", {"a": np.zeros(0, I64)}),
    (
        "add zeros times zero",
        "s = Shape(x) z = ConstantOfShape(s) w = Mul(z, zero) m = Add(x, w)",
        {"zero": np.float32(0)},
    ),
]

NOT_NO_OPS: list[tuple[str, str, dict[str, Any]]] = [
    ("dropout in training", "m = Dropout(x, ratio, training)", {"ratio": np.float32(0), "training": np.bool_(True)}),
    ("cast to another type", "h = Cast<to = 11>(x) m = Cast<to = 1>(h)", {}),
    ("reshape that moves extents", "m = Reshape(x, t)", {"t": vector(0, 4, 3)}),
    ("an open extent beside moved ones", "m = Reshape(x, t)", {"t": vector(-1, 4, 3)}),
    ("expand that adds an axis", "m = Expand(x, t)", {"t": vector(1, 1, 1, 1)}),
    ("slice of a part", "m = Slice(x, a, b, c)", {"a": vector(0), "b": vector(3), "c": vector(2)}),
    ("slice from one on", "m = Slice(x, a, b)", {"a": vector(0, 1), "b": vector(2**63 - 1, 2**63 - 1)}),
    (
        "slice backwards",
        "m = Slice(x, a, b, c, d)",
        {"a": vector(-1), "b": vector(-9), "c": vector(2), "d": vector(-1)},
    ),
    ("pad by one", "m = Pad(x, p)", {"p": vector(0, 0, 0, 0, 0, 1)}),
    ("tile twice", "m = Tile(x, r)", {"r": vector(1, 2, 1)}),
    ("transpose", "m = Transpose<perm = [0, 2, 1]>(x)", {}),
    ("transpose by default", "m = Transpose(x)", {}),
    ("resize by two", "m = Resize(x, , s)", {"s": np.array([1, 1, 2], np.float32)}),
    ("add zeros that widen", "m = Add(x, zero)", {"zero": np.zeros((2, 1, 1, 1), np.float32)}),
    ("add mixed zeros", "m = Add(x, zero)", {"zero": np.array([0, 0, 0, 1], np.float32)}),
    ("zero minus", "m = Sub(zero, x)", {"zero": np.float32(0)}),
    ("one over", "m = Div(one, x)", {"one": np.float32(1)}),
    ("one to the power", "m = Pow(one, x)", {"one": np.float32(1)}),
    ("where true widens", "m = Where(c, x, other)", {"c": np.ones((2, 1, 1, 1), bool), "other": np.float32(2)}),
    ("add infinity times zero", "z = Mul(zero, inf) m = Add(x, z)", {"zero": np.float32(0), "inf": np.float32(np.inf)}),
]


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in NO_OPS], ids=[c[0] for c in NO_OPS])
def test_no_ops_go(body: str, constants: dict[str, Any]) -> None:
    proto = build("float[N,3,4] x", "float[N,3,4] y", f"{body} y = Neg(m)", **constants)
    model = run_passes(proto, NoOpRemoval())
    assert ops(model) == {"Neg": 1}
    assert_same(proto, model, {"x": random_array((2, 3, 4))})


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in NOT_NO_OPS], ids=[c[0] for c in NOT_NO_OPS])
def test_near_misses_stay(body: str, constants: dict[str, Any]) -> None:
    proto = build("float[N,3,4] x", "float y", f"{body} y = Neg(m)", **constants)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    before = ops(run_passes(proto))
    model = run_passes(proto, NoOpRemoval())
    assert ops(model) == before
    if "training" not in constants:
        assert_same(proto, model, {"x": random_array((2, 3, 4))})


def test_outputs_keep_their_names() -> None:
    """An output that equals an input, a constant or another output is still made, under its own name."""
    proto = build(
        "float[2] x",
        "float[2] same, float[2] a, float[2] b, float[2] k",
        "same = Identity(x) m = Neg(x) a = Identity(m) b = Identity(m) k = Identity(c)",
        c=np.array([1, 2], np.float32),
    )
    model = run_passes(proto, NoOpRemoval(), NoOpRemoval())
    assert [v.name for v in model.graph.outputs] == ["same", "a", "b", "k"]
    assert ops(model)["Neg"] == 1
    assert ops(model)["Identity"] == 3
    assert_same(proto, model, {"x": random_array((2,))})


PAIRS: list[tuple[str, str, dict[str, Any], dict[str, int]]] = [
    ("casts up and down", "a = Cast<to = 11>(x) m = Cast<to = 1>(a)", {}, {}),
    ("casts through a wider type", "a = Cast<to = 11>(x) m = Cast<to = 10>(a)", {}, {"Cast": 1}),
    ("reshapes", "a = Reshape(x, s) m = Reshape(a, t)", {"s": vector(0, 12), "t": vector(-1, 4)}, {"Reshape": 1}),
    ("reshapes, copying", "a = Reshape(x, s) m = Reshape(a, t)",
     {"s": vector(0, 12), "t": vector(0, 4, 3)}, {"Reshape": 1}),
    ("unsqueeze and reshape", "a = Unsqueeze(x, s) m = Reshape(a, t)",
     {"s": vector(0), "t": vector(-1)}, {"Reshape": 1}),
    ("transposes that cancel", "a = Transpose<perm = [1, 2, 0]>(x) m = Transpose<perm = [2, 0, 1]>(a)", {}, {}),
    ("transposes", "a = Transpose<perm = [1, 2, 0]>(x) m = Transpose<perm = [0, 2, 1]>(a)", {}, {"Transpose": 1}),
    ("transposes by default", "a = Transpose(x) m = Transpose(a)", {}, {}),
    (
        "slices of two axes",
        "a = Slice(x, s, e, i) m = Slice(a, s, e, j)",
        {"s": vector(1), "e": vector(3), "i": vector(1), "j": vector(2)},
        {"Slice": 1},
    ),
    (
        "slices of one axis",
        "a = Slice(x, s, e, i) m = Slice(a, s, f, i)",
        {"s": vector(1), "e": vector(2**63 - 1), "f": vector(2), "i": vector(2)},
        {"Slice": 1},
    ),
    (
        "slices of one axis, the second longer",
        "a = Slice(x, s, e, i) m = Slice(a, s, f, i)",
        {"s": vector(1), "e": vector(3), "f": vector(9), "i": vector(2)},
        {"Slice": 1},
    ),
    ("unsqueezes", "a = Unsqueeze(x, s) m = Unsqueeze(a, t)", {"s": vector(1), "t": vector(0, -1)}, {"Unsqueeze": 1}),
    ("unsqueeze and squeeze", "a = Unsqueeze(x, s) m = Squeeze(a, t)", {"s": vector(1), "t": vector(-3)}, {}),
    ("squeezes", "u = Neg(x) v = Unsqueeze(u, s) w = Neg(v) a = Squeeze(w, t) m = Squeeze(a, t)",
     {"s": vector(0, 1), "t": vector(0)}, {"Neg": 2, "Unsqueeze": 1, "Squeeze": 1}),
    ("relus", "a = Relu(x) m = Relu(a)", {}, {"Relu": 1}),
    ("relu and clip", "a = Relu(x) m = Clip(a, l, h)", {"l": np.float32(-1), "h": np.float32(0.5)}, {"Clip": 1}),
    ("clip and relu", "a = Clip(x, l, h) m = Relu(a)", {"l": np.float32(-1), "h": np.float32(0.5)}, {"Clip": 1}),
    (
        "clips apart",
        "a = Clip(x, l, h) m = Clip(a, k)",
        {"l": np.float32(-1), "h": np.float32(-0.5), "k": np.float32(0.25)},
        {"Clip": 1},
    ),
    ("negations", "a = Neg(x) m = Neg(a)", {}, {}),
    ("nots", "p = Greater(x, k) a = Not(p) b = Not(a) m = Cast<to = 1>(b)",
     {"k": np.float32(0)}, {"Greater": 1, "Cast": 1}),
    ("concats", "a = Concat<axis = 1>(x, x) m = Concat<axis = -2>(x, a)", {}, {"Concat": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "constants", "left"), [c[1:] for c in PAIRS], ids=[c[0] for c in PAIRS])
def test_pairs_become_one(body: str, constants: dict[str, Any], left: dict[str, int]) -> None:
    kind = "float16" if "to = 10" in body else "float"
    proto = build("float[N,3,4] x", f"{kind} y", f"{body} y = Abs(m)", **constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = run_passes(proto, RedundantPairs())
    assert ops(model) == left | {"Abs": 1}
    assert_same(proto, model, {"x": random_array((2, 3, 4))})


NOT_PAIRS: list[tuple[str, str, dict[str, Any]]] = [
    ("casts that round", "a = Cast<to = 10>(x) m = Cast<to = 1>(a)", {}),
    ("casts that truncate", "a = Cast<to = 7>(x) m = Cast<to = 1>(a)", {}),
    ("a copied extent that moved", "a = Reshape(x, s) m = Reshape(a, t)", {"s": vector(3, -1), "t": vector(0, 4, -1)}),
    ("squeeze of other axes", "a = Unsqueeze(x, s) m = Squeeze(a, t)", {"s": vector(1), "t": vector(0)}),
    (
        "slices from the end",
        "a = Slice(x, s, e, i) m = Slice(a, s, f, i)",
        {"s": vector(-3), "e": vector(4), "f": vector(2), "i": vector(2)},
    ),
    ("a clip the wrong way round", "a = Relu(x) m = Clip(a, l, h)", {"l": np.float32(1), "h": np.float32(-1)}),
    ("a clip to NaN", "a = Relu(x) m = Clip(a, l)", {"l": np.float32(np.nan)}),
    ("concats along two axes", "a = Concat<axis = 1>(x, x) m = Concat<axis = 2>(a, a)", {}),
    ("a concat read twice", "a = Concat<axis = 1>(x, x) b = Concat<axis = 1>(x, a) m = Concat<axis = 1>(a, b, a)", {}),
]


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in NOT_PAIRS], ids=[c[0] for c in NOT_PAIRS])
def test_pairs_that_must_stay(body: str, constants: dict[str, Any]) -> None:
    proto = build("float[1,3,4] x", "float y", f"{body} y = Abs(m)", **constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    before = run_passes(proto)
    model = run_passes(proto, RedundantPairs())
    if body.count("Concat") < 3:
        assert ops(model) == ops(before)
    else:
        assert ops(model)["Concat"] == 2, "the concat that only one node reads is merged, the shared one is not"
    assert_same(proto, model, {"x": random_array((1, 3, 4))})


def test_lossless_is_what_numpy_calls_safe() -> None:
    plain = [t for t in ALL if t.kind in ("int", "uint", "bool", "float") and t.bits >= 8 and t.numpy.isbuiltin == 1]
    assert len(plain) >= 12
    for source in plain:
        for target in plain:
            # numpy calls 64-bit integers safe in float64, which holds 53 bits.
            safe = np.can_cast(source.numpy, target.numpy, "safe") and not (
                source.bits == 64 and source.is_integer and target.is_float
            )
            assert lossless(source, target) == safe, f"{source} to {target}"


def test_clamp_of_clamp_equals_both() -> None:
    generator = np.random.default_rng(5)
    points = np.linspace(-4, 4, 161)
    for _ in range(200):
        inner, outer = (tuple(sorted(generator.integers(-3, 4, 2).tolist())) for _ in range(2))
        low, high = clamp_of_clamp(inner, outer)
        twice = np.minimum(np.maximum(np.minimum(np.maximum(points, inner[0]), inner[1]), outer[0]), outer[1])
        assert (np.minimum(np.maximum(points, low), high) == twice).all()
