"""Quantization and integer products compiled, bit by bit as the reference provider has them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import helper, numpy_helper

from tests.compiled_nodes import steps
from tests.compiler_cases import (
    BFLOAT16,
    FLOAT,
    FLOAT16,
    INT8,
    INT16,
    INT32,
    REFERENCE,
    UINT8,
    UINT16,
    UINT32,
    check,
    compare,
    feeds,
    node_model,
    run,
)
from whet.errors import InvalidArgument

Array = np.ndarray[Any, Any]
STORED = {UINT8: np.uint8, INT8: np.int8, UINT16: np.uint16, INT16: np.int16}
FLOATS = {FLOAT: np.float32, FLOAT16: np.float16, BFLOAT16: ml_dtypes.bfloat16}


def scales(random: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    return np.asarray(random.uniform(0.01, 0.2, shape).astype(dtype))


def integers(random: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    info = np.iinfo(dtype)
    return np.asarray(random.integers(info.min, int(info.max) + 1, shape).astype(dtype))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("form", ["tensor", "one", "axis", "last", "blocks"])
@pytest.mark.parametrize("kind", STORED)
def test_quantize_and_dequantize(kind: int, form: str, symbolic: bool) -> None:
    random = np.random.default_rng(kind)
    shape = (3, 5, 7, 19)
    own, attributes = {
        "tensor": ((), {}), "one": ((1,), {}), "axis": ((5,), {"axis": 1}), "last": ((19,), {"axis": -1}),
        "blocks": ((3, 5, 7, 3), {"axis": 3, "block_size": 8}),
    }[form]  # fmt: skip
    if symbolic and form == "blocks":
        pytest.skip("blocks need an extent")
    dtype = STORED[kind]
    x = (random.standard_normal(shape) * 20).astype(np.float32)
    zero = integers(random, own, dtype)
    for given in ([x, scales(random, own), zero], [x, scales(random, own)]):
        if len(given) == 2 and kind != UINT8:
            continue
        for constants in ((1, 2), ()):
            model = node_model(
                "QuantizeLinear", given, (kind,), attributes, constants=constants[: len(given) - 1], symbolic=symbolic
            )
            check(model, feeds(model, given))
    q = integers(random, shape, dtype)
    for constants in ((1, 2), (), (0, 1, 2)):
        given = [q, scales(random, own), zero]
        model = node_model("DequantizeLinear", given, (FLOAT,), attributes, constants=constants, symbolic=symbolic)
        check(model, feeds(model, given), 0)


@pytest.mark.parametrize("scale", FLOATS)
@pytest.mark.parametrize("kind", FLOATS)
def test_float_types(kind: int, scale: int) -> None:
    random = np.random.default_rng(3)
    x = (random.standard_normal((4, 33)) * 5).astype(FLOATS[kind])
    given = [x, scales(random, (4,), FLOATS[scale]), integers(random, (4,), np.uint8)]
    model = node_model("QuantizeLinear", given, (UINT8,), {"axis": 0}, opset=23)
    check(model, feeds(model, given))
    back = [integers(random, (4, 33), np.int8), given[1], integers(random, (4,), np.int8)]
    model = node_model("DequantizeLinear", back, (scale,), {"axis": 0})
    check(model, feeds(model, back), 0)
    model = node_model("DequantizeLinear", back, (kind,), {"axis": 0, "output_dtype": kind}, opset=23)
    check(model, feeds(model, back), 0)


def test_special_numbers() -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.5, 1.5, 2.5, -0.5, 0.0], np.float32)
    for kind, dtype in STORED.items():
        given = [x, np.array(1.0, np.float32), np.array(3, dtype)]
        model = node_model("QuantizeLinear", given, (kind,), constants=(1, 2))
        check(model, feeds(model, given))


def test_int32_operands() -> None:
    random = np.random.default_rng(4)
    q = integers(random, (5, 6), np.int32)
    given = [q, scales(random, ()), np.array(0, np.int32)]
    model = node_model("DequantizeLinear", given, (FLOAT,))
    check(model, feeds(model, given), 0)
    given = [q, np.array(3e6, np.float32), np.array(7, np.uint8)]
    model = node_model("QuantizeLinear", given, (UINT8,))
    check(model, feeds(model, given))


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4])
def test_packed_constants(dtype: Any) -> None:
    random = np.random.default_rng(5)
    info = ml_dtypes.iinfo(dtype)
    q = random.integers(info.min, info.max + 1, (6, 10)).astype(dtype)
    given = [q, scales(random, (2, 10)), q[:2]]
    model = node_model("DequantizeLinear", given, (FLOAT,), {"axis": 0, "block_size": 3}, constants=(0, 1, 2), opset=22)
    check(model, feeds(model, given), 0)


def test_bad_scales_are_found() -> None:
    for bad in (0.0, -1.0, np.nan, np.inf):
        given = [np.ones((3, 2), np.float32), np.array([1.0, bad], np.float32), np.zeros(2, np.uint8)]
        model = node_model("QuantizeLinear", given, (UINT8,), {"axis": 1})
        with pytest.raises(InvalidArgument):
            run(model, feeds(model, given))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 100), (64, 1000), (0, 4), ()])
def test_dynamic(shape: tuple[int, ...], symbolic: bool) -> None:
    random = np.random.default_rng(6)
    for scale, offset in ((1.0, 0.0), (3.0, 50.0), (3.0, -50.0), (0.0, 0.0)):
        x = np.asarray((random.standard_normal(shape) * scale + offset).astype(np.float32))
        model = node_model("DynamicQuantizeLinear", [x], (UINT8, FLOAT, UINT8), symbolic=symbolic)
        check(model, feeds(model, [x]), 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_dynamic_refuses_what_is_not_finite(bad: float) -> None:
    x = np.array([1.0, bad, 2.0], np.float32)
    model = node_model("DynamicQuantizeLinear", [x], (UINT8, FLOAT, UINT8))
    with pytest.raises(InvalidArgument):
        run(model, feeds(model, [x]))


@pytest.mark.parametrize("form", ["tensor", "axis"])
@pytest.mark.parametrize("kind", [UINT8, INT8])
def test_contrib_forms(kind: int, form: str) -> None:
    random = np.random.default_rng(7)
    own, attributes = ((), {}) if form == "tensor" else ((5,), {"axis": 1})
    x = (random.standard_normal((3, 5, 9)) * 9).astype(np.float32)
    x[0, 0, 0] = np.nan
    zero = integers(random, own, STORED[kind])
    given = [x, scales(random, own), zero]
    model = node_model("QuantizeLinear", given, (kind,), attributes, domain="com.microsoft")
    check(model, feeds(model, given))
    for scale in (FLOAT, FLOAT16):
        given = [integers(random, x.shape, STORED[kind]), scales(random, own, FLOATS[scale]), zero]
        model = node_model("DequantizeLinear", given, (scale,), attributes, domain="com.microsoft")
        check(model, feeds(model, given), 0)


# Integer products

KINDS = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8), (np.int8, np.uint8)]
ONNX_KIND = {np.uint8: UINT8, np.int8: INT8}
MS = "com.microsoft"


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("shapes", [((7, 19), (19, 35)), ((2, 3, 7, 300), (300, 16)), ((2, 5, 9), (2, 9, 17))])
def test_matmul_integer(shapes: Any, kinds: Any, symbolic: bool) -> None:
    random = np.random.default_rng(8)
    a, b = integers(random, shapes[0], kinds[0]), integers(random, shapes[1], kinds[1])
    one = [integers(random, (), kinds[0]), integers(random, (), kinds[1])]
    each = [integers(random, (a.shape[-2],), kinds[0]), integers(random, (b.shape[-1],), kinds[1])]
    for zeros in ([], one, each):
        if zeros is each and symbolic:
            continue
        given = [a, b, *zeros]
        for constants in ((), (1,), (1, 3)):
            if 3 in constants and not zeros:
                continue
            model = node_model("MatMulInteger", given, (INT32,), constants=constants, symbolic=symbolic)
            check(model, feeds(model, given))


def test_matmul_integer_wraps() -> None:
    a, b = np.full((1, 40000), 255, np.uint8), np.full((40000, 3), 255, np.uint8)
    model = node_model("MatMulInteger", [a, b], (INT32,), constants=(1,))
    check(model, feeds(model, [a, b]))


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("form", ["one", "columns", "rows"])
def test_qlinear_matmul(form: str, kinds: Any) -> None:
    random = np.random.default_rng(9)
    a, b = integers(random, (2, 7, 33), kinds[0]), integers(random, (33, 21), kinds[1])
    rows, columns = ((7, 1) if form == "rows" else ()), ((21,) if form == "columns" else ())
    if form == "rows":
        a = a[0]
        rows = (7,)
    given = [
        a, scales(random, rows), integers(random, rows, kinds[0]), b, scales(random, columns),
        integers(random, columns, kinds[1]), np.array(3.7, np.float32), integers(random, (), kinds[0]),
    ]  # fmt: skip
    for constants in ((1, 2, 3, 4, 5, 6, 7), ()):
        model = node_model("QLinearMatMul", given, (ONNX_KIND[kinds[0]],), constants=constants)
        check(model, feeds(model, given))


CONVS = {
    "plain": ((2, 5, 9, 11), (7, 5, 3, 3), {"pads": [1, 0, 2, 1]}),
    "wide": ((1, 16, 9, 11), (24, 16, 3, 3), {"pads": [1] * 4, "strides": [2, 1]}),
    "pointwise": ((2, 16, 5, 6), (24, 16, 1, 1), {}),
    "depthwise": ((1, 20, 9, 9), (20, 1, 3, 3), {"group": 20, "pads": [1] * 4}),
    "groups": ((1, 8, 9, 9), (12, 4, 3, 3), {"group": 2, "dilations": [2, 2]}),
    "same": ((1, 16, 9, 10), (24, 16, 3, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "one axis": ((1, 9, 30), (12, 9, 5), {"pads": [2, 2]}),
}


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("kinds", KINDS[1:3])
def test_conv_integer(case: str, kinds: Any) -> None:
    random = np.random.default_rng(10)
    shape, weights, attributes = CONVS[case]
    x, w = integers(random, shape, kinds[0]), integers(random, weights, kinds[1])
    for zeros in ([], [integers(random, (), kinds[0]), integers(random, (weights[0],), kinds[1])]):
        given = [x, w, *zeros]
        for constants in ((1,), (1, 3), ()):
            if 3 in constants and not zeros:
                continue
            model = node_model("ConvInteger", given, (INT32,), attributes, constants=constants)
            check(model, feeds(model, given))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("domain", ["", MS])
@pytest.mark.parametrize("case", CONVS)
def test_qlinear_conv(case: str, domain: str, last: bool) -> None:
    if last and domain == "":
        pytest.skip("only com.microsoft has channels last")
    random = np.random.default_rng(11)
    shape, weights, attributes = CONVS[case]
    x, w = integers(random, shape, np.uint8), integers(random, weights, np.int8)
    if last:
        x, attributes = np.ascontiguousarray(np.moveaxis(x, 1, -1)), {**attributes, "channels_last": 1}
    filters = (weights[0],)
    given = [
        x, scales(random, ()), integers(random, (), np.uint8), w, scales(random, filters),
        np.zeros(filters, np.int8), np.array(2.3, np.float32), integers(random, (), np.uint8),
        random.integers(-9999, 9999, filters).astype(np.int32),
    ]  # fmt: skip
    for some in (given, given[:8]):
        for constants in (tuple(range(1, len(some))), (3,), ()):
            model = node_model("QLinearConv", some, (UINT8,), attributes, domain=domain, constants=constants)
            check(model, feeds(model, some))


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("kinds", KINDS)
def test_scaled_products(kinds: Any, columns: bool) -> None:
    random = np.random.default_rng(12)
    own = (21,) if columns else ()
    a, b = integers(random, (2, 7, 33), kinds[0]), integers(random, (33, 21), kinds[1])
    bias = random.standard_normal(21).astype(np.float32)
    given: list[Array | None] = [
        a, b, scales(random, ()), scales(random, own), integers(random, (), kinds[0]),
        integers(random, own, kinds[1]), bias,
    ]  # fmt: skip
    for some in (given, given[:4]):
        for constants in ((1, 3), ()):
            model = node_model("MatMulIntegerToFloat", some, (FLOAT,), domain=MS, constants=constants)
            check(model, feeds(model, some), 1e-6)
    x = random.standard_normal((2, 7, 33)).astype(np.float32)
    given = [x, b, scales(random, own), integers(random, own, kinds[1]), bias]
    for some in (given, given[:3], [*given[:3], None, bias]):
        model = node_model("DynamicQuantizeMatMul", some, (FLOAT,), domain=MS, constants=(1, 2))
        check(model, feeds(model, some), 1e-6)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(("trans_a", "trans_b"), [(0, 0), (1, 1)])
def test_qgemm(trans_a: int, trans_b: int, quantized: bool) -> None:
    random = np.random.default_rng(13)
    a, b = integers(random, (7, 33), np.uint8), integers(random, (33, 21), np.int8)
    given: list[Array | None] = [
        a.T.copy() if trans_a else a, scales(random, ()), integers(random, (), np.uint8),
        b.T.copy() if trans_b else b, scales(random, (21,)), np.zeros(21, np.int8),
        random.integers(-999, 999, (1, 21)).astype(np.int32),
    ]  # fmt: skip
    if quantized:
        given += [np.array(2.1, np.float32), np.array(7, np.uint8)]
    for some in (given, [*given[:6], None, *given[7:]]):
        for constants in ((3, 4, 5, 6), ()):
            held = tuple(i for i in constants if some[i] is not None)
            attributes = {"transA": trans_a, "transB": trans_b, "alpha": 0.6}
            kind = UINT8 if quantized else FLOAT
            model = node_model("QGemm", some, (kind,), attributes, domain=MS, constants=held)
            check(model, feeds(model, some), 1e-6)


# Operators on 8-bit tensors


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_qlinear_pointwise(dtype: Any, symbolic: bool) -> None:
    random = np.random.default_rng(14)
    kind = ONNX_KIND[dtype]
    a = [integers(random, (3, 5, 19), dtype), scales(random, ()), integers(random, (), dtype)]
    b = [integers(random, (5, 19), dtype), scales(random, ()), integers(random, (), dtype)]
    result = [np.array(0.13, np.float32), integers(random, (), dtype)]
    condition = random.integers(0, 2, (3, 5, 19)).astype(bool)
    cases: list[tuple[str, list[Array], dict[str, Any]]] = [
        ("QLinearAdd", [*a, *b, *result], {}),
        ("QLinearMul", [*a, *b, *result], {}),
        ("QLinearSigmoid", [*a, np.array(1 / 256, np.float32), result[1]], {}),
        ("QLinearLeakyRelu", [*a, *result], {"alpha": 0.2}),
        ("QLinearWhere", [condition, *a, *a[:1], *b[1:], *result], {}),
    ]
    for op, given, attributes in cases:
        if symbolic and op in ("QLinearAdd", "QLinearMul", "QLinearWhere"):
            continue
        model = node_model(op, given, (kind,), attributes, domain=MS, symbolic=symbolic)
        if op == "QLinearSigmoid":
            found, expected = run(model, feeds(model, given)), run(model, feeds(model, given), REFERENCE)
            assert np.abs(found[0].astype(int) - expected[0].astype(int)).max() <= 1
        else:
            check(model, feeds(model, given))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_qlinear_others(dtype: Any) -> None:
    random = np.random.default_rng(15)
    kind = ONNX_KIND[dtype]
    parts = [
        [integers(random, (2, extent, 7), dtype), scales(random, ()), integers(random, (), dtype)]
        for extent in (3, 1, 4)
    ]
    given = [np.array(0.11, np.float32), np.array(3, dtype), *(v for part in parts for v in part)]
    model = node_model("QLinearConcat", given, (kind,), {"axis": 1}, domain=MS)
    check(model, feeds(model, given))
    x = integers(random, (2, 9, 5, 6), dtype)
    own = [scales(random, ()), integers(random, (), dtype), np.array(0.017, np.float32), np.array(5, dtype)]
    cases: list[tuple[str, dict[str, Any]]] = [
        ("QLinearGlobalAveragePool", {"channels_last": 0}),
        ("QLinearGlobalAveragePool", {"channels_last": 1}),
        ("QLinearReduceMean", {"axes": [1, 3], "keepdims": 0}),
        ("QLinearReduceMean", {"axes": [-1], "keepdims": 1}),
    ]
    for op, attributes in cases:
        model = node_model(op, [x, *own], (kind,), attributes, domain=MS)
        found, expected = run(model, feeds(model, [x, *own])), run(model, feeds(model, [x, *own]), REFERENCE)
        assert found[0].shape == expected[0].shape
        assert np.abs(found[0].astype(int) - expected[0].astype(int)).max() <= 1
    wide = UINT32 if dtype is np.uint8 else INT32
    model = node_model("ReduceSumInteger", [x], (wide,), {"axes": [1, 2]}, domain=MS)
    check(model, feeds(model, [x]))
    model = node_model("MulInteger", [x, np.array(3, dtype), x[:, :1], np.array(9, dtype)], (INT32,), {}, domain=MS)
    check(model, feeds(model, [x, np.array(3, dtype), x[:, :1], np.array(9, dtype)]))


# Models of several nodes


def _session_of(nodes: list[Any], given: dict[str, Array], held: dict[str, Array], result: str, kind: int) -> bytes:
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), ["rows", *a.shape[1:]])
        for n, a in given.items()
    ]
    constants = [numpy_helper.from_array(np.asarray(a), n) for n, a in held.items()]
    output = helper.make_tensor_value_info(result, kind, None)
    graph = helper.make_graph(nodes, "several", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def test_a_dynamically_quantized_layer() -> None:
    random = np.random.default_rng(16)
    x = random.standard_normal((5, 7, 33)).astype(np.float32)
    held = {
        "w": integers(random, (33, 21), np.int8), "w_zero": np.array(0, np.int8), "w_scale": scales(random, (21,)),
        "bias": random.standard_normal(21).astype(np.float32),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("DynamicQuantizeLinear", ["x"], ["q", "x_scale", "x_zero"]),
        node("MatMulInteger", ["q", "w", "x_zero", "w_zero"], ["sums"]),
        node("Cast", ["sums"], ["floats"], to=FLOAT),
        node("Mul", ["x_scale", "w_scale"], ["factor"]),
        node("Mul", ["floats", "factor"], ["scaled"]),
        node("Add", ["scaled", "bias"], ["added"]),
        node("Relu", ["added"], ["y"]),
    ]
    model = _session_of(nodes, {"x": x}, held, "y", FLOAT)
    expected = run(model, {"x": x}, REFERENCE, plain=True)
    for plain in (True, False):
        compare(run(model, {"x": x}, plain=plain), expected, 1e-5)


def test_a_layer_between_quantize_and_dequantize() -> None:
    random = np.random.default_rng(17)
    x = random.standard_normal((2, 16, 9, 9)).astype(np.float32)
    held = {
        "w": integers(random, (24, 16, 3, 3), np.int8), "w_scale": scales(random, (24,)) / 50,
        "w_zero": np.zeros(24, np.int8), "s": np.array(0.05, np.float32), "z": np.array(120, np.uint8),
        "t": np.array(0.07, np.float32), "bias": random.standard_normal(24).astype(np.float32),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
        node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=0),
        node("Conv", ["xd", "wd", "bias"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["r"]),
        node("QuantizeLinear", ["r", "t", "z"], ["rq"]),
        node("DequantizeLinear", ["rq", "t", "z"], ["y"]),
    ]
    model = _session_of(nodes, {"x": x}, held, "y", FLOAT)
    expected = run(model, {"x": x}, REFERENCE, plain=True)[0]
    for plain in (True, False):
        found = run(model, {"x": x}, plain=plain)[0]
        # Sums in another order may fall on the other side of a half: by one step of the scale, and rarely.
        wrong = np.abs(found - expected) > 1e-5
        assert wrong.mean() < 1e-3
        assert np.abs(found - expected).max() < 0.08


def test_a_weight_in_few_bits_is_packed_once() -> None:
    random = np.random.default_rng(18)
    x = random.standard_normal((3, 32)).astype(np.float32)
    held = {
        "w": random.integers(-8, 8, (32, 40)).astype(ml_dtypes.int4), "s": scales(random, (2, 40)),
        "z": random.integers(-8, 8, (2, 40)).astype(ml_dtypes.int4),
    }  # fmt: skip
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = _session_of(nodes, {"x": x}, held, "y", FLOAT)
    compare(run(model, {"x": x}, plain=True), run(model, {"x": x}, REFERENCE, plain=True), 1e-5)
    made = steps(model)
    assert made == ["gemm"], made


@pytest.mark.parametrize("kinds", [(np.int16, np.int16), (np.uint16, np.uint16), (np.uint16, np.int16)])
def test_products_of_16_bits(kinds: Any) -> None:
    random = np.random.default_rng(19)
    given = [integers(random, (2, 7, 33), kinds[0]), integers(random, (33, 21), kinds[1])]
    kind = UINT32 if kinds == (np.uint16, np.uint16) else INT32
    for constants in ((), (1,)):
        model = node_model("MatMulInteger16", given, (kind,), domain=MS, constants=constants)
        check(model, feeds(model, given))
