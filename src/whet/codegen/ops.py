"""Operations on values beyond Python's operators: arithmetic, rounding, lanes, reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from whet.codegen.irtypes import LanguageError, ir_type, suffix
from whet.codegen.values import Operand, Value, constant_vector, intrinsic, select
from whet.dtypes import BOOL, INT32, DType


def _float_only(value: Value, what: str) -> None:
    if not value.is_float:
        raise LanguageError(f"{what} is for float32 and float64", found=value)


def fma(a: Value, b: Operand, c: Operand) -> Value:
    """a*b + c with one rounding."""
    vector = next((v for v in (a, b, c) if isinstance(v, Value) and v.lanes > 1), a)
    _float_only(vector, "fma")
    return intrinsic("fma", vector.like(a), b, c)


def polynomial(x: Value, coefficients: Sequence[float]) -> Value:
    """Sum of coefficients[i] * x**i by Horner's scheme with fma; the coefficients are rounded to x's type."""
    total = x.like(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = fma(total, x, c)
    return total


def sqrt(x: Value) -> Value:
    """Square root, correctly rounded; NaN below zero, -0 for -0."""
    _float_only(x, "sqrt")
    return intrinsic("sqrt", x)


def absolute(x: Value) -> Value:
    """Magnitude; the smallest signed integer stays itself (it wraps). Clears the sign of -0 and NaN."""
    if x.is_float:
        return intrinsic("fabs", x)
    if x.dtype.kind != "int":
        return x
    emitter, name = x.emitter, f"llvm.abs.{suffix(x.type_text)}"
    return x.renamed(emitter.intrinsic(name, x.type_text, [(x.type_text, x.name), ("i1", "false")]))


def copysign(magnitude: Value, sign: Operand) -> Value:
    """`magnitude`'s size with `sign`'s sign bit."""
    _float_only(magnitude, "copysign")
    return intrinsic("copysign", magnitude, sign)


def floor(x: Value) -> Value:
    """Largest whole number that is not above x."""
    _float_only(x, "floor")
    return intrinsic("floor", x)


def ceil(x: Value) -> Value:
    """Smallest whole number that is not below x."""
    _float_only(x, "ceil")
    return intrinsic("ceil", x)


def truncate(x: Value) -> Value:
    """x without its fraction."""
    _float_only(x, "truncate")
    return intrinsic("trunc", x)


def round_even(x: Value) -> Value:
    """Nearest whole number, halves to even."""
    _float_only(x, "round_even")
    return intrinsic("roundeven", x)


def is_nan(x: Value) -> Value:
    """Whether each element is NaN."""
    _float_only(x, "is_nan")
    return x != x


def greater_or_second(a: Value, b: Operand) -> Value:
    """`a` where a > b, else `b`: the second where either is NaN or both are zero. One instruction on x86-64."""
    second = a.like(b)
    return select(a > second, a, second)


def less_or_second(a: Value, b: Operand) -> Value:
    """`a` where a < b, else `b`: the second where either is NaN or both are zero. One instruction on x86-64."""
    second = a.like(b)
    return select(a < second, a, second)


def maximum(a: Value, b: Operand) -> Value:
    """The larger; NaN where an operand is NaN. Of zeros of different sign, either."""
    return _extreme(a, b, "max", greater_or_second)


def minimum(a: Value, b: Operand) -> Value:
    """The smaller; NaN where an operand is NaN. Of zeros of different sign, either."""
    return _extreme(a, b, "min", less_or_second)


def _extreme(a: Value, b: Operand, name: str, or_second: Callable[[Value, Operand], Value]) -> Value:
    if isinstance(b, Value) and b.lanes > 1 and a.lanes == 1:
        a = b.like(a)
    if a.is_float:
        return select(is_nan(a), a, or_second(a, b))
    if not a.dtype.is_integer:
        raise LanguageError("this type has no order", found=a.dtype)
    return intrinsic(("s" if a.dtype.kind == "int" else "u") + name, a, b)


def clamp(x: Value, low: Operand, high: Operand) -> Value:
    """x limited to [low, high]; NaN stays NaN. `low` must not exceed `high`."""
    if x.is_float:
        return less_or_second(x.like(high), greater_or_second(x.like(low), x))
    return minimum(maximum(x, low), high)


def add_saturating(a: Value, b: Operand) -> Value:
    """Sum of integers, held at the type's ends."""
    return intrinsic(("s" if a.dtype.kind == "int" else "u") + "add.sat", a, b)


def subtract_saturating(a: Value, b: Operand) -> Value:
    """Difference of integers, held at the type's ends."""
    return intrinsic(("s" if a.dtype.kind == "int" else "u") + "sub.sat", a, b)


def count_leading_zeros(x: Value) -> Value:
    """Zero bits above the highest set bit of an integer; the width for 0."""
    name = f"llvm.ctlz.{suffix(x.type_text)}"
    return x.renamed(x.emitter.intrinsic(name, x.type_text, [(x.type_text, x.name), ("i1", "false")]))


def count_ones(x: Value) -> Value:
    """Set bits of an integer."""
    return intrinsic("ctpop", x)


# Lanes


def iota(x: Value, dtype: DType = INT32) -> Value:
    """0, 1, 2, ... in a vector with as many lanes as `x`."""
    return constant_vector(x.emitter, dtype, range(x.lanes))


def shuffle(a: Value, b: Value | None, lanes: Sequence[int]) -> Value:
    """Chosen elements of `a` (0 to n-1) and `b` (n to 2n-1), in the order of `lanes`."""
    if a.lanes == 1:
        raise LanguageError("a scalar has no lanes to shuffle", found=a)
    second = "poison" if b is None else a.like(b).name
    limit = a.lanes if b is None else 2 * a.lanes
    if not lanes or not all(0 <= i < limit for i in lanes):
        raise LanguageError("no such lane", found=list(lanes), expected=f"0 to {limit - 1}")
    if len(lanes) == 1:
        return a.lane(lanes[0]) if lanes[0] < a.lanes or b is None else b.lane(lanes[0] - a.lanes)
    mask = ", ".join(f"i32 {i}" for i in lanes)
    text = f"shufflevector {a.type_text} {a.name}, {a.type_text} {second}, <{len(lanes)} x i32> <{mask}>"
    return Value(a.emitter, a.dtype, len(lanes), a.emitter.assign(text))


def permute(x: Value, places: Value) -> Value:
    """The elements of a whole register of 32- or 64-bit elements at `places`, which are known while the code runs:
    integers of the elements' size, from 0 to the number of lanes - 1."""
    bits, lanes, emitter = x.dtype.bits, x.lanes, x.emitter
    whole = bits in (32, 64) and bits * lanes == emitter.target.vector_bits
    if not whole or not places.dtype.is_integer or (places.dtype.bits, places.lanes) != (bits, lanes):
        raise LanguageError("no such permutation", found=(x, places))
    if emitter.target.architecture == "aarch64":
        # Counts bytes.
        size = bits // 8
        places = places * sum(size << 8 * i for i in range(size)) + sum(i << 8 * i for i in range(size))
        kind, where, name = "<16 x i8>", "<16 x i8>", "llvm.aarch64.neon.tbl1.v16i8"
    elif lanes * bits == 512:
        kind, where = (f"<{lanes} x {'float' if bits == 32 else 'double'}>", places.type_text)
        name = f"llvm.x86.avx512.permvar.{'sf' if bits == 32 else 'df'}.512"
    else:
        if bits == 64:
            # Counts halves.
            places = places + places
            places = places + (places << 32) + (1 << 32)
        kind, where, name = "<8 x float>", "<8 x i32>", "llvm.x86.avx2.permps"
    pairs = []
    for value, text in ((x, kind), (places, where)):
        same = value.name
        if value.type_text != text:
            same = emitter.assign(f"bitcast {value.type_text} {same} to {text}")
        pairs.append((text, same))
    found = emitter.intrinsic(name, kind, pairs)
    return x.renamed(found) if kind == x.type_text else x.result(f"bitcast {kind} {found} to {x.type_text}")


def concatenate(a: Value, b: Value) -> Value:
    """The elements of `a`, then those of `b` (vectors of one length)."""
    return shuffle(a, b, range(2 * a.lanes))


def halves(x: Value) -> tuple[Value, Value]:
    """The lower and the upper half of a vector."""
    middle = x.lanes // 2
    return shuffle(x, None, range(middle)), shuffle(x, None, range(middle, 2 * middle))


def interleave(a: Value, b: Value) -> Value:
    """a[0], b[0], a[1], b[1], ..."""
    return shuffle(a, b, [i + half * a.lanes for i in range(a.lanes) for half in (0, 1)])


def reduce(x: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """All elements combined, lower half with upper half until one is left: the same order on every target."""
    if x.lanes & (x.lanes - 1):
        raise LanguageError("a reduction needs a power of two of lanes", found=x.lanes)
    while x.lanes > 1:
        x = combine(*halves(x))
    return x


def reduce_sum(x: Value) -> Value:
    """Sum of a vector's elements, in `reduce`'s order."""
    return reduce(x, lambda a, b: a + b)


def reduce_maximum(x: Value) -> Value:
    """Largest element; NaN if any is NaN."""
    return reduce(x, maximum)


def reduce_minimum(x: Value) -> Value:
    """Smallest element; NaN if any is NaN."""
    return reduce(x, minimum)


def any_true(mask: Value) -> Value:
    """Whether any lane of a mask is true."""
    return _reduce_mask(mask, "or")


def all_true(mask: Value) -> Value:
    """Whether every lane of a mask is true."""
    return _reduce_mask(mask, "and")


def _reduce_mask(mask: Value, name: str) -> Value:
    if mask.dtype is not BOOL:
        raise LanguageError("not a mask", found=mask)
    if mask.lanes == 1:
        return mask
    text = f"llvm.vector.reduce.{name}.{suffix(mask.type_text)}"
    pairs = [(mask.type_text, mask.name)]
    return Value(mask.emitter, BOOL, 1, mask.emitter.intrinsic(text, "i1", pairs))


def prefix_mask(count: Value, lanes: int) -> Value:
    """A mask whose first `count` lanes are true (all if it is larger, none if it is 0 or negative)."""
    limited = minimum(maximum(count, 0), lanes)
    name = limited.emitter.assign(f"trunc {limited.type_text} {limited.name} to i32") if count.dtype.bits > 32 else None
    if name is None and count.dtype is not INT32:
        raise LanguageError("a count is an int32 or a 64-bit integer", found=count)
    narrow = limited if name is None else Value(count.emitter, INT32, 1, name)
    return constant_vector(count.emitter, INT32, range(lanes)) < narrow


# What only some CPUs have: the caller asks `target.has` first; LLVM would abort the process.


def _require(emitter_target: Any, feature: str) -> None:
    if not emitter_target.has(feature):
        raise LanguageError("the target lacks an instruction", found=feature, hint="Ask target.has() first.")


def dot_u8s8(accumulator: Value, a: Value, b: Value) -> Value:
    """accumulator[i] + sum over 4 of a[4i+j] * b[4i+j] in int32: unsigned a, signed b, no saturation (VNNI)."""
    _require(a.emitter.target, "avx512vnni")
    lanes = accumulator.lanes
    if accumulator.dtype is not INT32 or lanes not in (4, 8, 16) or a.lanes != 4 * lanes or b.lanes != 4 * lanes:
        raise LanguageError("operands do not fit vpdpbusd", found=f"{accumulator}, {a}, {b}")
    if (a.dtype.name, b.dtype.name) != ("uint8", "int8"):
        raise LanguageError("operands do not fit vpdpbusd", found=f"{a}, {b}", expected="uint8 and int8")
    pairs = [(v.type_text, v.name) for v in (accumulator, a, b)]
    name = f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    return accumulator.renamed(accumulator.emitter.intrinsic(name, accumulator.type_text, pairs))


def dot_bf16(accumulator: Value, a: Value, b: Value) -> Value:
    """accumulator[i] + a[2i]*b[2i] + a[2i+1]*b[2i+1] in float32, subnormals taken as zero (AVX512-BF16)."""
    emitter, lanes = accumulator.emitter, accumulator.lanes
    _require(emitter.target, "avx512bf16")
    if lanes not in (4, 8, 16) or accumulator.dtype.name != "float32":
        raise LanguageError("operands do not fit vdpbf16ps", found=accumulator)
    pairs = [(accumulator.type_text, accumulator.name)]
    wide = f"<{2 * lanes} x bfloat>"
    for v in (a, b):
        if v.dtype.name != "bfloat16" or v.lanes != 2 * lanes:
            raise LanguageError("operands do not fit vdpbf16ps", found=v, expected=f"bfloat16 x {2 * lanes}")
        pairs.append((wide, emitter.assign(f"bitcast {v.type_text} {v.name} to {wide}")))
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    return accumulator.renamed(emitter.intrinsic(name, accumulator.type_text, pairs))


def look_up(low: Value, high: Value, places: Value) -> Value:
    """Elements of a table of float32 that fills two registers, `low` before `high`, at int32 `places` of which only the
    lowest bits count (AVX-512's vpermt2ps)."""
    emitter = low.emitter
    _require(emitter.target, "avx512f")
    if (low.dtype.name, places.dtype.name, places.lanes) != ("float32", "int32", 16) or low.lanes != 16:
        raise LanguageError("vpermt2ps works on whole registers of float32 and int32", found=(low, places))
    pairs = [(low.type_text, low.name), (places.type_text, places.name), (high.type_text, low.like(high).name)]
    return low.renamed(emitter.intrinsic("llvm.x86.avx512.vpermi2var.ps.512", low.type_text, pairs))


def multiply_by_power_of_two(x: Value, exponent: Value) -> Value:
    """x * 2**exponent, rounded once, for whole numbers `exponent` given as floats (AVX-512's vscalef)."""
    emitter = x.emitter
    _require(emitter.target, "avx512f")
    kind = {"float32": ("ps", 16), "float64": ("pd", 8)}[x.dtype.name]
    if x.lanes != kind[1]:
        raise LanguageError("vscalef works on whole registers", found=x)
    mask = f"i{x.lanes}"
    pairs = [(x.type_text, x.name), (x.type_text, x.like(exponent).name), (x.type_text, "zeroinitializer")]
    pairs += [(mask, "-1"), ("i32", "4")]
    name = f"llvm.x86.avx512.mask.scalef.{kind[0]}.512"
    return x.renamed(emitter.intrinsic(name, ir_type(x.dtype, x.lanes), pairs))
