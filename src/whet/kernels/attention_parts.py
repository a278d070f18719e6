"""What both ways to compute attention share: the tile's operands, and exponentials of scores."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.lang import (
    Operand,
    Pointer,
    Value,
    fma,
    greater_or_second,
    look_up,
    multiply_by_power_of_two,
    polynomial,
    reinterpret,
    select,
)
from whet.codegen.target import Target
from whet.codegen.vecmath import tanh
from whet.codegen.vecmath.coefficients import LOG2_E
from whet.codegen.vecmath.common import builder
from whet.dtypes import BOOL, FLOAT32, INT32

MINUS_INFINITY = float("-inf")
_ROUND = 1.5 * 2.0**23
"""Added to a small float32, it leaves the nearest whole number in the low bits."""
_EXP2 = (0.6931470036506653, 0.24022242426872253, 0.05550733581185341, 0.009671512991189957, 0.001326472731307149)
"""(2**r - 1) / r for |r| <= 1/2: minimax, 9.2e-8 relative to 2**r."""
_STEPS = 32
"""Numbers in a table of powers between 1 and 2."""
_NEAR_EXP2 = (0.69315733, 0.2402265)
"""(2**r - 1) / r for |r| <= 1/64: minimax, 5.3e-8 relative to 2**r."""


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
        """e**difference for a difference of scores of at most 0, in their unit (NaN stays NaN), within 1.9e-7 of it
        plus its argument's rounding; below e**-87 it may be 0, and at minus infinity it is."""
        x = difference if self.unit == LOG2_E else difference * LOG2_E
        if looks_up(x.emitter.target) and x.lanes == x.emitter.target.lanes(FLOAT32):
            # At minus infinity the remainder is NaN, and the instruction that scales makes 0 of it.
            shifted = x + _ROUND / _STEPS
            whole = shifted - _ROUND / _STEPS
            r = x - whole
            step = _exp2_of_step(reinterpret(shifted, INT32))
            return multiply_by_power_of_two(fma(polynomial(r, _NEAR_EXP2) * r, step, step), whole)
        # At -127 the exponent field of 2**n is 0, and so is the result.
        x = greater_or_second(x.like(-127.0), x)
        shifted = x + _ROUND
        r = x - (shifted - _ROUND)
        power = fma(polynomial(r, _EXP2), r, 1.0)
        exponent = reinterpret(shifted, INT32) << 23
        return power * reinterpret(exponent + (127 << 23), FLOAT32)


def looks_up(target: Target) -> bool:
    """Whether whole vectors of exponentials come from a table in registers: few multiplications, so that they cost
    little beside products."""
    return target.has("avx512f")


def _exp2_of_step(number: Value) -> Value:
    """2**(i / _STEPS) for the number i in the lowest bits."""
    powers = [2.0 ** (i / _STEPS) for i in range(_STEPS)]
    low, high = (builder(number).constant_vector(FLOAT32, half) for half in (powers[:16], powers[16:]))
    return look_up(low, high, number)


def finite_maximum(top: Value) -> Value:
    """`top`, or 0 where it is minus infinity, so that differences to it are numbers."""
    return select(top == MINUS_INFINITY, 0.0, top)


def masked(score: Value, mask: Value) -> Value:
    """Scores with float addends, or minus infinity where bools are false."""
    return select(mask, score, MINUS_INFINITY) if mask.dtype is BOOL else score + mask
