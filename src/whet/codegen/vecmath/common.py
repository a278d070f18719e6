"""What the approximations share: formats of floats, rounding to an integer, scaling by a power of two."""

from __future__ import annotations

from dataclasses import dataclass

from whet.codegen.convert import reinterpret
from whet.codegen.function import Function
from whet.codegen.irtypes import LanguageError
from whet.codegen.ops import multiply_by_power_of_two
from whet.codegen.values import Value
from whet.dtypes import FLOAT32, FLOAT64, INT32, INT64, DType

INFINITY = float("inf")
NAN = float("nan")


@dataclass(frozen=True, slots=True)
class Format:
    """IEEE 754's parameters of a float type, and the number whose addition rounds small values to integers."""

    bits: DType
    fraction_bits: int
    bias: int
    smallest_normal: float

    @property
    def round_bias(self) -> float:
        return 1.5 * 2.0**self.fraction_bits


_FORMATS = {
    FLOAT32: Format(INT32, 23, 127, 2.0**-126),
    FLOAT64: Format(INT64, 52, 1023, 2.0**-1022),
}


def format_of(x: Value) -> Format:
    """The format of a float value. Raises LanguageError for any other type."""
    found = _FORMATS.get(x.dtype)
    if found is None:
        raise LanguageError("this function is for float32 and float64", found=x)
    return found


def single_only(x: Value) -> None:
    """Raises LanguageError unless x is float32."""
    if x.dtype is not FLOAT32:
        raise LanguageError("this function is for float32", found=x)


def builder(x: Value) -> Function:
    """The function that x is computed in."""
    if not isinstance(x.emitter, Function):
        raise LanguageError("the value belongs to no function", found=x)
    return x.emitter


def rounded(shifted: Value) -> tuple[Value, Value]:
    """From x + round_bias: x rounded to the nearest whole number, as a float and as an integer."""
    form = format_of(shifted)
    bias = shifted.like(form.round_bias)
    return shifted - bias, reinterpret(shifted, form.bits) - reinterpret(bias, form.bits)


def power_of_two(exponent: Value) -> Value:
    """2**exponent for integers between the exponents of normal numbers."""
    dtype = FLOAT32 if exponent.dtype is INT32 else FLOAT64
    form = _FORMATS[dtype]
    return reinterpret((exponent + form.bias) << form.fraction_bits, dtype)


def scales_at_once(x: Value) -> bool:
    """Whether one instruction multiplies x by any power of two, subnormal and infinite results too."""
    return x.emitter.target.has("avx512f") and x.lanes * x.dtype.bits == 512


def scale(x: Value, exponent: Value, whole: Value) -> Value:
    """x * 2**exponent rounded once, for x near 1; the exponent as integer and as float (`whole`)."""
    if scales_at_once(x):
        return multiply_by_power_of_two(x, whole)
    # Half of it twice: 2**exponent itself may be too large or too small to be a float.
    half = exponent >> 1
    return x * power_of_two(half) * power_of_two(exponent - half)
