"""exp, exp2, log, log2, log1p and pow.

Errors are in units in the last place (ULP) of the exact result, measured over a sweep of all exponents. Subnormal
arguments and results are kept. NaN gives NaN.
"""

from __future__ import annotations

from whet.codegen.convert import convert, reinterpret
from whet.codegen.ops import absolute, clamp, copysign, fma, multiply_by_power_of_two, polynomial, truncate
from whet.codegen.values import Operand, Value, select
from whet.codegen.vecmath import coefficients as c
from whet.codegen.vecmath.common import INFINITY, NAN, format_of, rounded, scale, scales_at_once, single_only
from whet.dtypes import FLOAT32, FLOAT64

_SQRT_HALF = 0.5**0.5
_LN2 = 0.6931471805599453


def exp(x: Value) -> Value:
    """e**x, within 1.1 ULP (float32 and float64); infinity and 0 past the range."""
    form = format_of(x)
    single = x.dtype is FLOAT32
    x = clamp(x, *((-104.0, 89.0) if single else (-746.0, 710.0)))
    whole, n = rounded(fma(x, c.LOG2_E, form.round_bias))
    high, low = c.LN2_F32 if single else c.LN2_F64
    r = fma(whole, -low, fma(whole, -high, x))
    tail = polynomial(r, c.EXP_F32 if single else c.EXP_F64)
    return scale(fma(r * r, tail, r) + 1.0, n, whole)


def exp_short(x: Value) -> Value:
    """e**x in float32 from -104 to 87, within 2 ULP: for sums with 1. Past that range it may be anything."""
    single_only(x)
    whole, n = rounded(fma(x, c.LOG2_E, format_of(x).round_bias))
    high, low = c.LN2_F32
    r = fma(whole, -low, fma(whole, -high, x))
    return scale(polynomial(r, (1.0, *c.EXP_SHORT_F32)), n, whole)


def exp_short_normal(x: Value) -> Value:
    """`exp_short` from -87 to 87 in fewer instructions, within 6 ULP: less for smaller exponents.

    What NaN gives may be no NaN.
    """
    single_only(x)
    form = format_of(x)
    shifted = fma(x, c.LOG2_E, form.round_bias)
    whole = shifted - form.round_bias
    # One part of ln(2) is as good as two where the whole number is small.
    near = polynomial(fma(whole, -_LN2, x), (1.0, *c.EXP_SHORT_F32))
    if scales_at_once(x):
        return multiply_by_power_of_two(near, whole)
    # The whole number is in the low bits: they move the exponent, and what is above them is shifted out.
    bits = reinterpret(near, form.bits) + (reinterpret(shifted, form.bits) << form.fraction_bits)
    return reinterpret(bits, FLOAT32)


def exp2(x: Value) -> Value:
    """2**x, within 1 ULP (float32 and float64); exact for whole numbers."""
    form = format_of(x)
    single = x.dtype is FLOAT32
    x = clamp(x, *((-151.0, 129.0) if single else (-1076.0, 1025.0)))
    whole, n = rounded(x + form.round_bias)
    r = x - whole
    return scale(fma(polynomial(r, c.EXP2_F32 if single else c.EXP2_F64), r, 1.0), n, whole)


def log(x: Value) -> Value:
    """Natural logarithm, within 1 ULP (float32 and float64); -infinity at 0, NaN below."""
    e, f = _exponent_and_fraction(x)
    high, low = c.LN2_F32 if x.dtype is FLOAT32 else c.LN2_F64
    return _log_specials(x, fma(e, high, f + fma(e, low, _log_tail(f))))


def log2(x: Value) -> Value:
    """Logarithm to base 2, within 2 ULP (float32 and float64); exact for powers of two."""
    e, f = _exponent_and_fraction(x)
    # f/ln(2) in two parts: the product's rounding error would be the largest of all.
    tail = _log_tail(f)
    main = f * c.LOG2_E
    error = fma(f, c.LOG2_E, -main)
    return _log_specials(x, e + (main + fma(tail, c.LOG2_E, fma(f, _log2_e_low(x), error))))


def log1p(x: Value) -> Value:
    """log(1 + x), within 2 ULP (float32 and float64); -infinity at -1, NaN below. The sign of -0 is lost."""
    u = 1.0 + x
    inside = (u < INFINITY) & (u > 0.0)
    return log(u) + select(inside, (x - (u - 1.0)) / u, 0.0)


def pow(x: Value, y: Operand) -> Value:  # noqa: A001 - the function's name in mathematics
    """x**y for float32, within 0.51 ULP, in double precision inside. Special values as IEEE 754 has them for `pow`:

    1 where y is 0 or x is 1, whatever the other; NaN for a negative x and a y that is not whole; the sign of x where y
    is odd.
    """
    single_only(x)
    exponent = x.like(y)
    magnitude = absolute(x)
    wide = exp2(convert(exponent, FLOAT64) * log2(convert(magnitude, FLOAT64)))
    result = convert(wide, FLOAT32)
    half = exponent * 0.5
    is_whole = truncate(exponent) == exponent
    odd = is_whole & (truncate(half) != half)
    result = select(odd, copysign(result, x), result)
    result = select((x < 0.0) & (x > -INFINITY) & ~is_whole, NAN, result)
    certain = (exponent == 0.0) | (x == 1.0) | ((x == -1.0) & (absolute(exponent) == INFINITY))
    return select(certain, x.like(1.0), result)


def _exponent_and_fraction(x: Value) -> tuple[Value, Value]:
    """(e, f) with x = 2**e * (1 + f) and 1 + f between sqrt(1/2) and sqrt(2), both as floats."""
    form = format_of(x)
    up = 2.0**form.fraction_bits
    tiny = x < form.smallest_normal
    normal = select(tiny, x * up, x)
    bits = reinterpret(normal, form.bits)
    origin = reinterpret(x.like(_SQRT_HALF), form.bits)
    n = (bits - origin) >> form.fraction_bits
    mantissa = reinterpret(bits - (n << form.fraction_bits), x.dtype)
    # An integer to a float by its bits: AVX2 has no conversion of 64-bit integers.
    bias = x.like(form.round_bias)
    e = reinterpret(n + reinterpret(bias, form.bits), x.dtype) - bias
    return e - select(tiny, x.like(form.fraction_bits), 0.0), mantissa - 1.0


def _log_tail(f: Value) -> Value:
    """log(1 + f) - f."""
    square = f * f
    if f.dtype is FLOAT32:
        return fma(square, -0.5, f * square * polynomial(f, c.LOG_F32))
    s = f / (f + 2.0)
    z = s * s
    half_square = square * 0.5
    return fma(s, half_square + z * polynomial(z, c.LOG_F64), -half_square)


def _log2_e_low(x: Value) -> float:
    """What rounding log2(e) to x's type leaves of it."""
    return c.LOG2_E_LOW_F32 if x.dtype is FLOAT32 else c.LOG2_E_LOW_F64


def _log_specials(x: Value, result: Value) -> Value:
    result = select(x == INFINITY, x, result)
    return select(x > 0.0, result, select(x == 0.0, x.like(-INFINITY), NAN))
