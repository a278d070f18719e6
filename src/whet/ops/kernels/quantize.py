"""QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear and casts between element types."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from whet import dtypes
from whet.errors import InvalidArgument
from whet.ops.base import Kernel
from whet.ops.contrib.common import Array, Attributes, Inputs, Outputs, axis_within, integer, optional, required
from whet.ops.kernels.arithmetic import from_float
from whet.ops.kernels.common import back, is_float, working

_NARROW_INTEGERS = frozenset(np.dtype(t) for t in (ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.int4, ml_dtypes.uint4))
_SATURATING = frozenset(
    np.dtype(t)
    for t in (
        ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz,
    )
)  # fmt: skip
_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)


def element_type(code: Any, name: str) -> np.dtype[Any]:
    """The numpy type of an ONNX element type number."""
    found = dtypes.BY_CODE.get(code)
    if found is None:
        raise InvalidArgument(f"attribute {name} is no element type", found=code)
    return found.numpy


def is_integer(dtype: np.dtype[Any]) -> bool:
    """Whether `dtype` is an integer type, 2- and 4-bit ones included."""
    return dtype.kind in "iu" or dtype in _NARROW_INTEGERS


def integer_bounds(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and greatest value of an integer type."""
    info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(info.min), int(info.max)


def check_scale(scale: Array, name: str) -> None:
    """Raise InvalidArgument where a scale is 0, negative or not finite."""
    wide = scale.astype(np.float64)
    wrong = ~(np.isfinite(wide) & (wide > 0))
    if wrong.any():
        position = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise InvalidArgument(
            f"{name} at position {list(position)} is no usable scale",
            value=name,
            found=float(wide[position]),
            expected="a positive, finite number",
        )


def spread(parameter: Array, shape: tuple[int, ...], axis: int, block: int, name: str) -> Array:
    """A scale or zero point shaped to broadcast over `shape`: scalar, along an axis, or in blocks along it."""
    if parameter.size == 1 and not (block and parameter.ndim == len(shape)):
        return parameter.reshape(())
    rank = len(shape)
    where = axis_within(axis, rank)
    if not block:
        if parameter.ndim != 1 or parameter.shape[0] != shape[where]:
            raise InvalidArgument(
                f"{name} does not fit the axis", value=name, found=parameter.shape, expected=f"({shape[where]},)"
            )
        return parameter.reshape(-1, *(1,) * (rank - 1 - where))
    if block < 0 or parameter.ndim != rank:
        raise InvalidArgument(f"{name} does not fit blocks of {block}", value=name, found=parameter.shape)
    repeated = np.repeat(parameter, block, axis=where)
    repeated = repeated[(slice(None),) * where + (slice(shape[where]),)]
    if repeated.shape != shape:
        raise InvalidArgument(
            f"{name} does not fit blocks of {block}", value=name, found=parameter.shape, expected=f"blocks of {shape}"
        )
    return repeated


def quantize(x: Array, scale: Array, zero_point: Array | None, dtype: np.dtype[Any], saturate: bool) -> Array:
    """x / scale rounded half to even, plus the zero point, saturated; NaN becomes the zero point."""
    scaled = x / scale
    if is_integer(dtype):
        low, high = integer_bounds(dtype)
        rounded = np.rint(scaled)
        if zero_point is not None:
            rounded = rounded.astype(np.result_type(rounded.dtype, np.float32)) + zero_point.astype(rounded.dtype)
        rounded = np.where(np.isnan(rounded), 0 if zero_point is None else zero_point.astype(rounded.dtype), rounded)
        return np.clip(rounded, low, high).astype(np.int64).astype(dtype)
    if zero_point is not None:
        scaled = scaled + zero_point.astype(scaled.dtype)
    return cast(scaled, dtype, saturate)


def dequantize(x: Array, scale: Array, zero_point: Array | None, axis: int, block: int) -> Array:
    """(x - zero point) scale, in the scale's type but at least float32."""
    factor = working(spread(scale, x.shape, axis, block, "x_scale"))
    centred = x.astype(np.float64) if x.dtype in (np.int32, np.uint32) else x.astype(factor.dtype)
    if zero_point is not None:
        if is_integer(x.dtype) and zero_point.dtype != x.dtype:
            raise InvalidArgument(
                "the zero point has another type than x", value="x_zero_point", found=zero_point.dtype,
                expected=x.dtype,
            )  # fmt: skip
        centred = centred - spread(zero_point, x.shape, axis, block, "x_zero_point").astype(centred.dtype)
    return np.asarray(centred * factor)


def quantize_linear(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """QuantizeLinear(25)."""
    x, scale = required(inputs, 0, "x"), required(inputs, 1, "y_scale")
    zero_point = optional(inputs, 2)
    check_scale(scale, "y_scale")
    code = int(attributes.get("output_dtype", 0))
    dtype = zero_point.dtype if zero_point is not None else np.dtype(np.uint8)
    if code:
        declared = element_type(code, "output_dtype")
        if zero_point is not None and declared != zero_point.dtype:
            raise InvalidArgument(
                "the zero point has another type than output_dtype", value="y_zero_point", found=zero_point.dtype,
                expected=declared,
            )  # fmt: skip
        dtype = declared
    axis, block = int(attributes.get("axis", 1)), integer(attributes, "block_size", 0)
    precision = int(attributes.get("precision", 0))
    kind = element_type(precision, "precision") if precision else None
    factor = spread(scale, x.shape, axis, block, "y_scale")
    zero = None if zero_point is None else spread(zero_point, x.shape, axis, block, "y_zero_point")
    wide = x.astype(np.float64) if is_integer(x.dtype) and kind is None else x
    if kind is not None:
        # The quotient is rounded to this type before it is rounded to an integer.
        wide = np.asarray(x.astype(kind) / factor.astype(kind))
        factor = np.ones((), wide.dtype)
    elif is_float(x.dtype):
        common = np.result_type(working(x).dtype, working(factor).dtype)
        exact = np.asarray(working(x).astype(common) / working(factor).astype(common))
        wide = exact if factor.dtype != x.dtype else back(exact, x.dtype)
        factor = np.ones((), wide.dtype)
    return [quantize(working(wide), working(factor), zero, dtype, bool(integer(attributes, "saturate", 1)))]


def dequantize_linear(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """DequantizeLinear(25)."""
    x, scale = required(inputs, 0, "x"), required(inputs, 1, "x_scale")
    code = int(attributes.get("output_dtype", 0))
    dtype = element_type(code, "output_dtype") if code else scale.dtype
    y = dequantize(x, scale, optional(inputs, 2), int(attributes.get("axis", 1)), integer(attributes, "block_size", 0))
    return [back(y, dtype)]


def dynamic_quantize_linear(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """DynamicQuantizeLinear(11): the range of x, stretched to hold 0, onto uint8. A range of 0 gets scale 0... as 1."""
    x = required(inputs, 0, "x")
    if not np.isfinite(x).all():
        raise InvalidArgument("x has elements that are not finite", value="x")
    low = min(x.min(), x.dtype.type(0)) if x.size else x.dtype.type(0)
    high = max(x.max(), x.dtype.type(0)) if x.size else x.dtype.type(0)
    scale = (high - low) / x.dtype.type(255)
    if scale == 0:
        scale = x.dtype.type(1)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    y = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.uint8)
    return [y, np.asarray(scale, x.dtype), np.asarray(zero).astype(np.uint8)]


def cast(x: Array, dtype: np.dtype[Any], saturate: bool, round_mode: str = "up") -> Array:
    """x as `dtype` by the standard's rules; floats to integers as `from_float` says, integers keep their low bits."""
    if x.dtype == dtype:
        return x
    if dtype == np.object_:
        return _to_text(x)
    if x.dtype == np.object_:
        return _from_text(x, dtype)
    if dtype == _E8M0:
        return _to_e8m0(x, saturate, round_mode)
    if dtype in _NARROW_INTEGERS:
        low, high = integer_bounds(dtype)
        wide = from_float(working(x), np.dtype(np.int64)) if is_float(x.dtype) else x.astype(np.int64)
        span = high - low + 1
        wrapped: Array = (np.mod(wide - low, span) + low).astype(np.int8).astype(dtype)
        return wrapped
    if dtype in _SATURATING:
        wide = working(x) if is_float(x.dtype) else x.astype(np.float64)
        if saturate:
            limit = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
            wide = np.clip(wide, -limit, limit)  # NaN stays
        return wide.astype(dtype)
    if is_float(x.dtype) and is_integer(dtype):
        return from_float(working(x), dtype)
    return x.astype(dtype)


def _to_e8m0(x: Array, saturate: bool, round_mode: str) -> Array:
    """Powers of two by their exponent alone, rounded up, down or to the nearest."""
    wide = x.astype(np.float64)
    fraction, exponent = np.frexp(np.abs(wide))
    low = exponent - 1  # |x| = (2 fraction) 2^low, 1 <= 2 fraction < 2
    if round_mode == "up":
        power = np.where(fraction > 0.5, low + 1, low)
    elif round_mode == "nearest":
        power = np.where(fraction >= 0.75, low + 1, low)
    elif round_mode == "down":
        power = low
    else:
        raise InvalidArgument(
            "attribute round_mode has an unknown value", found=round_mode, expected="up, down, nearest"
        )
    code = power + 127
    invalid = np.isnan(wide) | (wide < 0)
    if saturate:
        code = np.clip(np.where(np.isinf(wide), 254, np.where(wide == 0, 0, code)), 0, 254)
    else:
        invalid |= np.isinf(wide) | (code > 254)
        code = np.clip(np.where(wide == 0, 0, code), 0, 254)
    return np.where(invalid, 255, code).astype(np.uint8).view(_E8M0)


def _to_text(x: Array) -> Array:
    result = np.empty(x.shape, np.object_)
    flat = result.reshape(-1)
    for position, value in enumerate(x.reshape(-1)):
        flat[position] = _number_text(value, x.dtype)
    return result


def _number_text(value: Any, dtype: np.dtype[Any]) -> str:
    if dtype == np.bool_:
        return "1" if value else "0"
    if not is_float(dtype):
        return str(int(value))
    if np.isnan(value):
        return "NaN"
    if np.isinf(value):
        return "INF" if value > 0 else "-INF"
    return str(working(np.asarray(value))[()])


def _from_text(x: Array, dtype: np.dtype[Any]) -> Array:
    numbers = np.empty(x.shape, np.float64 if not is_integer(dtype) else np.object_)
    flat = numbers.reshape(-1)
    for position, item in enumerate(x.reshape(-1)):
        try:
            flat[position] = int(item) if is_integer(dtype) and _is_whole(item) else float(item)
        except ValueError as error:
            raise InvalidArgument(
                f"the text at position {position} is no number", value="input", found=item, expected="a number"
            ) from error
    if is_integer(dtype):
        low, high = integer_bounds(dtype)
        for position, value in enumerate(flat.tolist()):
            whole = 0 if value != value else int(value) if abs(value) != float("inf") else (high if value > 0 else low)
            flat[position] = min(max(whole, low), high)
        return numbers.astype(np.uint64 if low == 0 else np.int64).astype(dtype)
    return cast(numbers, dtype, True)


def _is_whole(item: Any) -> bool:
    return str(item).strip().lstrip("+-").isdigit()


def cast_kernel(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """Cast(25)."""
    dtype = element_type(attributes.get("to"), "to")
    mode = str(attributes.get("round_mode", "up"))
    return [cast(required(inputs, 0, "input"), dtype, bool(integer(attributes, "saturate", 1)), mode)]


def cast_like(inputs: Inputs, attributes: Attributes, output_count: int) -> Outputs:
    """CastLike(25)."""
    mode = str(attributes.get("round_mode", "up"))
    dtype = required(inputs, 1, "target_type").dtype
    return [cast(required(inputs, 0, "input"), dtype, bool(integer(attributes, "saturate", 1)), mode)]


QUANTIZATION: dict[str, Kernel] = {
    "Cast": cast_kernel,
    "CastLike": cast_like,
    "DequantizeLinear": dequantize_linear,
    "DynamicQuantizeLinear": dynamic_quantize_linear,
    "QuantizeLinear": quantize_linear,
}
