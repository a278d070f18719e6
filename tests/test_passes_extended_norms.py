"""Normalizations, softmax and scaled products from parts: found, declined where they only look alike, answers kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.pass_checks import answers, assert_same, build, load, ops, random_array, run_passes
from whet.formats.onnx import to_proto
from whet.passes.base import PassDriver
from whet.passes.basic.propagate import ShapePropagation
from whet.passes.extended import EXTENDED_PASSES

F = np.float32
LAST = np.array([-1], np.int64)
BASE: dict[str, Any] = {
    "eps": F(1e-3), "last": LAST, "two": F(2), "one": F(1), "minushalf": F(-0.5), "scale": random_array((8,), 1),
    "bias": random_array((8,), 2),
}  # fmt: skip
X = random_array((2, 5, 8), 7) * F(3) + F(1)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

CENTRE = "m=ReduceMean(x,last)\nd=Sub(x,m)\n"
VARIANCE = "q=Pow(d,two)\nv=ReduceMean(q,last)\na=Add(v,eps)\n"
NORMALIZE = "r=Sqrt(a)\nn=Div(d,r)\n"
AFFINE = "s=Mul(n,scale)\ny=Add(s,bias)"

LAYER_NORMS = {
    "torch": CENTRE + VARIANCE + NORMALIZE + AFFINE,
    "scale first": CENTRE + VARIANCE + NORMALIZE + "s=Mul(scale,n)\ny=Add(bias,s)",
    "square as product": CENTRE + "q=Mul(d,d)\nv=ReduceMean(q,last)\na=Add(eps,v)\n" + NORMALIZE + AFFINE,
    "reciprocal": CENTRE + VARIANCE + "r=Sqrt(a)\ni=Reciprocal(r)\nn=Mul(d,i)\n" + AFFINE,
    "one over root": CENTRE + VARIANCE + "r=Sqrt(a)\ni=Div(one,r)\nn=Mul(i,d)\n" + AFFINE,
    "power": CENTRE + VARIANCE + "i=Pow(a,minushalf)\nn=Mul(d,i)\n" + AFFINE,
    "difference twice": CENTRE + "d2=Sub(x,m)\nq=Pow(d2,two)\nv=ReduceMean(q,last)\na=Add(v,eps)\n"
    + NORMALIZE + AFFINE,
    "mean twice": CENTRE + "m2=ReduceMean(x,last)\nd2=Sub(x,m2)\nq=Pow(d2,two)\nv=ReduceMean(q,last)\na=Add(v,eps)\n"
    + NORMALIZE + AFFINE,
    "mean of squares": CENTRE + "p=Mul(x,x)\nw=ReduceMean(p,last)\nm2=Mul(m,m)\nv=Sub(w,m2)\na=Add(v,eps)\n"
    + NORMALIZE + AFFINE,
    "tensorflow": CENTRE + VARIANCE + "r=Sqrt(a)\ni=Reciprocal(r)\nk=Mul(i,scale)\nl=Mul(x,k)\no=Mul(m,k)\n"
    "b=Sub(bias,o)\ny=Add(l,b)",
}  # fmt: skip


@pytest.mark.parametrize("name", LAYER_NORMS)
def test_layer_norm_in_every_form(name: str) -> None:
    proto = build("float[2,5,8] x", "float[2,5,8] y", LAYER_NORMS[name], **BASE)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"LayerNormalization": 1}
    assert_same(proto, model, {"x": X}, **TOLERANCE)
    node = model.graph.nodes[0]
    assert node.attributes["epsilon"] == pytest.approx(1e-3)
    wide = X.astype(np.float64)
    normal = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-3)
    after = answers(to_proto(model), {"x": X})[0]
    np.testing.assert_allclose(after, normal * BASE["scale"] + BASE["bias"], **TOLERANCE)


def test_layer_norm_over_several_last_axes_without_affine() -> None:
    axes = np.array([1, 2], np.int64)
    proto = build("float[2,5,8] x", "float[2,5,8] n", CENTRE + VARIANCE + NORMALIZE, **{**BASE, "last": axes})
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"LayerNormalization": 1}
    assert model.graph.nodes[0].attributes["axis"] == -2
    assert_same(proto, model, {"x": X}, **TOLERANCE)


def test_layer_norm_with_a_free_batch() -> None:
    proto = build("float[N,T,8] x", "float[N,T,8] y", LAYER_NORMS["torch"], **BASE)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"LayerNormalization": 1}
    assert_same(proto, model, {"x": X}, **TOLERANCE)


def test_layer_norm_between_the_casts_of_mixed_precision() -> None:
    half = {"scale": BASE["scale"].astype(np.float16), "bias": BASE["bias"].astype(np.float16)}
    body = (
        "f=Cast<to: int=1>(x)\nm=ReduceMean(f,last)\nd=Sub(f,m)\n" + VARIANCE
        + "r=Sqrt(a)\nnf=Div(d,r)\nn=Cast<to: int=10>(nf)\n" + AFFINE
    )  # fmt: skip
    proto = build("float16[2,5,8] x", "float16[2,5,8] y", body, **{**BASE, **half})
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"LayerNormalization": 1}
    assert_same(proto, model, {"x": X.astype(np.float16)}, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "constants"),
    [
        (("v=ReduceMean(q,last)", "v=ReduceMean(q,other)"), {"other": np.array([1], np.int64)}),
        (("m=ReduceMean(x,last)", "m=ReduceMean(x,other)"), {"other": np.array([1], np.int64)}),
        (("Pow(d,two)", "Pow(d,three)"), {"three": F(3)}),
        (("Pow(d,two)", "Pow(x,two)"), {}),
        (("Sqrt(a)", "Exp(a)"), {}),
        (("Add(v,eps)", "Sub(v,eps)"), {"eps": F(-1e-3)}),
    ],
)
def test_layer_norm_near_misses_keep_their_answers(change: tuple[str, str], constants: dict[str, Any]) -> None:
    body = LAYER_NORMS["torch"].replace(*change)
    assert body != LAYER_NORMS["torch"]
    proto = build("float[2,5,8] x", "float[2,5,8] y", body, **{**BASE, **constants})
    model = run_passes(proto, *EXTENDED_PASSES)
    # Subtracting a negative epsilon is a layer norm after all; nothing else here is.
    assert ("LayerNormalization" in ops(model)) == ("Sub(v,eps)" in change)
    assert_same(proto, model, {"x": X}, **TOLERANCE)


@pytest.mark.parametrize("axes", [[0], [1], [0, 2]])
def test_means_over_other_axes_are_no_layer_norm(axes: list[int]) -> None:
    constants = {**BASE, "last": np.array(axes, np.int64)}
    proto = build("float[2,5,8] x", "float[2,5,8] y", LAYER_NORMS["torch"], **constants)
    model = load(proto)
    report = PassDriver(model).run((ShapePropagation(), *EXTENDED_PASSES))
    assert "LayerNormalization" not in ops(model)
    assert any(r.rewrite == "layer-norm" and "are not the last ones" in r.reason for r in report.refusals)


def test_an_affine_that_varies_along_the_batch_stays_outside() -> None:
    constants = {**BASE, "scale": random_array((2, 5, 8), 3), "bias": random_array((5, 1), 4)}
    proto = build("float[2,5,8] x", "float[2,5,8] y", LAYER_NORMS["torch"], **constants)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"LayerNormalization": 1, "Mul": 1, "Add": 1}
    assert_same(proto, model, {"x": X}, **TOLERANCE)


def test_a_residual_after_a_normalization_is_no_bias() -> None:
    body = "n=LayerNormalization(x,ones)\ny=Add(n,x)"
    proto = build("float[2,5,8] x", "float[2,5,8] y", body, ones=np.ones(8, F))
    assert ops(run_passes(proto, *EXTENDED_PASSES)) == {"LayerNormalization": 1, "Add": 1}


def test_a_scale_stays_outside_when_others_read_the_normalization() -> None:
    body = "n=LayerNormalization(x,ones)\ny=Mul(n,scale)\nz=Neg(n)"
    proto = build("float[2,5,8] x", "float[2,5,8] y, float[2,5,8] z", body, ones=np.ones(8, F), **BASE)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"LayerNormalization": 1, "Mul": 1, "Neg": 1}
    assert_same(proto, model, {"x": X}, **TOLERANCE)


def test_a_scale_after_a_bias_stays() -> None:
    body = "n=LayerNormalization(x,ones,bias)\ny=Mul(n,scale)"
    proto = build("float[2,5,8] x", "float[2,5,8] y", body, ones=np.ones(8, F), **BASE)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"LayerNormalization": 1, "Mul": 1}
    assert_same(proto, model, {"x": X}, **TOLERANCE)


RMS = "q=Pow(x,two)\nv=ReduceMean(q,last)\na=Add(v,eps)\nr=Sqrt(a)\n"


@pytest.mark.parametrize(
    "body",
    [
        RMS + "i=Reciprocal(r)\nn=Mul(x,i)\ny=Mul(scale,n)",
        RMS + "n=Div(x,r)\ny=Mul(n,scale)",
        RMS + "i=Div(one,r)\nn=Mul(x,i)\ny=Mul(n,scale)",
    ],
)
def test_rms_norm(body: str) -> None:
    proto = build("float[2,5,8] x", "float[2,5,8] y", body, **BASE)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"RMSNormalization": 1}
    assert_same(proto, model, {"x": X}, **TOLERANCE)


def test_rms_norm_of_llama_in_half_precision() -> None:
    body = ("f=Cast<to: int=1>(x)\nq=Mul(f,f)\nv=ReduceMean(q,last)\na=Add(v,eps)\nr=Sqrt(a)\ni=Reciprocal(r)\n"
            "n=Mul(f,i)\nh=Cast<to: int=10>(n)\ny=Mul(scale,h)")  # fmt: skip
    constants = {**BASE, "scale": BASE["scale"].astype(np.float16)}
    proto = build("float16[2,5,8] x", "float16[2,5,8] y", body, **constants)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"RMSNormalization": 1}
    assert_same(proto, model, {"x": X.astype(np.float16)}, rtol=2e-3, atol=2e-3)


IMAGE = random_array((2, 6, 5, 7), 9) * F(2) + F(1)
GROUP: dict[str, Any] = {
    "to3": np.array([0, 3, -1], np.int64), "back": np.array([2, 6, 5, 7], np.int64), "ones": np.ones(3, F),
    "zeros": np.zeros(3, F), "cs": random_array((6, 1, 1), 3), "cb": random_array((6, 1, 1), 4), "eps": F(1e-3),
    "rest": np.array([2], np.int64), "two": F(2), "spatial": np.array([2, 3], np.int64),
}  # fmt: skip
SPLIT = "g=Reshape(x,to3)\ni=InstanceNormalization<epsilon: float=0.001>(g,ones,zeros)\n"
PARTS = (
    "g=Reshape(x,to3)\nm=ReduceMean(g,rest)\nd=Sub(g,m)\nq=Mul(d,d)\nv=ReduceMean(q,rest)\na=Add(v,eps)\n"
    "r=Sqrt(a)\ni=Div(d,r)\n"
)
AFTER = "s=Mul(h,cs)\ny=Add(s,cb)"


@pytest.mark.parametrize("dims", ["2,6,5,7", "N,6,H,W"])
@pytest.mark.parametrize("norm", [SPLIT, PARTS], ids=["instance", "parts"])
@pytest.mark.parametrize("back", ["constant", "shape"])
def test_group_norm(dims: str, norm: str, back: str) -> None:
    restore = "h=Reshape(i,back)\n" if back == "constant" else "z=Shape(x)\nh=Reshape(i,z)\n"
    proto = build(f"float[{dims}] x", f"float[{dims}] y", norm + restore + AFTER, **GROUP)
    model = run_passes(proto, *EXTENDED_PASSES)
    if dims[0] == "N" and back == "constant":  # the shape is restored for these extents only
        assert "GroupNormalization" not in ops(model)
    else:
        assert ops(model) == {"GroupNormalization": 1}
        assert model.graph.nodes[0].attributes["num_groups"] == 3
    assert_same(proto, model, {"x": IMAGE}, rtol=1e-5, atol=2e-5)


def test_group_norm_keeps_a_scale_per_group() -> None:
    constants = {**GROUP, "ones": random_array((3,), 5), "zeros": random_array((3,), 6)}
    proto = build("float[2,6,5,7] x", "float[2,6,5,7] h", SPLIT + "h=Reshape(i,back)", **constants)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"GroupNormalization": 1}
    assert_same(proto, model, {"x": IMAGE}, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"to3": np.array([2, -1, 70], np.int64)},
        {"to3": np.array([3, 2, -1], np.int64), "ones": np.ones(2, F), "zeros": np.zeros(2, F)},
        {"back": np.array([2, 6, 7, 5], np.int64)},
        {"to3": np.array([0, 5, -1], np.int64), "ones": np.ones(5, F), "zeros": np.zeros(5, F)},
    ],
    ids=["groups unknown", "batch split", "another shape", "groups that cut channels"],
)
def test_group_norm_near_misses(change: dict[str, Any]) -> None:
    constants = {**GROUP, **change}
    shape = ",".join(map(str, constants["back"]))
    proto = build("float[2,6,5,7] x", f"float[{shape}] h", SPLIT + "h=Reshape(i,back)", **constants)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert "GroupNormalization" not in ops(model)
    assert_same(proto, model, {"x": IMAGE}, rtol=1e-5, atol=2e-5)


def test_instance_norm_from_parts() -> None:
    body = (
        "m=ReduceMean(x,spatial)\nd=Sub(x,m)\nq=Pow(d,two)\nv=ReduceMean(q,spatial)\na=Add(v,eps)\nr=Sqrt(a)\n"
        "h=Div(d,r)\n" + AFTER
    )
    proto = build("float[N,6,H,W] x", "float[N,6,H,W] y", body, **GROUP)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"InstanceNormalization": 1}
    assert_same(proto, model, {"x": IMAGE}, rtol=1e-5, atol=2e-5)


BATCH: dict[str, Any] = {
    "mean": random_array((6, 1, 1), 1), "var": np.abs(random_array((6, 1, 1), 2)) + F(0.1), "eps": F(1e-3),
    "scale": random_array((1, 6, 1, 1), 3), "bias": random_array((6, 1, 1), 4),
}  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        "c=Sub(x,mean)\na=Add(var,eps)\nr=Sqrt(a)\nn=Div(c,r)\ns=Mul(n,scale)\ny=Add(s,bias)",
        "c=Sub(x,mean)\ns=Mul(scale,c)\ny=Add(bias,s)",
        "c=Sub(x,mean)\nd=Div(c,var)\ns=Mul(scale,d)\ny=Add(bias,s)",
    ],
)
def test_batch_norm_from_parts(body: str) -> None:
    proto = build("float[N,6,H,W] x", "float[N,6,H,W] y", body, **BATCH)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {"BatchNormalization": 1}
    assert_same(proto, model, {"x": IMAGE}, rtol=1e-5, atol=1e-5)


def test_batch_norm_near_misses() -> None:
    body = "c=Sub(x,mean)\ns=Mul(scale,c)\ny=Add(bias,s)"
    for change in ({"mean": random_array((7,), 1)}, {k: F(2) for k in ("mean", "scale", "bias")}):
        proto = build("float[N,6,H,7] x", "float[N,6,H,7] y", body, **{**BATCH, **change})
        assert ops(run_passes(proto, *EXTENDED_PASSES)) == {"Sub": 1, "Mul": 1, "Add": 1}


SHIFT = "t=ReduceMax(x,last)\nd=Sub(x,t)\ne=Exp(d)\n"


@pytest.mark.parametrize(
    ("body", "op"),
    [
        (SHIFT + "z=ReduceSum(e,last)\ny=Div(e,z)", "Softmax"),
        (SHIFT + "z=ReduceSum(e,last)\nr=Reciprocal(z)\ny=Mul(e,r)", "Softmax"),
        ("e=Exp(x)\nz=ReduceSum(e,last)\ny=Div(e,z)", "Softmax"),
        (SHIFT + "z=ReduceSum(e,last)\nl=Log(z)\ny=Sub(d,l)", "LogSoftmax"),
        ("l=ReduceLogSumExp(x,last)\ny=Sub(x,l)", "LogSoftmax"),
        ("s=Softmax(x)\ny=Log(s)", "LogSoftmax"),
    ],
)
def test_softmax(body: str, op: str) -> None:
    proto = build("float[2,5,8] x", "float[2,5,8] y", body, last=LAST)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == {op: 1}
    assert_same(proto, model, {"x": X}, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        SHIFT + "z=ReduceSum(e,other)\ny=Div(e,z)",
        SHIFT + "z=ReduceSum<keepdims: int=0>(e,first)\ny=Div(e,z)",
        "e=Exp(x)\nz=ReduceSum(e,both)\ny=Div(e,z)",
        SHIFT + "f=Exp(x)\nz=ReduceSum(f,last)\ny=Div(e,z)",
        "e=Exp(x)\nz=ReduceMean(e,last)\ny=Div(e,z)",
        "e=Exp(x)\nz=ReduceSum(e,last)\ny=Div(z,e)",
    ],
)
def test_softmax_near_misses(body: str) -> None:
    constants = {
        "last": LAST,
        "other": np.array([1], np.int64),
        "both": np.array([1, 2], np.int64),
        "first": np.array([0], np.int64),
    }
    proto = build("float[2,5,8] x", "float[2,5,8] y", body, **constants)
    model = run_passes(proto, *EXTENDED_PASSES)
    assert "Softmax" not in ops(model)
    assert_same(proto, model, {"x": X}, rtol=1e-5, atol=1e-6)


W = random_array((8, 4), 11)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("p=MatMul(x,w)\ny=Mul(p,f)", {"MatMul": 1}),
        ("p=MatMul(x,w)\ny=Div(p,f)", {"MatMul": 1}),
        ("p=MatMul(x,w)\na=Add(b,p)\ny=Mul(f,a)", {"MatMul": 1, "Add": 1}),
        ("s=Mul(x,f)\ny=MatMul(s,w)", {"MatMul": 1}),
        ("p=MatMul(x,w)\nq=MatMul(x,w)\nr=Mul(p,f)\ny=Add(q,r)", {"MatMul": 2, "Mul": 1, "Add": 1}),
    ],
)
def test_a_factor_moves_into_weights_of_its_own(body: str, left: dict[str, int]) -> None:
    proto = build("float[2,5,8] x", "float[2,5,4] y", body, w=W, b=random_array((4,), 3), f=F(0.125))
    model = run_passes(proto, *EXTENDED_PASSES)
    assert ops(model) == left
    assert_same(proto, model, {"x": X})  # a power of two: to the bit
