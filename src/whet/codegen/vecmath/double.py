"""sin, cos, tan and pow of float64.

Arguments of the circular functions up to 2**20 are reduced by pi/2 in three parts; if a vector holds a larger one, all
its lanes take the way of Payne and Hanek ("Radian Reduction for Trigonometric Functions", 1983) with limbs of 32 bits.
The reduced argument has two parts, and so has the logarithm in `pow`. Errors are in units in the last place (ULP) of
the exact result. NaN gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

from whet.codegen.convert import convert, convert_in_range, reinterpret
from whet.codegen.irtypes import LanguageError
from whet.codegen.ops import absolute, any_true, clamp, copysign, fma, polynomial, truncate
from whet.codegen.values import Operand, Value, select
from whet.codegen.vecmath import coefficients as c
from whet.codegen.vecmath.common import INFINITY, NAN, builder, format_of, rounded, scale
from whet.dtypes import FLOAT64, INT64, UINT32, UINT64

_LARGE = 2.0**20
_TWO_OVER_PI = 0.6366197723675814
_HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33)
"""pi/2 in three parts of 53 bits."""

# (sin(r)/r - 1) / z and (cos(r) - 1 + z/2) / z^2 for z = r^2, |r| <= pi/4, fitted as in tools/fit_vecmath.py
_SIN = (
    -0.16666666666666666, 0.008333333333333333, -0.00019841269841269839, 2.755731922398106e-06,
    -2.5052108382370227e-08, 1.6059042775952156e-10, -7.6469606969144e-13, 2.7912115895850828e-15,
)  # fmt: skip
_COS = (
    0.041666666666666664, -0.0013888888888888887, 2.4801587301584625e-05, -2.755731922138606e-07,
    2.0876755785260466e-09, -1.1470459865968703e-11, 4.74581761095294e-14,
)  # fmt: skip

# (2 atanh(s)/s - 2 - 2z/3) / z^2 for z = s^2, |s| <= (sqrt(2)-1)/(sqrt(2)+1), fitted likewise
_LOG_TAIL = (
    0.40000000000000024, 0.28571428571338464, 0.22222222271107603, 0.18181808247697676, 0.1538557474433097,
    0.1328596003446225, 0.1291357813224215,
)  # fmt: skip
_TWO_THIRDS = (0.6666666666666666, 3.700743415417188e-17)
_LOG2_E = (1.4426950408889634, 2.0355273740931033e-17)
_SQRT_HALF = 0.5**0.5

# fraction bits of 2/pi in words of 32 bits, after two words of zeros
_BITS = (
    0x00000000, 0x00000000,
    0xA2F9836E, 0x4E441529, 0xFC2757D1, 0xF534DDC0, 0xDB629599, 0x3C439041, 0xFE5163AB, 0xDEBBC561,
    0xB7246E3A, 0x424DD2E0, 0x06492EEA, 0x09D1921C, 0xFE1DEB1C, 0xB129A73E, 0xE88235F5, 0x2EBB4484,
    0xE99C7026, 0xB45F7E41, 0x3991D639, 0x835339F4, 0x9C845F8B, 0xBDF9283B, 0x1FF897FF, 0xDE05980F,
    0xEF2F118B, 0x5A0A6D1F, 0x6D367ECF, 0x27CB09B7, 0x4F463F66, 0x9E5FEA2D, 0x7527BAC7, 0xEBE5F17B,
    0x3D0739F7, 0x8A5292EA, 0x6BFB5FB1, 0x1F8D5D08, 0x56033046, 0xFC7B6BAB, 0xF0CFBC20, 0x9AF4361D,
)  # fmt: skip


def sin(x: Value) -> Value:
    """Sine, within 1 ULP; NaN at the infinities."""
    (high, low), quadrant = _reduced(x)
    # The sign of -0 is lost in sums.
    return select(x == 0.0, x, _by_quadrant(_sine(high, low), _cosine(high, low), quadrant))


def cos(x: Value) -> Value:
    """Cosine, within 1 ULP; NaN at the infinities."""
    (high, low), quadrant = _reduced(x)
    return _by_quadrant(_sine(high, low), _cosine(high, low), quadrant + 1)


def tan(x: Value) -> Value:
    """Tangent, within 2 ULP; NaN at the infinities."""
    (high, low), quadrant = _reduced(x)
    sine, cosine = _sine(high, low), _cosine(high, low)
    even = (quadrant & 1) == 0
    return select(x == 0.0, x, select(even, sine, -cosine) / select(even, cosine, sine))


def pow(x: Value, y: Operand) -> Value:  # noqa: A001 - the function's name in mathematics
    """x**y, within 2 ULP. Special values as IEEE 754 has them for `pow`:

    1 where y is 0 or x is 1, whatever the other; NaN for a negative x and a y that is not whole; the sign of x where y
    is odd.
    """
    _double_only(x)
    exponent, magnitude = x.like(y), absolute(x)
    high, low = _log2(magnitude)
    product = exponent * high
    rest = fma(exponent, high, -product) + exponent * low
    held = clamp(product, -1076.0, 1025.0)
    whole, n = rounded(held + format_of(x).round_bias)
    r = (held - whole) + select(absolute(product) < 2000.0, rest, 0.0)
    result = scale(fma(polynomial(r, c.EXP2_F64), r, 1.0), n, whole)
    half = exponent * 0.5
    is_whole = truncate(exponent) == exponent
    odd = is_whole & (truncate(half) != half)
    result = select(odd, copysign(result, x), result)
    result = select((x < 0.0) & (x > -INFINITY) & ~is_whole, NAN, result)
    certain = (exponent == 0.0) | (x == 1.0) | ((x == -1.0) & (absolute(exponent) == INFINITY))
    return select(certain, x.like(1.0), result)


def _double_only(x: Value) -> None:
    if x.dtype is not FLOAT64:
        raise LanguageError("this function is for float64", found=x)


def _sine(r: Value, low: Value) -> Value:
    z = r * r
    return r + fma(r * z, polynomial(z, _SIN), low * fma(z, -0.5, 1.0))


def _cosine(r: Value, low: Value) -> Value:
    z = r * r
    half = z * 0.5
    head = 1.0 - half
    return head + (((1.0 - head) - half) + fma(z * z, polynomial(z, _COS), -(r * low)))


def _by_quadrant(sine: Value, cosine: Value, quadrant: Value) -> Value:
    result = select((quadrant & 1) == 0, sine, cosine)
    return select((quadrant & 2) == 0, result, -result)


def _two_difference(a: Value, b: Value) -> tuple[Value, Value]:
    """a - b as a rounded difference and its error (Knuth)."""
    d = a - b
    back = d - a
    return d, (a - (d - back)) - (b + back)


def _fast_two_sum(a: Value, b: Value) -> tuple[Value, Value]:
    """a + b as a rounded sum and its error, for |a| >= |b| (Dekker)."""
    s = a + b
    return s, b - (s - a)


def _reduced(x: Value) -> tuple[tuple[Value, Value], Value]:
    """((high, low), n) with x = n * pi/2 + high + low and |high| about pi/4 at most; only n's two lowest bits count."""
    _double_only(x)
    k = builder(x)
    whole, n = rounded(fma(x, _TWO_OVER_PI, format_of(x).round_bias))
    product = whole * _HALF_PI[0]
    a, a_low = _two_difference(x - product, fma(whole, _HALF_PI[0], -product))
    second = whole * _HALF_PI[1]
    b, b_low = _two_difference(a, second)
    rest = b_low + (a_low - fma(whole, _HALF_PI[1], -second)) - whole * _HALF_PI[2]
    near, near_low = _fast_two_sum(b, rest)
    high, low, quadrant = k.variable(near), k.variable(near_low), k.variable(n)
    large = ~(absolute(x) <= _LARGE)
    with k.when(any_true(large)):
        (far, far_low), far_quadrant = _payne_hanek(x)
        high.value = select(large, far, high.value)
        low.value = select(large, far_low, low.value)
        quadrant.value = select(large, far_quadrant, quadrant.value)
    return (high.value, low.value), quadrant.value


def _payne_hanek(x: Value) -> tuple[tuple[Value, Value], Value]:
    """The reduction for |x| > 2**20; NaN for what is not finite."""
    k = builder(x)
    bits = reinterpret(absolute(x), INT64)
    mantissa = reinterpret((bits & ((1 << 52) - 1)) | (1 << 52), UINT64)
    # The mantissa is a whole number times 2**e. Bits of 2/pi above this place only add multiples of 2*pi; 64 zero bits
    # come first in the table.
    place = (bits >> 52) - 1075 - 2 + 64
    # Lanes that are not large are computed too, and infinities: their places must lie inside the table.
    place = select((absolute(x) > _LARGE) & (absolute(x) < INFINITY), place, 30)
    word, shift = place >> 5, reinterpret(place & 31, UINT64)
    table = k.table("two_over_pi_long", UINT32, _BITS)
    words = [convert((table + i).gather(word), UINT64) for i in range(7)]
    window = [(((words[i] << 32) | words[i + 1]) << shift) >> 32 for i in range(6)][::-1]
    limbs = _product([w & 0xFFFFFFFF for w in window], mantissa & 0xFFFFFFFF, mantissa >> 32)
    # 128 bits of the fraction of four quadrants: unit 2**-62 of a quadrant, then 2**-126.
    upper, lower = (limbs[-1] << 32) | limbs[-2], (limbs[-3] << 32) | limbs[-4]
    quadrant = (upper + (1 << 61)) >> 62
    rest = reinterpret(upper - (quadrant << 62), INT64)
    head = convert(rest, FLOAT64)
    tail = convert(rest - convert_in_range(head, INT64), FLOAT64) + convert(lower, FLOAT64) * 2.0**-64
    head, tail = _fast_two_sum(head, tail)
    head, tail = head * 2.0**-62, tail * 2.0**-62
    product = head * _HALF_PI[0]
    low = fma(head, _HALF_PI[0], -product) + (head * _HALF_PI[1] + tail * _HALF_PI[0])
    high, low = _fast_two_sum(product, low)
    n = reinterpret(quadrant, INT64)
    negative = x < 0.0
    high = select(absolute(x) < INFINITY, select(negative, -high, high), NAN)
    return (high, select(negative, -low, low)), select(negative, -n, n)


def _product(number: Sequence[Value], low: Value, high: Value) -> list[Value]:
    """number * (high * 2**32 + low) in limbs of 32 bits, lowest first, as many as `number` has; the lowest is not
    computed, and its carry is missing."""
    limbs = [number[0]]
    carry = number[0].like(0)
    mask = 0xFFFFFFFF
    for i in range(1, len(number)):
        column = (low * number[i] & mask) + (low * number[i - 1] >> 32) + (high * number[i - 1] & mask) + carry
        if i > 1:
            column = column + (high * number[i - 2] >> 32)
        limbs.append(column & mask)
        carry = column >> 32
    return limbs


def _log2(x: Value) -> tuple[Value, Value]:
    """log2 of numbers that are not negative, in two parts; infinite at 0 and infinity."""
    tiny = x < 2.0**-1022
    bits = reinterpret(select(tiny, x * 2.0**52, x), INT64)
    n = (bits - reinterpret(x.like(_SQRT_HALF), INT64)) >> 52
    m = reinterpret(bits - (n << 52), FLOAT64)
    # An integer to a float by its bits: AVX2 has no conversion of 64-bit integers.
    bias = x.like(format_of(x).round_bias)
    e = reinterpret(n + reinterpret(bias, INT64), FLOAT64) - bias - select(tiny, x.like(52.0), 0.0)

    f, d = m - 1.0, m + 1.0
    d_low = m - (d - 1.0)
    s = f / d
    s_low = (fma(-s, d, f) - s * d_low) / d
    z = s * s
    z_low = fma(s, s, -z) + 2.0 * s * s_low
    cube = s * z
    cube_low = fma(s, z, -cube) + s * z_low + s_low * z
    third = cube * _TWO_THIRDS[0]
    third_low = fma(cube, _TWO_THIRDS[0], -third) + (cube * _TWO_THIRDS[1] + cube_low * _TWO_THIRDS[0])
    high, low = _fast_two_sum(s * 2.0, third)
    low = low + (s_low * 2.0 + third_low + cube * z * polynomial(z, _LOG_TAIL))
    scaled = high * _LOG2_E[0]
    scaled_low = fma(high, _LOG2_E[0], -scaled) + (high * _LOG2_E[1] + low * _LOG2_E[0])
    total, error = _two_difference(e, -scaled)
    total, error = _fast_two_sum(total, error + scaled_low)
    special = (x == 0.0) | ~(x < INFINITY)
    edge = select(x == 0.0, x.like(-INFINITY), x)
    return select(special, edge, total), select(special, 0.0, error)
