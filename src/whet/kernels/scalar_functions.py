"""The scalar operations that take more than one line: integer and float remainders, powers, roundings, activations.

All take values of one number of lanes, except where they say so.
"""

from __future__ import annotations

from collections.abc import Callable

from whet.codegen import vecmath
from whet.codegen.lang import (
    Value,
    absolute,
    any_true,
    broadcast,
    clamp,
    convert,
    convert_in_range,
    copysign,
    fma,
    greater_or_second,
    integer_range,
    is_nan,
    less_or_second,
    maximum,
    minimum,
    reinterpret,
    round_even,
    select,
    sqrt,
    truncate,
)
from whet.codegen.vecmath import double
from whet.codegen.vecmath.common import builder, format_of
from whet.codegen.vecmath.hyperbolic import expm1
from whet.dtypes import BOOL, FLOAT32, FLOAT64, INT32, INT64, DType

INFINITY = float("inf")
NAN = float("nan")


def spread(*values: Value) -> tuple[Value, ...]:
    """The values with as many lanes as the widest: scalars fill them."""
    lanes = max(v.lanes for v in values)
    return tuple(broadcast(v, lanes) if v.lanes != lanes else v for v in values)


def in_vector(function: Callable[[Value], Value], x: Value) -> Value:
    """function(x) for a function that only works on vectors."""
    return function(broadcast(x, 4)).lane(0) if x.lanes == 1 else function(x)


def is_constant(value: Value) -> bool:
    """Whether the value is known while the code is made."""
    return not value.name.startswith("%")


def larger(a: Value, b: Value) -> Value:
    """The larger, NaN where one is NaN; one instruction where one of them is a constant."""
    return _extreme(a, b, greater_or_second, maximum)


def smaller(a: Value, b: Value) -> Value:
    """The smaller, NaN where one is NaN; one instruction where one of them is a constant."""
    return _extreme(a, b, less_or_second, minimum)


def _extreme(a: Value, b: Value, or_second: Callable[[Value, Value], Value], exact: Callable[..., Value]) -> Value:
    if a.dtype is BOOL:
        return a | b if exact is maximum else a & b
    if not a.is_float:
        return exact(a, b)
    # The second of or_second is what NaN gives: a constant is none.
    if is_constant(a):
        return or_second(a, b)
    if is_constant(b):
        return or_second(b, a)
    return exact(a, b)


def clip(x: Value, low: Value, high: Value) -> Value:
    """min(max(x, low), high): where low exceeds high, high."""
    return smaller(larger(x, low), high)


def sign(x: Value) -> Value:
    """-1, 0 or 1; NaN stays."""
    if x.is_float:
        return select(x > 0.0, x.like(1.0), select(x < 0.0, x.like(-1.0), x))
    positive = convert(x > 0, x.dtype)
    return positive if x.dtype.kind == "uint" else positive - convert(x < 0, x.dtype)


def floor_remainder(a: Value, b: Value) -> Value:
    """a mod b with b's sign; of integers 0 where b is 0."""
    if a.is_float:
        r = remainder(a, b)
        turned = select((r < 0.0) ^ (b < 0.0), r + b, r)
        return select(r == 0.0, copysign(r, b), turned)
    r = a % b
    return r if a.dtype.kind == "uint" else select((r != 0) & ((r ^ b) < 0), r + b, r)


def remainder(a: Value, b: Value) -> Value:
    """a mod b with a's sign, exact; of integers 0 where b is 0; NaN for an infinite a or a zero b."""
    if not a.is_float:
        return a % b
    if a.dtype is FLOAT32:
        # Every float32 is a normal float64, and the exact result is a float32.
        return convert(remainder(convert(a, FLOAT64), convert(b, FLOAT64)), FLOAT32)
    k, form = builder(a), format_of(a)
    divisor = absolute(b)
    rest = k.variable(absolute(a))
    # What has no remainder must not keep the loop busy.
    sound = (rest.value < INFINITY) & (divisor > 0.0)
    rest.value = select(sound, rest.value, 0.0)
    with k.repeat():
        left = rest.value
        again = left >= divisor
        k.leave_if(~any_true(again & sound))
        # 2**shift times the divisor is at most 2**-51 of what is left: the quotient and the product are exact.
        shift = maximum(_exponent(left) - _exponent(divisor) - (form.fraction_bits - 2), 0)
        scaled = _times_power(divisor, shift)
        following = fma(-truncate(left / scaled), scaled, left)
        following = select(following < 0.0, following + scaled, following)
        rest.value = select(again & sound, following, left)
    result = copysign(rest.value, a)
    valid = (absolute(a) < INFINITY) & (divisor > 0.0)
    return select(valid, result, NAN)


def _exponent(x: Value) -> Value:
    """floor(log2 x) of positive float64 numbers, subnormal ones too."""
    tiny = x < 2.0**-1022
    bits = reinterpret(select(tiny, x * 2.0**54, x), INT64)
    return (bits >> 52) - select(tiny, bits.like(1023 + 54), 1023)


def _times_power(x: Value, exponent: Value) -> Value:
    """x * 2**exponent for exponents from 0 to 2100, without overflow between."""
    third = exponent >> 2
    one = reinterpret((third + 1023) << 52, FLOAT64)
    last = reinterpret((exponent - third * 3 + 1023) << 52, FLOAT64)
    return x * one * one * one * last


def integer_power(base: Value, exponent: Value) -> Value:
    """base**exponent of integers, wrapped in the base's type; for a negative exponent 1/base**-exponent truncated (of
    0: the largest number)."""
    k = builder(base)
    signed = exponent.dtype.kind == "int"
    result, square, left = k.variable(base.like(1)), k.variable(base), k.variable(exponent)
    if signed:
        left.value = select(exponent < 0, 0, exponent)
    with k.repeat():
        k.leave_if(~any_true(left.value != 0))
        result.value = select((left.value & 1) != 0, result.value * square.value, result.value)
        square.value = square.value * square.value
        left.value = left.value >> 1
    if not signed:
        return result.value
    inverse = select(base == 1, base, 0)
    if base.dtype.kind == "int":
        inverse = select(base == -1, select((exponent & 1) != 0, base, 1), inverse)
    inverse = select(base == 0, integer_range(base.dtype)[1], inverse)
    return select(exponent < 0, inverse, result.value)


def power(x: Value, y: Value) -> Value:
    """x**y in x's type. Of float32 and an integer in float32, of two integers exactly, else in float64."""
    if not x.is_float and not y.is_float:
        return integer_power(x, y)
    if x.dtype is FLOAT32 and y.dtype is not FLOAT64:
        return vecmath.pow(x, convert(y, FLOAT32))
    return cast(double.pow(convert(x, FLOAT64), convert(y, FLOAT64)), x.dtype)


def fixed_power(x: Value, exponent: float) -> Value | None:
    """x**exponent for exponents that a few instructions do; None for others."""
    if exponent == 0.5 and x.is_float:
        # pow(-0, 0.5) is +0 and pow(-inf, 0.5) is +inf.
        return select(x == -INFINITY, INFINITY, sqrt(x) + 0.0)
    if exponent == -0.5 and x.is_float:
        return select(x == -INFINITY, 0.0, 1.0 / (sqrt(x) + 0.0))
    if exponent not in (0, 1, 2, 3, 4, -1, -2) or (exponent < 0 and not x.is_float):
        return None
    if exponent == 0:
        return x.like(1)
    if exponent < 0:
        x = 1.0 / x
    powers = {1: lambda: x, 2: lambda: x * x, 3: lambda: x * x * x, 4: lambda: (x * x) * (x * x)}
    return powers[abs(int(exponent))]()


def float_to_integer(x: Value, dtype: DType) -> Value:
    """Truncated; NaN gives 0. What does not fit becomes the nearest end of 32- and 64-bit types; narrower ones keep the
    low bits of the nearest int32."""
    return convert(convert(x, INT32), dtype) if dtype.bits < 32 else convert(x, dtype)


def cast(x: Value, dtype: DType) -> Value:
    """Cast(25) between numbers and bools."""
    if x.dtype.is_float and dtype.is_integer:
        return float_to_integer(x, dtype)
    return convert(x, dtype)


def round_saturate(x: Value, zero_point: Value) -> Value:
    """x rounded half to even plus the zero point, held in the zero point's type; NaN gives the zero point."""
    dtype = zero_point.dtype
    low, high = integer_range(dtype)
    whole = round_even(x)
    if dtype.bits > 16:
        # A limit far outside the type, as the sum must not wrap.
        near = clamp(select(is_nan(whole), 0.0, whole), -(2.0**40), 2.0**40)
        wide = convert_in_range(near, INT64) + convert(zero_point, INT64)
        return convert(clamp(wide, low, high), dtype)
    zero = convert(zero_point, INT32)
    held = clamp(whole, float(low - high), float(high - low))
    number = convert_in_range(select(is_nan(held), 0.0, held), INT32) + zero
    return convert(clamp(number, low, high), dtype)


def dequantize(q: Value, scale: Value, zero_point: Value) -> Value:
    """(q - zero_point) * scale in the scale's type."""
    if q.dtype.bits > 16:
        exact = convert(q, FLOAT64) - convert(zero_point, FLOAT64)
        return convert(exact * convert(scale, FLOAT64), scale.dtype)
    difference = convert(q, INT32) - convert(zero_point, INT32)
    return convert(difference, scale.dtype) * scale


def silu(x: Value, alpha: float) -> Value:
    """x sigmoid(alpha x); 0 at -infinity for alpha 1."""
    return vecmath.silu(x) if alpha == 1.0 else x * vecmath.sigmoid(x * alpha)


def mish(x: Value) -> Value:
    """x tanh(softplus(x)) as x n / (n + 2) with n = e**2x + 2 e**x."""
    # From 20 (40 in float64) on the quotient rounds to 1.
    e = vecmath.exp(less_or_second(x.like(40.0), x))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


def elu(x: Value, alpha: float) -> Value:
    """x, or alpha (e**x - 1) below 0."""
    return select(x < 0.0, expm1(less_or_second(x.like(0.0), x)) * alpha, x)


def selu(x: Value, alpha: float, gamma: float) -> Value:
    """gamma x, or gamma alpha (e**x - 1) below 0."""
    return select(x <= 0.0, expm1(less_or_second(x.like(0.0), x)) * alpha, x) * gamma


def celu(x: Value, alpha: float) -> Value:
    """max(0, x) + min(0, alpha (e**(x/alpha) - 1))."""
    inner = x / alpha
    if alpha > 0:
        inner = less_or_second(x.like(0.0), inner)
    low = expm1(inner) * alpha
    return less_or_second(x.like(0.0), low) + greater_or_second(x.like(0.0), x)


def hard_sigmoid(x: Value, alpha: float, beta: float) -> Value:
    """alpha x + beta within 0 and 1."""
    return clamp(fma(x, alpha, x.like(beta)), 0.0, 1.0)


def shrink(x: Value, bias: float, limit: float) -> Value:
    """x moved by bias towards 0 outside [-limit, limit], 0 inside; of integers as the standard's text has it."""
    if x.is_float:
        return select(x < -limit, x + bias, select(x > limit, x - bias, 0.0))
    wide = convert(x, FLOAT64)
    return float_to_integer(shrink(wide, bias, limit), x.dtype)


def is_inf(x: Value, negative: bool, positive: bool) -> Value:
    """Whether x is one of the infinities asked for."""
    if negative and positive:
        return absolute(x) == INFINITY
    if not (negative or positive):
        return x.like(0.0) != x.like(0.0)
    return x == (INFINITY if positive else -INFINITY)
