"""Operators of com.microsoft compiled, against the reference provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tests.compiler_cases import FLOAT, FLOAT16, INT32, INT64, UINT32, UINT64, check, feeds, node_model, refusals, run
from whet.errors import InvalidArgument

Array = np.ndarray[Any, Any]
Given = list[Array | None]
MS = "com.microsoft"


def normal(*shape: int, dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype))


def agree(
    op: str, given: Given, attributes: Mapping[str, Any] | None = None, outputs: tuple[int, ...] = (FLOAT,), *,
    domain: str = MS, constants: tuple[int, ...] = (), tolerance: float = 2e-5, symbolic: bool | None = None,
) -> None:  # fmt: skip
    """The node compiled agrees with the reference provider, for fixed and for free extents."""
    for free in (False, True) if symbolic is None else (symbolic,):
        model = node_model(op, given, outputs, attributes, domain=domain, constants=constants, symbolic=free)
        check(model, feeds(model, given), tolerance)


POINTWISE: dict[str, Callable[[Any], Given]] = {
    "Gelu": lambda d: [normal(3, 5, 37, dtype=d)],
    "QuickGelu": lambda d: [normal(3, 5, 37, dtype=d)],
    "BiasGelu": lambda d: [normal(3, 5, 37, dtype=d), normal(37, dtype=d)],
    "FastGelu": lambda d: [normal(3, 5, 37, dtype=d), normal(37, dtype=d)],
    "BiasAdd": lambda d: [normal(2, 5, 37, dtype=d), normal(37, dtype=d), normal(2, 5, 37, dtype=d, seed=1)],
    "GatedAdd": lambda d: [normal(2, 5, 37, dtype=d), normal(2, 5, 37, dtype=d, seed=1), normal(2, 5, 1, dtype=d)],
    "ScaledSiLU": lambda d: [normal(2, 37, dtype=d), np.array(0.7, np.float32)],
    "BiasSplitGelu": lambda d: [normal(2, 5, 74, dtype=d), normal(74, dtype=d)],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("op", POINTWISE)
def test_pointwise(op: str, dtype: Any) -> None:
    given = POINTWISE[op](dtype)
    kind, tolerance = (FLOAT, 2e-5) if dtype is np.float32 else (FLOAT16, 3e-3)
    agree(op, given, {}, (kind,), tolerance=tolerance, symbolic=False)
    if op in ("Gelu", "QuickGelu", "ScaledSiLU", "BiasSplitGelu"):
        agree(op, given, {}, (kind,), tolerance=tolerance, symbolic=True)


def test_fast_gelu_without_bias_and_quick_gelu_with_alpha() -> None:
    agree("FastGelu", [normal(4, 9)])
    agree("QuickGelu", [normal(4, 9)], {"alpha": 1.0})


@pytest.mark.parametrize("op", ["FusedMatMul", "TransposeMatMul"])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_fused_matmul(op: str, trans_a: int, trans_b: int) -> None:
    a, b = normal(2, 3, 11, 19), normal(3, 19, 23)
    given: Given = [a.swapaxes(-1, -2).copy() if trans_a else a, b.swapaxes(-1, -2).copy() if trans_b else b]
    for constants in ((), (1,)):
        agree(op, given, {"transA": trans_a, "transB": trans_b, "alpha": 0.3}, constants=constants)


@pytest.mark.parametrize(
    "activation",
    ["Relu", "Tanh", "Sigmoid", "LeakyRelu", "Clip", "HardSigmoid", "Elu", "Selu", "Softplus", "Softsign", "Affine",
     "ScaledTanh", "ThresholdedRelu"],
)  # fmt: skip
def test_fused_gemm(activation: str) -> None:
    given: Given = [normal(7, 19), normal(19, 33), normal(33)]
    parameters = {} if activation == "Selu" else {"activation_alpha": 0.3, "activation_beta": 0.6}
    agree("FusedGemm", given, {"activation": activation, "alpha": 0.5, "beta": 2.0, **parameters}, constants=(1, 2))


def test_product_with_activation_of_its_own() -> None:
    agree("FusedMatMulActivation", [normal(7, 19), normal(19, 33)], {"activation": "Relu", "alpha": 0.5})
    agree("GemmFastGelu", [normal(2, 7, 19), normal(19, 33), normal(33)], constants=(1, 2))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("nhwc", [False, True])
def test_fused_conv(channels: int, kernel: int, nhwc: bool) -> None:
    pad = kernel // 2
    x, w, bias, z = normal(2, channels, 9, 11), normal(20, channels, kernel, kernel), normal(20), normal(2, 20, 9, 11)
    if nhwc:
        x, z = (np.ascontiguousarray(np.moveaxis(v, 1, -1)) for v in (x, z))
    for given in ([x, w, bias, z], [x, w, bias], [x, w]):
        attributes = {"kernel_shape": [kernel] * 2, "pads": [pad] * 4, "activation": "LeakyRelu"}
        attributes["activation_params"] = [0.2]
        op = "NhwcFusedConv" if nhwc else "FusedConv"
        model = node_model(op, list(given), (FLOAT,), attributes, domain=MS, constants=(1, 2))
        check(model, feeds(model, list(given)), 1e-4)


def test_channels_last_with_padding_by_extents() -> None:
    given: Given = [normal(2, 9, 10, 5), normal(12, 5, 3, 2), normal(12)]
    attributes = {"auto_pad": "SAME_UPPER", "strides": [2, 3]}
    agree("NhwcFusedConv", given, attributes, constants=(1, 2), tolerance=1e-4, symbolic=False)


def test_depthwise_fused_conv() -> None:
    given: Given = [normal(1, 24, 9, 9), normal(24, 1, 3, 3), normal(24)]
    agree(
        "FusedConv", given, {"group": 24, "pads": [1] * 4, "strides": [2, 2], "activation": "Relu"},
        constants=(1, 2), tolerance=1e-4, symbolic=False,
    )  # fmt: skip


ROTARY = [(8, 0, 0), (8, 0, 1), (10, 4, 0), (24, 24, 1)]


@pytest.mark.parametrize(("head", "dim", "interleaved"), ROTARY)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("first", [False, True])
def test_rotary_of_microsoft(head: int, dim: int, interleaved: int, rank: int, first: bool) -> None:
    half = (dim or head) // 2
    x = normal(2, 5, 3 * head) if rank == 3 else normal(2, 3, 5, head)
    positions = np.array([4], np.int64) if first else np.random.default_rng(1).integers(0, 17, (2, 5))
    given: Given = [x, positions, normal(17, half), normal(17, half, seed=1)]
    attributes = {"interleaved": interleaved, "rotary_embedding_dim": dim, "num_heads": 3 if dim else 0}
    for constants in ((), (2, 3)):
        model = node_model("RotaryEmbedding", given, (FLOAT,), attributes, domain=MS, constants=constants)
        check(model, feeds(model, given))


@pytest.mark.parametrize(("head", "dim", "interleaved"), ROTARY)
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rotary_of_the_standard(head: int, dim: int, interleaved: int, rank: int, dtype: Any) -> None:
    half = (dim or head) // 2
    x = normal(2, 5, 3 * head, dtype=dtype) if rank == 3 else normal(2, 3, 5, head, dtype=dtype)
    attributes = {"interleaved": interleaved, "rotary_embedding_dim": dim, "num_heads": 3}
    kind, tolerance = (FLOAT, 2e-5) if dtype is np.float32 else (FLOAT16, 1e-2)
    looked_up = np.random.default_rng(1).integers(-17, 17, (2, 5))
    for given in (
        [x, normal(17, half, dtype=dtype), normal(17, half, dtype=dtype, seed=1), looked_up],
        [x, normal(2, 5, half, dtype=dtype), normal(2, 5, half, dtype=dtype, seed=1)],
    ):
        model = node_model("RotaryEmbedding", list(given), (kind,), attributes, opset=23)
        check(model, feeds(model, list(given)), tolerance)


def test_rotary_positions_are_checked() -> None:
    given: Given = [normal(1, 2, 4, 8), np.array([[0, 1, 2, 17]]), normal(17, 4), normal(17, 4, seed=1)]
    model = node_model("RotaryEmbedding", given, (FLOAT,), domain=MS)
    with pytest.raises(InvalidArgument):
        run(model, feeds(model, given))


def masks(batch: int, rows: int, total: int) -> dict[str, Array | None]:
    random = np.random.default_rng(5)
    return {
        "none": None,
        "keys": random.integers(0, 2, (batch, total)).astype(np.int32),
        "scores": random.integers(0, 2, (batch, rows, total)).astype(np.int32),
        "ends": random.integers(1, total + 1, (batch,)).astype(np.int32),
        "starts": np.concatenate([np.full(batch, total), random.integers(0, total, batch)]).astype(np.int32),
    }


@pytest.mark.parametrize("mask", ["none", "keys", "scores", "ends", "starts"])
@pytest.mark.parametrize("form", ["plain", "packed", "packed_kv", "cross", "past"])
def test_multi_head_attention(form: str, mask: str) -> None:
    batch, heads, rows, keys, head, value_head = 2, 3, 5, 7, 8, 8
    wide = heads * head
    if form in ("packed", "past"):
        keys = rows
    before = 4 if form == "past" else 0
    q, k, v = normal(batch, rows, wide), normal(batch, keys, wide, seed=1), normal(batch, keys, wide, seed=2)
    given: Given = [q, k, v]
    if form == "packed":
        given = [normal(batch, rows, heads, 3, head), None, None]
    elif form == "packed_kv":
        given = [q, normal(batch, keys, heads, 2, head), None]
    elif form == "cross":
        given = [q, normal(batch, heads, keys, head), normal(batch, heads, keys, value_head, seed=1)]
    bias = normal(3 * wide)
    addend = normal(1, heads, rows, keys + before)
    past: Given = [normal(batch, heads, 4, head), normal(batch, heads, 4, head, seed=1)] if before else [None, None]
    chosen = masks(batch, rows, keys + before)[mask]
    for more in ([bias, chosen, None, *past], [None, chosen, addend, *past]):
        all_given = [*given, *more]
        outputs = (FLOAT, FLOAT, FLOAT) if form == "past" else (FLOAT,)
        model = node_model("MultiHeadAttention", all_given, outputs, {"num_heads": heads}, domain=MS)
        check(model, feeds(model, all_given))


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_multi_head_attention_causal_and_types(causal: int, dtype: Any) -> None:
    given: Given = [normal(2, 6, 32, dtype=dtype, seed=i) for i in range(3)]
    kind, tolerance = (FLOAT, 2e-5) if dtype is np.float32 else (FLOAT16, 4e-3)
    attributes = {"num_heads": 4, "unidirectional": causal, "scale": 0.2}
    model = node_model("MultiHeadAttention", given, (kind, kind, kind), attributes, domain=MS)
    check(model, feeds(model, given), tolerance)


@pytest.mark.parametrize("mask", ["none", "keys", "scores", "ends", "starts"])
@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize("causal", [0, 1])
def test_attention(mask: str, past: bool, causal: int) -> None:
    batch, heads, rows, head, width = 2, 3, 5, 8, 21
    before = 4 if past else 0
    given: Given = [
        normal(batch, rows, width), normal(width, 3 * heads * head), normal(3 * heads * head),
        masks(batch, rows, rows + before)[mask],
        normal(2, batch, heads, before, head) if past else None,
        normal(batch, 1, rows, rows + before) if not causal else None,
    ]  # fmt: skip
    outputs = (FLOAT, FLOAT) if past or causal else (FLOAT,)
    attributes = {"num_heads": heads, "unidirectional": causal}
    for constants in ((), (1, 2)):
        model = node_model("Attention", given, outputs, attributes, domain=MS, constants=constants)
        check(model, feeds(model, given), 5e-5)


def test_attention_with_other_values() -> None:
    given: Given = [normal(2, 5, 21), normal(21, 24 + 24 + 12), normal(60)]
    attributes = {"num_heads": 3, "qkv_hidden_sizes": [24, 24, 12]}
    model = node_model("Attention", given, (FLOAT,), attributes, domain=MS, constants=(1, 2))
    check(model, feeds(model, given), 5e-5)


def test_free_extents_of_attention() -> None:
    shapes = [("batch", "rows", 24), ("batch", "rows", 24), ("batch", "rows", 24)]
    from onnx import TensorProto, helper

    node = helper.make_node("MultiHeadAttention", ["q", "k", "v", "", "m"], ["y"], domain=MS, num_heads=3)
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip("qkv", shapes, strict=True)]
    inputs.append(helper.make_tensor_value_info("m", TensorProto.INT32, ("batch", "rows")))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MS, 1)]
    graph = helper.make_graph([node], "one", inputs, [result])
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    for batch, rows in ((1, 1), (2, 9), (3, 70)):
        given = {n: normal(batch, rows, 24, seed=i) for i, n in enumerate("qkv")}
        given["m"] = masks(batch, rows, rows)["keys"]
        check(model, given)


def test_what_is_refused_says_why() -> None:
    given: Given = [normal(2, 3, 9, 9), normal(3, 2, 9, 9)]
    model = node_model("FusedMatMul", given, (FLOAT,), {"transBatchA": 1}, domain=MS)
    assert any("FusedMatMul" in reason or "rank" in reason for reason in refusals(model))


# Products of other kinds


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
@pytest.mark.parametrize("shapes", [((7, 19), (19, 35)), ((2, 3, 5, 40), (3, 40, 16)), ((9,), (9, 4)), ((5, 9), (9,))])
def test_integer_products(shapes: Any, dtype: Any) -> None:
    random, info = np.random.default_rng(3), np.iinfo(dtype)
    kind = {np.int32: INT32, np.int64: INT64, np.uint32: UINT32, np.uint64: UINT64}[dtype]
    given: Given = [random.integers(info.min, info.max, s, dtype) for s in shapes]
    for constants in ((), (1,)):
        agree("MatMul", given, {}, (kind,), domain="", constants=constants)
    if len(shapes[0]) == len(shapes[1]) == 2:
        rows = random.integers(info.min, info.max, shapes[1][1:], dtype)
        given = [np.ascontiguousarray(given[0].T), given[1], rows]
        agree("Gemm", given, {"transA": 1}, (kind,), domain="", constants=(1, 2))
