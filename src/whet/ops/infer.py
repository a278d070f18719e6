"""Type, shape and symbolic value inference over graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from whet.errors import InvalidGraph
from whet.graph import Expr, Graph, Node, TensorType, Type
from whet.graph.dims import MAX_SIZE, Dim, bounded
from whet.ops.base import Infer
from whet.ops.common import elements
from whet.ops.infer_table import CONTROL, INFER, PROPAGATE
from whet.ops.merge import refine
from whet.ops.onnx_infer import infer_with_onnx

NO_CUSTOM: Mapping[str, Infer] = {}


def infer_graph(graph: Graph, custom: Mapping[str, Infer] = NO_CUSTOM, depth: int = 0) -> None:
    """Set `type` and `symbolic` of every value in `graph` and its subgraphs; nodes are in topological order.

    `custom` holds rules for a user's own operators, keyed by `Node.op`; `depth` counts the graphs around this one.
    Types that the model declares stay where inference knows less and give way where it knows better. Raises
    InvalidGraph naming the node whose inputs cannot be right.
    """
    for value in graph.inputs:
        try:
            check_countable(value.type)
        except InvalidGraph as error:
            error.value = value.name
            raise
    for node in graph:
        infer_node(node, custom, depth)


def infer_node(node: Node, custom: Mapping[str, Infer] = NO_CUSTOM, depth: int = 0) -> None:
    """Set `type` and `symbolic` of this node's outputs from its inputs. Raises InvalidGraph naming the node."""
    op = node.op
    try:
        rule = INFER.get(op)
        types: Sequence[Type | None]
        if rule is not None:
            types = rule(node)
        elif op in CONTROL:
            types = CONTROL[op](node, lambda graph: infer_graph(graph, custom, depth + 1), depth)
        elif op in custom:
            types = custom[op](node)
        else:
            types = infer_with_onnx(node)
        for value, found in zip(node.outputs, types, strict=False):
            if found is not None and found is not value.type:
                value.type = refine(_bounded(found), value.type)
        propagate = PROPAGATE.get(op)
        if propagate is not None:
            known = propagate(node)
            node.outputs[0].symbolic = None if known is None else tuple(map(bounded, known))
        elif op == "Split":
            _split_elements(node)
    except InvalidGraph as error:
        if error.node is None:
            error.node = node.label
        raise


def _bounded(kind: Type) -> Type:
    """The type without expressions that have grown too long to follow."""
    if isinstance(kind, TensorType) and kind.shape is not None:
        check_countable(kind)
        for dim in kind.shape:
            if isinstance(dim, Expr) and dim.size > MAX_SIZE:
                return TensorType(kind.dtype, tuple(map(bounded, kind.shape)), kind.sparse)
    return kind


def check_countable(kind: Type | None) -> None:
    """Raise InvalidGraph for a negative extent, and for a tensor with more elements than an int64 counts.

    Free dimensions count as 1.
    """
    if isinstance(kind, TensorType) and kind.shape is not None:
        count = 1
        for dim in kind.shape:
            if isinstance(dim, int):
                if dim < 0:
                    raise InvalidGraph("a tensor has a negative extent", found=list(kind.shape))
                count *= dim
        if count >= 1 << 63:
            raise InvalidGraph("a tensor is too large", found=list(kind.shape), expected="fewer than 2^63 elements")


def _split_elements(node: Node) -> None:
    """Split is the one operator that hands the elements of a vector to several outputs."""
    source = elements(node.inputs[0])
    if source is None:
        return
    at = 0
    for value in node.outputs:
        length: Dim = value.shape[0] if value.shape is not None and len(value.shape) == 1 else None
        if not isinstance(length, int):
            return
        value.symbolic = source[at : at + length]
        at += length
