"""expm1, the hyperbolic functions and their inverses.

Errors are in units in the last place (ULP) of the exact result, measured over a sweep of all exponents. NaN gives NaN.
"""

from __future__ import annotations

from whet.codegen.ops import absolute, clamp, copysign, fma, polynomial, sqrt
from whet.codegen.values import Value, select
from whet.codegen.vecmath import coefficients as c
from whet.codegen.vecmath.common import format_of, power_of_two, rounded
from whet.codegen.vecmath.exponential import exp, log, log1p
from whet.dtypes import FLOAT32

_LN2 = 0.6931471805599453


def expm1(x: Value) -> Value:
    """e**x - 1, within 3 ULP (float32 and float64); infinity past the range. Keeps the sign of -0."""
    form = format_of(x)
    single = x.dtype is FLOAT32
    held = clamp(x, *((-25.0, 89.0) if single else (-45.0, 710.0)))
    whole, n = rounded(fma(held, c.LOG2_E, form.round_bias))
    high, low = c.LN2_F32 if single else c.LN2_F64
    r = fma(whole, -low, fma(whole, -high, held))
    tail = fma(r * r, polynomial(r, c.EXP_F32 if single else c.EXP_F64), r)
    # Half of the power: the power itself may be past the range where the result is not.
    half = power_of_two(n - 1)
    result = fma(half, tail, half - 0.5) * 2.0
    return select(x == 0.0, x, result)


def sinh(x: Value) -> Value:
    """Hyperbolic sine, within 4 ULP (float32 and float64)."""
    size = absolute(x)
    e = expm1(size)
    near = (e + e / (e + 1.0)) * 0.5
    # Where e**-x no longer counts; in two factors, as e**x may be past the range where half of it is not.
    root = exp(size * 0.5)
    return copysign(select(size > 22.0, root * 0.5 * root, near), x)


def cosh(x: Value) -> Value:
    """Hyperbolic cosine, within 4 ULP (float32 and float64)."""
    root = exp(absolute(x) * 0.5)
    return root * 0.5 * root + 0.5 / (root * root)


def asinh(x: Value) -> Value:
    """Inverse of sinh, within 4 ULP (float32 and float64)."""
    size, large = absolute(x), _large(x)
    square = size * size
    near = log1p(size + square / (1.0 + sqrt(square + 1.0)))
    return select(x == 0.0, x, copysign(select(size > large, log(size) + _LN2, near), x))


def acosh(x: Value) -> Value:
    """Inverse of cosh, within 4 ULP (float32 and float64); NaN below 1."""
    t = x - 1.0
    near = log1p(t + sqrt(t) * sqrt(t + 2.0))
    return select(x > _large(x), log(x) + _LN2, near)


def atanh(x: Value) -> Value:
    """Inverse of tanh, within 4 ULP (float32 and float64); infinite at -1 and 1, NaN outside."""
    size = absolute(x)
    return select(x == 0.0, x, copysign(log1p(2.0 * size / (1.0 - size)) * 0.5, x))


def _large(x: Value) -> float:
    """From here on 1 + x*x rounds to x*x."""
    return 2.0**13 if x.dtype is FLOAT32 else 2.0**28
