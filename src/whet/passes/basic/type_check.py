"""The check that every operator gets element types that its schema allows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from whet.dtypes import DType
from whet.errors import InvalidGraph
from whet.formats.onnx.schemas import KNOWN_DOMAINS, newest
from whet.graph import Graph, Node, Patch, TensorType
from whet.passes.base import PassContext


class TypeCheck:
    """Raises InvalidGraph for a node of a standard operator with an input of a wrong element type; changes nothing.

    Runs where the graph is still the loaded one: passes and kernels behind it may rely on, say, integer axes.
    """

    name = "type-check"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        for inner in graph.all_graphs():
            for node in inner:
                if node.domain in KNOWN_DOMAINS:
                    _check(node)
        return iter(())


def _check(node: Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is None or not isinstance(value.type, TensorType) or value.type.dtype is None:
            continue
        allowed = _allowed(node.domain, node.op_type, index)
        if allowed is not None and _written(value.type.dtype) not in allowed:
            raise InvalidGraph(
                f"input {index} has a wrong element type",
                node=node.label,
                value=value.name,
                found=str(value.type.dtype),
                expected=" or ".join(sorted(name.removeprefix("tensor").strip("()") for name in allowed)),
            )


@cache
def _allowed(domain: str, op_type: str, index: int) -> frozenset[str] | None:
    """The types that the newest form of an operator takes at an input, as onnx writes them; None if it does not say."""
    schema = newest(domain, op_type)
    if schema is None or not schema.input_types:
        return None
    written = schema.input_types[min(index, len(schema.input_types) - 1)]
    return schema.constraints.get(written, frozenset({written}))


@cache
def _written(dtype: DType) -> str:
    return f"tensor({dtype.ort_name})"
