"""atan, asin, acos; and tan.

atan's argument is brought into [-tan(pi/8), tan(pi/8)] by the addition theorem; asin and acos are arcs of a quotient
whose parts are exact where it matters. Errors are in units in the last place (ULP) of the exact result, measured over a
sweep of all exponents. NaN gives NaN.
"""

from __future__ import annotations

from whet.codegen.ops import absolute, copysign, polynomial, sqrt
from whet.codegen.values import Value, select
from whet.codegen.vecmath.common import format_of
from whet.codegen.vecmath.trigonometric import cos, sin
from whet.dtypes import FLOAT32

# (atan(s)/s - 1) / z for z = s^2, |s| <= tan(pi/8), fitted as in tools/fit_vecmath.py
_ATAN_F32 = (
    -0.3333333134651184, 0.19999513030052185, -0.14263440668582916, 0.10740035772323608, -0.06442878395318985,
)  # fmt: skip
_ATAN_F64 = (
    -0.3333333333333333, 0.19999999999999993, -0.142857142857115, 0.11111111110752839, -0.09090909066897132,
    0.07692306732038617, -0.06666641932179707, 0.058819239736799984, -0.0525802915794209, 0.04719315887057005,
    -0.041041165095170896, 0.030628296886205286, -0.013910735294693008,
)  # fmt: skip
_TAN_PI_8 = 0.41421356237309503
_TAN_3_PI_8 = 2.414213562373095
_HALF_PI_HIGH = 1.5707963267948966
_HALF_PI_LOW_F32 = -4.371138828673793e-08
_HALF_PI_LOW_F64 = 6.123233995736766e-17


def atan(x: Value) -> Value:
    """Inverse of the tangent, within 2 ULP (float32 and float64); pi/2 at infinity."""
    format_of(x)
    single = x.dtype is FLOAT32
    size = absolute(x)
    large, middle = size > _TAN_3_PI_8, size > _TAN_PI_8
    top = select(large, x.like(-1.0), select(middle, size - 1.0, size))
    s = top / select(large, size, select(middle, size + 1.0, x.like(1.0)))
    z = s * s
    tail = s * z * polynomial(z, _ATAN_F32 if single else _ATAN_F64)
    low = _HALF_PI_LOW_F32 if single else _HALF_PI_LOW_F64
    base = select(large, x.like(_HALF_PI_HIGH), select(middle, x.like(_HALF_PI_HIGH / 2), 0.0))
    rest = select(large, x.like(low), select(middle, x.like(low / 2), 0.0))
    return copysign(base + (s + (tail + rest)), x)


def asin(x: Value) -> Value:
    """Inverse of the sine, within 4 ULP (float32 and float64); NaN outside [-1, 1]."""
    size = absolute(x)
    return copysign(atan(size / sqrt((1.0 - size) * (1.0 + size))), x)


def acos(x: Value) -> Value:
    """Inverse of the cosine, within 4 ULP (float32 and float64); NaN outside [-1, 1]."""
    return atan(sqrt((1.0 - x) / (1.0 + x))) * 2.0


def tan(x: Value) -> Value:
    """Tangent, within 5 ULP (float32); NaN at the infinities."""
    return sin(x) / cos(x)
