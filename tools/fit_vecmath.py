"""Derives the coefficients of whet.codegen.vecmath and prints the file that holds them.

    python tools/fit_vecmath.py > src/whet/codegen/vecmath/coefficients.py

Every fit interpolates, or is the least-squares fit, at Chebyshev nodes in 70-digit decimal arithmetic, which is within
a small factor of the best approximation. For float32, coefficients are rounded one after the other from the lowest on,
and the ones still to come are fitted again to what is left, so that rounding costs little.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from decimal import Decimal, getcontext

getcontext().prec = 70

D = Decimal
Real = Callable[[D], D]
ONE = D(1)


def pi() -> D:
    """Machin: 16 atan(1/5) - 4 atan(1/239)."""

    def atan_inverse(n: int) -> D:
        total, term, k = D(0), ONE / n, 0
        while abs(term) > D(10) ** -75:
            total += term / (2 * k + 1) if k % 2 == 0 else -term / (2 * k + 1)
            term /= n * n
            k += 1
        return total

    return 16 * atan_inverse(5) - 4 * atan_inverse(239)


PI = pi()
LN2 = D(2).ln()


def series(first: D, ratio: Callable[[int], D]) -> D:
    """first * (1 + ratio(1) * (1 + ratio(2) * ...))."""
    total, term, k = D(0), first, 0
    while abs(term) > D(10) ** -72:
        total += term
        k += 1
        term *= ratio(k)
    return total


def sin_over(z: D) -> D:
    """sin(x)/x for z = x*x."""
    return series(ONE, lambda k: -z / (2 * k * (2 * k + 1)))


def cos_of(z: D) -> D:
    """cos(x) for z = x*x."""
    return series(ONE, lambda k: -z / (2 * k * (2 * k - 1)))


def erf_over(z: D) -> D:
    """erf(x)/x for z = x*x: 2/sqrt(pi) * exp(-z) * sum of (2z)^k / (2k+1)!!, whose terms are all positive."""
    return 2 / PI.sqrt() * (-z).exp() * series(ONE, lambda k: 2 * z / (2 * k + 1))


def erfcx(x: D) -> D:
    """exp(x*x) * erfc(x)."""
    return (x * x).exp() * (1 - x * erf_over(x * x))


def tanh_over(z: D) -> D:
    """tanh(x)/x for z = x*x."""
    x = z.sqrt()
    e = (2 * x).exp()
    return (e - 1) / (e + 1) / x


def log1p(x: D) -> D:
    return (1 + x).ln()


def chebyshev_nodes(low: D, high: D, count: int) -> list[D]:
    nodes = []
    for i in range(count):
        c = cos_of(((2 * i + 1) * PI / (2 * count)) ** 2)
        nodes.append((low + high) / 2 + (high - low) / 2 * c)
    return nodes


def solve(rows: list[list[D]]) -> list[D]:
    """Gauss's elimination of an augmented matrix, largest pivot first."""
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def to_float32(x: D) -> float:
    return float(struct.unpack("<f", struct.pack("<f", float(x)))[0])


def polynomial(function: Real, low: D, high: D, degree: int, single: bool, weight: Real = lambda x: ONE) -> list[float]:
    """Coefficients, lowest first, of a polynomial near `function` on [low, high]; errors count times `weight`."""
    nodes = chebyshev_nodes(low, high, degree + 1 if not single else 3 * (degree + 1))
    weights = [weight(x) ** 2 for x in nodes]
    left = [function(x) for x in nodes]
    coefficients: list[float] = []
    for k in range(degree + 1):
        powers = range(k, degree + 1)
        rows = []
        for p in powers:
            row = [sum((w * x ** (p + q) for x, w in zip(nodes, weights, strict=True)), D(0)) for q in powers]
            rows.append([*row, sum((w * x**p * f for x, f, w in zip(nodes, left, weights, strict=True)), D(0))])
        exact = solve(rows)
        if not single:
            return [float(c) for c in exact]
        rounded = to_float32(exact[0])
        coefficients.append(rounded)
        left = [f - D(rounded) * x**k for f, x in zip(left, nodes, strict=True)]
    return coefficients


def rational(function: Real, low: D, high: D, top: int, bottom: int, single: bool) -> tuple[list[float], list[float]]:
    """Numerator and denominator (which starts with 1) of a quotient near `function` on [low, high]."""
    nodes = chebyshev_nodes(low, high, top + bottom + 1)
    rows = []
    for x in nodes:
        f = function(x)
        rows.append([x**p for p in range(top + 1)] + [-f * x**p for p in range(1, bottom + 1)] + [f])
    exact = solve(rows)
    rounded = [to_float32(c) if single else float(c) for c in exact]
    return rounded[: top + 1], [1.0, *rounded[top + 1 :]]


def split(x: D, parts: int, bits: int) -> list[float]:
    """`x` as a sum of floats of `bits` significant bits each (the last has all that its type has)."""
    found = []
    for _ in range(parts - 1):
        exponent = 0
        scaled = abs(x)
        while scaled < 1:
            scaled, exponent = scaled * 2, exponent - 1
        while scaled >= 2:
            scaled, exponent = scaled / 2, exponent + 1
        unit = D(2) ** (exponent - bits + 1)
        piece = (x / unit).to_integral_value() * unit
        found.append(float(piece))
        x -= piece
    return [*found, float(x)]


def two_over_pi_words(count: int) -> list[int]:
    """The fraction bits of 2/pi in words of 32 bits, highest first."""
    x, words = 2 / PI, []
    getcontext().prec = 140
    x = 2 / pi_digits()
    for _ in range(count):
        x *= 2**32
        words.append(int(x))
        x -= int(x)
    getcontext().prec = 70
    return words


def pi_digits() -> D:
    """pi to 140 digits, by Gauss and Legendre's iteration."""
    a, b, t, p = ONE, 1 / D(2).sqrt(), D(1) / 4, ONE
    for _ in range(9):
        mean = (a + b) / 2
        b = (a * b).sqrt()
        t -= p * (a - mean) ** 2
        a, p = mean, 2 * p
    return (a + b) ** 2 / (4 * t)


def show(name: str, comment: str, numbers: list[float] | list[int]) -> None:
    print(f"\n# {comment}")
    print(f"{name} = (")
    for number in numbers:
        print(f"    {number!r}," if isinstance(number, float) else f"    0x{number:08X},")
    print(")")


def main() -> None:
    print('"""Coefficients of the approximations, lowest power first. Written by tools/fit_vecmath.py; do not edit."""')
    half_ln2 = LN2 / 2 + D("1e-6")
    low_ln2 = -half_ln2 - D("1e-5")  # no node at 0, where the quotients have no value
    root = D(2).sqrt()
    tail = lambda r: (r.exp() - 1 - r) / (r * r)  # noqa: E731
    show("EXP_F32", "(exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2", polynomial(tail, low_ln2, half_ln2, 4, True))
    show("EXP_F64", "(exp(r) - 1 - r) / r^2 for |r| <= ln(2)/2", polynomial(tail, low_ln2, half_ln2, 9, False))
    show("EXP_SHORT_F32", "(exp(r) - 1) / r for |r| <= ln(2)/2, less exact",
         polynomial(lambda r: (r.exp() - 1) / r, low_ln2, half_ln2, 4, True, lambda r: r / (r / 2).exp()))  # fmt: skip
    two = lambda r: ((r * LN2).exp() - 1) / r  # noqa: E731
    half = D("0.5000001")
    show("EXP2_F32", "(2^r - 1) / r for |r| <= 1/2", polynomial(two, -half - D("1e-5"), half, 5, True))
    show("EXP2_F64", "(2^r - 1) / r for |r| <= 1/2", polynomial(two, -half - D("1e-5"), half, 11, False))
    log_tail = lambda f: (log1p(f) - f + f * f / 2) / f**3  # noqa: E731
    show("LOG_F32", "(log(1+f) - f + f^2/2) / f^3 for sqrt(1/2) <= 1+f <= sqrt(2)",
         polynomial(log_tail, 1 / root - 1, root - 1, 8, True))  # fmt: skip
    edge = ((root - 1) / (root + 1)) ** 2 + D("1e-6")

    def atanh_tail(z: D) -> D:
        s = z.sqrt()
        return (((1 + s) / (1 - s)).ln() / s - 2) / z

    show("LOG_F64", "(2 atanh(s)/s - 2) / z for z = s^2, |s| <= (sqrt(2)-1)/(sqrt(2)+1)",
         polynomial(atanh_tail, D(0), edge, 6, False))  # fmt: skip
    quarter = (PI / 4) ** 2 + D("1e-3")
    show("SIN_F32", "(sin(r)/r - 1) / z for z = r^2, |r| <= pi/4",
         polynomial(lambda z: (sin_over(z) - 1) / z, D(0), quarter, 3, True))  # fmt: skip
    show("COS_F32", "(cos(r) - 1 + z/2) / z^2 for z = r^2, |r| <= pi/4",
         polynomial(lambda z: (cos_of(z) - 1 + z / 2) / (z * z), D(0), quarter, 2, True))  # fmt: skip
    above, below = rational(erf_over, D(0), D("3.93") ** 2, 6, 5, True)
    show("ERF_F32_TOP", "erf(x)/x for z = x^2, |x| <= 3.93: numerator", above)
    show("ERF_F32_BOTTOM", "... and denominator", below)
    above, below = rational(lambda z: erf_over(z / 2) / (2 * root), D(0), D("5.5") ** 2, 6, 5, True)
    show("NORMAL_F32_TOP", "erf(x/sqrt(2)) / (2x) for z = x^2, |x| <= 5.5: numerator", above)
    show("NORMAL_F32_BOTTOM", "... and denominator", below)
    show("ERF_SMALL_F64", "erf(x)/x - 1 for z = x^2, |x| <= 1",
         polynomial(lambda z: erf_over(z) - 1, D(0), ONE, 12, False))  # fmt: skip
    above, below = rational(erfcx, ONE, D(6), 8, 8, False)
    show("ERFCX_F64_TOP", "exp(x^2) erfc(x) for 1 <= x <= 6: numerator", above)
    show("ERFCX_F64_BOTTOM", "... and denominator", below)
    above, below = rational(lambda z: (tanh_over(z) - 1) / z, D(0), D("0.3907"), 3, 3, False)
    show("TANH_SMALL_F64_TOP", "(tanh(x)/x - 1) / z for z = x^2, |x| <= 0.625: numerator", above)
    show("TANH_SMALL_F64_BOTTOM", "... and denominator", below)
    show("LN2_F32", "ln(2) in two parts; a product of the first with a 9-bit integer is exact", split(LN2, 2, 15))
    show("LN2_F64", "ln(2) in two parts; a product of the first with a 12-bit integer is exact", split(LN2, 2, 41))
    show("HALF_PI_F32", "pi/2 in three parts of 24 bits", split(PI / 2, 3, 24))
    show(
        "TWO_OVER_PI", "fraction bits of 2/pi in words of 32 bits, after one word of zeros", [0, *two_over_pi_words(8)]
    )
    single = D(to_float32(1 / LN2))
    print(f"\nLOG2_E = {float(1 / LN2)!r}")
    print(f"LOG2_E_LOW_F32 = {float(1 / LN2 - single)!r}")
    print(f"LOG2_E_LOW_F64 = {float(1 / LN2 - D(float(1 / LN2)))!r}")
    print(f"TWO_OVER_PI_F32 = {float(2 / PI)!r}")


if __name__ == "__main__":
    main()
