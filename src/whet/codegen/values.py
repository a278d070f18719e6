"""Typed values in registers: scalars and vectors with Python's operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

from whet.codegen.emitter import Emitter
from whet.codegen.irtypes import LanguageError, Number, constant_text, integer_range, ir_type, splat, suffix
from whet.dtypes import BOOL, DType

Operand = Union["Value", int, float]

_FLOAT_COMPARE = {"<": "olt", "<=": "ole", ">": "ogt", ">=": "oge", "==": "oeq", "!=": "une"}
_INT_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


class Value:
    """A number, or a vector of `lanes` numbers, of one element type, in static single assignment form.

    Operators take values of the same type, a scalar beside a vector (it fills every lane) or a Python number (rounded
    to a float type, refused where an integer type cannot hold it). Signed and unsigned integers wrap. Comparisons give
    bool values: masks when they compare vectors. A Value has no truth in Python and cannot be a dict key.
    """

    __slots__ = ("dtype", "emitter", "lanes", "name")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, emitter: Emitter, dtype: DType, lanes: int, name: str) -> None:
        self.emitter = emitter
        self.dtype = dtype
        self.lanes = lanes
        self.name = name

    def __bool__(self) -> bool:
        raise LanguageError("a kernel's value is not known while its code is written", hint="Use when() or select().")

    def __repr__(self) -> str:
        return f"{self.type_text} {self.name}"

    @property
    def type_text(self) -> str:
        return ir_type(self.dtype, self.lanes)

    @property
    def is_float(self) -> bool:
        return self.dtype.kind == "float" and self.dtype.bits >= 32

    def renamed(self, name: str) -> Value:
        """A value of the same type under another name."""
        return Value(self.emitter, self.dtype, self.lanes, name)

    def result(self, text: str) -> Value:
        """Emit an instruction whose result has this value's type."""
        return Value(self.emitter, self.dtype, self.lanes, self.emitter.assign(text))

    def like(self, number: Operand) -> Value:
        """`number` in this value's type: a constant in every lane, or a scalar value in every lane."""
        if isinstance(number, Value):
            if number.dtype is not self.dtype:
                raise LanguageError("operands of different types", found=number, expected=self.type_text)
            if number.lanes == self.lanes:
                return number
            if number.lanes == 1:
                return broadcast(number, self.lanes)
            raise LanguageError("vectors of different lengths", found=number, expected=self.type_text)
        return constant(self.emitter, self.dtype, number, self.lanes)

    def _pair(self, other: Operand) -> tuple[Value, Value]:
        if isinstance(other, Value) and other.lanes > 1 and self.lanes == 1:
            return other.like(self), other
        return self, self.like(other)

    def _arithmetic(self, other: Operand, name: str, swapped: bool = False) -> Value:
        a, b = self._pair(other)
        if swapped:
            a, b = b, a
        if a.dtype is BOOL or not (a.is_float or a.dtype.is_integer):
            raise LanguageError(f"no {name} in this type", found=a.dtype, hint="Convert first.")
        return a.result(f"{'f' if a.is_float else ''}{name} {a.type_text} {a.name}, {b.name}")

    def _bitwise(self, other: Operand, name: str) -> Value:
        a, b = self._pair(other)
        if not (a.dtype is BOOL or a.dtype.is_integer):
            raise LanguageError(f"no bitwise {name} in this type", found=a.dtype, hint="Reinterpret the bits first.")
        return a.result(f"{name} {a.type_text} {a.name}, {b.name}")

    def __add__(self, other: Operand) -> Value:
        return self._arithmetic(other, "add")

    def __radd__(self, other: Operand) -> Value:
        return self._arithmetic(other, "add", swapped=True)

    def __sub__(self, other: Operand) -> Value:
        return self._arithmetic(other, "sub")

    def __rsub__(self, other: Operand) -> Value:
        return self._arithmetic(other, "sub", swapped=True)

    def __mul__(self, other: Operand) -> Value:
        return self._arithmetic(other, "mul")

    def __rmul__(self, other: Operand) -> Value:
        return self._arithmetic(other, "mul", swapped=True)

    def __neg__(self) -> Value:
        if self.is_float:
            return self.result(f"fneg {self.type_text} {self.name}")
        return self.like(0) - self

    def __truediv__(self, other: Operand) -> Value:
        """Quotient; of integers, truncated toward zero, 0 where the divisor is 0, and wrapped for min / -1."""
        a, b = self._pair(other)
        return a._arithmetic(b, "div") if a.is_float else _integer_divide(a, b, "div")

    def __rtruediv__(self, other: Operand) -> Value:
        return self.like(other) / self

    def __mod__(self, other: Operand) -> Value:
        """Remainder of integers with the dividend's sign; 0 where the divisor is 0 and for min % -1."""
        a, b = self._pair(other)
        if not a.dtype.is_integer:
            raise LanguageError("the remainder is for integers", found=a.dtype)
        return _integer_divide(a, b, "rem")

    def __rmod__(self, other: Operand) -> Value:
        return self.like(other) % self

    def __and__(self, other: Operand) -> Value:
        return self._bitwise(other, "and")

    def __rand__(self, other: Operand) -> Value:
        return self._bitwise(other, "and")

    def __or__(self, other: Operand) -> Value:
        return self._bitwise(other, "or")

    def __ror__(self, other: Operand) -> Value:
        return self._bitwise(other, "or")

    def __xor__(self, other: Operand) -> Value:
        return self._bitwise(other, "xor")

    def __rxor__(self, other: Operand) -> Value:
        return self._bitwise(other, "xor")

    def __invert__(self) -> Value:
        if self.dtype is BOOL:
            return self ^ 1
        return self ^ (-1 if self.dtype.kind == "int" else integer_range(self.dtype)[1])

    def __lshift__(self, other: Operand) -> Value:
        """Shift left; 0 where the amount is the type's width or more. Amounts count as unsigned."""
        return _shift(self, other, "shl")

    def __rlshift__(self, other: Operand) -> Value:
        return self.like(other) << self

    def __rshift__(self, other: Operand) -> Value:
        """Shift right, signed types with their sign; an amount past the width acts as a shift by every bit."""
        return _shift(self, other, "ashr" if self.dtype.kind == "int" else "lshr")

    def __rrshift__(self, other: Operand) -> Value:
        return self.like(other) >> self

    def _compare(self, other: Operand, relation: str) -> Value:
        a, b = self._pair(other)
        if a.is_float:
            text = f"fcmp {_FLOAT_COMPARE[relation]} {a.type_text} {a.name}, {b.name}"
        elif relation in ("==", "!="):
            if a.dtype.is_float:
                raise LanguageError("16-bit floats are storage only", found=a.dtype, hint="Convert first.")
            text = f"icmp {'eq' if relation == '==' else 'ne'} {a.type_text} {a.name}, {b.name}"
        elif a.dtype.is_integer:
            sign = "s" if a.dtype.kind == "int" else "u"
            text = f"icmp {sign}{_INT_COMPARE[relation]} {a.type_text} {a.name}, {b.name}"
        else:
            raise LanguageError("this type has no order", found=a.dtype)
        return Value(self.emitter, BOOL, a.lanes, self.emitter.assign(text))

    def __lt__(self, other: Operand) -> Value:
        """Less; as every comparison of floats but `!=`, false where an operand is NaN."""
        return self._compare(other, "<")

    def __le__(self, other: Operand) -> Value:
        return self._compare(other, "<=")

    def __gt__(self, other: Operand) -> Value:
        return self._compare(other, ">")

    def __ge__(self, other: Operand) -> Value:
        return self._compare(other, ">=")

    def __eq__(self, other: Operand) -> Value:  # type: ignore[override]
        return self._compare(other, "==")

    def __ne__(self, other: Operand) -> Value:  # type: ignore[override]
        """Not equal; true where an operand is NaN."""
        return self._compare(other, "!=")

    def lane(self, index: int) -> Value:
        """One element of a vector."""
        if not 0 <= index < self.lanes or self.lanes == 1:
            raise LanguageError("no such lane", found=index, expected=f"0 to {self.lanes - 1} of a vector")
        text = f"extractelement {self.type_text} {self.name}, i64 {index}"
        return Value(self.emitter, self.dtype, 1, self.emitter.assign(text))

    def with_lane(self, index: int, element: Operand) -> Value:
        """The vector with one element replaced."""
        if not 0 <= index < self.lanes or self.lanes == 1:
            raise LanguageError("no such lane", found=index, expected=f"0 to {self.lanes - 1} of a vector")
        scalar = Value(self.emitter, self.dtype, 1, "").like(element)
        return self.result(f"insertelement {self.type_text} {self.name}, {scalar.type_text} {scalar.name}, i64 {index}")


def constant(emitter: Emitter, dtype: DType, number: Number, lanes: int = 1) -> Value:
    """A constant in every lane; costs no instruction here."""
    type_text = ir_type(dtype, lanes)
    return Value(emitter, dtype, lanes, splat(type_text, constant_text(dtype, number), lanes))


def constant_vector(emitter: Emitter, dtype: DType, numbers: Sequence[Number]) -> Value:
    """A vector of constants."""
    element = ir_type(dtype)
    body = ", ".join(f"{element} {constant_text(dtype, n)}" for n in numbers)
    return Value(emitter, dtype, len(numbers), f"<{body}>")


def broadcast(scalar: Value, lanes: int) -> Value:
    """A scalar in every lane of a vector."""
    if scalar.lanes != 1:
        raise LanguageError("only a scalar can be broadcast", found=scalar)
    if lanes == 1:
        return scalar
    emitter, vector = scalar.emitter, ir_type(scalar.dtype, lanes)
    if not scalar.name.startswith("%"):
        return Value(emitter, scalar.dtype, lanes, splat(vector, scalar.name, lanes))
    first = emitter.assign(f"insertelement {vector} poison, {scalar.type_text} {scalar.name}, i64 0")
    name = emitter.assign(f"shufflevector {vector} {first}, {vector} poison, <{lanes} x i32> zeroinitializer")
    return Value(emitter, scalar.dtype, lanes, name)


def select(mask: Value, chosen: Operand, otherwise: Operand) -> Value:
    """`chosen` where the mask is true, `otherwise` elsewhere; a scalar condition chooses whole vectors."""
    if isinstance(chosen, Value):
        a, b = chosen._pair(otherwise)
    elif isinstance(otherwise, Value):
        a, b = otherwise.like(chosen), otherwise
    else:
        raise LanguageError("select needs a value to know its type", found=f"{chosen} and {otherwise}")
    if mask.dtype is not BOOL:
        raise LanguageError("a condition is a bool", found=mask)
    if mask.lanes not in (1, a.lanes):
        a, b = broadcast(a, mask.lanes), broadcast(b, mask.lanes)
    return a.result(f"select {mask.type_text} {mask.name}, {a.type_text} {a.name}, {b.type_text} {b.name}")


def intrinsic(name: str, first: Value, *others: Operand) -> Value:
    """An LLVM intrinsic over operands and a result of one type, overloaded by that type."""
    operands = [first, *(first.like(o) for o in others)]
    text = f"llvm.{name}.{suffix(first.type_text)}"
    pairs = [(v.type_text, v.name) for v in operands]
    return first.renamed(first.emitter.intrinsic(text, first.type_text, pairs))


def _shift(value: Value, amount: Operand, name: str) -> Value:
    if not value.dtype.is_integer:
        raise LanguageError("only integers can be shifted", found=value.dtype, hint="Reinterpret the bits first.")
    bits = value.dtype.bits
    if not isinstance(amount, Value):
        if not 0 <= amount < bits:
            raise LanguageError("shift by a constant out of range", found=amount, expected=f"0 to {bits - 1}")
        return value.result(f"{name} {value.type_text} {value.name}, {value.like(amount).name}")
    a, b = value._pair(amount)
    inside = Value(a.emitter, BOOL, a.lanes, a.emitter.assign(f"icmp ult {a.type_text} {b.name}, {a.like(bits).name}"))
    if name == "ashr":
        return a.result(f"ashr {a.type_text} {a.name}, {select(inside, b, bits - 1).name}")
    return select(inside, a.result(f"{name} {a.type_text} {a.name}, {b.name}"), 0)


def _integer_divide(a: Value, b: Value, name: str) -> Value:
    """Division that cannot trap: LLVM leaves a zero divisor and min / -1 undefined, x86 raises a signal."""
    if not a.dtype.is_integer:
        raise LanguageError("no division in this type", found=a.dtype, hint="Convert first.")
    signed = a.dtype.kind == "int"
    text = f"{'s' if signed else 'u'}{name} {a.type_text} {a.name}, "
    number = b.name.removesuffix(")").split(" ")[-1]
    if not b.name.startswith(("%", "<")) and number not in ("0", "-1"):
        return a.result(text + b.name)
    harmful = b == 0
    if signed:
        harmful = harmful | ((b == -1) & (a == integer_range(a.dtype)[0]))
    safe = a.result(text + select(harmful, 1, b).name)
    return select(b == 0, 0, safe)
