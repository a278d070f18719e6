"""The cosine and sine tables of a rotary embedding: halved where each angle stands in them twice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whet.graph import Node, Value
from whet.graph.dims import product
from whet.passes.extended.attention_views import Builder, same, same_dims

_ELEMENTWISE = frozenset({"Cos", "Sin", "Cast", "Identity", "Neg"})
_SCALINGS = frozenset({"Mul", "Div"})
_DEPTH = 12


@dataclass(frozen=True, slots=True)
class Angles:
    """How to make a table of (batch, rows, columns / 2) from the one that the graph has."""

    table: Value
    heads_axis: int
    repeated: bool
    interleaved: bool

    def build(self, builder: Builder) -> Value:
        """Append the nodes and return the table."""
        half = _halve(self.table, self.interleaved, builder, 0) if self.repeated else self.table
        assert half is not None
        assert half.shape is not None
        rank = len(half.shape)
        if rank == 4:
            source = half.producer
            if source is not None and source in builder.nodes and source.op == "Unsqueeze":
                inner, axes = source.inputs
                array = axes.array if axes is not None else None
                if inner is not None and array is not None and [int(a) % 4 for a in array] == [self.heads_axis]:
                    builder.nodes.remove(source)
                    source.detach()
                    return inner
            shape = (*half.shape[: self.heads_axis], *half.shape[self.heads_axis + 1 :])
            return builder.add("Squeeze", [half, builder.ints([self.heads_axis])], half, shape)
        if rank == 3 and self.heads_axis == 2:
            half = builder.add("Squeeze", [half, builder.ints([1])], half, (half.shape[0], half.shape[2]))
            rank = 2
        if rank == 3:
            return half
        assert half.shape is not None
        return builder.add("Unsqueeze", [half, builder.ints([0])], half, (1, *half.shape))


def angles_of(table: Value, heads_axis: int, repeated: bool, interleaved: bool) -> Angles | str:
    """The table's half, or why it is not known that each angle stands in it twice."""
    dims = table.shape
    if dims is None or (len(dims) == 3 and not same(dims[0], 1)):
        return f"the table {table.name} has one row for each head"
    if repeated and not _repeats(table, interleaved, 0):
        return f"the table {table.name} is not known to hold each angle twice"
    return Angles(table, heads_axis, repeated, interleaved)


def _repeats(value: Value, interleaved: bool, depth: int) -> bool:
    """Whether the second half (or the odd columns) of the last axis are known to equal the first (the even ones)."""
    shape = value.shape
    if shape is None or depth > _DEPTH:
        return False
    if value.data is not None:
        array = np.asarray(value.data.numpy())
        if array.ndim == 0 or array.shape[-1] % 2:
            return False
        return bool(np.array_equal(*_halves(array, interleaved)))
    node = value.producer
    if node is None:
        return False
    if _doubled(node, interleaved) is not None:
        return True
    inner = _inner(node)
    return inner is not None and _repeats(inner, interleaved, depth + 1)


def _halve(value: Value, interleaved: bool, builder: Builder, depth: int) -> Value | None:
    """The first half (or even columns) of a value that `_repeats`."""
    if value.data is not None:
        return builder.constant(np.ascontiguousarray(_halves(np.asarray(value.data.numpy()), interleaved)[0]))
    node = value.producer
    assert node is not None
    doubled = _doubled(node, interleaved)
    if doubled is not None:
        source, axes = doubled
        if not axes:
            return source
        assert value.shape is not None
        assert source.shape is not None
        return builder.add("Unsqueeze", [source, builder.ints(axes)], source, (*value.shape[:-1], source.shape[-1]))
    inner = _inner(node)
    assert inner is not None
    half = _halve(inner, interleaved, builder, depth + 1)
    shape = value.shape
    assert shape is not None
    extent = shape[-1]
    narrow = (*shape[:-1], extent // 2 if isinstance(extent, int) else None)
    inputs = [half if v is inner else v for v in node.inputs]
    return builder.add(node.op, inputs, value, narrow, node.attributes)


def _halves(
    array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], interleaved: bool
) -> tuple[np.ndarray, np.ndarray]:
    if interleaved:
        return array[..., 0::2], array[..., 1::2]
    middle = array.shape[-1] // 2
    return array[..., :middle], array[..., middle:]


def _doubled(node: Node, interleaved: bool) -> tuple[Value, list[int]] | None:
    """(x, axes) when the node's output is x, unsqueezed at `axes`, with each half or each column of it twice.

    Halves: Concat(x, x, axis=-1). Columns: Reshape of an Expand, Tile or Concat of Unsqueeze(x, [*axes, -1]).
    """
    shape = node.output.shape
    if not shape:
        return None
    if not interleaved:
        last = node.op == "Concat" and node.int_attr("axis", 0) % len(shape) == len(shape) - 1
        twice = last and len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
        return (node.inputs[0], []) if twice and node.inputs[0] is not None else None
    wide = node.inputs[0] if node.op == "Reshape" else None
    if wide is None or wide.shape is None or len(wide.shape) != len(shape) + 1 or not same(wide.shape[-1], 2):
        return None
    if not same_dims(wide.shape[:-2], shape[:-1]) or not same(product(wide.shape[-2:]), shape[-1]):
        return None
    spread = wide.producer
    if spread is None or spread.op not in ("Expand", "Tile", "Concat"):
        return None
    if spread.op == "Concat" and any(v is not spread.inputs[0] for v in spread.inputs):
        return None
    narrow = spread.inputs[0]
    if narrow is None or narrow.shape is None or not same_dims(narrow.shape, (*wide.shape[:-1], 1)):
        return None
    unsqueeze = narrow.producer
    if unsqueeze is None or unsqueeze.op != "Unsqueeze" or unsqueeze.inputs[0] is None:
        return None
    positions = unsqueeze.input(1)
    array = positions.array if positions is not None else None
    if array is None:
        return None
    rank = len(wide.shape)
    axes = sorted(int(a) % rank for a in array.reshape(-1))
    return (unsqueeze.inputs[0], axes[:-1]) if axes and axes[-1] == rank - 1 else None


def _inner(node: Node) -> Value | None:
    """The input whose last axis `node` hands through column by column."""
    source, shape = node.inputs[0], node.output.shape
    if source is None or shape is None:
        return None
    if node.op in _ELEMENTWISE:
        return source
    if node.op in _SCALINGS:
        for x, c in (node.inputs, node.inputs[::-1])[: 1 if node.op == "Div" else 2]:
            if x is not None and c is not None and c.data is not None and c.data.size == 1 and x.data is None:
                return x if x.shape is not None and len(x.shape) == len(shape) else None
        return None
    if node.op in ("Unsqueeze", "Squeeze"):
        axes = node.input(1)
        rank = max(len(shape), len(source.shape or ()))
        if axes is None or axes.array is None or any(int(a) % rank == rank - 1 for a in axes.array.reshape(-1)):
            return None
        return source
    if node.op == "Gather":
        rank = len(source.shape or ())
        return source if rank >= 2 and node.int_attr("axis", 0) % rank != rank - 1 else None
    if node.op == "Slice":
        axes = node.input(3)
        if axes is None or axes.array is None or any(int(a) % len(shape) == len(shape) - 1 for a in axes.array):
            return None
        return source
    return None
