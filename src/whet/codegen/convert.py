"""Conversions between element types, and the same bits under another type. No conversion calls a library."""

from __future__ import annotations

from whet.codegen.irtypes import LanguageError, integer_range, ir_type, suffix
from whet.codegen.ops import absolute, clamp, is_nan
from whet.codegen.values import Value, select
from whet.dtypes import BFLOAT16, BOOL, FLOAT16, FLOAT32, FLOAT64, INT32, UINT16, UINT32, DType


def reinterpret(x: Value, dtype: DType) -> Value:
    """The same bits as elements of `dtype`: as many lanes as fit, in memory's order of a little-endian machine."""
    total = x.lanes * x.dtype.bits
    if x.dtype is BOOL or dtype is BOOL or total % dtype.bits:
        raise LanguageError("the bits do not fit", found=x, expected=dtype)
    lanes = total // dtype.bits
    target = ir_type(dtype, lanes)
    if target == x.type_text:
        return Value(x.emitter, dtype, lanes, x.name)
    return Value(x.emitter, dtype, lanes, x.emitter.assign(f"bitcast {x.type_text} {x.name} to {target}"))


def convert(x: Value, dtype: DType) -> Value:
    """Each element as `dtype`.

    Integer to integer wraps; to float rounds to nearest even; float to integer truncates, saturates at the type's
    ends and makes 0 of NaN; to bool is "not zero" (NaN is true); from bool gives 0 or 1. Float to float rounds to
    nearest even, past the range to infinity, subnormals kept; NaN stays NaN.
    """
    if x.dtype is dtype:
        return x
    if dtype is BOOL:
        wide = _widened(x) if x.dtype in (FLOAT16, BFLOAT16) else x
        return wide != 0
    if x.dtype.is_float and dtype.is_float:
        return _between_floats(x, dtype)
    if x.dtype in (FLOAT16, BFLOAT16):
        return convert(_widened(x), dtype)
    if dtype in (FLOAT16, BFLOAT16):
        # Two roundings would differ from one; float64 holds every 32-bit integer, and to odd is safe for the rest.
        return convert(_to_float(x, FLOAT64) if x.dtype.bits <= 32 else _odd_float64(x), dtype)
    if dtype.is_float:
        return _to_float(x, dtype)
    if x.is_float:
        return _to_integer(x, dtype)
    return _between_integers(x, dtype)


def convert_in_range(x: Value, dtype: DType) -> Value:
    """A float truncated to an integer that the caller knows to fit; anything at all where it does not."""
    if not (x.is_float and dtype.is_integer):
        raise LanguageError("from a float to an integer only", found=x, expected=dtype)
    return _cast(x, "fptosi" if dtype.kind == "int" else "fptoui", dtype)


def convert_saturating(x: Value, dtype: DType) -> Value:
    """Integer to integer, held at the ends of `dtype`; floats as `convert` does it."""
    if not x.dtype.is_integer:
        return convert(x, dtype)
    low, high = integer_range(dtype)
    least, most = integer_range(x.dtype)
    return convert(clamp(x, max(low, least), min(high, most)), dtype)


def _cast(x: Value, name: str, dtype: DType) -> Value:
    text = f"{name} {x.type_text} {x.name} to {ir_type(dtype, x.lanes)}"
    return Value(x.emitter, dtype, x.lanes, x.emitter.assign(text))


def _between_integers(x: Value, dtype: DType) -> Value:
    width = 1 if x.dtype is BOOL else x.dtype.bits
    if dtype.bits == width:
        return Value(x.emitter, dtype, x.lanes, x.name)
    if dtype.bits < width:
        return _cast(x, "trunc", dtype)
    return _cast(x, "sext" if x.dtype.kind == "int" else "zext", dtype)


def _to_float(x: Value, dtype: DType) -> Value:
    return _cast(x, "sitofp" if x.dtype.kind == "int" else "uitofp", dtype)


def _to_integer(x: Value, dtype: DType) -> Value:
    if x.dtype is FLOAT32 and dtype is INT32:
        return _single_to_int32(x)
    kind = "fptosi" if dtype.kind == "int" else "fptoui"
    target = ir_type(dtype, x.lanes)
    name = f"llvm.{kind}.sat.{suffix(target)}.{suffix(x.type_text)}"
    result = x.emitter.intrinsic(name, target, [(x.type_text, x.name)])
    return Value(x.emitter, dtype, x.lanes, result)


def _single_to_int32(x: Value) -> Value:
    """What `llvm.fptosi.sat` does, which x86-64 has to build from far more instructions."""
    low, high = -(2.0**31), 2.0**31
    # The largest float32 below 2**31: what is at least 2**31 is replaced afterwards.
    inside = clamp(x, low, high - 128)
    whole = _cast(select(is_nan(x), 0.0, inside), "fptosi", INT32)
    return select(x >= high, whole.like(integer_range(INT32)[1]), whole)


def _widened(x: Value) -> Value:
    """float16 or bfloat16 as float32, exactly."""
    if x.dtype is BFLOAT16:
        bits = _cast(Value(x.emitter, UINT16, x.lanes, x.name), "zext", UINT32)
        return reinterpret(bits << 16, FLOAT32)
    half = "half" if x.lanes == 1 else f"<{x.lanes} x half>"
    name = x.emitter.assign(f"bitcast {x.type_text} {x.name} to {half}")
    wide = x.emitter.assign(f"fpext {half} {name} to {ir_type(FLOAT32, x.lanes)}")
    return Value(x.emitter, FLOAT32, x.lanes, wide)


def _between_floats(x: Value, dtype: DType) -> Value:
    if x.dtype in (FLOAT16, BFLOAT16):
        return convert(_widened(x), dtype)
    if dtype is FLOAT64:
        return _cast(x, "fpext", dtype)
    if dtype is FLOAT32:
        return _cast(x, "fptrunc", dtype)
    if x.dtype is FLOAT64:
        x = _odd_float32(x)
    return _to_bfloat16(x) if dtype is BFLOAT16 else _to_float16(x)


def _to_float16(x: Value) -> Value:
    half = "half" if x.lanes == 1 else f"<{x.lanes} x half>"
    narrow = x.emitter.assign(f"fptrunc {x.type_text} {x.name} to {half}")
    bits = x.emitter.assign(f"bitcast {half} {narrow} to {ir_type(FLOAT16, x.lanes)}")
    return Value(x.emitter, FLOAT16, x.lanes, bits)


def _to_bfloat16(x: Value) -> Value:
    """Round to nearest even on the bits: the instruction of AVX512-BF16 would flush subnormals to zero."""
    bits = reinterpret(x, UINT32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)
    quiet = bits | 0x400000
    high = select(is_nan(x), quiet, rounded) >> 16
    narrow = _cast(high, "trunc", UINT16)
    return Value(x.emitter, BFLOAT16, x.lanes, narrow.name)


def _odd_float32(x: Value) -> Value:
    """float64 as float32 rounded to odd, which may be rounded again as if it were the first time (Boldo, Melquiond)."""
    near = _cast(x, "fptrunc", FLOAT32)
    back = _cast(near, "fpext", FLOAT64)
    bits = reinterpret(near, UINT32)
    inexact = (absolute(back) < absolute(x)) | (absolute(back) > absolute(x))
    even = (bits & 1) == 0
    toward = select(absolute(_cast(near, "fpext", FLOAT64)) > absolute(x), bits - 1, bits + 1)
    return reinterpret(select(inexact & even, toward, bits), FLOAT32)


def _odd_float64(x: Value) -> Value:
    """A 64-bit integer as float64, so that rounding again to 16 bits is as good as rounding once."""
    # Past 2**53 the 11 low bits may not fit: they are folded into bit 11, which no tie between 16-bit floats has set.
    folded = (x & ~x.like(0x7FF)) | select((x & 0x7FF) != 0, x.like(0x800), 0)
    large = x >= 1 << 53
    if x.dtype.kind == "int":
        large = large | (x <= -(1 << 53))
    return _to_float(select(large, folded, x), FLOAT64)
