"""How element types and constants are written in LLVM's textual form."""

from __future__ import annotations

import ctypes
import functools
import struct

from whet.dtypes import (
    BFLOAT16,
    BOOL,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    INT8,
    INT16,
    INT32,
    INT64,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    DType,
)
from whet.errors import WhetError


class LanguageError(WhetError, TypeError):
    """A kernel breaks a rule of the kernel language: operands that do not fit, a value outside its block."""


# 16-bit floats are storage: they travel as integers, so that no target needs instructions or library calls for them.
_ELEMENTS: dict[DType, str] = {
    FLOAT32: "float",
    FLOAT64: "double",
    FLOAT16: "i16",
    BFLOAT16: "i16",
    BOOL: "i1",
    INT8: "i8",
    INT16: "i16",
    INT32: "i32",
    INT64: "i64",
    UINT8: "i8",
    UINT16: "i16",
    UINT32: "i32",
    UINT64: "i64",
}
_SHORT: dict[str, str] = {"float": "f32", "double": "f64", "ptr": "p0"}

Number = int | float


@functools.cache
def ir_type(dtype: DType, lanes: int = 1) -> str:
    """The type of a value in a register; one lane is a scalar."""
    element = _ELEMENTS.get(dtype)
    if element is None:
        raise LanguageError("no values of this element type in kernels", found=dtype, hint="Unpack it from bytes.")
    return element if lanes == 1 else f"<{lanes} x {element}>"


@functools.cache
def storage_type(dtype: DType, lanes: int = 1) -> str:
    """The type of the same value in memory: a bool is a byte there."""
    return ir_type(UINT8 if dtype is BOOL else dtype, lanes)


@functools.cache
def pointer_type(space: int) -> str:
    return f"ptr addrspace({space})" if space else "ptr"


@functools.cache
def suffix(type_text: str) -> str:
    """A type as intrinsics carry it in their names: `<16 x float>` is `v16f32`."""
    if type_text.startswith("<"):
        lanes, element = type_text[1:-1].split(" x ")
        return f"v{lanes}{suffix(element)}"
    if type_text.startswith("ptr addrspace("):
        return "p" + type_text[14:-1]
    return _SHORT.get(type_text, type_text)


def splat(type_text: str, element_text: str, lanes: int) -> str:
    """The operand text of a constant in every lane."""
    if lanes == 1:
        return element_text
    element = type_text[type_text.index(" x ") + 3 : -1]
    return f"splat ({element} {element_text})"


def constant_text(dtype: DType, number: Number) -> str:
    """`number` as an operand of type `dtype`: rounded to nearest for floats, exact for integers.

    Raises LanguageError for an integer out of range, a fraction as an integer, and 16-bit floats.
    """
    if dtype is FLOAT32 or dtype is FLOAT64:
        exact = ctypes.c_float(number).value if dtype is FLOAT32 else float(number)
        return f"0x{struct.unpack('<Q', struct.pack('<d', exact))[0]:016X}"
    if dtype is BOOL:
        if number not in (0, 1):
            raise LanguageError("not a bool", found=number, expected="0 or 1")
        return "true" if number else "false"
    if not dtype.is_integer:
        raise LanguageError("16-bit floats are storage only", found=dtype, hint="Convert to float32 first.")
    if isinstance(number, float) and not number.is_integer():
        raise LanguageError("a fraction cannot be an integer constant", found=number, expected=dtype)
    low, high = integer_range(dtype)
    whole = int(number)
    if not low <= whole <= high:
        raise LanguageError("the constant is out of range", found=whole, expected=f"{low} to {high} ({dtype})")
    return str(whole)


@functools.cache
def integer_range(dtype: DType) -> tuple[int, int]:
    """The smallest and the largest value of an integer type."""
    if dtype.kind == "uint":
        return 0, (1 << dtype.bits) - 1
    return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1
