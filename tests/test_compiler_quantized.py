"""Quantization and integer products compiled, bit by bit as the reference provider has them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.compiler_cases import BFLOAT16, FLOAT, FLOAT16, INT8, INT16, UINT8, UINT16, check, feeds, node_model, run
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
        given = [x, np.float32(1.0).reshape(()), np.array(3, dtype)]
        model = node_model("QuantizeLinear", given, (kind,), constants=(1, 2))
        check(model, feeds(model, given))


def test_int32_operands() -> None:
    random = np.random.default_rng(4)
    q = integers(random, (5, 6), np.int32)
    given = [q, scales(random, ()), np.array(0, np.int32)]
    model = node_model("DequantizeLinear", given, (FLOAT,))
    check(model, feeds(model, given), 0)
    given = [q, np.float32(3e6).reshape(()), np.array(7, np.uint8)]
    model = node_model("QuantizeLinear", given, (UINT8,))
    check(model, feeds(model, given))


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.uint4])
def test_packed_constants(dtype: Any) -> None:
    random = np.random.default_rng(5)
    info = ml_dtypes.iinfo(dtype)
    q = random.integers(info.min, info.max + 1, (6, 10)).astype(dtype)
    given = [q, scales(random, (2, 10)), q[:2]]
    model = node_model(
        "DequantizeLinear", given, (FLOAT,), {"axis": 0, "block_size": 3}, constants=(0, 1, 2), opset=22
    )
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
