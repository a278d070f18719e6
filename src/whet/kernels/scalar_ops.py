"""The table of scalar operations: names, what they compute on values of the kernel language, types they are for.

Floats are computed in their own type. float16 and bfloat16 are storage: a tape converts them to float32 with "cast"
steps, and only what moves or converts elements takes them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Protocol

from whet.codegen import vecmath
from whet.codegen.lang import Value, absolute, ceil, floor, fma, is_nan, round_even, select, sqrt, truncate
from whet.codegen.vecmath import double, hyperbolic, inverse
from whet.codegen.vecmath.common import builder
from whet.dtypes import (
    BFLOAT16,
    BOOL,
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
from whet.kernels import scalar_functions as f


class Step(Protocol):
    """What an operation reads of its step: the type of its result and its fixed numbers."""

    @property
    def dtype(self) -> DType: ...

    @property
    def numbers(self) -> tuple[float | int, ...]: ...


CONSTANT = "constant"
"""The step without arguments that gives numbers[0]."""

Operation = Callable[..., Value]
"""Called with the step and the values of its arguments."""

_FLOATS = frozenset({FLOAT32, FLOAT64})
_SIGNED = frozenset({INT8, INT16, INT32, INT64})
_UNSIGNED = frozenset({UINT8, UINT16, UINT32, UINT64})
_INTEGERS = _SIGNED | _UNSIGNED
_NUMBERS = _FLOATS | _INTEGERS
_BOOLS = frozenset({BOOL})
_ALL = _NUMBERS | _BOOLS | {FLOAT16, BFLOAT16}
_QUANTIZED = _INTEGERS - {INT64, UINT64, UINT32}


def _unary(function: Callable[[Value], Value]) -> Operation:
    return lambda step, x: function(x)


def _circular(single: Callable[[Value], Value], wide: Callable[[Value], Value]) -> Operation:
    """One of two functions that only work on vectors, by the type."""
    return lambda step, x: f.in_vector(single if x.dtype is FLOAT32 else wide, x)


def _binary(function: Callable[[Value, Value], Value]) -> Operation:
    return lambda step, a, b: function(*f.spread(a, b))


def _numbers(function: Callable[..., Value]) -> Operation:
    """A function of one value and the step's numbers."""
    return lambda step, x: function(x, *step.numbers)


def _power(step: Step, x: Value, *exponent: Value) -> Value:
    """pow(x, y): the type of x. Without y the exponent is numbers[0]."""
    if exponent:
        return f.power(*f.spread(x, exponent[0]))
    number = float(step.numbers[0])
    found = f.fixed_power(x, number)
    if found is not None:
        return found
    kind = x.dtype if x.is_float else INT64 if number.is_integer() else FLOAT64
    return f.power(x, builder(x).constant(kind, number, x.lanes))


def _where(step: Step, condition: Value, a: Value, b: Value) -> Value:
    return select(*f.spread(condition, a, b))


def _clip(step: Step, x: Value, *bounds: Value) -> Value:
    """clip(x, low, high), or numbers (low, high)."""
    low, high = bounds or [x.like(n) for n in step.numbers]
    return f.clip(*f.spread(x, low, high))


def _prelu(step: Step, x: Value, slope: Value) -> Value:
    x, slope = f.spread(x, slope)
    return select(x < 0, x * slope, x)


def _leaky_relu(step: Step, x: Value) -> Value:
    return select(x < 0.0, x * float(step.numbers[0]), x)


def _thresholded_relu(step: Step, x: Value) -> Value:
    return select(x > float(step.numbers[0]), x, 0.0)


def _quantize(step: Step, x: Value, scale: Value, zero_point: Value) -> Value:
    x, scale, zero_point = f.spread(x, scale, zero_point)
    return f.round_saturate(x / scale, zero_point)


def _fma(step: Step, a: Value, b: Value, c: Value) -> Value:
    return fma(*f.spread(a, b, c))


_TABLE: dict[str, tuple[Operation, frozenset[DType], int]] = {
    # arithmetic: name: (code, types of the first argument, cost in instructions, about)
    "identity": (_unary(lambda x: x), _ALL, 0),
    "cast": (lambda step, x: f.cast(x, step.dtype), _ALL, 1),
    "add": (_binary(operator.add), _NUMBERS, 1),
    "sub": (_binary(operator.sub), _NUMBERS, 1),
    "mul": (_binary(operator.mul), _NUMBERS, 1),
    "fma": (_fma, _FLOATS, 1),
    "div": (_binary(operator.truediv), _NUMBERS, 4),
    "mod": (_binary(f.floor_remainder), _NUMBERS, 20),
    "fmod": (_binary(f.remainder), _NUMBERS, 20),
    "pow": (_power, _NUMBERS, 40),
    "max": (_binary(f.larger), _NUMBERS | _BOOLS, 2),
    "min": (_binary(f.smaller), _NUMBERS | _BOOLS, 2),
    "clip": (_clip, _NUMBERS, 2),
    "neg": (_unary(operator.neg), _NUMBERS, 1),
    "abs": (_unary(absolute), _NUMBERS, 1),
    "sign": (_unary(f.sign), _NUMBERS, 3),
    "floor": (_unary(floor), _FLOATS, 1),
    "ceil": (_unary(ceil), _FLOATS, 1),
    "round": (_unary(round_even), _FLOATS, 1),
    "truncate": (_unary(truncate), _FLOATS, 1),
    "sqrt": (_unary(sqrt), _FLOATS, 4),
    "reciprocal": (_unary(lambda x: 1.0 / x), _FLOATS, 4),
    "reciprocal_sqrt": (_unary(vecmath.reciprocal_sqrt), _FLOATS, 8),
    # logic and comparisons
    "and": (_binary(operator.and_), _BOOLS, 1),
    "or": (_binary(operator.or_), _BOOLS, 1),
    "xor": (_binary(operator.xor), _BOOLS, 1),
    "not": (_unary(operator.invert), _BOOLS, 1),
    "equal": (_binary(operator.eq), _NUMBERS | _BOOLS, 1),
    "not_equal": (_binary(operator.ne), _NUMBERS | _BOOLS, 1),
    "less": (_binary(operator.lt), _NUMBERS, 1),
    "less_or_equal": (_binary(operator.le), _NUMBERS, 1),
    "greater": (_binary(operator.gt), _NUMBERS, 1),
    "greater_or_equal": (_binary(operator.ge), _NUMBERS, 1),
    "where": (_where, _BOOLS, 1),
    "is_nan": (_unary(is_nan), _FLOATS, 1),
    # numbers: (detect_negative, detect_positive)
    "is_inf": (_numbers(f.is_inf), _FLOATS, 1),
    "bitwise_and": (_binary(operator.and_), _INTEGERS, 1),
    "bitwise_or": (_binary(operator.or_), _INTEGERS, 1),
    "bitwise_xor": (_binary(operator.xor), _INTEGERS, 1),
    "bitwise_not": (_unary(operator.invert), _INTEGERS, 1),
    "shift_left": (_binary(operator.lshift), _INTEGERS, 3),
    "shift_right": (_binary(operator.rshift), _INTEGERS, 3),
    # elementary functions
    "exp": (_unary(vecmath.exp), _FLOATS, 14),
    "expm1": (_unary(hyperbolic.expm1), _FLOATS, 16),
    "log": (_unary(vecmath.log), _FLOATS, 22),
    "log1p": (_unary(vecmath.log1p), _FLOATS, 28),
    "sin": (_circular(vecmath.sin, double.sin), _FLOATS, 30),
    "cos": (_circular(vecmath.cos, double.cos), _FLOATS, 30),
    "tan": (_circular(inverse.tan, double.tan), _FLOATS, 60),
    "asin": (_unary(inverse.asin), _FLOATS, 30),
    "acos": (_unary(inverse.acos), _FLOATS, 30),
    "atan": (_unary(inverse.atan), _FLOATS, 20),
    "sinh": (_unary(hyperbolic.sinh), _FLOATS, 40),
    "cosh": (_unary(hyperbolic.cosh), _FLOATS, 25),
    "tanh": (_unary(vecmath.tanh), _FLOATS, 20),
    "asinh": (_unary(hyperbolic.asinh), _FLOATS, 60),
    "acosh": (_unary(hyperbolic.acosh), _FLOATS, 60),
    "atanh": (_unary(hyperbolic.atanh), _FLOATS, 35),
    "erf": (_unary(vecmath.erf), _FLOATS, 22),
    # activations; numbers are the attributes in the standard's order
    "sigmoid": (_unary(vecmath.sigmoid), _FLOATS, 17),
    "relu": (_unary(lambda x: f.larger(x.like(0), x)), _NUMBERS, 1),
    "leaky_relu": (_leaky_relu, _FLOATS, 3),
    "prelu": (_prelu, _NUMBERS, 3),
    "elu": (_numbers(f.elu), _FLOATS, 20),
    "selu": (_numbers(f.selu), _FLOATS, 20),
    "celu": (_numbers(f.celu), _FLOATS, 22),
    "thresholded_relu": (_thresholded_relu, _FLOATS, 2),
    "hard_sigmoid": (_numbers(f.hard_sigmoid), _FLOATS, 3),
    "hard_swish": (_unary(lambda x: x * f.hard_sigmoid(x, 1 / 6, 0.5)), _FLOATS, 4),
    "softplus": (_unary(vecmath.softplus), _FLOATS, 45),
    "softsign": (_unary(lambda x: x / (1.0 + absolute(x))), _FLOATS, 5),
    "mish": (_unary(f.mish), _FLOATS, 24),
    "gelu": (_unary(vecmath.gelu), _FLOATS, 18),
    "gelu_tanh": (_unary(vecmath.gelu_tanh), _FLOATS, 17),
    "silu": (lambda step, x: f.silu(x, float(step.numbers[0]) if step.numbers else 1.0), _FLOATS, 14),
    # numbers: (bias, lambd)
    "shrink": (_numbers(f.shrink), _NUMBERS, 4),
    # quantization: quantize(x, scale, zero point), round_saturate(x, zero point), dequantize(q, scale, zero point)
    "quantize": (_quantize, _FLOATS, 9),
    "round_saturate": (_binary(f.round_saturate), _FLOATS, 5),
    "dequantize": (lambda step, q, s, z: f.dequantize(*f.spread(q, s, z)), _QUANTIZED, 3),
}

SCALAR_OPS: dict[str, Operation] = {name: entry[0] for name, entry in _TABLE.items()}
"""By name: the function that is called with a step and the values of its arguments."""

COSTS: dict[str, int] = {name: entry[2] for name, entry in _TABLE.items()}
"""By name: instructions of one operation, about; only good for comparing."""


_MIXED: dict[str, Callable[[DType, tuple[DType, ...]], bool]] = {
    "pow": lambda first, others: all(d in _NUMBERS for d in others),
    "where": lambda first, others: len(set(others)) <= 1 and all(d in _ALL for d in others),
    "quantize": lambda first, others: others[:1] in ((), (first,)) and all(d in _QUANTIZED for d in others[1:]),
    "round_saturate": lambda first, others: all(d in _QUANTIZED for d in others),
    "dequantize": lambda first, others: all(d in _FLOATS for d in others[:1]) and others[1:] in ((), (first,)),
}
"""Whether the other arguments fit the first one, for operations whose arguments may differ in type."""


def supports(op: str, dtypes: tuple[DType, ...]) -> str | None:
    """Why an operation on arguments of these types is not in the table; None where it is.

    float16 and bfloat16 are refused but by what moves or converts elements: convert them to float32 first.
    """
    if op == CONSTANT:
        return None
    if op not in _TABLE:
        return f"no scalar operation {op}"
    if not dtypes:
        return f"{op} takes arguments"
    first, others = dtypes[0], dtypes[1:]
    allowed = _TABLE[op][1]
    if first not in allowed:
        return f"{op} is not for {first}; it is for {', '.join(sorted(d.name for d in allowed))}"
    fit = _MIXED[op](first, others) if op in _MIXED else all(d is first for d in others)
    return None if fit else f"{op} is not for {', '.join(d.name for d in dtypes)} together"
