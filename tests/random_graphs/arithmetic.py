"""Pointwise operators with the bounds of their results: the vocabulary that the templates are written in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .builder import BOOL, DOUBLE, FLOAT, FLOATS, INT32, INT64, UINT8, Builder, Value

Interval = tuple[float, float]


@dataclass(frozen=True)
class Unary:
    """A float operator: the first opset that has it, its safe domain, its result's bounds, and its exactness."""

    op: str
    since: int
    bounds: Callable[[float, float], Interval]
    domain: Interval = (-20.0, 20.0)
    keeps_grain: bool = False  # the result is a multiple of what the operand is a multiple of
    result_grain: float | None = None  # the result's own grain, for exact operands
    needs_exact: bool = False  # a rounding error of the operand could flip the result
    dtypes: tuple[int, ...] = FLOATS


def _same(low: float, high: float) -> Interval:
    return low, high


def _relu(low: float, high: float) -> Interval:
    return max(low, 0.0), max(high, 0.0)


def _unit(low: float, high: float) -> Interval:
    return -1.0, 1.0


def _positive_unit(low: float, high: float) -> Interval:
    return 0.0, 1.0


def _leaky(low: float, high: float) -> Interval:
    return min(low, 0.0), max(high, 0.0)


def _bounds_abs(low: float, high: float) -> Interval:
    if low <= 0.0 <= high:
        return 0.0, max(-low, high)
    return min(abs(low), abs(high)), max(abs(low), abs(high))


UNARY: tuple[Unary, ...] = (
    Unary("Relu", 7, _relu, keeps_grain=True),
    Unary("Neg", 7, lambda a, b: (-b, -a), (-1e6, 1e6), keeps_grain=True),
    Unary("Abs", 7, _bounds_abs, (-1e6, 1e6), keeps_grain=True),
    Unary("Identity", 7, _same, (-1e6, 1e6), keeps_grain=True),
    Unary("Sigmoid", 7, _positive_unit),
    Unary("Tanh", 7, _unit),
    Unary("LeakyRelu", 7, _leaky, dtypes=(FLOAT,)),
    Unary("Elu", 7, lambda a, b: (max(a, -1.0) if a < 0 else 0.0, max(b, 0.0)), dtypes=(FLOAT,)),
    Unary("Selu", 7, lambda a, b: (-1.8 if a < 0 else 0.0, max(b * 1.06, 0.0)), dtypes=(FLOAT,)),
    Unary("Celu", 12, lambda a, b: (max(a, -1.0) if a < 0 else 0.0, max(b, 0.0)), dtypes=(FLOAT,)),
    Unary("HardSigmoid", 7, _positive_unit, dtypes=(FLOAT,)),
    Unary("HardSwish", 14, lambda a, b: (-0.4, max(b, 0.0)), dtypes=(FLOAT,)),
    Unary("Mish", 18, lambda a, b: (-0.4, max(b, 0.0)), dtypes=(FLOAT,)),
    Unary("Gelu", 20, lambda a, b: (-0.2, max(b, 0.0)), dtypes=(FLOAT,)),
    Unary("Softplus", 7, lambda a, b: (0.0, max(b, 0.0) + 0.7), dtypes=(FLOAT,)),
    Unary("Softsign", 7, _unit, dtypes=(FLOAT,)),
    Unary("Erf", 9, _unit, dtypes=(FLOAT,)),
    Unary("Exp", 7, lambda a, b: (math.exp(a), math.exp(b)), (-20.0, 3.0)),
    Unary("Log", 7, lambda a, b: (math.log(a), math.log(b)), (0.05, 1e6)),
    Unary("Sqrt", 7, lambda a, b: (math.sqrt(a), math.sqrt(b)), (0.01, 1e6)),
    Unary("Reciprocal", 7, lambda a, b: (1 / b, 1 / a), (0.1, 1e6)),
    Unary("Sin", 7, _unit),
    Unary("Cos", 7, _unit),
    Unary("Atan", 7, lambda a, b: (-1.6, 1.6), dtypes=(FLOAT,)),
    Unary("Asinh", 9, lambda a, b: (-4.0, 4.0), dtypes=(FLOAT,)),
    Unary("Tan", 7, lambda a, b: (-1.6, 1.6), (-1.0, 1.0), dtypes=(FLOAT,)),
    Unary("Asin", 7, lambda a, b: (-1.6, 1.6), (-0.9, 0.9), dtypes=(FLOAT,)),
    Unary("Sinh", 9, lambda a, b: (math.sinh(a), math.sinh(b)), (-3.0, 3.0), dtypes=(FLOAT,)),
    Unary("Cosh", 9, lambda a, b: (1.0, math.cosh(max(abs(a), abs(b)))), (-3.0, 3.0), dtypes=(FLOAT,)),
    Unary("Floor", 7, lambda a, b: (math.floor(a), math.floor(b)), result_grain=1.0, needs_exact=True),
    Unary("Ceil", 7, lambda a, b: (math.ceil(a), math.ceil(b)), result_grain=1.0, needs_exact=True),
    Unary("Round", 11, lambda a, b: (math.floor(a), math.ceil(b)), result_grain=1.0, needs_exact=True),
    Unary("Sign", 9, _unit, result_grain=1.0, needs_exact=True),
    Unary("ThresholdedRelu", 10, _leaky, needs_exact=True, keeps_grain=True, dtypes=(FLOAT,)),
    Unary("Shrink", 9, lambda a, b: (min(a, 0.0), max(b, 0.0)), needs_exact=True, result_grain=0.5, dtypes=(FLOAT,)),
)
UNARY_BY_NAME = {entry.op: entry for entry in UNARY}

_ATTRIBUTES: dict[str, tuple[dict[str, float], ...]] = {
    "LeakyRelu": ({}, {"alpha": 0.1}, {"alpha": 0.5}),
    "Elu": ({}, {"alpha": 1.0}, {"alpha": 0.5}),
    "Celu": ({}, {"alpha": 1.0}),
    "HardSigmoid": ({}, {"alpha": 1.0 / 6.0, "beta": 0.5}, {"alpha": 0.25, "beta": 0.4}),
    "ThresholdedRelu": ({}, {"alpha": 0.5}),
    "Shrink": ({}, {"lambd": 1.5, "bias": 0.5}),
}


def unary(b: Builder, op: str, x: Value) -> Value:
    """Adds `op`; `x` must be inside the operator's domain."""
    entry = UNARY_BY_NAME[op]
    low, high = entry.bounds(x.low, x.high)
    grain = x.grain if entry.keeps_grain else entry.result_grain if x.exact else None
    attributes = b.choose(_ATTRIBUTES[op]) if op in _ATTRIBUTES else {}
    if op == "Gelu" and b.chance(0.5):
        attributes = {"approximate": b.choose(["none", "tanh"])}
    return b.emit(op, [x], x.shape, low=low, high=high, grain=grain, **attributes)


def add(b: Builder, x: Value, y: Value) -> Value | None:
    return _binary(b, "Add", x, y, x.low + y.low, x.high + y.high, _finer(x, y))


def sub(b: Builder, x: Value, y: Value) -> Value | None:
    return _binary(b, "Sub", x, y, x.low - y.high, x.high - y.low, _finer(x, y))


def mul(b: Builder, x: Value, y: Value) -> Value | None:
    corners = [x.low * y.low, x.low * y.high, x.high * y.low, x.high * y.high]
    if x.name == y.name:
        corners = [*_bounds_abs(x.low, x.high)]
        corners = [corner * corner for corner in corners]
    grain = x.grain * y.grain if x.grain is not None and y.grain is not None else None
    return _binary(b, "Mul", x, y, min(corners), max(corners), grain)


def div(b: Builder, x: Value, y: Value) -> Value | None:
    """`x / y` for a `y` that stays clear of zero on one side."""
    if y.low <= 0.0 <= y.high:
        return None
    corners = [x.low / y.low, x.low / y.high, x.high / y.low, x.high / y.high]
    grain = None
    if y.constant is not None and y.constant.size == 1 and x.grain is not None:
        number = abs(float(y.constant.reshape(-1)[0]))
        if math.log2(number).is_integer():
            grain = x.grain / number
    return _binary(b, "Div", x, y, min(corners), max(corners), grain)


def minimum(b: Builder, x: Value, y: Value) -> Value | None:
    return _binary(b, "Min", x, y, min(x.low, y.low), min(x.high, y.high), _finer(x, y))


def maximum(b: Builder, x: Value, y: Value) -> Value | None:
    return _binary(b, "Max", x, y, max(x.low, y.low), max(x.high, y.high), _finer(x, y))


def power(b: Builder, x: Value, exponent: float) -> Value | None:
    """`x ** exponent` for the exponents 2, 3, 0.5, 1, -1 and -0.5 (the last four on positive operands only)."""
    if exponent in (2.0, 3.0):
        low, high = x.low**exponent, x.high**exponent
        if exponent == 2.0:
            low, high = (edge * edge for edge in _bounds_abs(x.low, x.high))
        grain = x.grain**2 if x.grain is not None and exponent == 2.0 else None
    else:
        if x.low < 0.05:
            return None
        low, high = sorted((x.low**exponent, x.high**exponent))
        grain = None
    return _binary(b, "Pow", x, b.scalar(exponent, x.dtype), low, high, grain)


def _finer(x: Value, y: Value) -> float | None:
    return min(x.grain, y.grain) if x.grain is not None and y.grain is not None else None


def _binary(
    b: Builder, op: str, x: Value, y: Value, low: float, high: float, grain: float | None, **attributes: int
) -> Value | None:
    shape = b.broadcast(x.shape, y.shape)
    if shape is None:
        return None
    if op in ("Min", "Max") and b.opset < 8 and (x.shape != y.shape or x.dtype != FLOAT):
        return None
    return b.emit(op, [x, y], shape, low=low, high=high, grain=grain, **attributes)


def tame(b: Builder, x: Value, limit: float = 20.0) -> Value:
    """`x` brought inside [-limit, limit] (its own bound allowing): scaled, squashed or clipped."""
    if x.bound <= limit or x.dtype not in FLOATS:
        return x
    if x.exact and b.opset >= 8:
        return clip(b, x, -limit, limit)
    if x.bound > 1e6 or b.chance(0.25):
        return unary(b, "Tanh", x)
    scale = 2.0 ** -math.ceil(math.log2(x.bound / 4.0))
    scaled = mul(b, x, _rank0(b, scale, x.dtype))
    assert scaled is not None
    return scaled


def clip(b: Builder, x: Value, low: float | None, high: float | None) -> Value:
    """Clip in the form of the opset: attributes before 11 (float only), inputs since; Max and Min for other types."""
    bounds = {
        "low": x.low if low is None else min(max(x.low, low), high if high is not None else math.inf),
        "high": x.high if high is None else max(min(x.high, high), low if low is not None else -math.inf),
    }
    grain = x.grain
    for edge in (low, high):
        if edge is not None and grain is not None:
            while edge / grain != round(edge / grain):
                grain /= 2
                if grain < 1e-3:
                    grain = None
                    break
    if b.opset >= (11 if x.dtype == FLOAT else 12):
        kind = x.dtype
        first = None if low is None else _rank0(b, low, kind)
        second = None if high is None else _rank0(b, high, kind)
        return b.emit("Clip", [x, first, second], x.shape, dtype=x.dtype, grain=grain, **bounds)
    if x.dtype == FLOAT:
        return b.emit("Clip", [x], x.shape, grain=grain, **bounds, **_floats({"min": low, "max": high}))
    result = x
    if low is not None:
        shape_like = b.weights(x.extents(), 0.0, dtype=x.dtype) if b.opset < 8 else None
        result = maximum(b, result, shape_like or b.scalar(low, x.dtype)) or result
    if high is not None and b.opset >= 8:
        result = minimum(b, result, b.scalar(high, x.dtype)) or result
    return result


def _rank0(b: Builder, number: float, dtype: int) -> Value:
    kind = {FLOAT: np.float32, DOUBLE: np.float64, INT32: np.int32, INT64: np.int64, UINT8: np.uint8}[dtype]
    return b.constant(np.asarray(number, kind), plain=True)


def _floats(attributes: dict[str, float | None]) -> dict[str, float]:
    return {key: float(number) for key, number in attributes.items() if number is not None}


def cast(b: Builder, x: Value, dtype: int) -> Value:
    """Cast; to an integer or half only values that it holds exactly may come in."""
    low, high = (0.0, 1.0) if dtype == BOOL else (x.low, x.high)
    if dtype == UINT8:
        low, high = max(low, 0.0), max(high, 0.0)
    made = b.emit("Cast", [x], x.shape, dtype=dtype, low=low, high=high, grain=x.grain, to=dtype)
    return replace(made, grain=1.0) if dtype in (BOOL, INT32, INT64, UINT8) else made


# random choices


def random_unary(b: Builder) -> Value | None:
    entry = b.choose(UNARY)
    if b.opset < entry.since:
        return None
    x = b.pick(lambda v: v.dtype in entry.dtypes and (v.exact or not entry.needs_exact) and v.bound < 1e6)
    if x is None:
        return None
    if entry.op == "Sqrt" or entry.op == "Log" or entry.op == "Reciprocal":
        x = _positive(b, x, entry.domain[0])
    elif x.low < entry.domain[0] or x.high > entry.domain[1]:
        x = clip(b, x, entry.domain[0], entry.domain[1]) if b.chance(0.5) else tame(b, x, entry.domain[1])
        if x.low < entry.domain[0] or x.high > entry.domain[1]:
            return None
    return b.keep(unary(b, entry.op, x))


def _positive(b: Builder, x: Value, least: float) -> Value:
    """`x` made positive: its absolute value or its square plus a constant."""
    if x.low >= least:
        return x
    base = unary(b, "Abs", x) if x.bound > 20 or b.chance(0.6) else mul(b, x, x)
    assert base is not None
    shifted = add(b, base, b.scalar(b.choose([0.25, 0.5, 1.0]), x.dtype))
    assert shifted is not None
    return shifted


def random_binary(b: Builder) -> Value | None:
    dtype = b.choose([FLOAT, FLOAT, FLOAT, FLOAT, DOUBLE, INT64, INT32])
    x = b.pick(lambda v: v.dtype == dtype and v.bound < 1e5)
    if x is None:
        return None
    y = _partner(b, x)
    if y is None:
        return None
    if b.chance(0.5):
        x, y = y, x
    op = b.choose(["Add", "Add", "Sub", "Mul", "Mul", "Div", "Min", "Max", "Pow", "Mean", "Sum", "PRelu", "Mod"])
    made = _apply(b, op, x, y)
    if made is None:
        return None
    return b.keep(tame(b, made)) if made.bound > 50 else b.keep(made)


def _partner(b: Builder, x: Value) -> Value | None:
    """Something that broadcasts with `x`: another value, `x` itself, or a constant."""
    choice = b.random.random()
    if choice < 0.5:
        return b.pick(lambda v: v.dtype == x.dtype and v.bound < 1e5 and b.broadcast(v.shape, x.shape) is not None)
    if choice < 0.55:
        return x
    if choice < 0.75:
        number = b.choose([0.0, 1.0, 2.0, 0.5, -1.0, 3.0, 0.1])
        return b.scalar(number if x.dtype in FLOATS else round(number), x.dtype)
    extents = [dim[0] if len(set(dim)) == 1 and b.chance(0.7) else 1 for dim in x.shape]
    extents = extents[b.random.randrange(len(extents) + 1) :]
    if x.dtype not in FLOATS:
        kind = np.int64 if x.dtype == INT64 else np.int32
        return b.constant(b.data.integers(-3, 8, size=extents).astype(kind))
    return b.weights(extents, b.choose([0.5, 1.0, 2.0]), dtype=x.dtype, exact=x.exact and b.chance(0.7))


def _apply(b: Builder, op: str, x: Value, y: Value) -> Value | None:
    integral = x.dtype not in FLOATS
    if integral and (x.bound * max(y.bound, 1) > 2**30 or (op in ("Min", "Max") and b.opset < 12)):
        return None
    if op == "Add":
        return add(b, x, y)
    if op == "Sub":
        return sub(b, x, y)
    if op == "Mul":
        return mul(b, x, y)
    if op == "Min":
        return minimum(b, x, y)
    if op == "Max":
        return maximum(b, x, y)
    if op == "Div":
        return _guarded_div(b, x, y)
    if op == "Mod":
        return _mod(b, x, y)
    if integral:
        return None
    if op == "Pow":
        tamed = tame(b, x, 8.0)
        return power(b, tamed, b.choose([2.0, 3.0, 0.5, 1.0, -0.5, 2.0])) if tamed.bound <= 8.0 else None
    if op in ("Mean", "Sum") and (x.dtype == FLOAT or op == "Sum"):
        return _variadic(b, op, x, y)
    slope = b.broadcast(x.shape, y.shape)
    if x.dtype != FLOAT or slope != x.shape:
        return None
    bound = max(x.bound, x.bound * y.bound)
    grain = x.grain * min(y.grain, 1.0) if x.grain is not None and y.grain is not None else None
    return b.emit("PRelu", [x, y], x.shape, low=-bound, high=bound, grain=grain)


def _guarded_div(b: Builder, x: Value, y: Value) -> Value | None:
    if x.dtype not in FLOATS:
        # Integer division truncates, and its operands are exact; only a constant divisor is surely not zero.
        number = b.choose([1, 2, 3, 5, -1, -2])
        return _binary(b, "Div", x, b.scalar(number, x.dtype), -x.bound, x.bound, 1.0)
    if y.low <= 0.05:
        y = _positive(b, tame(b, y), 0.05)
    return div(b, x, y)


def _mod(b: Builder, x: Value, y: Value) -> Value | None:
    if b.opset < 10 or not x.exact:
        return None
    if x.dtype in FLOATS:
        return _binary(b, "Mod", x, b.scalar(4.0, x.dtype), -4.0, 4.0, x.grain, fmod=1)
    number = b.choose([1, 2, 3, 7, -3])
    fmod = b.choose([0, 0, 1])
    bound = float(abs(number))
    return _binary(b, "Mod", x, b.scalar(number, x.dtype), -bound, bound, 1.0, fmod=fmod)


def _variadic(b: Builder, op: str, x: Value, y: Value) -> Value | None:
    operands = [x, y]
    third = b.pick(lambda v: v.dtype == x.dtype and v.bound < 1e5)
    if third is not None and b.chance(0.4):
        operands.append(third)
    if b.chance(0.1):
        operands = operands[:1]
    shape = b.broadcast(*(value.shape for value in operands))
    if shape is None or (b.opset < 8 and len({value.shape for value in operands}) > 1):
        return None
    low, high = sum(v.low for v in operands), sum(v.high for v in operands)
    grains = [v.grain for v in operands]
    grain = None if op == "Mean" or None in grains else min(g for g in grains if g is not None)
    if op == "Mean":
        low, high = low / len(operands), high / len(operands)
    return b.emit(op, operands, shape, low=low, high=high, grain=grain)


def random_comparison(b: Builder) -> Value | None:
    """A bool from exact operands."""
    dtype = b.choose([FLOAT, FLOAT, INT64, INT32, DOUBLE])
    x = b.pick(lambda v: v.dtype == dtype and v.exact)
    if x is None:
        return None
    y = b.pick(lambda v: v.dtype == dtype and v.exact and b.broadcast(v.shape, x.shape) is not None)
    if y is None or b.chance(0.4):
        y = b.scalar(b.choose([0, 1, 2, -1]), dtype)
    op = b.choose(["Greater", "Less", "Equal", "GreaterOrEqual", "LessOrEqual"])
    since = {"Equal": 11 if dtype in FLOATS else 7, "GreaterOrEqual": 12, "LessOrEqual": 12}.get(op, 9)
    if dtype in FLOATS and op in ("Greater", "Less"):
        since = 7
    if b.opset < since:
        return None
    shape = b.broadcast(x.shape, y.shape)
    if shape is None:
        return None
    return b.keep(b.emit(op, [x, y], shape, dtype=BOOL, grain=1.0))


def random_logic(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype == BOOL)
    if x is None:
        return None
    if b.chance(0.3):
        return b.keep(b.emit("Not", [x], x.shape, grain=1.0))
    y = b.pick(lambda v: v.dtype == BOOL and b.broadcast(v.shape, x.shape) is not None)
    if y is None:
        return None
    shape = b.broadcast(x.shape, y.shape)
    assert shape is not None
    return b.keep(b.emit(b.choose(["And", "Or", "Xor"]), [x, y], shape, grain=1.0))


def random_where(b: Builder) -> Value | None:
    condition = b.pick(lambda v: v.dtype == BOOL)
    if condition is None or b.opset < 9:
        return None
    x = b.pick(lambda v: v.dtype in (FLOAT, INT64) and b.broadcast(v.shape, condition.shape) is not None)
    if x is None:
        return None
    y = b.pick(lambda v: v.dtype == x.dtype and b.broadcast(v.shape, condition.shape, x.shape) is not None)
    if y is None or b.chance(0.4):
        y = b.scalar(b.choose([0, 1, -5]), x.dtype)
    if b.chance(0.5):
        x, y = y, x
    shape = b.broadcast(condition.shape, x.shape, y.shape)
    if shape is None:
        return None
    low, high = min(x.low, y.low), max(x.high, y.high)
    return b.keep(b.emit("Where", [condition, x, y], shape, dtype=x.dtype, low=low, high=high, grain=_finer(x, y)))


def random_clip(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.dtype in (FLOAT, DOUBLE, INT64, INT32) and v.bound < 1e5)
    if x is None or (x.dtype not in FLOATS and b.opset < 12):
        return None
    low, high = b.choose([(0.0, 6.0), (-1.0, 1.0), (-2.0, None), (None, 3.0), (0.0, 1.0), (None, None)])
    return b.keep(clip(b, x, low, high))


def random_cast_chain(b: Builder) -> Value | None:
    x = b.pick(lambda v: v.bound < 1000)
    if x is None:
        return None
    for _ in range(b.choose([1, 1, 2, 3])):
        allowed = (
            [FLOAT, DOUBLE] if not (x.grain is not None and x.grain >= 0.5) else [FLOAT, DOUBLE, INT32, INT64, BOOL]
        )
        if x.grain is not None and x.grain >= 0.5 and x.low >= 0 and x.high < 255:
            allowed.append(UINT8)
        x = b.keep(cast(b, x, b.choose(allowed)))
    if x.dtype not in FLOATS and b.chance(0.6):
        x = b.keep(cast(b, x, FLOAT))
    return x
