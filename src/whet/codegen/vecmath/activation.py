"""erf, tanh, sigmoid, and what activations are made of.

Errors are in units in the last place (ULP) of the exact result unless stated otherwise. NaN gives NaN.
"""

from __future__ import annotations

from whet.codegen.ops import absolute, copysign, fma, less_or_second, maximum, polynomial, sqrt
from whet.codegen.values import Value, select
from whet.codegen.vecmath import coefficients as c
from whet.codegen.vecmath.common import format_of
from whet.codegen.vecmath.exponential import exp, log1p
from whet.dtypes import FLOAT32

_SMALL_TANH = 0.625
_SQRT_HALF = 0.5**0.5
_SQRT_TWO_OVER_PI = 0.7978845608028654
_ONE_ERF_F32 = 3.92
"""From here on erf rounds to 1 in float32."""
_ONE_ERF_F64 = 6.0


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
    """Hyperbolic tangent, within 2 ULP (float32 and float64)."""
    format_of(x)
    size, z = absolute(x), x * x
    if x.dtype is FLOAT32:
        tail = polynomial(z, c.TANH_SMALL_F32)
    else:
        tail = polynomial(z, c.TANH_SMALL_F64_TOP) / polynomial(z, c.TANH_SMALL_F64_BOTTOM)
    far = 1.0 - 2.0 / (exp(size + size) + 1.0)
    return copysign(select(size < _SMALL_TANH, fma(size * z, tail, size), far), x)


def sigmoid(x: Value) -> Value:
    """1 / (1 + exp(-x)), within 3 ULP (float32 and float64), small results too."""
    e = exp(-absolute(x))
    return select(x < 0.0, e, 1.0) / (1.0 + e)


def softplus(x: Value) -> Value:
    """log(1 + exp(x)), within 3 ULP (float32 and float64)."""
    return maximum(x, 0.0) + log1p(exp(-absolute(x)))


def silu(x: Value) -> Value:
    """x * sigmoid(x), within 4 ULP from x = -87 on and 2**-141 below (float32); NaN at -infinity."""
    return x * sigmoid(x)


def gelu(x: Value) -> Value:
    """x/2 * (1 + erf(x/sqrt(2))), within 2**-22 times max(|x|, 1) (float32): for negative x the sum cancels."""
    return x * 0.5 * (1.0 + erf(x * _SQRT_HALF))


def gelu_tanh(x: Value) -> Value:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x**3))), with `gelu`'s accuracy."""
    inner = fma(x * x * x, 0.044715, x) * _SQRT_TWO_OVER_PI
    return x * 0.5 * (1.0 + tanh(inner))


def reciprocal_sqrt(x: Value) -> Value:
    """1 / sqrt(x), within 1.5 ULP (float32 and float64); infinity at 0 with 0's sign, NaN below."""
    return 1.0 / sqrt(x)
