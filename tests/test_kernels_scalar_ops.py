"""Every scalar operation over every type that it is for, on every target, against numpy in float64 or in the type."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.codegen_tools import TARGETS
from tests.kernel_tools import Run, run_kernels
from whet.codegen.target import Target
from whet.dtypes import (
    BFLOAT16,
    BOOL,
    BY_NUMPY,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    DType,
)
from whet.kernels.expression import Step, Tape
from whet.kernels.pointwise import Pointwise
from whet.kernels.scalar_ops import COSTS, SCALAR_OPS, supports

RNG = np.random.default_rng(31)
Array = np.ndarray[Any, Any]

FLOATS = (FLOAT32, FLOAT64)
SIGNED = (INT8, INT16, INT32, INT64)
UNSIGNED = (UINT8, UINT16, UINT32, UINT64)
INTEGERS = (*SIGNED, *UNSIGNED)
NUMBERS = (*FLOATS, *INTEGERS)
QUANTIZED = (INT8, UINT8, INT16, UINT16, INT32)
COUNT = 203

SPECIAL = [0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 1.5, -1.5, 2.5, 3.5, 0.499999, 8388609, 1e9, -1e9, 1e20, 1e-20, np.inf,
           -np.inf, np.nan]  # fmt: skip


@dataclass
class Op:
    """An operation with its reference, which gets the arguments as they are; `close` is a bound in units of 2**-24 or
    2**-53 of the result (or of 1, if that is larger); 0: equal."""

    name: str
    kinds: tuple[tuple[DType, ...], ...]
    reference: Callable[..., Any]
    result: DType | None = None
    numbers: tuple[float, ...] = ()
    close: float = 0


def each(kinds: tuple[DType, ...], count: int = 1) -> tuple[tuple[DType, ...], ...]:
    """`count` arguments of each type."""
    return tuple((kind,) * count for kind in kinds)


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[float])(x)


def _wide(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: function(x.astype(np.float64))


def _truncated_quotient(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return a / b
    exact = [0 if y == 0 else abs(int(x)) // abs(int(y)) * (1 if (x < 0) == (y < 0) else -1)
             for x, y in zip(a, b, strict=True)]  # fmt: skip
    return _wrapped(exact, a.dtype)


def _wrapped(numbers: list[int], dtype: Any) -> Array:
    bits = dtype.itemsize * 8
    low = [n & ((1 << bits) - 1) for n in numbers]
    return np.array(low, f"u{dtype.itemsize}").view(dtype)


def _integer_power(a: Array, b: Array) -> Array:
    exact = []
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        if y >= 0:
            exact.append(pow(x, y, 1 << 64))
        else:
            exact.append(int(np.iinfo(a.dtype).max) if x == 0 else int(x**y) if abs(x) == 1 else 0)
    return _wrapped(exact, a.dtype)


def _float_power(a: Array, b: Array) -> Array:
    # A whole exponent is rounded to the base's type first.
    exponent = b.astype(a.dtype) if b.dtype.kind == "i" else b
    return np.power(a.astype(np.float64), exponent.astype(np.float64))


def _cast(to: DType) -> Callable[[Array], Array]:
    def function(x: Array) -> Array:
        if to is BOOL or not to.is_integer or x.dtype.kind not in "fV":
            return x.astype(to.numpy) if to is not BOOL else x != 0
        bits = 32 if to.bits < 32 else to.bits
        low, high = (
            (0, 2**bits - 1) if to.kind == "uint" and to.bits >= 32 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        exact = [
            0 if v != v else low if v <= low else high if v >= high else int(v) for v in x.astype(np.float64).tolist()
        ]
        return _wrapped(exact, to.numpy)

    return function


def _shift(left: bool) -> Callable[[Array, Array], Array]:
    def function(a: Array, b: Array) -> Array:
        bits = a.dtype.itemsize * 8
        exact = []
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            inside = 0 <= y < bits
            exact.append((x << y if inside else 0) if left else (x >> (y if inside else bits)))
        return _wrapped(exact, a.dtype)

    return function


def _quantize(dtype: DType) -> Callable[..., Array]:
    info = np.iinfo(dtype.numpy)

    def function(x: Array, *rest: Array) -> Array:
        scaled, zero = (x / rest[0], rest[1]) if len(rest) == 2 else (x, rest[0])
        rounded = np.where(np.isnan(scaled), 0, np.rint(scaled)).astype(np.float64)
        return np.clip(rounded + zero, info.min, info.max).astype(dtype.numpy)

    return function


def _selu(x: Array) -> Array:
    return np.where(x <= 0, np.expm1(np.minimum(x, 0)) * 1.5, x) * 1.25


def _limit(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The function with its limit, 0, at -infinity; float64 arithmetic may give NaN there."""

    def held(x: Array) -> Array:
        with np.errstate(all="ignore"):
            return np.where(x == -np.inf, 0, function(x))

    return held


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _shrink(x: Array) -> Array:
    wide = x.astype(np.float64)
    moved = np.where(wide < -1.5, wide + 0.5, np.where(wide > 1.5, wide - 0.5, 0))
    return moved if x.dtype.kind == "f" else _cast(BY_NUMPY[x.dtype])(moved)


ONE = each(FLOATS)
OPS = [
    Op("add", each(NUMBERS, 2), np.add),
    Op("sub", each(NUMBERS, 2), np.subtract),
    Op("mul", each(NUMBERS, 2), np.multiply),
    Op("div", each(NUMBERS, 2), _truncated_quotient),
    Op("fma", each(FLOATS, 3), lambda a, b, c: a * b + c, close=4),
    Op("mod", each(FLOATS, 2), np.mod),
    Op("fmod", each(FLOATS, 2), np.fmod),
    Op("mod", each(INTEGERS, 2), lambda a, b: np.where(b == 0, 0, np.mod(a, np.where(b == 0, 1, b))).astype(a.dtype)),
    Op("fmod", each(INTEGERS, 2), lambda a, b: np.where(b == 0, 0, np.fmod(a, np.where(b == 0, 1, b))).astype(a.dtype)),
    Op("pow", each(INTEGERS, 2), _integer_power),
    Op("pow", ((INT32, INT64), (INT8, INT32), (UINT8, INT16), (INT64, UINT8)), _integer_power),
    Op("pow", ((FLOAT32, FLOAT32), (FLOAT64, FLOAT64), (FLOAT32, INT32), (FLOAT32, FLOAT64), (FLOAT64, INT64)),
       _float_power, close=4),
    Op("max", each(NUMBERS, 2), np.maximum),
    Op("min", each(NUMBERS, 2), np.minimum),
    Op("max", each((BOOL,), 2), np.maximum),
    Op("clip", each(NUMBERS, 3), lambda x, low, high: np.minimum(np.maximum(x, low), high)),
    Op("clip", each(NUMBERS), lambda x: np.minimum(np.maximum(x, x.dtype.type(1)), x.dtype.type(6)), numbers=(1, 6)),
    Op("neg", each(NUMBERS), np.negative),
    Op("abs", each(NUMBERS), np.abs),
    Op("sign", each(NUMBERS), np.sign),
    Op("floor", ONE, np.floor), Op("ceil", ONE, np.ceil), Op("round", ONE, np.rint), Op("truncate", ONE, np.trunc),
    Op("sqrt", ONE, np.sqrt), Op("reciprocal", ONE, np.reciprocal),
    Op("reciprocal_sqrt", ONE, lambda x: 1 / np.sqrt(x), close=4),
    Op("identity", each((*NUMBERS, BOOL, FLOAT16, BFLOAT16)), lambda x: x),
    Op("and", each((BOOL,), 2), np.logical_and), Op("or", each((BOOL,), 2), np.logical_or),
    Op("xor", each((BOOL,), 2), np.logical_xor), Op("not", each((BOOL,)), np.logical_not),
    Op("equal", each((*NUMBERS, BOOL), 2), np.equal, BOOL),
    Op("not_equal", each((*NUMBERS, BOOL), 2), np.not_equal, BOOL),
    Op("less", each(NUMBERS, 2), np.less, BOOL), Op("less_or_equal", each(NUMBERS, 2), np.less_equal, BOOL),
    Op("greater", each(NUMBERS, 2), np.greater, BOOL),
    Op("greater_or_equal", each(NUMBERS, 2), np.greater_equal, BOOL),
    Op("is_nan", ONE, np.isnan, BOOL),
    Op("is_inf", ONE, np.isinf, BOOL, (1, 1)), Op("is_inf", ONE, np.isposinf, BOOL, (0, 1)),
    Op("is_inf", ONE, np.isneginf, BOOL, (1, 0)), Op("is_inf", ONE, lambda x: np.zeros(x.shape, bool), BOOL, (0, 0)),
    Op("bitwise_and", each(INTEGERS, 2), np.bitwise_and), Op("bitwise_or", each(INTEGERS, 2), np.bitwise_or),
    Op("bitwise_xor", each(INTEGERS, 2), np.bitwise_xor), Op("bitwise_not", each(INTEGERS), np.invert),
    Op("shift_left", each(INTEGERS, 2), _shift(left=True)), Op("shift_right", each(INTEGERS, 2), _shift(left=False)),
    Op("exp", ONE, _wide(np.exp), close=4), Op("expm1", ONE, _wide(np.expm1), close=4),
    Op("log", ONE, _wide(np.log), close=4), Op("log1p", ONE, _wide(np.log1p), close=4),
    Op("sin", ONE, _wide(np.sin), close=4), Op("cos", ONE, _wide(np.cos), close=4),
    Op("tan", ONE, _wide(np.tan), close=10),
    Op("asin", ONE, _wide(np.arcsin), close=8), Op("acos", ONE, _wide(np.arccos), close=8),
    Op("atan", ONE, _wide(np.arctan), close=4), Op("sinh", ONE, _wide(np.sinh), close=8),
    Op("cosh", ONE, _wide(np.cosh), close=8), Op("tanh", ONE, _wide(np.tanh), close=4),
    Op("asinh", ONE, _wide(np.arcsinh), close=8), Op("acosh", ONE, _wide(np.arccosh), close=8),
    Op("atanh", ONE, _wide(np.arctanh), close=8), Op("erf", ONE, _wide(_erf), close=8),
    Op("sigmoid", ONE, _wide(lambda x: 1 / (1 + np.exp(-x))), close=8),
    Op("relu", each(NUMBERS), lambda x: np.maximum(x, x.dtype.type(0))),
    Op("leaky_relu", ONE, lambda x: np.where(x < 0, x * x.dtype.type(0.25), x), numbers=(0.25,)),
    Op("prelu", each(NUMBERS, 2), lambda x, slope: np.where(x < 0, x * slope, x)),
    Op("elu", ONE, _wide(lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)) * 1.5, x)), numbers=(1.5,), close=8),
    Op("selu", ONE, _wide(_selu), numbers=(1.5, 1.25), close=8),
    Op("celu", ONE, _wide(lambda x: np.maximum(x, 0) + 2 * np.expm1(np.minimum(x / 2, 0))), numbers=(2.0,), close=8),
    Op("celu", ONE, _wide(lambda x: np.maximum(x, 0) + np.minimum(0, -2 * np.expm1(x / -2))), numbers=(-2.0,), close=8),
    Op("thresholded_relu", ONE, lambda x: np.where(x > 1.25, x, x.dtype.type(0)), numbers=(1.25,)),
    Op("hard_sigmoid", ONE, lambda x: np.clip(x * x.dtype.type(0.25) + x.dtype.type(0.5), 0, 1), numbers=(0.25, 0.5)),
    Op("hard_swish", ONE, _wide(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)), close=8),
    Op("softplus", ONE, _wide(_softplus), close=8), Op("softsign", ONE, _wide(lambda x: x / (1 + np.abs(x))), close=4),
    Op("mish", ONE, _wide(lambda x: x * np.tanh(_softplus(x))), close=8),
    Op("gelu", ONE, _wide(_limit(lambda x: x / 2 * (1 + _erf(x / math.sqrt(2))))), close=8),
    Op("gelu_tanh", ONE,
       _wide(_limit(lambda x: x / 2 * (1 + np.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))))), close=8),
    Op("silu", ONE, _wide(_limit(lambda x: x / (1 + np.exp(-x)))), close=8),
    Op("silu", ONE, _wide(lambda x: x / (1 + np.exp(-1.5 * x))), numbers=(1.5,), close=8),
    Op("shrink", each(NUMBERS), _shrink, numbers=(0.5, 1.5)),
    *(Op("where", ((BOOL, kind, kind),), np.where, kind) for kind in (*NUMBERS, BOOL, FLOAT16)),
    *(Op("cast", each((*NUMBERS, BOOL, FLOAT16, BFLOAT16)), _cast(kind), kind) for kind in (*NUMBERS, BOOL, FLOAT16)),
    *(Op("quantize", ((FLOAT32, FLOAT32, kind), (FLOAT64, FLOAT64, kind)), _quantize(kind), kind)
      for kind in QUANTIZED),
    *(Op("round_saturate", ((FLOAT32, kind), (FLOAT64, kind)), _quantize(kind), kind) for kind in QUANTIZED[:-1]),
    *(Op("dequantize", ((kind, FLOAT32, kind),), lambda q, s, z: (q.astype(np.float64) - z) * s, FLOAT32, close=2)
      for kind in QUANTIZED),
]  # fmt: skip


def argument(kind: DType) -> Array:
    """Numbers of every size, the special ones among them."""
    if kind is BOOL:
        return RNG.random(COUNT) < 0.5
    if kind.is_integer:
        info = np.iinfo(kind.numpy)
        edges = [info.min, info.max, info.min + 1, info.max - 1, 0, 1, 2, 3, 7, 8, 31, 63, 64]
        x = RNG.integers(info.min, info.max, COUNT, kind.numpy, endpoint=True)
        x[: COUNT // 2] = RNG.integers(max(-9, info.min), 10, COUNT // 2)
        x[RNG.integers(0, COUNT, 40)] = RNG.choice(np.array(edges, object), 40).astype(kind.numpy)
        return x
    x = RNG.standard_normal(COUNT) * 10.0 ** RNG.integers(-2, 3, COUNT)
    x[RNG.integers(0, COUNT, 80)] = RNG.choice(SPECIAL, 80)
    with np.errstate(over="ignore"):
        return x.astype(kind.numpy)


@pytest.mark.parametrize("target", TARGETS)
def test_every_operation_over_every_type(target: Target) -> None:
    runs, wants = [], []
    with np.errstate(all="ignore"):
        for op in OPS:
            for kinds in op.kinds:
                assert supports(op.name, kinds) is None, (op.name, kinds)
                inputs = [argument(kind) for kind in kinds]
                if op.name in ("quantize", "dequantize"):
                    inputs[1] = np.exp2(RNG.integers(-4, 3, COUNT)).astype(kinds[1].numpy)
                result = op.result or kinds[0]
                tape = Tape(kinds, (Step(op.name, result, tuple(range(len(kinds))), op.numbers),), (len(kinds),))
                spec = Pointwise(tape, 1, ((1,),) * len(kinds), ((1,),))
                words: dict[str, Any] = {f"in{i}": x for i, x in enumerate(inputs)}
                words |= {"out0": np.zeros(COUNT, result.numpy), "n0": COUNT, "block": COUNT}
                runs.append(Run(spec, words, 1))
                wants.append((op, kinds, inputs, op.reference(*inputs)))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, (op, kinds, inputs, want) in zip(runs, wants, strict=True):
        found = run.words["out0"]
        assert isinstance(found, np.ndarray)
        with np.errstate(all="ignore"):
            wanted = want.astype(found.dtype)
        if found.dtype.kind == "V":
            found, wanted = found.astype(np.float32), wanted.astype(np.float32)
        wrong = ~((found == wanted) | ((found != found) & (wanted != wanted)))
        if op.close:
            unit = 2.0 ** (-24 if found.dtype == np.float32 else -53)
            with np.errstate(all="ignore"):
                bound = op.close * unit * np.maximum(np.abs(want), 1)
                wrong &= ~(np.abs(found - want) <= bound)
        where = np.flatnonzero(wrong)
        assert not len(where), (
            f"{op.name}{kinds}({', '.join(str(x[where[0]]) for x in inputs)}) = {found[where[0]]}, not {want[where[0]]}"
        )


def test_the_table_is_covered() -> None:
    tested = {(op.name, kinds[0]) for op in OPS for kinds in op.kinds}
    there = {
        (name, kind)
        for name in SCALAR_OPS
        for kind in (*NUMBERS, BOOL, FLOAT16, BFLOAT16)
        if supports(name, (kind,)) is None
    }
    assert there - tested == {("min", BOOL)}
    assert set(COSTS) == set(SCALAR_OPS)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fixed_exponents(target: Target, dtype: DType) -> None:
    exponents = [0.0, 1.0, 2.0, 3.0, 4.0, -1.0, -2.0, 0.5, -0.5, 2.5, -3.0]
    x = argument(dtype)
    runs = []
    for exponent in exponents:
        tape = Tape((dtype,), (Step("pow", dtype, (0,), (exponent,)),), (1,))
        words = {"in0": x, "out0": np.zeros_like(x), "n0": COUNT, "block": COUNT}
        runs.append(Run(Pointwise(tape, 1, ((1,),), ((1,),)), words, 1))
    assert run_kernels(target, runs) == [0] * len(runs)
    for run, exponent in zip(runs, exponents, strict=True):
        with np.errstate(all="ignore"):
            # Of an array of exponents: numpy takes the square root for a single 0.5, which differs at -inf.
            want = np.power(x.astype(np.float64), np.full(COUNT, exponent)).astype(x.dtype)
        np.testing.assert_allclose(
            run.words["out0"], want, rtol=1e-6 if dtype is FLOAT32 else 1e-15, err_msg=str(exponent)
        )


def test_refusals_name_operation_and_type() -> None:
    assert supports("sin", (INT32,)) == "sin is not for int32; it is for float32, float64"
    assert supports("frobnicate", (FLOAT32,)) == "no scalar operation frobnicate"
    assert supports("add", (FLOAT16, FLOAT16)) is not None
    assert supports("add", (FLOAT32, FLOAT64)) == "add is not for float32, float64 together"
    assert supports("where", (BOOL, INT8, INT16)) is not None
    assert supports("quantize", (FLOAT32, FLOAT32, INT64)) is not None
    assert supports("cast", (FLOAT16,)) is None
    assert supports("constant", ()) is None


@pytest.mark.parametrize("target", TARGETS)
def test_fixed_exponents_of_integers(target: Target) -> None:
    x = np.arange(1, COUNT + 1).astype(np.uint8)
    runs = []
    for exponent in (0.5, 3.0, 5.0, -1.0):
        tape = Tape((UINT8,), (Step("pow", UINT8, (0,), (exponent,)),), (1,))
        words = {"in0": x, "out0": np.zeros_like(x), "n0": COUNT, "block": COUNT}
        runs.append(Run(Pointwise(tape, 1, ((1,),), ((1,),)), words, 1))
    assert run_kernels(target, runs) == [0] * 4
    wide = x.astype(np.int64)
    for run, want in zip(runs, (np.sqrt(wide), wide**3, wide**5, wide == 1), strict=True):
        np.testing.assert_array_equal(run.words["out0"], want.astype(np.uint8))


@pytest.mark.parametrize("target", TARGETS)
def test_remainders_of_far_apart_floats(target: Target) -> None:
    a = np.exp2(RNG.uniform(-1074, 1023, 400)) * RNG.choice([-1, 1], 400)
    b = np.exp2(RNG.uniform(-1074, 1023, 400)) * RNG.choice([-1, 1], 400)
    b[:100] = a[:100] / RNG.integers(1, 2**40, 100)
    runs = []
    for name in ("mod", "fmod"):
        tape = Tape((FLOAT64, FLOAT64), (Step(name, FLOAT64, (0, 1)),), (2,))
        words = {"in0": a, "in1": b, "out0": np.zeros_like(a), "n0": 400, "block": 400}
        runs.append(Run(Pointwise(tape, 1, ((1,), (1,)), ((1,),)), words, 1))
    assert run_kernels(target, runs) == [0, 0]
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(runs[0].words["out0"], np.mod(a, b))
        np.testing.assert_array_equal(runs[1].words["out0"], np.fmod(a, b))
