"""Contrib kernels that ONNX Runtime's CPU lacks, against closed forms; and the operands that kernels refuse."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.contrib_reference import FLOAT, INT8, UINT8, Array, Draw, run_onnxruntime, run_whet, scalar
from whet.errors import InvalidArgument
from whet.ops.contrib.activation import erf


def test_erf_is_exact_to_an_ulp_of_one() -> None:
    x = np.concatenate([np.linspace(-7, 7, 20001), [np.inf, -np.inf, 0.46875, 4.0, 6.0]])
    np.testing.assert_allclose(erf(x), [math.erf(v) for v in x], rtol=0, atol=3e-16)
    assert np.isnan(erf(np.array([np.nan]))).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_numbers_that_are_not_finite_saturate(dtype: Any) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    inputs = [x, scalar(0.5), scalar(7, dtype)]
    expected = run_onnxruntime("QuantizeLinear", inputs, {}, (UINT8 if dtype is np.uint8 else INT8,))[0]
    np.testing.assert_array_equal(run_whet("QuantizeLinear", inputs, {})[0], expected)


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4, np.int16, np.uint16])
def test_other_widths_saturate_and_return(dtype: Any) -> None:
    info = ml_dtypes.iinfo(dtype)
    x = np.array([-1e6, -1.6, -0.5, 0.5, 1.5, 2.5, 1e6], np.float32)
    y = run_whet("QuantizeLinear", [x, scalar(1.0), scalar(1, dtype)], {})[0]
    assert y.dtype == dtype
    expected = np.clip(np.array([-1e6, -1, 1, 1, 3, 3, 1e6]), info.min, info.max)
    np.testing.assert_array_equal(y.astype(np.float64), expected)
    back = run_whet("DequantizeLinear", [y, scalar(2.0), scalar(1, dtype)], {})[0]
    np.testing.assert_array_equal(back, (expected - 1) * 2)


def naive_group_norm(x: Array, gamma: Array, beta: Array, groups: int, silu: bool) -> Array:
    """Channels-last group normalization, one group at a time, in float64."""
    result = np.zeros(x.shape)
    size = x.shape[-1] // groups
    for n in range(x.shape[0]):
        for g in range(groups):
            part = x[n, ..., g * size : (g + 1) * size].astype(np.float64)
            unit = (part - part.mean()) / math.sqrt(part.var() + 1e-5)
            result[n, ..., g * size : (g + 1) * size] = unit
    result = result * gamma + beta
    return result / (1 + np.exp(-result)) if silu else result


def naive_bucket(relative: int, buckets: int, furthest: int, both_ways: bool) -> int:
    """T5's bucket of one relative position."""
    start = 0
    if both_ways:
        buckets //= 2
        start = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return start + distance
    return start + min(
        exact + int(math.log(distance / exact) / math.log(furthest / exact) * (buckets - exact)), buckets - 1
    )


def gelu64(x: Array) -> Array:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.reshape(-1)]).reshape(x.shape)


def gelu_tanh64(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax64(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def nhwc_conv(x: Array, w: Array, b: Array, z: Array | None) -> Array:
    """ONNX Runtime's FusedConv between two transposes."""
    inputs = [
        None if a is None else a.astype(np.float32)
        for a in (np.moveaxis(x, -1, 1), w, b, None if z is None else np.moveaxis(z, -1, 1))
    ]
    activation = {} if z is None else {"activation": "Relu"}
    return np.moveaxis(run_onnxruntime("FusedConv", inputs, {"strides": [2, 1], **activation}, (FLOAT,))[0], 1, -1)


def gated_bias(q: Array, qb: Array, rel: Array, w: Array, b: Array, eco: Array) -> Array:
    batch, sequence, _ = q.shape
    heads, size = rel.shape[1], w.shape[0]
    result = np.zeros((batch, heads, sequence, sequence))
    for n in range(batch):
        for h in range(heads):
            for s in range(sequence):
                row = (q[n, s] + qb)[h * size : (h + 1) * size] @ w + b
                u, r = (1 / (1 + math.exp(-part.sum())) for part in np.split(row, 2))
                result[n, h, s] = (u * (r * eco[0, h, 0, 0] - 1) + 2) * rel[0, h, s]
    return result


def padding_round_trip(x: Array) -> Array:
    kept, offsets, _, _ = run_whet("RemovePadding", [x, np.array([2, 0, 4], np.int32)], {}, 4)
    return run_whet("RestorePadding", [kept, offsets], {})[0]


# Operators without a CPU kernel in ONNX Runtime: (inputs, attributes, expected from the inputs).
CLOSED_FORMS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "BiasAdd": (lambda m: [m.f(2, 3, 4), m.f(4), m.f(2, 3, 4)], {}, lambda x, b, s: x + b + s),
    "BiasSplitGelu": (lambda m: [m.f(2, 3, 8), m.f(8)], {}, lambda x, b: (x + b)[..., :4] * gelu64((x + b)[..., 4:])),
    "BiasSoftmax": (
        lambda m: [m.f(2, 3, 4, 5), m.f(2, 1, 1, 5)],
        {"axis": 3, "is_inner_broadcast": 1},
        lambda x, b: softmax64(x + b, -1),
    ),
    "GroupNorm": (
        lambda m: [m.f(2, 3, 4, 6), m.f(6), m.f(6)],
        {"groups": 3, "activation": 1},
        lambda x, g, b: naive_group_norm(x, g, b, 3, True),
    ),
    "SkipGroupNorm": (
        lambda m: [m.f(2, 3, 4, 6), m.f(6), m.f(6), m.f(2, 6), m.f(6)],
        {"groups": 2, "activation": 0},
        lambda x, g, b, s, c: naive_group_norm(x + s[:, None, None] + c, g, b, 2, False),
    ),
    "GemmFastGelu": (lambda m: [m.f(2, 3, 4), m.f(4, 5), m.f(5)], {}, lambda x, w, b: gelu_tanh64(x @ w + b)),
    "FusedMatMulActivation": (
        lambda m: [m.f(3, 4), m.f(5, 4)],
        {"transB": 1, "activation": "LeakyRelu", "activation_alpha": 0.3},
        lambda a, b: np.where(a @ b.T >= 0, a @ b.T, 0.3 * (a @ b.T)),
    ),
    "GemmaRotaryEmbedding": (
        lambda m: [m.f(2, 3, 4), *(m.f(2, n, 3, 4) for n in (5, 5, 2, 2))],
        {},
        lambda e, q, qr, k, kr: q * np.cos(e)[:, None] + qr * np.sin(e)[:, None],
    ),
    "NhwcConv": (
        lambda m: [m.f(2, 6, 7, 4), m.f(5, 4, 3, 3), m.f(5)],
        {"strides": [2, 1]},
        lambda x, w, b: nhwc_conv(x, w, b, None),
    ),
    "NhwcFusedConv": (
        lambda m: [m.f(2, 6, 7, 4), m.f(5, 4, 3, 3), m.f(5), m.f(2, 2, 5, 5)],
        {"strides": [2, 1], "activation": "Relu"},
        nhwc_conv,
    ),
    "ComplexMul": (lambda m: [m.f(3, 4, 2), m.f(4, 2)], {}, lambda a, b: pairs(numbers(a) * numbers(b))),
    "ComplexMulConj": (lambda m: [m.f(3, 4, 2), m.f(4, 2)], {}, lambda a, b: pairs(numbers(a) * numbers(b).conj())),
    "Rfft": (
        lambda m: [m.f(3, 8)],
        {"signal_ndim": 1},
        lambda x: pairs(x @ np.exp(-2j * np.pi * np.outer(np.arange(8), np.arange(5)) / 8)),
    ),
    "Irfft": (
        lambda m: [pairs(np.fft.rfft(m.f(3, 8))).astype(np.float32)],
        {"signal_ndim": 1},
        lambda x: np.fft.irfft(numbers(x)),
    ),
    "TorchEmbedding": (
        lambda m: [m.f(6, 3), m.ints(0, 6, 2, 4, dtype=np.int64)],
        {},
        lambda w, i: np.array([[w[j] for j in row] for row in i]),
    ),
    "RelativePositionBias": (
        lambda m: [m.f(16, 3), scalar(40, np.int64), scalar(40, np.int64)],
        {"max_distance": 30, "is_bidirectional": 1},
        lambda t, q, k: np.array(
            [[[[t[naive_bucket(j - i, 16, 30, True), h] for j in range(40)] for i in range(40)] for h in range(3)]]
        ),
    ),
    "GatedRelativePositionBias": (
        lambda m: [m.f(2, 4, 6), m.f(6), m.f(1, 2, 4, 4), m.f(3, 8), m.f(8), m.f(1, 2, 1, 1)],
        {"num_heads": 2},
        gated_bias,
    ),
    "RemovePadding": (
        lambda m: [m.f(3, 4, 5), np.array([2, 0, 4], np.int32)],
        {},
        lambda x, n: np.concatenate([x[0, :2], x[2, :4]]),
    ),
    "RestorePadding": (
        lambda m: [m.f(3, 2), np.array([[0, 3], [2, 1]], np.int32)],
        {},
        lambda x, o: np.array([[x[0], [0, 0]], [x[2], x[1]]]),
    ),
}


def numbers(x: Array) -> Array:
    return x[..., 0] + 1j * x[..., 1]


def pairs(x: Array) -> Array:
    return np.stack([x.real, x.imag], axis=-1)


@pytest.mark.parametrize("op_type", CLOSED_FORMS)
def test_closed_form(op_type: str) -> None:
    make, attributes, expected = CLOSED_FORMS[op_type]
    for dtype, tolerance in ((np.float32, 2e-5), (np.float64, 2e-5 if op_type.startswith("Nhwc") else 1e-12)):
        inputs = [a.astype(dtype) if a.dtype == np.float32 else a for a in make(Draw(5))]
        reference = expected(*inputs)
        actual = run_whet(op_type, inputs, attributes)[0]
        assert actual is not None
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, reference, rtol=tolerance, atol=tolerance)


def test_group_norm_channels_first_is_channels_last_transposed() -> None:
    m = Draw(6)
    x, gamma, beta = m.f(2, 3, 4, 6), m.f(6), m.f(6)
    last = run_whet("GroupNorm", [x, gamma, beta], {"groups": 3, "activation": 0})[0]
    first = run_whet(
        "GroupNorm", [np.moveaxis(x, -1, 1).copy(), gamma, beta], {"groups": 3, "activation": 0, "channels_last": 0}
    )[0]
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), last, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "attributes", "expected"),
    [
        (1.0, {}, True),
        (np.nan, {}, False),
        (np.inf, {}, False),
        (-np.inf, {"isinf_only": 1}, False),
        (np.nan, {"isinf_only": 1}, True),
        (np.inf, {"isnan_only": 1}, True),
        (np.nan, {"isnan_only": 1}, False),
    ],
)
def test_is_all_finite(value: float, attributes: dict[str, int], expected: bool) -> None:
    inputs = [np.ones((2, 3), np.float32), np.array([0.0, value], np.float32)]
    assert run_whet("IsAllFinite", inputs, attributes)[0] == expected


def test_bias_dropout_passes_everything_on() -> None:
    m = Draw(12)
    x, bias, residual = m.f(2, 3), m.f(3), m.f(2, 3)
    result, mask = run_whet("BiasDropout", [x, bias, residual, scalar(0.5)], {}, 2)
    np.testing.assert_allclose(result, x + bias + residual, rtol=1e-6)
    assert mask.all()


def zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


def tokens(*values: int) -> Array:
    return np.array([values], np.int32)


# (operator, inputs, attributes, what the message must say)
REFUSED: list[tuple[str, list[Array | None], dict[str, Any], str]] = [
    ("Gelu", [], {}, r"input 0 \(X\) is missing"),
    ("BiasGelu", [zeros(2, 3), zeros(4)], {}, r"bias.*\(4,\).*\(3\)"),
    ("Attention", [zeros(2, 5, 12), zeros(11, 36), zeros(36)], {"num_heads": 3}, r"weights.*\(11, 36\).*\(12, any\)"),
    ("Attention", [zeros(2, 5, 12), zeros(12, 36), zeros(36)], {}, "num_heads is missing"),
    ("Attention", [zeros(2, 5, 12), zeros(12, 36), zeros(36)], {"num_heads": 5}, "not divisible by num_heads"),
    (
        "Attention",
        [zeros(2, 5, 12), zeros(12, 36), zeros(36), np.ones((2, 4), np.int32)],
        {"num_heads": 3},
        "mask_index",
    ),
    (
        "MultiHeadAttention",
        [zeros(2, 5, 12), zeros(2, 7, 12), zeros(2, 6, 12)],
        {"num_heads": 3},
        r"value.*\(2, 6, 12\)",
    ),
    (
        "MultiHeadAttention",
        [zeros(2, 5, 12), zeros(2, 7, 12), zeros(2, 7, 12), None, None, zeros(2, 3, 5, 6)],
        {"num_heads": 3},
        "attention_bias",
    ),
    (
        "GroupQueryAttention",
        [
            zeros(1, 1, 32),
            zeros(1, 1, 16),
            zeros(1, 1, 16),
            zeros(1, 2, 4, 8),
            zeros(1, 2, 4, 8),
            np.array([9], np.int32),
            scalar(10, np.int32),
        ],
        {"num_heads": 4, "kv_num_heads": 2},
        "seqlens_k at position 0",
    ),
    (
        "GroupQueryAttention",
        [
            zeros(1, 1, 32),
            zeros(1, 1, 16),
            zeros(1, 1, 16),
            zeros(1, 2, 4, 8),
            zeros(1, 2, 4, 8),
            np.array([-3], np.int32),
            scalar(5, np.int32),
        ],
        {"num_heads": 4, "kv_num_heads": 2},
        "seqlens_k at position 0",
    ),
    (
        "RotaryEmbedding",
        [zeros(1, 2, 8), np.array([[0, 20]]), zeros(20, 4), zeros(20, 4)],
        {},
        r"position_ids at position \(0, 1\).*20",
    ),
    (
        "RotaryEmbedding",
        [zeros(1, 2, 8), np.array([[-1, 0]]), zeros(20, 4), zeros(20, 4)],
        {},
        r"position_ids at position \(0, 0\).*-1",
    ),
    (
        "EmbedLayerNormalization",
        [tokens(0, 9), None, zeros(9, 4), zeros(6, 4), None, zeros(4), zeros(4)],
        {},
        r"input_ids at position \(0, 1\).*9",
    ),
    (
        "EmbedLayerNormalization",
        [tokens(0, 1, 2), None, zeros(9, 4), zeros(2, 4), None, zeros(4), zeros(4)],
        {},
        "longer than the position embedding",
    ),
    (
        "GroupNorm",
        [zeros(1, 2, 2, 6), zeros(6), zeros(6)],
        {"groups": 4, "activation": 0},
        "not divisible by the number of groups",
    ),
    ("FusedMatMul", [zeros(2, 3), zeros(4, 5)], {}, r"\(2, 3\) x \(4, 5\)"),
    ("FusedGemm", [zeros(2, 3), zeros(3, 5)], {"activation": "Reluu"}, "unknown activation.*Reluu"),
    ("FusedConv", [zeros(1, 4, 2, 2), zeros(6, 4, 3, 3)], {}, "window is larger"),
    ("FusedConv", [zeros(1, 4, 5, 5), zeros(6, 3, 3, 3)], {}, r"W.*\(6, 3, 3, 3\)"),
    ("FusedConv", [zeros(1, 4, 5, 5), zeros(6, 4, 3, 3)], {"strides": [0, 1]}, "strides"),
    ("GatherND", [zeros(3, 4), np.array([[0, 4]])], {}, r"indices.*4.*\[-4, 4\)"),
    ("TorchEmbedding", [zeros(3, 4), np.array([3])], {}, "indices at position"),
    ("NGramRepeatBlock", [np.array([[0, 7, 0]]), zeros(1, 5)], {"ngram_size": 1}, "input_ids at position"),
    ("RestorePadding", [zeros(1, 2), np.array([[9, 0]], np.int32)], {}, "token_offset at position"),
    ("Pad", [zeros(2, 3), np.array([-2, 0, -1, 0])], {}, "crops more than there is"),
    ("Pad", [zeros(2, 3), np.array([2, 0, 0, 0])], {"mode": "reflect"}, "too short to pad"),
    ("Range", [scalar(0), scalar(3), scalar(0)], {}, "delta must not be 0"),
    ("Inverse", [zeros(2, 2)], {}, "singular"),
    (
        "CropAndResize",
        [zeros(1, 1, 4, 4), zeros(1, 4), np.array([1], np.int32), np.array([2, 2], np.int32)],
        {},
        "batch_indices at position",
    ),
    ("GridSample", [zeros(1, 1, 4, 4), np.full((1, 1, 1, 2), np.nan, np.float32)], {}, "NaN"),
    ("UnfoldTensor", [zeros(3, 4)], {"size": 5}, "size is out of range"),
    ("Trilu", [zeros(3)], {}, "X has 1 dimensions"),
    ("CDist", [zeros(3, 2), zeros(3, 2)], {"metric": "cosine"}, "metric.*cosine"),
]


@pytest.mark.parametrize(("op_type", "inputs", "attributes", "message"), REFUSED)
def test_wrong_operands_are_refused(
    op_type: str, inputs: list[Array | None], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        run_whet(op_type, inputs, attributes)
