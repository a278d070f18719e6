"""What the inference rules share: reading types, axes and small integer values of a node's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whet.dtypes import BOOL, BY_CODE, FLOAT32, FLOAT64, INT32, INT64, DType
from whet.errors import InvalidGraph
from whet.graph import Expr, Node, SequenceType, Shape, TensorType, Type, Value
from whet.graph.dims import Dim, Known, broadcast
from whet.graph.types import format_shape

MAX_ELEMENTS = 64
"""Longest integer vector whose elements are followed symbolically."""

_EXACT_LIMIT: dict[DType, int] = {INT64: 2**62, INT32: 2**31 - 1, FLOAT32: 2**24, FLOAT64: 2**53, BOOL: 1}
"""Element types whose values are followed, with the largest magnitude that arithmetic on them keeps exactly."""


def tensor(value: Value | None) -> TensorType | None:
    """The value's tensor type, or None."""
    kind = value.type if value is not None else None
    return kind if isinstance(kind, TensorType) else None


def dtype_of(value: Value | None) -> DType | None:
    kind = value.type if value is not None else None
    return kind.dtype if isinstance(kind, TensorType) else None


def shape_of(value: Value | None) -> Shape | None:
    kind = value.type if value is not None else None
    return kind.shape if isinstance(kind, TensorType) else None


def element_type(value: Value | None) -> Type | None:
    """The type of a sequence's elements, or None."""
    kind = value.type if value is not None else None
    return kind.element if isinstance(kind, SequenceType) else None


def elements(value: Value | None) -> Shape | None:
    """The elements of a small integer (or bool, or integral float) scalar or vector, where they are known."""
    if value is None:
        return None
    if value.symbolic is not None or value.data is None:
        return value.symbolic
    data = value.data
    if len(data.shape) > 1 or data.dtype not in _EXACT_LIMIT or data.size > MAX_ELEMENTS:
        return None
    found = data.numpy().reshape(-1).tolist()
    if data.dtype.is_float:
        if not all(v == v and abs(v) <= _EXACT_LIMIT[data.dtype] and v == int(v) for v in found):
            return None
        found = [int(v) for v in found]
    value.symbolic = tuple(int(v) for v in found)
    return value.symbolic


def static_ints(value: Value | None) -> tuple[int, ...] | None:
    """The elements as plain integers, or None unless all are known."""
    found = elements(value)
    if found is None:
        if value is not None and value.data is not None and value.data.dtype.is_integer and len(value.data.shape) <= 1:
            return tuple(value.data.numpy().reshape(-1).tolist())
        return None
    for element in found:
        if not isinstance(element, int):
            return None
    return found  # type: ignore[return-value]


def follows(dtype: DType | None) -> bool:
    """Whether values of this element type are followed symbolically."""
    return dtype in _EXACT_LIMIT


def exact(value: Dim, dtype: DType | None) -> Dim:
    """`value` where arithmetic in `dtype` gives just this number, else None (overflow, rounding)."""
    if isinstance(value, int) and abs(value) > _EXACT_LIMIT.get(dtype, -1):  # type: ignore[arg-type]
        return None
    return value


def never_negative(value: Known) -> bool:
    """Whether `value` is provably at least 0 for all extents."""
    if isinstance(value, int):
        return value >= 0
    for monomial, coefficient in value.terms.items():
        if coefficient < 0:
            return False
        for atom in monomial:
            if atom.op == "name":
                continue
            parts = [a for a in atom.args if isinstance(a, (int, Expr))]
            proofs = [never_negative(p) for p in parts]
            if not (any(proofs) if atom.op == "max" else all(proofs)):
                return False
    return True


def provably_equal(a: Shape | None, b: Shape | None) -> bool:
    """Whether both shapes are known and equal for all extents."""
    return a is not None and b is not None and a == b and None not in a


def axis_in(axis: int, rank: int, what: str = "axis") -> int:
    """`axis` counted from the front. Raises InvalidGraph when it is outside the rank."""
    if not -rank <= axis < rank:
        raise InvalidGraph(f"{what} is out of range", found=axis, expected=f"between {-rank} and {rank - 1}")
    return axis + rank if axis < 0 else axis


def axes_in(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """All of `axes` counted from the front. Raises InvalidGraph for one outside the rank or twice there."""
    found = tuple(axis_in(a, rank) for a in axes)
    if len(set(found)) != len(found):
        raise InvalidGraph("an axis is named twice", found=list(axes), expected="distinct axes")
    return found


def unknown(rank: int | None) -> Shape | None:
    """A shape of which only the rank is known."""
    return None if rank is None else (None,) * rank


def broadcast_inputs(values: Sequence[Value | None]) -> Shape | None:
    """The broadcast shape of all inputs. Raises InvalidGraph when extents differ and none is 1."""
    shapes = [shape_of(v) for v in values]
    first = shapes[0]
    if first is not None and all(s == first for s in shapes):
        return first
    try:
        return broadcast(*shapes)
    except ValueError as error:
        raise InvalidGraph(
            "the inputs' shapes do not broadcast",
            found=" and ".join(f"{v.name}: {format_shape(shape_of(v))}" for v in values if v is not None),
            expected="extents that are equal or 1, aligned at the last axis",
        ) from error


def common_dtype(values: Sequence[Value | None]) -> DType | None:
    """The one element type of all inputs. Raises InvalidGraph when two differ."""
    found: DType | None = None
    for value in values:
        dtype = dtype_of(value)
        if dtype is None or dtype is found:
            continue
        if found is not None:
            raise InvalidGraph(
                "the inputs' element types differ",
                found=", ".join(f"{v.name}: {dtype_of(v)}" for v in values if v is not None),
                expected=f"{found} for all of them",
            )
        found = dtype
    return found


def required(node: Node, index: int) -> Value:
    """The input at `index`. Raises InvalidGraph when it is left out."""
    value = node.input(index)
    if value is None:
        raise InvalidGraph(
            "a required input is left out", found=f"{len(node.inputs)} inputs", expected=f"input {index}"
        )
    return value


def attribute_dtype(node: Node, name: str, default: DType | None) -> DType | None:
    """The element type that an attribute names by its ONNX code. Raises InvalidGraph for an unknown code."""
    code: Any = node.attributes.get(name)
    if code is None or code == 0:
        return default
    if code not in BY_CODE:
        raise InvalidGraph(
            f"attribute {name!r} names no element type", found=code, expected=f"one of {sorted(BY_CODE)}"
        )
    return BY_CODE[code]
