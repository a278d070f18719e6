"""Attention in the form that ONNX Runtime's CPU kernel computes as the standard says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from whet import dtypes
from whet.graph import Dim, Graph, Node, Patch, TensorType, Value
from whet.graph.core import dim_of
from whet.graph.tensor import Array
from whet.passes.base import PassContext, producer


class PrepareAttentionMask:
    """Rewrites masks that ONNX Runtime's CPU kernel refuses or misreads; the Attention operator itself stays.

    - A mask that is the same for all queries is expanded to one row a query: the kernel does not broadcast over them.
    - The type's lowest finite number becomes the next one above it: the kernel takes a row that holds nothing else for
      one whose keys are all removed and answers zeros, where a finite mask leaves equal weights.

    The standard operator is kept because that provider runs it at least as fast as com.microsoft's MultiHeadAttention.
    """

    name = "prepare-attention-mask"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        raised: dict[Value, Value] = {}
        spread: dict[tuple[Value, Dim], Value] = {}
        for node in graph:
            for subgraph in node.subgraphs():
                yield from self.patches(subgraph, context)
            mask = node.input(3) if node.op == "Attention" else None
            if mask is None:
                continue
            nodes: list[Node] = []
            new = _spread(node, _raise_lowest(mask, raised, nodes), spread, nodes)
            if new is mask:
                continue
            inputs = [new if index == 3 else value for index, value in enumerate(node.inputs)]
            attention = Node("Attention", inputs, [Value("", v.type) for v in node.outputs], node.attributes)
            replaced = dict(zip(node.outputs, attention.outputs, strict=True))
            yield Patch(node, [*nodes, attention], replaced, [node])


def _raise_lowest(mask: Value, made: dict[Value, Value], nodes: list[Node]) -> Value:
    """`mask` without the lowest number of its type; `made` holds the masks of this graph that have been treated."""
    dtype = mask.type.dtype if isinstance(mask.type, TensorType) else None
    if dtype not in (dtypes.FLOAT32, dtypes.FLOAT16, dtypes.FLOAT64):
        return mask
    known = made.get(mask)
    if known is not None:
        return known
    lowest = np.finfo(dtype.numpy).min
    above = np.nextafter(lowest, dtype.numpy.type(0))
    made[mask] = _raised(mask, lowest, above, nodes)
    return made[mask]


def _raised(mask: Value, lowest: np.floating, above: np.floating, nodes: list[Node]) -> Value:
    if mask.array is not None:
        return _raised_constant(mask, lowest, above)
    choice = producer(mask, "Where")
    if choice is not None:
        condition, *options = choice.inputs
        if all(v is not None and v.array is not None for v in options):
            constants = [_raised_constant(v, lowest, above) for v in options if v is not None]
            if constants == options:
                return mask
            nodes.append(Node("Where", [condition, *constants], [Value("", mask.type)]))
            return nodes[-1].output
    found = Node("Equal", [mask, _constant(np.asarray(lowest))], [Value("", TensorType(dtypes.BOOL, mask.shape))])
    raised = Node("Where", [found.output, _constant(np.asarray(above)), mask], [Value("", mask.type)])
    nodes += [found, raised]
    return raised.output


def _raised_constant(value: Value, lowest: np.floating, above: np.floating) -> Value:
    array = value.array
    assert array is not None
    return _constant(np.where(array == lowest, above, array)) if bool((array == lowest).any()) else value


def _spread(node: Node, mask: Value, made: dict[tuple[Value, Dim], Value], nodes: list[Node]) -> Value:
    """`mask` with one row a query; `made` holds the masks of this graph that have been spread, by extent."""
    query, shape = node.input(0), mask.shape
    if query is None or query.shape is None or shape is None or len(shape) < 2:
        return mask
    axis = len(query.shape) - 2
    queries = dim_of(query, axis)
    if queries is not None and queries == shape[-2]:
        return mask
    wide = made.get((mask, queries)) if queries is not None else None
    if wide is None:
        target = _target(query, axis, len(shape), nodes)
        dtype = mask.type.dtype if isinstance(mask.type, TensorType) else None
        wide = Value("", TensorType(dtype, (*shape[:-2], queries, shape[-1])))
        nodes.append(Node("Expand", [mask, target], [wide]))
        made[mask, queries] = wide
    return wide


def _target(query: Value, axis: int, rank: int, nodes: list[Node]) -> Value:
    """The shape to expand a mask of this rank to: 1 but for the number of queries."""
    queries = dim_of(query, axis)
    ones = [1] * rank
    if isinstance(queries, int):
        ones[-2] = queries
        return _constant(np.array(ones, np.int64))
    extent = Node("Shape", [query], [Value("", TensorType(dtypes.INT64, (1,)))], {"start": axis, "end": axis + 1})
    before, after = (_constant(np.array(part, np.int64)) for part in (ones[:-2], ones[-1:]))
    inputs = [extent.output, after] if rank == 2 else [before, extent.output, after]
    target = Node("Concat", inputs, [Value("", TensorType(dtypes.INT64, (rank,)))], {"axis": 0})
    nodes += [extent, target]
    return target.output


def _constant(array: Array) -> Value:
    return Value.constant("", array)
