"""The floating-point `com.microsoft` kernels against ONNX Runtime's CPU kernels; attention has its own file."""

from __future__ import annotations

import numpy as np
import pytest

from tests import test_contrib_attention as attention
from tests import test_contrib_closed_forms as closed_forms
from tests import test_contrib_quantized as quantized
from tests.contrib_reference import FLOAT, INT32, INT64, Case, check, check_float16, check_float64, scalar
from whet.ops.contrib.table import CONTRIB_KERNELS

F3 = (FLOAT, FLOAT, FLOAT)
ONNX = {"domain": "", "opset": 17}

ACTIVATIONS = [
    Case("Gelu", lambda m: [m.f(3, 7, scale=3)]),
    Case("FastGelu", lambda m: [m.f(3, 7, scale=3), m.f(7)]),
    Case("FastGelu", lambda m: [m.f(3, 7, scale=3)], note="no-bias"),
    Case("QuickGelu", lambda m: [m.f(3, 7, scale=3)]),
    Case("QuickGelu", lambda m: [m.f(3, 7, scale=3)], {"alpha": 0.7}),
    Case("BiasGelu", lambda m: [m.f(3, 7, scale=3), m.f(7)]),
    Case("ScaledSiLU", lambda m: [m.f(3, 7, scale=3), scalar(0.3)]),
    Case("ScaledSiLU", lambda m: [m.f(3, 7, scale=3)], {"alpha": 1.5}),
    Case("GatedAdd", lambda m: [m.f(3, 7), m.f(3, 7), m.f(3, 1)]),
]

NORMS = [
    Case("LayerNormalization", lambda m: [m.f(2, 3, 7), m.f(7), m.f(7)], {"axis": -1}, F3, model=ONNX),
    Case("LayerNormalization", lambda m: [m.f(2, 3, 7), m.f(3, 7)], {"axis": 1, "epsilon": 1e-3}, model=ONNX),
    Case("SimplifiedLayerNormalization", lambda m: [m.f(2, 3, 7), m.f(7)], {"axis": -1}, (FLOAT, FLOAT), model=ONNX),
    Case(
        "SkipLayerNormalization",
        lambda m: [m.f(2, 3, 7), m.f(2, 3, 7), *(m.f(7) for _ in range(3))],
        {},
        (FLOAT, 0, 0, FLOAT),
    ),
    Case(
        "SkipLayerNormalization",
        lambda m: [m.f(2, 3, 7), m.f(3, 7), m.f(7)],
        {"epsilon": 1e-3},
        (FLOAT, 0, 0, FLOAT),
        "rank-2-skip",
    ),
    Case(
        "SkipLayerNormalization",
        lambda m: [m.f(2, 3, 7), m.f(1, 3, 7), m.f(7), None, m.f(7)],
        {"epsilon": 1e-3},
        note="one-batch-skip",
    ),
    Case("SkipLayerNormalization", lambda m: [m.f(3, 7), m.f(3, 7), m.f(7), m.f(7)], {"epsilon": 1e-3}, note="rank-2"),
    Case(
        "SkipSimplifiedLayerNormalization",
        lambda m: [m.f(2, 3, 7), m.f(2, 3, 7), m.f(7), m.f(7)],
        {},
        (FLOAT, 0, 0, FLOAT),
    ),
    Case(
        "EmbedLayerNormalization",
        lambda m: [
            m.ints(0, 9, 2, 5),
            m.ints(0, 2, 2, 5),
            m.f(9, 7),
            m.f(6, 7),
            m.f(2, 7),
            m.f(7),
            m.f(7),
            m.ints(0, 2, 2, 5),
        ],
        {},
        (FLOAT, INT32, FLOAT),
    ),
    *(
        Case(
            "EmbedLayerNormalization",
            lambda m, rows=rows: [
                m.ints(0, 9, 2, 5),
                None,
                m.f(9, 7),
                m.f(6, 7),
                None,
                m.f(7),
                m.f(7),
                None,
                m.ints(0, 6, rows, 5),
            ],
            {"epsilon": 1e-3},
            (FLOAT, 0, FLOAT),
            f"position-ids-{rows}",
        )
        for rows in (1, 2)
    ),
    Case("GatedRMSNorm", lambda m: [m.f(2, 3, 12), m.f(4), m.f(2, 3, 12)]),
    Case("GatedRMSNorm", lambda m: [m.f(2, 3, 12), m.f(12), m.f(2, 3, 12)], {"activation": "sigmoid", "epsilon": 1e-2}),
    Case("BranchwiseRMSNorm", lambda m: [m.f(2, 3, 12), m.f(12)], {"num_branches": 3}),
    Case("BranchwiseRMSNorm", lambda m: [m.f(2, 3, 4), m.f(4)], note="one-scale"),
    Case("BranchwiseRMSNorm", lambda m: [m.f(2, 3, 4)], note="no-scale"),
]

PRODUCTS = [
    Case("FusedMatMul", lambda m: [m.f(2, 4, 3), m.f(2, 4, 5)], {"transA": 1, "alpha": 0.5}),
    Case("FusedMatMul", lambda m: [m.f(2, 3, 4), m.f(5, 4)], {"transB": 1}),
    Case("FusedMatMul", lambda m: [m.f(4), m.f(4, 5)], {"transA": 1}, note="vector"),
    Case("FusedMatMul", lambda m: [m.f(3, 4), m.f(4)], {"transB": 1}, note="by-vector"),
    *(
        Case(
            "FusedMatMul",
            lambda m, a=a, b=b: [m.f(4, 2, 6, 3) if a else m.f(3, 2, 6, 4), m.f(5, 2, 6, 4) if b else m.f(4, 2, 6, 5)],
            {"transA": a, "transB": b, "transBatchA": 1, "transBatchB": 1},
        )
        for a in (0, 1)
        for b in (0, 1)
    ),
    Case("TransposeMatMul", lambda m: [m.f(2, 4, 3), m.f(4, 5)], {"transA": 1, "alpha": 2.0}),
    *(
        Case(
            "FusedGemm",
            lambda m: [m.f(3, 4), m.f(5, 4), m.f(5)],
            {"transB": 1, "alpha": 0.5, "beta": 1.5, "activation": name, **parameters},
        )
        for name, parameters in (
            ("Relu", {}),
            ("Tanh", {}),
            ("Sigmoid", {}),
            ("Softplus", {}),
            ("Softsign", {}),
            ("LeakyRelu", {"activation_alpha": 0.1}),
            ("Elu", {"activation_alpha": 0.5}),
            ("Celu", {"activation_alpha": 0.4}),
            ("ThresholdedRelu", {"activation_alpha": 0.4}),
            ("HardSigmoid", {"activation_alpha": 0.3, "activation_beta": 0.4}),
            ("ScaledTanh", {"activation_alpha": 0.4, "activation_beta": 2.0}),
            ("ParametricSoftplus", {"activation_alpha": 0.4, "activation_beta": 2.0}),
            ("Selu", {"activation_alpha": 1.5, "activation_gamma": 1.1}),
        )
    ),
    *(
        Case(
            "FusedConv",
            lambda m: [m.f(2, 4, 6, 7), m.f(6, 2, 3, 3), m.f(6)],
            {
                "group": 2,
                "pads": [1, 0, 2, 1],
                "strides": [2, 1],
                "dilations": [1, 2],
                "activation": name,
                **({"activation_params": params} if params else {}),
            },
        )
        for name, params in (
            ("Relu", []),
            ("LeakyRelu", [0.1]),
            ("Clip", [-0.5, 0.7]),
            ("Tanh", []),
            ("Sigmoid", []),
            ("HardSigmoid", [0.3, 0.4]),
        )
    ),
    Case(
        "FusedConv",
        lambda m: [m.f(2, 4, 6, 7), m.f(6, 4, 3, 3), m.f(6), m.f(2, 6, 4, 5)],
        {"activation": "Relu"},
        note="residual",
    ),
    Case(
        "FusedConv",
        lambda m: [m.f(2, 4, 9), m.f(6, 4, 3), m.f(6)],
        {"activation": "Relu", "auto_pad": "SAME_LOWER", "strides": [2]},
    ),
    Case(
        "ConvTransposeWithDynamicPads",
        lambda m: [m.f(2, 4, 5, 6), m.f(4, 3, 3, 2), np.array([1, 0, 2, 1]), m.f(6)],
        {"group": 2, "strides": [2, 1], "dilations": [1, 2], "output_padding": [1, 0]},
    ),
    Case("CausalConvWithState", lambda m: [m.f(2, 4, 1), m.f(4, 1, 3)], {}, (FLOAT, FLOAT), "no-state"),
    *(
        Case(
            "CausalConvWithState",
            lambda m, d=d: [m.f(2, 4, 7), m.f(4, 1, 3), m.f(4), m.f(2, 4, 2 * d)],
            {"dilation": d, "activation": "silu"},
            (FLOAT, FLOAT),
        )
        for d in (1, 2)
    ),
    Case("LinearAttentionGate", lambda m: [m.f(2, 3, 4), m.f(4), m.f(4), m.f(2, 3, 4)], {}, (FLOAT, FLOAT)),
    Case("Inverse", lambda m: [m.f(2, 4, 4) + 4 * np.eye(4, dtype=np.float32)]),
    *(Case("CDist", lambda m: [m.f(4, 3), m.f(5, 3)], {"metric": metric}) for metric in ("sqeuclidean", "euclidean")),
    *(
        Case(
            "GridSample",
            lambda m: [m.f(2, 3, 5, 6), m.random.uniform(-1.5, 1.5, (2, 4, 7, 2)).astype(np.float32)],
            {"mode": mode, "padding_mode": padding, "align_corners": align},
            tolerance=1e-4,
        )
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for align in (0, 1)
    ),
    *(
        Case(
            "CropAndResize",
            lambda m, size=size: [
                m.f(2, 3, 5, 6),
                m.random.uniform(-0.1, 1.1, (4, 4)).astype(np.float32),
                m.ints(0, 2, 4),
                np.array(size, np.int32),
            ],
            {"mode": mode, "extrapolation_value": 7.0},
        )
        for mode in ("bilinear", "nearest")
        for size in ((3, 4), (1, 1))
    ),
]

MOVEMENT = [
    *(
        Case("Trilu", lambda m, k=k: [m.f(2, 4, 6), scalar(k, np.int64)], {"upper": upper}, note=f"k{k}")
        for upper in (0, 1)
        for k in (-2, 0, 3)
    ),
    *(
        Case("ExpandDims", lambda m, axis=axis: [m.f(2, 4), scalar(axis, np.int32)], note=f"axis{axis}")
        for axis in (-3, -1, 0, 2)
    ),
    Case("Pad", lambda m: [m.f(4, 5, 3), np.array([1, 2, 0, 2, 0, -1]), m.f(1)], {"mode": "constant"}),
    *(
        Case("Pad", lambda m: [m.f(4, 5, 3), np.array([1, 2, 0, 2, 0, -1])], {"mode": mode})
        for mode in ("reflect", "edge")
    ),
    Case("Unique", lambda m: [m.ints(0, 5, 20, dtype=np.float32)], {}, (FLOAT, INT64, INT64)),
    *(
        Case("Range", lambda m, ends=ends: [scalar(v, np.int64) for v in ends], {}, (INT64,), str(ends))
        for ends in ((1, 9, 2), (9, 1, -3), (5, 2, 1), (2, 6))
    ),
    Case("Range", lambda m: [scalar(v) for v in (0.5, 3.1, 0.3)], note="float"),
    Case("GatherND", lambda m: [m.f(4, 5, 6), m.ints(-4, 4, 3, 2, 2, dtype=np.int64)]),
    Case("GatherND", lambda m: [m.f(4, 5, 6), m.ints(0, 4, 2, 3)], note="elements"),
    Case("UnfoldTensor", lambda m: [m.f(3, 9, 4)], {"dim": 1, "size": 3, "step": 2}),
    Case("UnfoldTensor", lambda m: [m.f(3, 9)], {"size": 4}),
    Case("SampleOp", lambda m: [m.f(3)]),
    *(
        Case("NGramRepeatBlock", lambda m: [m.ints(0, 3, 3, 12, dtype=np.int64), m.f(3, 5)], {"ngram_size": size})
        for size in (1, 2, 3, 13)
    ),
    Case(
        "MaxpoolWithMask",
        lambda m: [m.f(2, 3, 6, 7), m.ints(0, 2, 1, 1, 6, 7)],
        {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]},
    ),
    Case(
        "MaxpoolWithMask",
        lambda m: [m.f(2, 3, 9), m.ints(0, 2, 1, 1, 9)],
        {"kernel_shape": [3], "pads": [1, 1], "strides": [2]},
    ),
    *(
        Case(
            "MurmurHash3",
            lambda m, dtype=dtype: [m.ints(0, 1000, 3, 4, dtype=dtype)],
            {"positive": positive, "seed": 7},
            (12 if positive else INT32,),
            dtype.__name__,
        )
        for dtype in (np.int32, np.int64, np.float32, np.float64)
        for positive in (0, 1)
    ),
    Case(
        "MurmurHash3",
        lambda m: [np.array(["", "a", "ab", "abc", "abcd", "hello world", "é中"], object)],
        {"seed": 3},
        (12,),
        "text",
    ),
    *(
        Case("DynamicTimeWarping", lambda m, shape=shape: [m.positive(*shape)], {}, (INT32,), str(shape))
        for shape in ((6, 9), (1, 9, 6), (5, 5), (1, 4), (4, 1))
    ),
]

COMPUTING = [*ACTIVATIONS, *NORMS, *PRODUCTS]
CASES = [*COMPUTING, *MOVEMENT]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_as_onnxruntime(case: Case, seed: int) -> None:
    check(case, seed)


# Inputs so small that the default epsilon decides the answer.
DEFAULT_EPSILON = [
    Case("LayerNormalization", lambda m: [m.f(2, 7, scale=1e-3), m.f(7), m.f(7)], model=ONNX),
    Case("SimplifiedLayerNormalization", lambda m: [m.f(2, 7, scale=1e-3), m.f(7)], model=ONNX),
    *(
        Case(op_type, lambda m: [m.f(2, 7, scale=1e-6), m.f(2, 7, scale=1e-6), m.f(7)], tolerance=1e-4)
        for op_type in ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
    ),
    Case("GatedRMSNorm", lambda m: [m.f(2, 7, scale=1e-3), m.f(7), m.f(2, 7)]),
    Case("BranchwiseRMSNorm", lambda m: [m.f(2, 3, 7, scale=1e-3)]),
]


@pytest.mark.parametrize("case", DEFAULT_EPSILON, ids=str)
def test_default_epsilon(case: Case) -> None:
    check(case, 4)


@pytest.mark.parametrize("case", COMPUTING, ids=str)
def test_float64_inputs_are_computed_in_float64(case: Case) -> None:
    check_float64(case)


@pytest.mark.parametrize("case", [ACTIVATIONS[0], NORMS[3], PRODUCTS[0]], ids=str)
def test_float16_inputs_give_float16_outputs(case: Case) -> None:
    check_float16(case)


def test_every_kernel_is_compared_with_something() -> None:
    compared = {case.op_type for case in [*CASES, *attention.CASES, *quantized.CASES]}
    derived = {*closed_forms.CLOSED_FORMS, *quantized.CLOSED_FORMS, "IsAllFinite", "BiasDropout"}
    derived.add("Tokenizer")  # tests/test_contrib_tokenizer.py
    assert set(CONTRIB_KERNELS) == compared | derived
