"""erf, tanh, sigmoid, and what activations are made of.

Errors are in units in the last place (ULP) of the exact result unless stated otherwise. NaN gives NaN.
"""

from __future__ import annotations

from whet.codegen.ops import absolute, copysign, fma, greater_or_second, less_or_second, maximum, polynomial, sqrt
from whet.codegen.values import Value, select
from whet.codegen.vecmath import coefficients as c
from whet.codegen.vecmath.common import format_of, power_of_two, rounded
from whet.codegen.vecmath.exponential import exp, exp_short, exp_short_normal, log1p
from whet.dtypes import FLOAT32

_SMALL_TANH = 0.625
_SQRT_HALF = 0.5**0.5
_SQRT_TWO_OVER_PI = 0.7978845608028654
_ONE_ERF_F32 = 3.92
"""From here on erf rounds to 1 in float32."""
_ONE_ERF_F64 = 6.0
_ONE_TANH_F32 = 9.1
"""From here on tanh rounds to 1 in float32."""
_ONE_NORMAL_F32 = 5.4
"""From here on gelu is x in float32, and its quotient is 1 or 0 exactly."""
_ONE_GELU_TANH_F32 = 9.98
"""... and gelu_tanh; its exponential is a normal number up to here."""
_MOST_NORMAL = 87.0
"""Up to here e**x is a normal number whose reciprocal is one too."""
_LN2 = 0.6931471805599453


def erf(x: Value) -> Value:
    """The error function, within 6 ULP (float32) or 2 ULP (float64)."""
    format_of(x)
    size = absolute(x)
    if x.dtype is FLOAT32:
        z = x * x
        result = x * polynomial(z, c.ERF_F32_TOP) / polynomial(z, c.ERF_F32_BOTTOM)
        return select(size > _ONE_ERF_F32, copysign(x.like(1.0), x), result)
    near = fma(x, polynomial(x * x, c.ERF_SMALL_F64), x)
    far = less_or_second(x.like(_ONE_ERF_F64), size)
    ratio = polynomial(far, c.ERFCX_F64_TOP) / polynomial(far, c.ERFCX_F64_BOTTOM)
    return select(size < 1.0, near, copysign(1.0 - exp(-(far * far)) * ratio, x))


def tanh(x: Value) -> Value:
    """Hyperbolic tangent, within 2.5 ULP (float32) or 2 ULP (float64)."""
    format_of(x)
    size, z = absolute(x), x * x
    if x.dtype is FLOAT32:
        # n / (n + 2) with n = e**2|x| - 1, of which no digits are lost near 0.
        twice = less_or_second(x.like(_ONE_TANH_F32), size) * 2.0
        whole, n = rounded(fma(twice, c.LOG2_E, format_of(x).round_bias))
        r, power = fma(whole, -_LN2, twice), power_of_two(n)
        less_one = fma(power, fma(r * r, polynomial(r, c.EXP_F32), r), power - 1.0)
        return copysign(less_one / (less_one + 2.0), x)
    tail = polynomial(z, c.TANH_SMALL_F64_TOP) / polynomial(z, c.TANH_SMALL_F64_BOTTOM)
    far = 1.0 - 2.0 / (exp(size + size) + 1.0)
    return copysign(select(size < _SMALL_TANH, fma(size * z, tail, size), far), x)


def sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x)), within 3.5 ULP (float32) or 3 ULP (float64), small results too."""
    size = -absolute(x)
    e = exp_short(greater_or_second(x.like(-104.0), size)) if x.dtype is FLOAT32 else exp(size)
    return select(x < 0.0, e, 1.0) / (1.0 + e)


def softplus(x: Value) -> Value:
    """log(1 + exp(x)), within 3 ULP (float32 and float64)."""
    return maximum(x, 0.0) + log1p(exp(-absolute(x)))


def silu(x: Value) -> Value:
    """x * sigmoid(x), within 4 ULP; in float32 from -30 on, 6 ULP to -87, and about -1.4e-36 from there on."""
    if x.dtype is not FLOAT32:
        return _finite(x) * sigmoid(x)
    low = greater_or_second(x.like(-_MOST_NORMAL), x)
    return low / (1.0 + exp_short_normal(-less_or_second(x.like(_MOST_NORMAL), low)))


def gelu(x: Value) -> Value:
    """x/2 * (1 + erf(x/sqrt(2))), within 2**-22 times max(|x|, 1) (float32): for negative x the sum cancels.

    At -infinity it has its limit, 0.
    """
    if x.dtype is not FLOAT32:
        return _finite(x) * 0.5 * (1.0 + erf(x * _SQRT_HALF))
    low = greater_or_second(x.like(-_ONE_NORMAL_F32), x)
    held = less_or_second(x.like(_ONE_NORMAL_F32), low)
    z = held * held
    return low * (0.5 + held * polynomial(z, c.NORMAL_F32_TOP) / polynomial(z, c.NORMAL_F32_BOTTOM))


def gelu_tanh(x: Value) -> Value:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x**3))), with `gelu`'s accuracy."""
    if x.dtype is not FLOAT32:
        inner = fma(x * x * x, 0.044715, x) * _SQRT_TWO_OVER_PI
        return _finite(x) * 0.5 * (1.0 + tanh(inner))
    # (1 + tanh(y)) / 2 is sigmoid(2y).
    low = greater_or_second(x.like(-_ONE_GELU_TANH_F32), x)
    held = less_or_second(x.like(_ONE_GELU_TANH_F32), low)
    slope = fma(held * held, -2.0 * 0.044715 * _SQRT_TWO_OVER_PI, x.like(-2.0 * _SQRT_TWO_OVER_PI))
    return low / (1.0 + exp_short_normal(held * slope))


def reciprocal_sqrt(x: Value) -> Value:
    """1 / sqrt(x), within 1.5 ULP (float32 and float64); infinity at 0 with 0's sign, NaN below."""
    return 1.0 / sqrt(x)


def _finite(x: Value) -> Value:
    """x, the lowest float64 for -infinity: times 0 it is no NaN."""
    return greater_or_second(x.like(-1.7976931348623157e308), x)
