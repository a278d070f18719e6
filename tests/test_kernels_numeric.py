"""Kernels against ONNX Runtime on random geometry, and their float64 form against their float32 form."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from whet.formats.onnx import load_model
from whet.ops.kernels.special import erf
from whet.providers.base import CompileEnv, RunState, Subgraph
from whet.providers.reference import ReferenceExecutionProvider
from whet.providers.reference.executable import unwrap, wrap

Array = np.ndarray[Any, Any]


def check(
    op: str, inputs: list[Array | None], outputs: int = 1, tolerance: float = 2e-5, opset: int = 21, **attributes: Any
) -> list[Array]:
    """One node on Whet in float32 and float64 and on ONNX Runtime; differences relative to each output's largest."""
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    node = helper.make_node(op, names, [f"y{i}" for i in range(outputs)], **attributes)
    given = {n: x for n, x in zip(names, inputs, strict=True) if x is not None}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape) for n, x in given.items()],
        [onnx.ValueInfoProto(name=f"y{i}") for i in range(outputs)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, given)
    results: dict[str, list[Array]] = {}
    for compute in ("model", "float64"):
        loaded = load_model(model.SerializeToString())
        provider = ReferenceExecutionProvider({"compute_dtype": compute})
        executable = provider.compile(Subgraph(loaded.graph, loaded, tuple(loaded.graph)), CompileEnv())
        found = [unwrap(v) for v in executable.run([wrap(x, None) for x in given.values()], RunState())]
        results[compute] = found
        for f, w in zip(found, wanted, strict=True):
            assert f.shape == w.shape
            assert f.dtype == (np.float64 if compute == "float64" and w.dtype == np.float32 else w.dtype)
            scale = max(float(np.abs(w).max(initial=0)), 1e-6) if w.dtype.kind == "f" and tolerance else 1
            np.testing.assert_allclose(f / scale, w / scale, rtol=0, atol=tolerance)
    return results["model"]


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_error_in_ulp(dtype: type) -> None:
    x = np.concatenate((np.linspace(-7, 7, 200_001), np.logspace(-30, 1, 20_000), [0.0, -0.0, 1.0, -1.0])).astype(dtype)
    exact = np.array([math.erf(float(v)) for v in x])
    error = np.abs(erf(x).astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(dtype)).astype(np.float64)
    assert error.max() <= (4 if dtype == np.float32 else 2)
    special = erf(np.array([np.nan, np.inf, -np.inf, -0.0], dtype))
    assert np.isnan(special[0])
    assert special[1:].tolist() == [1, -1, 0]
    assert np.signbit(special[3])


@pytest.mark.parametrize("seed", range(24))
def test_convolution(seed: int) -> None:
    rng = np.random.default_rng([seed, 10])
    rank = int(rng.integers(1, 4))
    groups = int(rng.choice([1, 1, 2, 3]))
    depthwise = seed % 4 == 0
    per_group, out = (1, int(rng.integers(1, 3))) if depthwise else (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
    groups = int(rng.integers(2, 9)) if depthwise else groups
    kernel = [int(k) for k in rng.integers(1, 4, rank)]
    extents = [int(e) for e in rng.integers(7, 12, rank)]
    attributes: dict[str, Any] = {
        "group": groups,
        "strides": [int(s) for s in rng.integers(1, 4, rank)],
        "dilations": [int(d) for d in rng.integers(1, 3, rank)],
    }
    if seed % 3 == 0:
        attributes["auto_pad"] = ["VALID", "SAME_UPPER", "SAME_LOWER"][int(rng.integers(3))]
        attributes["dilations"] = [1] * rank  # ONNX Runtime has no SAME padding of dilated kernels
    else:
        attributes["pads"] = [int(p) for p in rng.integers(0, 3, 2 * rank)]
    x, w = normal(rng, 2, groups * per_group, *extents), normal(rng, groups * out, per_group, *kernel)
    check("Conv", [x, w, normal(rng, groups * out) if seed % 2 else None], **attributes)


def test_convolution_in_chunks_of_rows() -> None:
    rng = np.random.default_rng(3)
    check("Conv", [normal(rng, 1, 40, 120, 130), normal(rng, 6, 40, 3, 3)], pads=[1, 1, 1, 1], strides=[2, 1])
    check("Conv", [normal(rng, 1, 40, 140, 150), normal(rng, 40, 1, 5, 5)], pads=[2, 2, 2, 2], group=40)


@pytest.mark.parametrize("seed", range(16))
def test_transposed_convolution(seed: int) -> None:
    rng = np.random.default_rng([seed, 11])
    rank = int(rng.integers(1, 3))
    groups, per_group, out = (int(v) for v in rng.integers(1, 4, 3))
    kernel = [int(k) for k in rng.integers(1, 5, rank)]
    strides = [int(s) for s in rng.integers(1, 4, rank)]
    attributes: dict[str, Any] = {"group": groups, "strides": strides, "dilations": [int(rng.integers(1, 3))] * rank}
    if seed % 2:
        attributes["pads"] = [min(int(p), k - 1) for p, k in zip(rng.integers(0, 3, 2 * rank), kernel * 2, strict=True)]
        attributes["output_padding"] = [int(rng.integers(0, s)) for s in strides]
    x = normal(rng, 2, groups * per_group, *(int(e) for e in rng.integers(3, 7, rank)))
    check("ConvTranspose", [x, normal(rng, groups * per_group, out, *kernel), normal(rng, groups * out)], **attributes)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pooling(op: str, seed: int) -> None:
    rng = np.random.default_rng([seed, 12])
    rank = int(rng.integers(1, 4))
    kernel = [int(k) for k in rng.integers(2, 4, rank)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [int(s) for s in rng.integers(1, 4, rank)],
        "pads": [int(rng.integers(0, k)) for k in kernel * 2],
        "ceil_mode": seed % 2,
    }
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(2))
    if op == "LpPool":
        attributes |= {"p": int(rng.integers(1, 4)), "ceil_mode": 0}
    else:
        attributes["dilations"] = [int(d) for d in rng.integers(1, 3, rank)]
    x = normal(rng, 2, 3, *(int(e) for e in rng.integers(7, 11, rank)))
    wants_positions = op == "MaxPool" and seed % 3 == 0
    check(op, [x], outputs=1 + wants_positions, opset=19 if op == "AveragePool" else 18, **attributes)


@pytest.mark.parametrize("op", ["LayerNormalization", "InstanceNormalization", "BatchNormalization", "LRN"])
def test_normalizations(op: str) -> None:
    rng = np.random.default_rng(13)
    x = normal(rng, 2, 6, 5, 7) * 3 + 1
    vectors = [normal(rng, 6) for _ in range(3)] + [np.abs(normal(rng, 6))]
    if op == "LayerNormalization":
        for axis in (-1, 1, 2):
            shape = x.shape[axis:]
            check(op, [x, normal(rng, *shape), normal(rng, *shape)], outputs=3, opset=17, axis=axis)
    elif op == "InstanceNormalization":
        check(op, [x, *vectors[:2]], epsilon=1e-3)
    elif op == "BatchNormalization":
        check(op, [x, *vectors], epsilon=1e-3)
    else:
        for size in (1, 3, 5):
            check(op, [x], size=size, alpha=0.1, bias=2.0)


LENGTHS = np.array([5, 1, 3], np.int32)


@pytest.mark.parametrize("op", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("variant", ["plain", "lengths", "states", "special"])
def test_recurrent(op: str, direction: str, variant: str) -> None:
    rng = np.random.default_rng([14, len(op), len(direction), len(variant)])
    steps, batch, size, hidden = 5, 3, 4, 6
    d, g = (2 if direction == "bidirectional" else 1), {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    inputs: list[Array | None] = [
        normal(rng, steps, batch, size), normal(rng, d, g * hidden, size), normal(rng, d, g * hidden, hidden),
        normal(rng, d, 2 * g * hidden),
        LENGTHS if variant == "lengths" else None,
        normal(rng, d, batch, hidden) if variant == "states" else None,
    ]  # fmt: skip
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if op == "LSTM" and variant in ("states", "special"):
        inputs += [normal(rng, d, batch, hidden), normal(rng, d, 3 * hidden)]
    if variant == "special":
        attributes["clip"] = 0.9
        attributes["activations"] = {"RNN": ["Affine"], "GRU": ["HardSigmoid", "ScaledTanh"],
                                     "LSTM": ["HardSigmoid", "Softsign", "Relu"]}[op] * d  # fmt: skip
        attributes["activation_alpha"] = {"RNN": [0.5], "GRU": [0.3, 0.8], "LSTM": [0.3]}[op] * d
        attributes["activation_beta"] = {"RNN": [0.1], "GRU": [0.4, 1.2], "LSTM": [0.4]}[op] * d
        if op == "GRU":
            attributes["linear_before_reset"] = 1
    check(op, inputs, outputs=3 if op == "LSTM" else 2, opset=14, tolerance=1e-4, **attributes)


COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("size", [(9, 11), (3, 4), (10, 14), (1, 1)])
def test_resize_to_sizes(mode: str, coordinates: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(15)
    x = normal(rng, 1, 2, 5, 7)
    if mode != "nearest":
        sizes = np.array([1, 2, *size], np.int64)
        check("Resize", [x, None, None, sizes], opset=18, mode=mode, coordinate_transformation_mode=coordinates)
        return
    for rule in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        if (coordinates, size) in (("align_corners", (3, 4)), ("half_pixel", (1, 1))):
            continue  # places exactly on or between elements: there ONNX Runtime's single precision rounds either way
        sizes = np.array([1, 2, *size], np.int64)
        check(
            "Resize", [x, None, None, sizes], opset=18, mode=mode, coordinate_transformation_mode=coordinates,
            nearest_mode=rule,
        )  # fmt: skip


@pytest.mark.parametrize("scale", [0.5, 0.61, 1.7, 2.0, 2.3])
def test_resize_by_scales(scale: float) -> None:
    x = normal(np.random.default_rng(16), 1, 2, 10, 6)
    scales = np.array([1, 1, scale, scale], np.float32)
    for mode in ("linear", "cubic"):
        check("Resize", [x, None, scales], opset=18, mode=mode)
        check("Resize", [x, None, scales], opset=18, mode=mode, antialias=int(scale < 1))


ELEMENTWISE = [
    "Abs", "Acos", "Asinh", "Atan", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Sinh", "Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu",
]  # fmt: skip


@pytest.mark.parametrize("op", ELEMENTWISE)
@pytest.mark.parametrize("size", [0, 1, 7, 300_000])
def test_elementwise(op: str, size: int) -> None:
    x = np.random.default_rng(17).uniform(-4, 4, size).astype(np.float32)
    if op in ("Log", "Sqrt", "Reciprocal"):
        x = np.abs(x) + np.float32(0.1)
    if op in ("Acos", "Tan"):
        x = x / 4
    check(op, [x], tolerance=2e-6)
    if size == 1:
        check(op, [x.reshape(())], tolerance=2e-6)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    check("Gelu", [np.linspace(-9, 9, 10_001, dtype=np.float32)], tolerance=1e-6, opset=20, approximate=approximate)


SHAPES = [
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 1, 3, 4), (3, 4, 2)),
    ((4,), (4, 5)),
    ((3, 4), (4,)),
    ((4,), (4,)),
]


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_matrix_products(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    rng = np.random.default_rng(18)
    check("MatMul", [normal(rng, *a), normal(rng, *b)])


def test_gemm() -> None:
    rng = np.random.default_rng(19)
    for ta, tb in itertools.product((0, 1), (0, 1)):
        a, b = normal(rng, *((4, 3) if ta else (3, 4))), normal(rng, *((5, 4) if tb else (4, 5)))
        for c in (None, normal(rng, 5), normal(rng, 3, 1), normal(rng, 1, 1)):
            check("Gemm", [a, b, c], alpha=0.7, beta=1.3, transA=ta, transB=tb)


def test_integer_products_are_exact() -> None:
    rng = np.random.default_rng(20)
    a, b = rng.integers(0, 256, (7, 300)).astype(np.uint8), rng.integers(-128, 128, (300, 5)).astype(np.int8)
    check("MatMulInteger", [a, b, np.array(3, np.uint8), np.array(-5, np.int8)], tolerance=0)
    x, w = rng.integers(0, 256, (1, 8, 9, 9)).astype(np.uint8), rng.integers(0, 256, (4, 8, 3, 3)).astype(np.uint8)
    check("ConvInteger", [x, w, np.array(7, np.uint8), np.array(9, np.uint8)], tolerance=0, pads=[1, 1, 1, 1])


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2",
                                "ReduceLogSumExp", "ReduceSumSquare"])  # fmt: skip
@pytest.mark.parametrize("axes", [[0], [1, -1], None])
def test_reductions(op: str, axes: list[int] | None) -> None:
    x = normal(np.random.default_rng(21), 3, 4, 5)
    for keep in (0, 1):
        check(op, [x, None if axes is None else np.array(axes, np.int64)], opset=18, keepdims=keep)


def test_softmax_of_extremes() -> None:
    x = np.array([[1e30, -1e30, 0], [-np.inf, 0, 1], [88, 89, 90]], np.float32)
    for op in ("Softmax", "LogSoftmax"):
        for axis in (0, 1):
            with np.errstate(all="ignore"):
                columns = x if axis == 1 or op == "Softmax" else np.nan_to_num(x, neginf=-5)
                check(op, [columns if op == "Softmax" else np.clip(columns, -90, 90)], axis=axis)


@pytest.mark.parametrize("seed", range(6))
def test_attention_against_its_formula(seed: int) -> None:
    rng = np.random.default_rng([seed, 22])
    batch, heads, groups, rows, total, size = 2, 4, [4, 2, 1][seed % 3], 3, 5, 8
    q, k, v = (
        normal(rng, batch, heads, rows, size),
        normal(rng, batch, groups, total, size),
        normal(rng, batch, groups, total, size),
    )
    mask = rng.random((rows, total)) > 0.3
    mask[:, 0] = True
    causal = seed % 2
    node = helper.make_node("Attention", ["q", "k", "v", "m"], ["y"], is_causal=causal)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in (
            ("q", 1, q.shape), ("k", 1, k.shape), ("v", 1, v.shape), ("m", 9, mask.shape))],
        [helper.make_tensor_value_info("y", 1, None)],
    )  # fmt: skip
    model = load_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11).SerializeToString()
    )
    keep = mask & (np.arange(rows)[:, None] >= np.arange(total)) if causal else mask
    wide = [np.repeat(a.astype(np.float64), heads // a.shape[1], axis=1) for a in (q, k, v)]
    scores = np.einsum("bhsd,bhtd->bhst", wide[0], wide[1]) / math.sqrt(size)
    weights = np.where(keep, np.exp(scores), 0)
    expected = np.einsum("bhst,bhtd->bhsd", weights / weights.sum(-1, keepdims=True), wide[2])
    for compute, tolerance in (("model", 1e-5), ("float64", 1e-12)):
        provider = ReferenceExecutionProvider({"compute_dtype": compute})
        executable = provider.compile(Subgraph(model.graph, model), CompileEnv())
        (y,) = executable.run([wrap(a, None) for a in (q, k, v, mask)], RunState())
        np.testing.assert_allclose(unwrap(y), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_quantization_along_an_axis(axis: int, dtype: type) -> None:
    rng = np.random.default_rng(23)
    x, scale = normal(rng, 4, 4) * 50, (np.abs(normal(rng, 4)) + 0.1).astype(np.float32)
    zero = rng.integers(0, 100, 4).astype(dtype)
    (q,) = check("QuantizeLinear", [x, scale, zero], opset=19, tolerance=0, axis=axis)
    check("DequantizeLinear", [q, scale, zero], opset=19, axis=axis)
    check("DynamicQuantizeLinear", [x], outputs=3, tolerance=1e-6)


def test_top_k_keeps_the_order_of_ties() -> None:
    x = np.random.default_rng(24).integers(0, 4, (5, 40)).astype(np.float32)
    for largest in (0, 1):
        check("TopK", [x, np.array([17], np.int64)], outputs=2, tolerance=0, largest=largest)
