"""Types of values: tensors, sequences, optionals and maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from whet.dtypes import DType
from whet.graph.dims import Dim, Shape


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor's element type (None: unknown) and shape (None: rank unknown; a None dimension is unknown)."""

    dtype: DType | None
    shape: Shape | None = None
    sparse: bool = False

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def __str__(self) -> str:
        name = "?" if self.dtype is None else self.dtype.name
        return f"{name}{format_shape(self.shape)}"


@dataclass(frozen=True, slots=True)
class SequenceType:
    """A sequence whose elements all have one type (None: unknown)."""

    element: Type | None

    def __str__(self) -> str:
        return f"seq({self.element or '?'})"


@dataclass(frozen=True, slots=True)
class OptionalType:
    """A value of the element type, or nothing."""

    element: Type | None

    def __str__(self) -> str:
        return f"optional({self.element or '?'})"


@dataclass(frozen=True, slots=True)
class MapType:
    """A map from integer or string keys to values of one type."""

    key: DType
    value: Type | None

    def __str__(self) -> str:
        return f"map({self.key.name},{self.value or '?'})"


Type = Union[TensorType, SequenceType, OptionalType, MapType]


def format_shape(shape: Shape | None) -> str:
    """`[2,h,?]`, or `[...]` for an unknown rank."""
    if shape is None:
        return "[...]"
    return "[" + ",".join(_format_dim(d) for d in shape) + "]"


def _format_dim(dim: Dim) -> str:
    return "?" if dim is None else str(dim)
