"""What the basic passes share: making typed nodes, reading constants, dropping a node that only passes a value on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from whet.graph import Attribute, Graph, Node, Patch, TensorData, TensorType, Value
from whet.graph.tensor import Array
from whet.ops.infer import infer_node
from whet.ops.merge import refine

_UNIFORM_ELEMENTS = 1 << 16
"""Constants larger than this are not searched for being all one number."""


def make(
    op: str, inputs: Iterable[Value | None], attributes: Mapping[str, Attribute] | None = None, outputs: int = 1
) -> Node:
    """A new ONNX node with its outputs' types inferred; `apply` names it."""
    node = Node(op, inputs, [""] * outputs, attributes)
    infer_node(node)
    return node


def substitute(node: Node, op: str, inputs: Iterable[Value | None], attributes: Mapping[str, Attribute]) -> Patch:
    """The patch that puts a new node in the place of a node with one output."""
    made = make(op, inputs, attributes)
    keep_type(made.output, node.output)
    return Patch(node, [made], {node.output: made.output}, [node])


def keep_type(new: Value, old: Value) -> None:
    """Let `new`, which will hold the same tensor as `old`, know what `old` knows."""
    if new.type is None:
        new.type = old.type
    elif old.type is not None and new.data is None:
        new.type = refine(new.type, old.type)


def constant(array: Array | TensorData) -> Value:
    """A new constant without a name (constants are known by identity)."""
    return Value.constant("", array)


def ints(*numbers: int) -> Value:
    """A new int64 vector."""
    return constant(np.array(numbers, np.int64))


def bypass(node: Node, source: Value) -> Patch | None:
    """Let the readers of the node's first output read `source`; None where an Identity would have to take its place.

    An output of a graph keeps its name and its producer in that graph: `source` can only stand in when it is made there
    and is no output itself.
    """
    out = node.outputs[0]
    if out.graph_outputs and node.op == "Identity":
        graph = node.graph
        made_here = source.producer is not None and source.producer.graph is graph
        if not made_here or source.graph_outputs or out.graph_outputs > 1:
            return None
    if source.producer is not None:
        keep_type(source, out)
    return Patch(node, (), {out: source}, [node] if all(v.use_count == 0 for v in node.outputs[1:]) else [])


def uniform(value: Value | None, products: bool = True) -> Any | None:
    """The one number that all elements of a value are (a Python number), else None.

    Sees constants, ConstantOfShape and, unless `products` is false, a zero of either kind multiplied by a finite number
    of either kind (torch's `baddbmm` with beta 0).
    """
    if value is None:
        return None
    node = value.producer
    if node is not None and node.op == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill.scalar() if isinstance(fill, TensorData) and fill.size == 1 else 0.0
    if node is not None and node.op == "Mul" and products:
        factors = [uniform(v, products=False) for v in node.inputs]
        numbers = [f for f in factors if f is not None and math.isfinite(f)]
        return math.prod(numbers) if len(numbers) == len(factors) and 0 in numbers else None
    data = value.data
    if data is None or not 0 < data.size <= _UNIFORM_ELEMENTS or not _is_real(data):
        return None
    array = data.numpy()
    first = array.flat[0]
    if data.size > 1 and not (array == first).all():
        return None
    return first.item()


def _is_real(data: TensorData) -> bool:
    return data.dtype.kind not in ("string", "complex")


def constant_true(value: Value | None) -> bool | None:
    """The truth of a condition where it is known before a run, else None."""
    if value is None:
        return None
    if value.data is not None and value.data.size == 1:
        return bool(value.data.scalar())
    if value.symbolic is not None and len(value.symbolic) == 1 and isinstance(value.symbolic[0], int):
        return value.symbolic[0] != 0
    return None


def dtype_name(value: Value) -> str | None:
    """The name of the value's element type."""
    kind = value.type
    return kind.dtype.name if isinstance(kind, TensorType) and kind.dtype is not None else None


def graph_of(node: Node) -> Graph:
    """The graph that the node stands in."""
    assert node.graph is not None
    return node.graph
