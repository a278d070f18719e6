"""Folding into convolutions and matrix products, against ONNX Runtime on the graph as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.pass_checks import assert_same, build, load, ops, random_array, run_passes
from whet.passes.basic.conv_fold import BatchNormFolding, ScaleFolding
from whet.passes.basic.fold import ConstantFolding
from whet.passes.basic.matmul_fold import MatMulAddToGemm, TransposeIntoGemm
from whet.passes.basic.pad_fold import PadFolding
from whet.passes.pipeline import optimize

F32 = np.float32


def norm_parameters(channels: int) -> dict[str, Any]:
    generator = np.random.default_rng(3)
    return {
        "gamma": generator.normal(size=channels).astype(F32),
        "beta": generator.normal(size=channels).astype(F32),
        "mean": generator.normal(size=channels).astype(F32),
        "var": generator.uniform(0.1, 2, channels).astype(F32),
    }


NORM = "BatchNormalization<epsilon = 0.001>(c, gamma, beta, mean, var)"

NORMED: list[tuple[str, str, tuple[int, ...], dict[str, Any], int, str]] = [
    ("conv", "c = Conv(x, w, b)", (2, 4, 5, 6),
     {"w": random_array((6, 4, 3, 3)), "b": random_array((6,), 1)}, 6, "Conv"),
    ("conv without bias", "c = Conv(x, w)", (2, 4, 5, 6), {"w": random_array((6, 4, 1, 1))}, 6, "Conv"),
    ("grouped conv", "c = Conv<group = 2>(x, w)", (1, 4, 5, 5), {"w": random_array((6, 2, 3, 3))}, 6, "Conv"),
    ("conv over a line", "c = Conv(x, w)", (2, 3, 9), {"w": random_array((5, 3, 3))}, 5, "Conv"),
    ("transposed conv", "c = ConvTranspose<strides = [2, 2]>(x, w, b)", (1, 3, 4, 4),
     {"w": random_array((3, 5, 3, 3)), "b": random_array((5,), 1)}, 5, "ConvTranspose"),
    ("grouped transposed conv", "c = ConvTranspose<group = 2>(x, w)", (1, 4, 4, 4),
     {"w": random_array((4, 3, 2, 2))}, 6, "ConvTranspose"),
    ("gemm", "c = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, b)", (3, 4),
     {"w": random_array((5, 4)), "b": random_array((5,), 1)}, 5, "Gemm"),
    ("gemm with a row", "c = Gemm<beta = 0.5>(x, w, b)", (3, 4),
     {"w": random_array((4, 5)), "b": random_array((1, 5), 1)}, 5, "Gemm"),
    ("gemm with a scalar", "c = Gemm(x, w, b)", (3, 4), {"w": random_array((4, 5)), "b": F32(0.7)}, 5, "Gemm"),
    ("matmul", "c = MatMul(x, w)", (3, 4), {"w": random_array((4, 5))}, 5, "Gemm"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "shape", "constants", "channels", "left"), [c[1:] for c in NORMED], ids=[c[0] for c in NORMED]
)
def test_batch_norm_folds(
    body: str, shape: tuple[int, ...], constants: dict[str, Any], channels: int, left: str
) -> None:
    dims = ",".join(map(str, shape))
    proto = build(f"float[{dims}] x", "float y", f"{body} y = {NORM}", **constants, **norm_parameters(channels))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = run_passes(proto, BatchNormFolding())
    assert ops(model) == {left: 1}
    assert_same(proto, model, {"x": random_array(shape, 7)}, rtol=1e-4, atol=1e-5)


KEPT_NORMS: list[tuple[str, str, tuple[int, ...], dict[str, Any], int]] = [
    ("a shared convolution", f"c = Conv(x, w) n = {NORM} y = Add(n, c)", (1, 2, 4, 4),
     {"w": random_array((3, 2, 1, 1))}, 3),
    ("training", f"c = Conv(x, w) y, rm, rv = {NORM.replace('0.001', '0.001, training_mode = 1')}", (2, 2, 4, 4),
     {"w": random_array((3, 2, 1, 1))}, 3),
    ("a matrix product of rank 3", f"c = MatMul(x, w) y = {NORM}", (2, 3, 4), {"w": random_array((4, 5))}, 3),
    ("computed weights", f"v = Neg(x) c = Conv(x, v) y = {NORM}", (3, 3, 2, 2), {}, 3),
    ("a gemm with a matrix", f"c = Gemm(x, w, b) y = {NORM}", (3, 4),
     {"w": random_array((4, 5)), "b": random_array((3, 5), 1)}, 5),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "shape", "constants", "channels"), [c[1:] for c in KEPT_NORMS], ids=[c[0] for c in KEPT_NORMS]
)
def test_batch_norm_that_must_stay(body: str, shape: tuple[int, ...], constants: dict[str, Any], channels: int) -> None:
    dims = ",".join(map(str, shape))
    proto = build(f"float[{dims}] x", "float y", body, **constants, **norm_parameters(channels))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    before = ops(run_passes(proto))
    model = run_passes(proto, BatchNormFolding())
    assert ops(model) == before
    if "training" not in body:
        assert_same(proto, model, {"x": random_array(shape, 7)})


def test_batch_norm_with_computed_parameters_says_why() -> None:
    proto = build(
        "float[1,2,4,4] x, float[3] gamma", "float[1,3,4,4] y", f"c = Conv(x, w) y = {NORM}",
        w=random_array((3, 2, 1, 1)), **{k: v for k, v in norm_parameters(3).items() if k != "gamma"},
    )  # fmt: skip
    model = load(proto)
    report = optimize(model, "basic")
    assert ops(model) == {"Conv": 1, "BatchNormalization": 1}
    assert [r.reason for r in report.refusals if r.rewrite == "batch-norm-folding"]


def test_batch_norm_that_overflows_half_stays() -> None:
    parameters = {k: v.astype(np.float16) for k, v in norm_parameters(2).items()}
    parameters["gamma"] = np.array([6e4, 6e4], np.float16)
    parameters["var"] = np.array([1e-4, 1e-4], np.float16)
    proto = build("float16[1,2,2,2] x", "float16[1,2,2,2] y", f"c = Conv(x, w) y = {NORM}",
                  w=np.full((2, 2, 1, 1), 8, np.float16), **parameters)  # fmt: skip
    assert ops(run_passes(proto, BatchNormFolding())) == {"Conv": 1, "BatchNormalization": 1}


CHANNEL = random_array((4, 1, 1), 9) + F32(2)

SCALED: list[tuple[str, str, dict[str, Any]]] = [
    ("multiplied", "y = Mul(c, k)", {"k": CHANNEL}),
    ("multiplied from the left by one number", "y = Mul(k, c)", {"k": F32(0.5)}),
    ("divided", "y = Div(c, k)", {"k": CHANNEL}),
    ("added", "y = Add(k, c)", {"k": CHANNEL[None]}),
    ("subtracted", "y = Sub(c, k)", {"k": CHANNEL}),
    ("subtracted from", "y = Sub(k, c)", {"k": CHANNEL}),
    ("scaled, then shifted", "h = Mul(c, k) y = Add(h, l)", {"k": CHANNEL, "l": CHANNEL + F32(1)}),
]


@pytest.mark.parametrize("conv", ["Conv(x, w)", "Conv(x, w, b)", "ConvTranspose<group = 2>(x, v, b)"])
@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in SCALED], ids=[c[0] for c in SCALED])
def test_scales_fold_into_convolutions(conv: str, body: str, constants: dict[str, Any]) -> None:
    weights = {"w": random_array((4, 4, 3, 3)), "v": random_array((4, 2, 3, 3)), "b": random_array((4,), 1)}
    used = {n: a for n, a in weights.items() if n in conv.split("(")[1]}
    proto = build("float[2,4,5,5] x", "float y", f"c = {conv} {body}", **used, **constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = run_passes(proto, ScaleFolding(), ScaleFolding())
    assert ops(model) == {conv.split("(")[0].split("<")[0]: 1}
    assert_same(proto, model, {"x": random_array((2, 4, 5, 5), 7)}, rtol=1e-4, atol=1e-5)


UNSCALED: list[tuple[str, str, dict[str, Any]]] = [
    ("by place", "y = Mul(c, k)", {"k": random_array((3, 3), 2)}),
    ("along the width", "y = Add(c, k)", {"k": random_array((3,), 2)}),
    ("by batch", "y = Add(c, k)", {"k": random_array((2, 1, 1, 1), 2)}),
    ("one divided by it", "y = Div(k, c)", {"k": CHANNEL}),
    ("divided by zero", "y = Div(c, k)", {"k": np.array([1, 0, 1, 1], F32).reshape(4, 1, 1)}),
    ("with an added axis", "y = Mul(c, k)", {"k": random_array((2, 1, 4, 1, 1), 2)}),
    ("read twice", "h = Mul(c, k) y = Add(h, c)", {"k": CHANNEL}),
]


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in UNSCALED], ids=[c[0] for c in UNSCALED])
def test_scales_that_must_stay(body: str, constants: dict[str, Any]) -> None:
    proto = build("float[2,4,5,5] x", "float y", f"c = Conv(x, w) {body}", w=random_array((4, 4, 3, 3)), **constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    before = ops(run_passes(proto))
    assert ops(run_passes(proto, ScaleFolding())) == before


GEMMS: list[tuple[str, str, dict[str, Any]]] = [
    ("a row", "m = MatMul(x, w) y = Add(m, b)", {"b": random_array((5,), 2)}),
    ("a row from the left", "m = MatMul(x, w) y = Add(b, m)", {"b": random_array((1, 5), 2)}),
    ("a scalar", "m = MatMul(x, w) y = Add(m, b)", {"b": F32(3)}),
    ("a column", "m = MatMul(x, w) y = Add(m, b)", {"b": random_array((3, 1), 2)}),
    ("a gemm without C", "m = Gemm<alpha = 0.5>(x, w) y = Add(m, b)", {"b": random_array((5,), 2)}),
]


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in GEMMS], ids=[c[0] for c in GEMMS])
def test_products_with_bias_become_gemm(body: str, constants: dict[str, Any]) -> None:
    proto = build("float[3,4] x", "float[3,5] y", body, w=random_array((4, 5)), **constants)
    model = run_passes(proto, MatMulAddToGemm())
    assert ops(model) == {"Gemm": 1}
    assert_same(proto, model, {"x": random_array((3, 4), 7)}, rtol=1e-5, atol=1e-6)


NO_GEMMS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("rank 3", "float[2,3,4] x", "m = MatMul(x, w) y = Add(m, b)", {"b": random_array((5,), 2)}),
    ("a bias that widens", "float[3,4] x", "m = MatMul(x, w) y = Add(m, b)", {"b": random_array((2, 1, 5), 2)}),
    ("a bias that adds rows", "float[1,4] x", "m = MatMul(x, w) y = Add(m, b)", {"b": random_array((3, 5), 2)}),
    ("rows that may be one", "float[N,4] x", "m = MatMul(x, w) y = Add(m, b)", {"b": random_array((3, 1), 2)}),
    ("a product read twice", "float[3,4] x", "m = MatMul(x, w) h = Add(m, b) y = Mul(h, m)", {"b": F32(1)}),
    ("no constant", "float[3,4] x", "m = MatMul(x, w) b = Neg(m) y = Add(m, b)", {}),
]


@pytest.mark.parametrize(("x", "body", "constants"), [c[1:] for c in NO_GEMMS], ids=[c[0] for c in NO_GEMMS])
def test_products_that_are_no_gemm(x: str, body: str, constants: dict[str, Any]) -> None:
    proto = build(x, "float y", body, w=random_array((4, 5)), **constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert "Gemm" not in ops(run_passes(proto, MatMulAddToGemm()))


@pytest.mark.parametrize("first", ["MatMul(a, b)", "Gemm<transA = 1>(a, b)", "Gemm<alpha = 2.0>(a, b, c)"])
@pytest.mark.parametrize(("left", "right"), [(True, False), (False, True), (True, True)])
def test_transposes_go_into_gemm(first: str, left: bool, right: bool) -> None:
    flipped = "transA" in first
    a_shape, b_shape = (3, 4), (4, 5)
    if left != flipped:
        a_shape = (4, 3)
    if right:
        b_shape = (5, 4)
    body = f"{'a = Transpose(p)' if left else 'a = Identity(p)'} {'b = Transpose(q)' if right else 'b = Identity(q)'}"
    proto = build(
        f"float{list(a_shape)} p, float{list(b_shape)} q", "float[3,5] y", f"{body} y = {first}",
        **({"c": random_array((5,), 2)} if "c)" in first else {}),
    )  # fmt: skip
    model = run_passes(proto, TransposeIntoGemm())
    assert ops(model)["Gemm"] == 1
    assert "Transpose" not in ops(model)
    assert_same(proto, model, {"p": random_array(a_shape), "q": random_array(b_shape, 1)}, rtol=1e-5, atol=1e-6)


def test_batched_transposes_stay() -> None:
    proto = build(
        "float[2,3,4] a, float[2,5,4] b", "float[2,3,5] y", "t = Transpose<perm = [0, 2, 1]>(b) y = MatMul(a, t)"
    )
    assert ops(run_passes(proto, TransposeIntoGemm())) == {"Transpose": 1, "MatMul": 1}


PADS = np.array([0, 0, 1, 2, 0, 0, 3, 0])
POOL = "AveragePool<kernel_shape = [4, 4], strides = [2, 1]>"

PADDED: list[tuple[str, str, dict[str, Any]]] = [
    ("conv", "p = Pad(x, n) y = Conv<pads = [1, 0, 0, 1]>(p, w)", {"n": PADS, "w": random_array((3, 2, 3, 3))}),
    ("conv, zero given, axes", "p = Pad(x, n, z, a) y = Conv(p, w)",
     {"n": np.array([1, 2, 3, 4]), "a": np.array([-1, 2]), "z": F32(0), "w": random_array((3, 2, 3, 3))}),
    ("average that counts padding",
     f"p = Pad(x, n) y = {POOL.replace('>', ', count_include_pad = 1, pads = [1, 1, 0, 1]>')}(p)",
     {"n": np.array([0, 0, 1, 2, 0, 0, 3, 0])}),
    ("average without pads", f"p = Pad(x, n) y = {POOL}(p)", {"n": PADS}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in PADDED], ids=[c[0] for c in PADDED])
def test_pads_go_into_windows(body: str, constants: dict[str, Any]) -> None:
    proto = build("float[2,2,7,8] x", "float y", body, **constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = run_passes(proto, PadFolding())
    assert list(ops(model).values()) == [1]
    assert_same(proto, model, {"x": random_array((2, 2, 7, 8), 7)}, rtol=1e-5, atol=1e-6)


UNPADDED: list[tuple[str, str, dict[str, Any]]] = [
    ("by ones", "p = Pad(x, n, one) y = Conv(p, w)", {"n": PADS, "one": F32(1), "w": random_array((3, 2, 3, 3))}),
    ("by reflection", '''p = Pad<mode = "reflect">(x, n) y = Conv(p, w)''',
     {"n": PADS, "w": random_array((3, 2, 3, 3))}),
    ("of channels", "p = Pad(x, n) y = Conv(p, w)",
     {"n": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "w": random_array((3, 3, 3, 3))}),
    ("that crops", "p = Pad(x, n) y = Conv(p, w)",
     {"n": np.array([0, 0, -1, 0, 0, 0, 0, 0]), "w": random_array((3, 2, 3, 3))}),
    ("read twice", "p = Pad(x, n) c = Conv(p, w) d = ReduceMax<keepdims = 0>(p) y = Add(c, d)",
     {"n": PADS, "w": random_array((3, 2, 3, 3))}),
    ("before a maximum", "p = Pad(x, n) y = MaxPool<kernel_shape = [4, 4]>(p)", {"n": PADS}),
    ("as wide as the window", "p = Pad(x, n) y = AveragePool<kernel_shape = [3, 3]>(p)", {"n": PADS}),
    ("before an average with pads of its own", f"p = Pad(x, n) y = {POOL.replace('>', ', pads = [1, 1, 0, 1]>')}(p)",
     {"n": PADS}),
    ("before automatic pads", '''p = Pad(x, n) y = Conv<auto_pad = "SAME_UPPER">(p, w)''',
     {"n": PADS, "w": random_array((3, 2, 3, 3))}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in UNPADDED], ids=[c[0] for c in UNPADDED])
def test_pads_that_must_stay(body: str, constants: dict[str, Any]) -> None:
    proto = build("float[2,2,7,8] x", "float y", body, **constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert ops(run_passes(proto, PadFolding()))["Pad"] == 1


def test_a_quantized_convolution_keeps_its_scale() -> None:
    """Weights behind DequantizeLinear are no constants: nothing folds into them, and they stay 8 bits wide."""
    proto = build(
        "float[1,2,4,4] x", "float[1,3,4,4] y", f"v = DequantizeLinear(w, s, z) c = Conv(x, v) y = {NORM}",
        w=np.ones((3, 2, 1, 1), np.int8), s=F32(0.1), z=np.int8(0), **norm_parameters(3),
    )  # fmt: skip
    assert ops(run_passes(proto, ConstantFolding(), BatchNormFolding())) == {
        "DequantizeLinear": 1,
        "Conv": 1,
        "BatchNormalization": 1,
    }
