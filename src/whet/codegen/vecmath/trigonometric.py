"""sin and cos of float32, for every argument.

Arguments up to 2**15 are reduced by pi/2 in three parts. If a vector holds a larger one, all its lanes take the way of
Payne and Hanek ("Radian Reduction for Trigonometric Functions", 1983): an integer product with the bits of 2/pi that
matter at the argument's exponent.
"""

from __future__ import annotations

from itertools import pairwise

from whet.codegen.convert import convert, convert_in_range, reinterpret
from whet.codegen.ops import absolute, any_true, copysign, fma, polynomial
from whet.codegen.values import Value, select
from whet.codegen.vecmath import coefficients as c
from whet.codegen.vecmath.common import INFINITY, NAN, builder, format_of, rounded, single_only
from whet.dtypes import FLOAT32, INT32, INT64, UINT32, UINT64

_LARGE = 2.0**15


def sin(x: Value) -> Value:
    """Sine, within 2 ULP (float32); NaN at the infinities."""
    r, quadrant = _reduced(x)
    # The sign of -0 is lost in sums.
    return select(x == 0.0, x, _by_quadrant(r, quadrant))


def cos(x: Value) -> Value:
    """Cosine, within 2 ULP (float32); NaN at the infinities."""
    r, quadrant = _reduced(x)
    return _by_quadrant(r, quadrant + 1)


def _by_quadrant(r: Value, quadrant: Value) -> Value:
    z = r * r
    sine = fma(r * z, polynomial(z, c.SIN_F32), r)
    cosine = fma(z * z, polynomial(z, c.COS_F32), fma(z, -0.5, 1.0))
    result = select((quadrant & 1) == 0, sine, cosine)
    return select((quadrant & 2) == 0, result, -result)


def _reduced(x: Value) -> tuple[Value, Value]:
    """(r, n) with x = n * pi/2 + r and |r| about pi/4 at most; of n only the two lowest bits count."""
    single_only(x)
    k = builder(x)
    whole, n = rounded(fma(x, c.TWO_OVER_PI_F32, format_of(x).round_bias))
    high, middle, low = c.HALF_PI_F32
    near = fma(whole, -low, fma(whole, -middle, fma(whole, -high, x)))
    r, quadrant = k.variable(near), k.variable(n)
    large = ~(absolute(x) <= _LARGE)
    with k.when(any_true(large)):
        far, far_quadrant = _payne_hanek(x)
        r.value = select(large, far, r.value)
        quadrant.value = select(large, far_quadrant, quadrant.value)
    return r.value, quadrant.value


def _payne_hanek(x: Value) -> tuple[Value, Value]:
    """The reduction for |x| > 2**15; NaN for what is not finite."""
    k = builder(x)
    bits = reinterpret(absolute(x), INT32)
    mantissa = convert((bits & 0x7FFFFF) | 0x800000, UINT64)
    # Bits of 2/pi above this place only add multiples of 2*pi. 7 = 31 - 24: the table starts with 32 zero bits.
    place = (bits >> 23) - 127 + 7
    # Lanes that are not large are computed too: their places must lie inside the table.
    place = select(absolute(x) > _LARGE, place, 22)
    word, shift = place >> 5, convert(place & 31, UINT64)
    table = k.table("two_over_pi", UINT32, c.TWO_OVER_PI)
    words = [convert((table + i).gather(word), UINT64) for i in range(4)]
    high, middle, low = (((((a << 32) | b) << shift) >> 32) & 0xFFFFFFFF for a, b in pairwise(words))
    # The product's bits 32 to 95: unit 2**-62 of a quadrant, multiples of four quadrants gone by themselves.
    product = ((mantissa * high) << 32) + mantissa * middle + ((mantissa * low) >> 32)
    quadrant = (product + (1 << 61)) >> 62
    rest = reinterpret(product - (quadrant << 62), INT64)
    head = convert(rest, FLOAT32)
    tail = convert(rest - convert_in_range(head, INT64), FLOAT32)
    high_unit, low_unit = (part * 2.0**-62 for part in c.HALF_PI_F32[:2])
    r = fma(head, high_unit, fma(tail, high_unit, head * low_unit))
    n = convert(quadrant, INT32)
    r = select(absolute(x) < INFINITY, r * copysign(x.like(1.0), x), NAN)
    return r, select(x < 0.0, -n, n)
