"""What a rule of a pointwise operator is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from whet.compiler.tape import TapeBuilder, computed
from whet.dtypes import DType
from whet.graph import Node, TensorType

Build = Callable[[TapeBuilder, Node, Sequence[int | None]], int]


@dataclass(frozen=True, slots=True)
class ScalarRule:
    """An operator's steps, and the scalar operation whose element types decide whether it can be done."""

    build: Build
    op: str
    refusal: Callable[[Node], str | None] | None = None
    """Why a form of the operator is nothing that tapes compute, whatever its types."""


def result_type(node: Node) -> DType:
    """The type in registers of a node's first output."""
    kind = node.output.type
    assert isinstance(kind, TensorType)
    assert kind.dtype is not None
    return computed(kind.dtype)
