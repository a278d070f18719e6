"""Attention in the form that ONNX Runtime's CPU kernel accepts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from whet import dtypes
from whet.graph import Dim, Graph, Node, Patch, TensorType, Value
from whet.graph.core import dim_of
from whet.passes.base import PassContext


class SpreadAttentionMask:
    """Expands a mask that is the same for all queries to one row a query: the kernel does not broadcast over queries.

    The operator itself stays: ONNX Runtime's CPU runs the standard one at least as fast as com.microsoft's
    MultiHeadAttention.
    """

    name = "spread-attention-mask"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        made: dict[tuple[Value, Dim], Value] = {}
        for node in graph:
            for subgraph in node.subgraphs():
                yield from self.patches(subgraph, context)
            patch = _spread(node, made) if node.op == "Attention" else None
            if patch is not None:
                yield patch


def _spread(node: Node, made: dict[tuple[Value, Dim], Value]) -> Patch | None:
    """The patch for one attention; `made` holds the masks that are spread already, by extent."""
    query, mask = node.input(0), node.input(3)
    shape = mask.shape if mask is not None else None
    if query is None or query.shape is None or mask is None or shape is None or len(shape) < 2:
        return None
    axis = len(query.shape) - 2
    queries = dim_of(query, axis)
    if queries is not None and queries == shape[-2]:
        return None
    nodes: list[Node] = []
    wide = made.get((mask, queries)) if queries is not None else None
    if wide is None:
        target = _target(query, axis, len(shape), nodes)
        dtype = mask.type.dtype if isinstance(mask.type, TensorType) else None
        wide = Value("", TensorType(dtype, (*shape[:-2], queries, shape[-1])))
        nodes.append(Node("Expand", [mask, target], [wide]))
        made[mask, queries] = wide
    new = Node(
        "Attention",
        [wide if index == 3 else value for index, value in enumerate(node.inputs)],
        [Value("", output.type) for output in node.outputs],
        node.attributes,
    )
    return Patch(node, [*nodes, new], dict(zip(node.outputs, new.outputs, strict=True)), [node])


def _target(query: Value, axis: int, rank: int, nodes: list[Node]) -> Value:
    """The shape to expand a mask of this rank to: 1 but for the number of queries."""
    queries = dim_of(query, axis)
    ones = [1] * rank
    if isinstance(queries, int):
        ones[-2] = queries
        return Value.constant("", np.array(ones, np.int64))
    extent = Node("Shape", [query], [Value("", TensorType(dtypes.INT64, (1,)))], {"start": axis, "end": axis + 1})
    pieces = [Value.constant("", np.array(part, np.int64)) for part in (ones[:-2], ones[-1:])]
    inputs = [extent.output, pieces[1]] if rank == 2 else [pieces[0], extent.output, pieces[1]]
    target = Node("Concat", inputs, [Value("", TensorType(dtypes.INT64, (rank,)))], {"axis": 0})
    nodes += [extent, target]
    return target.output
