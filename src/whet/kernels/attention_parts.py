"""What both ways to compute attention share: the tile's operands, and exponentials of scores."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import (
    Operand,
    Pointer,
    Value,
    fma,
    greater_or_second,
    multiply_by_power_of_two,
    polynomial,
    reinterpret,
    select,
)
from whet.codegen.vecmath import tanh
from whet.codegen.vecmath.coefficients import LOG2_E
from whet.dtypes import BOOL, FLOAT32, INT32

MINUS_INFINITY = float("-inf")
_ROUND = 1.5 * 2.0**23
"""Added to a small float32, it leaves the nearest whole number in the low bits."""
_EXP2 = (0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.001326472731307149)
"""(2**r - 1) / r for |r| <= 1/2: minimax, 9.2e-8 relative to 2**r."""


@dataclass(frozen=True, slots=True)
class Head:
    """One tile: some rows (queries) of one head. Pointers stand at the tile's first row, or at key 0.

    Row i sees the keys from max(first, lower + i) to min(end - 1, upper + i); without a `lower` or `upper`, that limit
    is missing.
    """

    q: Pointer
    k: Pointer
    v: Pointer
    y: Pointer
    q_row: Value
    k_row: Value
    v_row: Value
    y_row: Value
    rows: Value
    first: Value
    end: Value
    upper: Value | None
    lower: Value | None
    mask: Pointer | None
    mask_row: Value
    mask_key: Value
    scale: Operand
    softcap: float
    sink: Value | None
    """The sink's score, in the scores' unit."""

    @property
    def unit(self) -> float:
        """What scores are multiplied by before exponentials of base 2. A float mask is added to plain scores: its
        largest numbers must not overflow."""
        return 1.0 if self.mask is not None and self.mask.dtype is FLOAT32 else LOG2_E

    @property
    def query_factor(self) -> Operand:
        """What queries are multiplied by, so that their products with keys need no more than `capped`."""
        return self.scale * (1.0 / self.softcap if self.softcap else self.unit)

    def capped(self, product: Value) -> Value:
        """A score, in its unit, from its product."""
        return tanh(product) * (self.softcap * self.unit) if self.softcap else product

    def exponential(self, difference: Value) -> Value:
        """e**difference for a difference of scores of at most 0, in their unit (NaN stays NaN), within 1.7e-7 of it
        plus its argument's rounding; below e**-87 it may be 0, and at minus infinity it is."""
        target = difference.emitter.target
        scaling = target.has("avx512f") and difference.lanes == target.lanes(FLOAT32)
        x = difference if self.unit == LOG2_E else difference * LOG2_E
        # At -127 the exponent field of 2**n is 0, and so is the result; an instruction that scales knows subnormals.
        x = greater_or_second(x.like(-200.0 if scaling else -127.0), x)
        shifted = x + _ROUND
        whole = shifted - _ROUND
        r = x - whole
        power = fma(polynomial(r, _EXP2), r, 1.0)
        if scaling:
            return multiply_by_power_of_two(power, whole)
        exponent = reinterpret(shifted, INT32) << 23
        return power * reinterpret(exponent + (127 << 23), FLOAT32)


def finite_maximum(top: Value) -> Value:
    """`top`, or 0 where it is minus infinity, so that differences to it are numbers."""
    return select(top == MINUS_INFINITY, 0.0, top)


def masked(score: Value, mask: Value) -> Value:
    """Scores with float addends, or minus infinity where bools are false."""
    return select(mask, score, MINUS_INFINITY) if mask.dtype is BOOL else score + mask
