"""The quantized `com.microsoft` kernels against ONNX Runtime's CPU kernels; 8-bit results agree to one step."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.contrib_reference import (
    FLOAT,
    INT8,
    INT32,
    UINT8,
    Array,
    Case,
    Draw,
    check,
    run_whet,
    scalar,
)
from whet.errors import InvalidArgument

ONE_STEP = 1.01


def elementwise(dtype: Any, kind: int) -> list[Case]:
    """The element-wise, pooling and joining operators in one 8-bit type."""

    def z(value: int) -> Array:
        return scalar(value, dtype)

    def case(op_type: str, make: Any, attributes: dict[str, Any] | None = None, tolerance: float = ONE_STEP) -> Case:
        return Case(op_type, make, attributes or {}, (kind,), dtype.__name__, tolerance)

    def two(m: Draw) -> list[Array | None]:
        return [
            m.bytes(dtype, 2, 3, 37),
            scalar(0.02),
            z(7),
            m.bytes(dtype, 3, 1),
            scalar(0.03),
            z(3),
            scalar(0.05),
            z(11),
        ]

    def one(*shape: int) -> Any:
        return lambda m: [m.bytes(dtype, *shape), scalar(0.05), z(100), scalar(0.03), z(9)]

    def unit(*shape: int) -> Any:
        return lambda m: [m.bytes(dtype, *shape), scalar(0.05), z(100), scalar(1 / 256), z(0)]

    pools = (
        {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1]},
        {"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1, "strides": [2, 2]},
    )
    return [
        case("QLinearAdd", two),
        case("QLinearMul", two),
        case("QLinearLeakyRelu", one(2, 37), {"alpha": 0.2}),
        case("QLinearSigmoid", unit(2, 37)),
        *(
            case("QLinearSoftmax", unit(2, 5, 4), {"axis": axis, "opset": opset})
            for axis, opset in ((-1, 13), (1, 13), (0, 13), (1, 12))
        ),
        *(case("QLinearGlobalAveragePool", one(2, 5, 4, 3), {"channels_last": last}) for last in (0, 1)),
        *(
            case("QLinearAveragePool", one(2, 8, 9, 5), {"channels_last": last, **pool})
            for last in (0, 1)
            for pool in pools
        ),
        # with ceil_mode, ONNX Runtime's channels-last kernel also counts what lies past the padding; ONNX does not
        case("QLinearAveragePool", one(2, 8, 9, 5), {"channels_last": 0, **pools[-1], "ceil_mode": 1}),
        case(
            "QLinearWhere",
            lambda m: [
                m.ints(0, 2, 3, 1, dtype=bool),
                m.bytes(dtype, 2, 3, 4),
                scalar(0.05),
                z(10),
                m.bytes(dtype, 4),
                scalar(0.03),
                z(9),
                scalar(0.06),
                z(2),
            ],
        ),
        case(
            "QLinearConcat",
            lambda m: [
                scalar(0.06),
                z(2),
                m.bytes(dtype, 2, 3, 4),
                scalar(0.05),
                z(10),
                m.bytes(dtype, 2, 5, 4),
                scalar(0.03),
                z(9),
            ],
            {"axis": -2},
        ),
        case("QuantizeLinear", lambda m: [m.f(2, 3, 37, scale=3), scalar(0.05), z(10)], tolerance=0),
        case(
            "QuantizeLinear",
            lambda m: [m.f(2, 3, 37, scale=3), m.positive(3, scale=0.2), m.bytes(dtype, 3)],
            {"axis": 1},
            0,
        ),
        Case("DequantizeLinear", lambda m: [m.bytes(dtype, 2, 3, 37), scalar(0.05), z(10)], {}, note=dtype.__name__),
        Case(
            "DequantizeLinear",
            lambda m: [m.bytes(dtype, 2, 3, 37), m.positive(3), m.bytes(dtype, 3)],
            {"axis": -2},
            note=dtype.__name__,
        ),
        case(
            "NhwcMaxPool",
            lambda m: [m.bytes(dtype, 2, 6, 7, 5)],
            {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "strides": [2, 1], "dilations": [1, 2]},
            0,
        ),
        case(
            "NhwcMaxPool",
            lambda m: [m.bytes(dtype, 2, 6, 7, 5)],
            {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
            0,
        ),
    ]


def products(dtype: Any, kind: int, weight: Any) -> list[Case]:
    """Matrix products and convolutions of activations of `dtype` with weights of `weight`."""
    note = f"{dtype.__name__}-{weight.__name__}"

    def z(value: int) -> Array:
        return scalar(value, dtype)

    def gemm(attributes: dict[str, Any], quantized: bool) -> Case:
        def make(m: Draw) -> list[Array | None]:
            a = m.bytes(dtype, *((4, 3) if attributes.get("transA") else (3, 4)))
            b = m.bytes(weight, *((5, 4) if attributes.get("transB") else (4, 5)))
            if quantized:
                return [
                    a,
                    scalar(0.05),
                    z(10),
                    b,
                    scalar(0.02),
                    scalar(3, weight),
                    m.ints(-500, 500, 5),
                    scalar(0.3),
                    z(4),
                ]
            return [a, scalar(0.05), z(10), b, m.positive(5, scale=0.05), m.bytes(weight, 5)]

        return Case("QGemm", make, attributes, (kind if quantized else FLOAT,), note, ONE_STEP if quantized else 1e-4)

    def conv(last: int) -> list[Case]:
        shape = (2, 6, 7, 4) if last else (2, 4, 6, 7)
        return [
            Case(
                "QLinearConv",
                lambda m: [
                    m.bytes(dtype, *shape),
                    scalar(0.02),
                    z(4),
                    m.bytes(weight, 6, 2, 3, 3),
                    scalar(0.03),
                    scalar(3, weight),
                    scalar(0.5),
                    z(7),
                    m.ints(-500, 500, 6),
                ],
                {"group": 2, "pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 2], "channels_last": last},
                (kind,),
                note,
                ONE_STEP,
            ),
            Case(
                "QLinearConv",
                lambda m: [
                    m.bytes(dtype, *shape),
                    scalar(0.02),
                    z(4),
                    m.bytes(weight, 6, 4, 3, 2),
                    m.positive(6, scale=0.1),
                    np.full(6, 3, weight),
                    scalar(0.5),
                    z(7),
                ],
                {"auto_pad": "SAME_UPPER", "strides": [2, 1], "channels_last": last},
                (kind,),
                note + "-per-filter",
                ONE_STEP,
            ),
        ]

    return [
        *(
            gemm(attributes, quantized)
            for attributes in ({}, {"transA": 1, "alpha": 0.7}, {"transB": 1})
            for quantized in (True, False)
        ),
        *conv(0),
        *conv(1),
        Case(
            "DynamicQuantizeMatMul",
            lambda m: [m.f(2, 3, 8), m.bytes(weight, 8, 5), scalar(0.02), scalar(4, weight), m.f(5)],
            note=note,
            tolerance=1e-4,
        ),
        Case(
            "DynamicQuantizeMatMul",
            lambda m: [m.f(2, 3, 8), m.bytes(weight, 8, 5), m.positive(5, scale=0.1), m.bytes(weight, 5)],
            note=note + "-per-column",
            tolerance=1e-4,
        ),
        Case(
            "MatMulIntegerToFloat",
            lambda m: [
                m.bytes(dtype, 2, 3, 8),
                m.bytes(weight, 8, 5),
                scalar(0.02),
                scalar(0.03),
                z(4),
                scalar(3, weight),
                m.f(5),
            ],
            note=note,
            tolerance=1e-4,
        ),
        Case(
            "MatMulIntegerToFloat",
            lambda m: [
                m.bytes(dtype, 2, 3, 8),
                m.bytes(weight, 8, 5),
                scalar(0.02),
                m.positive(5, scale=0.1),
                z(4),
                m.bytes(weight, 5),
            ],
            note=note + "-per-column",
            tolerance=1e-4,
        ),
    ]


def nbits(bits: int, block: int, k: int, zeros: str) -> Case:
    """A MatMulNBits case; `zeros` says how the zero points are given."""
    n, blocks = 5, -(-k // block)
    shapes = {
        "none": lambda m: None,
        "packed": lambda m: m.bytes(np.uint8, n, -(-blocks * bits // 8)),
        "float": lambda m: m.positive(n, blocks, scale=8),
    }
    return Case(
        "MatMulNBits",
        lambda m: [
            m.f(2, 3, k),
            m.bytes(np.uint8, n, blocks, block * bits // 8),
            m.positive(n, blocks, scale=0.1),
            shapes[zeros](m),
            None,
            m.f(n),
        ],
        {"K": k, "N": n, "bits": bits, "block_size": block},
        note=zeros,
        tolerance=1e-4,
    )


def lstm(direction: str, weight: Any, per_channel: bool) -> Case:
    """DynamicQuantizeLSTM; its roundings flip now and then, so the states agree to 0.02 of their range."""
    d, hidden, size, batch = (2 if direction == "bidirectional" else 1), 6, 5, (3 if per_channel else 1)
    shape = (d, 4 * hidden) if per_channel else (d,)
    zero = 0 if per_channel or weight is np.int8 else 3

    def make(m: Draw) -> list[Array | None]:
        lengths = np.array([7, 4, 5], np.int32) if per_channel else None
        peepholes = None if per_channel else m.f(d, 3 * hidden)
        quantization = [m.positive(*shape, scale=0.02), np.full(shape, zero, weight)] * 2
        return [
            m.f(7, batch, size),
            m.bytes(weight, d, size, 4 * hidden),
            m.bytes(weight, d, hidden, 4 * hidden),
            m.f(d, 8 * hidden),
            lengths,
            m.f(d, batch, hidden),
            m.f(d, batch, hidden),
            peepholes,
            *quantization,
        ]

    model = {"constants": (1, 2, 8, 9, 10, 11)}
    note = f"{weight.__name__}-{'columns' if per_channel else 'tensor'}"
    return Case(
        "DynamicQuantizeLSTM", make, {"hidden_size": hidden, "direction": direction}, (FLOAT,) * 3, note, 2e-2, model
    )


CASES = [
    *elementwise(np.uint8, UINT8),
    *elementwise(np.int8, INT8),
    *products(np.uint8, UINT8, np.uint8),
    *products(np.uint8, UINT8, np.int8),
    *products(np.int8, INT8, np.int8),
    *(
        nbits(bits, block, k, zeros)
        for bits in (2, 4, 8)
        for block in (16, 32)
        for k in (32, 40)
        for zeros in ("none", "packed")
    ),
    *(nbits(bits, 16, 40, "float") for bits in (2, 4)),
    Case(
        "MatMulNBits",
        lambda m: [m.f(2, 32), m.bytes(np.uint8, 5, 2, 8), m.positive(5, 2, scale=0.1), None, m.ints(0, 2, 32)],
        {"K": 32, "N": 5, "bits": 4, "block_size": 16},
        note="g_idx",
        tolerance=1e-4,
    ),
    *(
        Case(
            "MatMulBnb4",
            lambda m: [m.f(3, 32), m.bytes(np.uint8, 80), m.positive(10)],
            {"K": 32, "N": 5, "block_size": 16, "quant_type": kind},
            tolerance=1e-4,
        )
        for kind in (0, 1)
    ),
    *(
        Case(
            "GatherBlockQuantized",
            lambda m, bits=bits: [
                m.bytes(np.uint8, 7, 8 * bits),
                np.array([[0, 3, -1], [6, 9, 1]]),
                m.positive(7, 2),
                m.bytes(np.uint8, 7, -(-2 * bits // 8)),
            ],
            {"bits": bits, "block_size": 32},
            model={"constants": (0, 2, 3)},
        )
        for bits in (2, 4, 8)
    ),
    Case(
        "GatherBlockQuantized",
        lambda m: [m.bytes(np.uint8, 7, 32), np.array([0, 3, -1], np.int32), m.positive(7, 2)],
        {"block_size": 32},
        note="no-zero-points",
        model={"constants": (0, 2)},
    ),
    Case(
        "GatherBlockQuantized",
        lambda m: [m.ints(-8, 8, 6, 32, 3, dtype=ml_dtypes.int4), np.array([0, 2]), m.positive(6, 2, 3)],
        {"block_size": 16, "quantize_axis": 1, "gather_axis": 2},
        note="int4",
        model={"constants": (0, 2)},
    ),
    Case(
        "MatMulInteger16",
        lambda m: [m.ints(-3000, 3000, 2, 3, 4, dtype=np.int16), m.ints(-3000, 3000, 4, 5, dtype=np.int16)],
        {},
        (INT32,),
        tolerance=0,
    ),
    Case(
        "QAttention",
        lambda m: [
            m.bytes(np.uint8, 2, 5, 12),
            m.bytes(np.int8, 12, 36),
            m.f(36),
            scalar(0.01),
            scalar(0.005),
            None,
            scalar(120, np.uint8),
            scalar(3, np.int8),
        ],
        {"num_heads": 3},
        (FLOAT, FLOAT),
        tolerance=1e-4,
    ),
    Case(
        "QAttention",
        lambda m: [
            m.bytes(np.uint8, 2, 5, 12),
            m.bytes(np.uint8, 12, 36),
            m.f(36),
            scalar(0.01),
            m.positive(36, scale=0.01),
            np.array([3, 5], np.int32),
            scalar(120, np.uint8),
            m.bytes(np.uint8, 36),
            m.f(2, 2, 3, 3, 4),
        ],
        {"num_heads": 3, "unidirectional": 1},
        (FLOAT, FLOAT),
        "columns",
        1e-4,
    ),
    Case(
        "QEmbedLayerNormalization",
        lambda m: [
            m.ints(0, 9, 2, 5),
            m.ints(0, 2, 2, 5),
            *(m.bytes(np.uint8, n, 7) for n in (9, 6, 2)),
            m.bytes(np.uint8, 7),
            m.bytes(np.uint8, 7),
            m.ints(0, 2, 2, 5),
            *(scalar(v) for v in (0.01, 0.02, 0.03, 0.01, 0.01)),
            *(scalar(v, np.uint8) for v in (3, 5, 128, 7, 9)),
        ],
        {},
        (FLOAT, INT32),
    ),
    *(
        lstm(direction, weight, columns)
        for direction in ("forward", "reverse", "bidirectional")
        for weight in (np.uint8, np.int8)
        for columns in (False, True)
    ),
]


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_as_onnxruntime(case: Case, seed: int) -> None:
    check(case, seed)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_scales_are_computed_in_float64(case: Case) -> None:
    """Widened floats stay float64, and integers agree with the float32 answer to one step."""
    inputs = case.make(Draw(3))
    wide = [a.astype(np.float64) if a is not None and a.dtype == np.float32 else a for a in inputs]
    narrow = run_whet(case.op_type, inputs, case.attributes, len(case.outputs))
    results = run_whet(case.op_type, wide, case.attributes, len(case.outputs))
    for result, reference in zip(results, narrow, strict=True):
        assert result.dtype == (np.float64 if reference.dtype == np.float32 else reference.dtype)
        tolerance = 1 if reference.dtype.kind in "iu" else max(case.tolerance, 1e-3)
        np.testing.assert_allclose(result.astype(np.float64), reference.astype(np.float64), rtol=0, atol=tolerance)


def qmean(data: Array, scale: Array, zero: Array, out_scale: Array, out_zero: Array) -> Array:
    mean = ((data.astype(np.float64) - zero) * scale).mean(axis=(0, 2))
    return np.clip(np.rint(mean / out_scale) + out_zero, 0, 255)


# Operators without a CPU kernel in ONNX Runtime: (inputs, attributes, expected from the inputs).
CLOSED_FORMS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "QLinearReduceMean": (
        lambda m: [
            m.bytes(np.uint8, 2, 3, 37),
            scalar(0.05),
            scalar(100, np.uint8),
            scalar(0.03),
            scalar(90, np.uint8),
        ],
        {"axes": [0, -1], "keepdims": 0},
        qmean,
    ),
    "MulInteger": (
        lambda m: [m.bytes(np.int8, 2, 3), scalar(-100, np.int8), m.bytes(np.int8, 3), scalar(100, np.int8)],
        {},
        lambda a, az, b, bz: (a.astype(int) + 100) * (b.astype(int) - 100),
    ),
    "ReduceSumInteger": (
        lambda m: [m.bytes(np.uint8, 4, 50)],
        {"axes": [1], "keepdims": 1},
        lambda x: x.astype(int).sum(axis=1, keepdims=True),
    ),
}


@pytest.mark.parametrize("op_type", CLOSED_FORMS)
def test_closed_form(op_type: str) -> None:
    make, attributes, expected = CLOSED_FORMS[op_type]
    inputs = make(Draw(5))
    np.testing.assert_array_equal(run_whet(op_type, inputs, attributes)[0], expected(*inputs))


def test_channels_last_average_pool_is_channels_first_transposed() -> None:
    x = Draw(6).bytes(np.uint8, 2, 8, 9, 5)
    rest = [scalar(0.05), scalar(100, np.uint8), scalar(0.03), scalar(9, np.uint8)]
    attributes = {
        "kernel_shape": [3, 3],
        "pads": [1, 1, 1, 1],
        "count_include_pad": 1,
        "strides": [2, 2],
        "ceil_mode": 1,
    }
    first = run_whet("QLinearAveragePool", [np.moveaxis(x, -1, 1).copy(), *rest], attributes)[0]
    last = run_whet("QLinearAveragePool", [x, *rest], {**attributes, "channels_last": 1})[0]
    np.testing.assert_array_equal(np.moveaxis(last, -1, 1), first)


def test_missing_zero_points_are_zero() -> None:
    m = Draw(7)
    a, b = m.bytes(np.uint8, 2, 5), m.bytes(np.uint8, 5)
    zero = scalar(0, np.uint8)
    scales = scalar(0.02), scalar(0.03), scalar(0.05)
    without = run_whet("QLinearAdd", [a, scales[0], None, b, scales[1], None, scales[2]], {})[0]
    given = run_whet("QLinearAdd", [a, scales[0], zero, b, scales[1], zero, scales[2], zero], {})[0]
    np.testing.assert_array_equal(without, given)


def u8(*shape: int) -> Array:
    return np.zeros(shape, np.uint8)


def floats(*shape: int) -> Array:
    return np.ones(shape, np.float32)


REFUSED: list[tuple[str, list[Array | None], dict[str, Any], str]] = [
    ("QLinearAdd", [u8(2, 3), scalar(1), None, u8(2), scalar(1), None, scalar(1)], {}, "do not broadcast"),
    ("QLinearAdd", [u8(2), floats(2), None, u8(2), scalar(1), None, scalar(1)], {}, "A_scale must hold one element"),
    ("QLinearConcat", [scalar(1), scalar(0, np.uint8), u8(2, 3), scalar(1)], {"axis": 0}, "not divisible by 3"),
    ("QuantizeLinear", [floats(2, 3), floats(4)], {"axis": 1}, r"y_scale.*\(4,\).*\(3\)"),
    ("MatMulNBits", [floats(2, 32), u8(5, 2, 7), floats(5, 2)], {"K": 32, "N": 5, "block_size": 16}, "B does not fit"),
    (
        "MatMulNBits",
        [floats(2, 32), u8(5, 2, 8), floats(5, 2)],
        {"K": 32, "N": 5, "block_size": 17},
        "not a power of two",
    ),
    (
        "MatMulNBits",
        [floats(2, 32), u8(5, 2, 8), floats(5, 2), None, np.full(32, 2, np.int32)],
        {"K": 32, "N": 5, "block_size": 16},
        "g_idx at position",
    ),
    ("MatMulNBits", [floats(2, 31), u8(5, 2, 8), floats(5, 2)], {"K": 32, "N": 5, "block_size": 16}, r"\(2, 31\)"),
    ("MatMulBnb4", [floats(2, 32), u8(80), floats(9)], {"K": 32, "N": 5, "block_size": 16, "quant_type": 1}, "absmax"),
    (
        "GatherBlockQuantized",
        [u8(7, 32), np.array([0]), floats(7, 3)],
        {"block_size": 32},
        r"scales.*\(7, 3\).*\(7, 2\)",
    ),
    ("QGemm", [u8(3, 4), scalar(1), scalar(0, np.uint8), u8(5, 4), scalar(1), None], {}, r"\(3, 4\) x \(5, 4\)"),
    (
        "QLinearConv",
        [
            u8(1, 4, 5, 5),
            scalar(1),
            scalar(0, np.uint8),
            u8(6, 4, 3, 3),
            floats(5),
            scalar(0, np.uint8),
            scalar(1),
            scalar(0, np.uint8),
        ],
        {},
        r"w_scale.*\(5,\)",
    ),
    ("DynamicQuantizeMatMul", [floats(2, 3), u8(4, 5), scalar(1)], {}, r"\(2, 3\) x \(4, 5\)"),
    ("QAttention", [u8(1, 2, 4), u8(4, 12), floats(12), floats(2), scalar(1)], {"num_heads": 2}, "input_scale"),
    (
        "DynamicQuantizeLSTM",
        [
            floats(3, 1, 5),
            u8(1, 5, 24),
            u8(1, 6, 24),
            None,
            np.array([4], np.int32),
            None,
            None,
            None,
            floats(1),
            u8(1),
            floats(1),
            u8(1),
        ],
        {"hidden_size": 6},
        "sequence_lens",
    ),
]


@pytest.mark.parametrize(("op_type", "inputs", "attributes", "message"), REFUSED)
def test_wrong_operands_are_refused(
    op_type: str, inputs: list[Array | None], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        run_whet(op_type, inputs, attributes)
