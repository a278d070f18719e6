"""What every contrib kernel shares: access to operands and attributes, and their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from whet.config import DEFAULT_LIMITS
from whet.errors import InvalidArgument, ResourceExhausted

Array: TypeAlias = npt.NDArray[Any]
Inputs: TypeAlias = Sequence[Array | None]
Attributes: TypeAlias = Mapping[str, Any]
Outputs: TypeAlias = Sequence[Array | None]


def optional(inputs: Inputs, index: int) -> Array | None:
    """Input number `index`, or None where the node leaves it out."""
    return inputs[index] if index < len(inputs) else None


def required(inputs: Inputs, index: int, name: str) -> Array:
    """Input number `index`; InvalidArgument where the node leaves it out."""
    array = optional(inputs, index)
    if array is None:
        raise InvalidArgument(f"input {index} ({name}) is missing", value=name)
    return array


def integer(
    attributes: Attributes, name: str, default: int | None = None, *, least: int | None = None, most: int | None = None
) -> int:
    """The integer attribute `name`, within [least, most]; without a default the attribute is required."""
    value = attributes.get(name, default)
    if value is None:
        raise InvalidArgument(f"attribute {name} is missing", expected="an integer")
    value = int(value)
    if (least is not None and value < least) or (most is not None and value > most):
        low, high = "-inf" if least is None else least, "inf" if most is None else most
        raise InvalidArgument(f"attribute {name} is out of range", found=value, expected=f"within [{low}, {high}]")
    return value


def text(attributes: Attributes, name: str, default: str | None, allowed: Sequence[str] | None = None) -> str:
    """The string attribute `name`; without a default the attribute is required."""
    value = attributes.get(name, default)
    if value is None:
        raise InvalidArgument(f"attribute {name} is missing", expected="a string")
    value = value.decode() if isinstance(value, bytes) else str(value)
    if allowed is not None and value not in allowed:
        raise InvalidArgument(f"attribute {name} has an unknown value", found=value, expected=", ".join(allowed))
    return value


def expect_rank(array: Array, ranks: int | Sequence[int], name: str) -> None:
    """Raise InvalidArgument unless `array` has one of `ranks` dimensions."""
    allowed = (ranks,) if isinstance(ranks, int) else tuple(ranks)
    if array.ndim not in allowed:
        raise InvalidArgument(
            f"{name} has {array.ndim} dimensions",
            value=name,
            found=array.shape,
            expected=" or ".join(str(rank) for rank in allowed) + " dimensions",
        )


def expect_shape(array: Array, shape: Sequence[int | None], name: str) -> None:
    """Raise InvalidArgument unless `array` has this shape; None stands for any extent."""
    if array.ndim != len(shape) or any(
        want is not None and have != want for have, want in zip(array.shape, shape, strict=True)
    ):
        expected = "(" + ", ".join("any" if want is None else str(want) for want in shape) + ")"
        raise InvalidArgument(f"{name} has the wrong shape", value=name, found=array.shape, expected=expected)


def expect_one_of_shapes(array: Array, shapes: Sequence[Sequence[int]], name: str) -> None:
    """Raise InvalidArgument unless `array` has one of these shapes."""
    if array.shape not in {tuple(shape) for shape in shapes}:
        expected = " or ".join(str(tuple(shape)) for shape in shapes)
        raise InvalidArgument(f"{name} has the wrong shape", value=name, found=array.shape, expected=expected)


def expect_broadcast(array: Array, shape: Sequence[int], name: str) -> None:
    """Raise InvalidArgument unless `array` broadcasts to exactly `shape`."""
    extents = array.shape
    if len(extents) > len(shape) or any(
        have not in (1, want) for have, want in zip(reversed(extents), reversed(shape), strict=False)
    ):
        raise InvalidArgument(
            f"{name} does not broadcast", value=name, found=extents, expected=f"broadcastable to {tuple(shape)}"
        )


def broadcast_shape(shapes: Sequence[Sequence[int]], names: str) -> tuple[int, ...]:
    """The common shape of `shapes` by numpy's rules; InvalidArgument where there is none."""
    try:
        return np.broadcast_shapes(*(tuple(shape) for shape in shapes))
    except ValueError as error:
        found = ", ".join(str(tuple(shape)) for shape in shapes)
        raise InvalidArgument(f"{names} do not broadcast together", value=names, found=found) from error


def expect_divisible(extent: int, divisor: int, what: str, by: str) -> int:
    """`extent // divisor`; InvalidArgument unless it is exact."""
    if divisor <= 0 or extent % divisor:
        raise InvalidArgument(f"{what} is not divisible by {by}", found=extent, expected=f"a multiple of {divisor}")
    return extent // divisor


def scalar(array: Array, name: str) -> Any:
    """The one element of `array` as a numpy scalar; InvalidArgument where there are more or none."""
    if array.size != 1:
        raise InvalidArgument(f"{name} must hold one element", value=name, found=array.shape, expected="() or (1,)")
    return array.reshape(())[()]


def whole(array: Array, name: str) -> int:
    """The one element of `array` as a Python integer."""
    return int(scalar(array, name))


def axis_within(axis: int, rank: int, name: str = "axis") -> int:
    """`axis` counted from the front; InvalidArgument unless within [-rank, rank)."""
    if not -rank <= axis < rank:
        raise InvalidArgument(f"attribute {name} is out of range", found=axis, expected=f"within [{-rank}, {rank})")
    return axis % rank


def indices_within(indices: Array, extent: int, name: str, *, negative: bool = False) -> Array:
    """`indices` as int64 within [0, extent); InvalidArgument names the first outside (`negative`: from the end)."""
    index = indices.astype(np.int64)
    wrong = (index < (-extent if negative else 0)) | (index >= extent)
    if wrong.any():
        position = tuple(int(p) for p in np.argwhere(wrong)[0])
        raise InvalidArgument(
            f"{name} at position {position} is out of range",
            value=name,
            found=int(index[position]),
            expected=f"within [{-extent if negative else 0}, {extent})",
        )
    return np.where(index < 0, index + extent, index)


def widen(array: Array) -> Array:
    """`array` in the type to calculate in: half-width floats become float32, others stay."""
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def integer_range(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The least and the greatest value of an integer type, those of 2 and 4 bits included."""
    info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    return int(info.min), int(info.max)


def product(extents: Sequence[int]) -> int:
    """The number of elements of a shape."""
    return math.prod(int(extent) for extent in extents)


def expect_allocatable(shape: Sequence[int], dtype: np.dtype[Any], what: str) -> None:
    """Raise ResourceExhausted, before anything is allocated, where a shape that inputs ask for passes the limit."""
    size = product(shape) * dtype.itemsize
    if size > DEFAULT_LIMITS.tensor_bytes:
        raise ResourceExhausted(
            f"{what} would be too large",
            found=f"{tuple(shape)}, {size} bytes",
            expected=f"<= {DEFAULT_LIMITS.tensor_bytes}",
        )


def trim(outputs: Outputs, output_count: int) -> Outputs:
    """The first `output_count` outputs (at least one): the ones that the node asks for."""
    return outputs[: max(output_count, 1)]
