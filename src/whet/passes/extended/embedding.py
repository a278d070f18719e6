"""Raises a normalized sum of embeddings to com.microsoft's EmbedLayerNormalization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from whet import dtypes
from whet.graph import Attribute, Dim, Expr, Node, Patch, Value
from whet.graph.types import TensorType
from whet.passes.base import NodePass, PassContext
from whet.passes.extended.attention_views import Builder, dtype_of, same, same_dims


@dataclass(frozen=True, slots=True)
class _Lookup:
    """Rows of a constant table, taken by indices."""

    table: Value
    indices: Value


@dataclass(slots=True)
class _Terms:
    """What is summed: lookups by (batch, rows) indices, and the positions' lookup or constant rows."""

    words: _Lookup
    segments: _Lookup | None
    positions: _Lookup | None
    rows: Value | None


class FuseEmbedLayerNorm(NodePass):
    """LayerNormalization(words[ids] + positions[...] + segments[...]) as EmbedLayerNormalization.

    The fused operator refuses negative indices, which Gather counts from the end: indices that may be negative are
    counted from the front first.
    """

    name = "embed-layer-norm"
    roots = frozenset({"LayerNormalization"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        total, scale = node.inputs[0], node.input(1)
        if total is None or scale is None or total.producer is None or total.producer.op != "Add":
            return None
        if total.quantization is not None or total.producer.graph is not node.graph:
            return None
        leaves = _leaves(total)
        if leaves is None:
            return None
        shape = total.shape
        if shape is None or len(shape) != 3 or node.int_attr("axis", -1) not in (-1, 2) or len(scale.shape or ()) != 1:
            context.refuse(self.name, node, "the normalized sum has no rank of 3 or is not normalized over columns")
            return None
        if any(output.use_count for output in node.outputs[1:]):
            context.refuse(self.name, node, "mean or deviation are read")
            return None
        if dtype_of(total) not in (dtypes.FLOAT32, dtypes.FLOAT16) or dtype_of(scale) is not dtype_of(total):
            context.refuse(self.name, node, "the operator takes float32 and float16 only")
            return None
        terms = _sort_terms(leaves, total)
        if isinstance(terms, str):
            context.refuse(self.name, node, terms)
            return None
        return _patch(node, total, scale, terms, context)


def _patch(node: Node, total: Value, scale: Value, terms: _Terms, context: PassContext) -> Patch:
    builder = Builder()
    if terms.positions is None:
        assert terms.rows is not None
        assert terms.rows.data is not None
        array = np.asarray(terms.rows.data.numpy())
        table, position_ids = builder.constant(np.ascontiguousarray(array.reshape(array.shape[-2:]))), None
    else:
        table = terms.positions.table
        position_ids = None if _counts_up(terms.positions.indices) else _position_ids(terms.positions, builder)
    bias = node.input(2)
    if bias is None:
        assert scale.shape is not None
        width = scale.shape[0]
        assert isinstance(width, int)
        dtype = dtype_of(scale)
        assert dtype is not None
        bias = builder.constant(np.zeros(width, dtype.numpy))
    segments = terms.segments
    inputs = [
        _indices(terms.words, builder),
        None if segments is None else _indices(segments, builder),
        terms.words.table,
        table,
        None if segments is None else segments.table,
        scale,
        bias,
        None,
        position_ids,
    ]
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, Attribute] = {"epsilon": node.float_attr("epsilon", 1e-5)}
    assert total.shape is not None
    kind = TensorType(dtype_of(total), total.shape)
    outputs = [Value("", kind), Value("", TensorType(dtypes.INT32, (total.shape[0],)))]
    replaced = {node.output: outputs[0]}
    if total.use_count > 1:
        outputs.append(Value("", kind))
        replaced[total] = outputs[2]
    builder.nodes.append(Node("EmbedLayerNormalization", inputs, outputs, attributes, domain="com.microsoft"))
    return Patch(node, builder.nodes, replaced, [node])


def _leaves(total: Value) -> list[Value] | None:
    """The two or three terms of a sum that are not sums themselves; the inner sum has no other reader."""
    node = total.producer
    assert node is not None
    found: list[Value] = []
    for value in node.inputs:
        assert value is not None
        inner = value.producer
        if inner is not None and inner.op == "Add" and value.use_count == 1 and value.quantization is None:
            found += [v for v in inner.inputs if v is not None]
        else:
            found.append(value)
    lookups = sum(_lookup(v) is not None for v in found)
    return found if len(found) in (2, 3) and lookups >= len(found) - 1 and lookups else None


def _lookup(value: Value) -> _Lookup | None:
    node = value.producer
    if node is None or node.op != "Gather" or node.int_attr("axis", 0) != 0:
        return None
    table, indices = node.inputs
    if table is None or indices is None or table.data is None or len(table.data.shape) != 2:
        return None
    return _Lookup(table, indices)


def _sort_terms(leaves: list[Value], total: Value) -> _Terms | str:
    """Tell words, segments and positions apart: only positions may be the same for all of the batch."""
    assert total.shape is not None
    full: list[_Lookup] = []
    shared: list[_Lookup] = []
    rows: list[Value] = []
    for leaf in leaves:
        found = _lookup(leaf)
        if found is None:
            if leaf.data is None:
                return f"{leaf.name} is no lookup and no constant"
            rows.append(leaf)
        elif found.indices.shape is not None and same_dims(found.indices.shape, total.shape[:2]):
            full.append(found)
        else:
            shared.append(found)
    full.sort(key=lambda term: -(term.table.data.size if term.table.data is not None else 0))
    if not shared and not rows and len(full) > 1:
        counted = [term for term in full if _counts_up(term.indices)]
        shared = [counted[0] if counted else full[1]]
        full.remove(shared[0])
    if len(full) not in (1, 2) or len(shared) + len(rows) != 1:
        return "the terms are not words, positions and at most segments"
    for term in shared:
        shape = term.indices.shape
        if not shape or len(shape) > 2 or not _fills(shape[-1], total.shape[1]):
            return "the positions are not known to be one row a column"
        if len(shape) == 2 and not same(shape[0], 1) and not same(shape[0], total.shape[0]):
            return "the positions are not known to have the batch of the words"
    for constant in rows:
        shape = constant.shape
        if shape is None or len(shape) < 2 or not same_dims(shape[-2:], total.shape[1:]):
            return "the constant positions have not the sum's extent"
        if any(d != 1 for d in shape[:-2]):
            return "the constant positions differ over the batch"
    segments = full[1] if len(full) == 2 else None
    return _Terms(full[0], segments, shared[0] if shared else None, rows[0] if rows else None)


def _fills(extent: Dim, rows: Dim) -> bool:
    """Whether positions of this extent, which broadcast to `rows` in the sum, must have all rows."""
    if same(extent, rows):
        return True
    if not isinstance(extent, Expr) or len(extent.terms) != 1:
        return False
    # min(table size, rows): where that is less than rows and more than one, the sum itself is refused.
    ((monomial, coefficient),) = extent.terms.items()
    if coefficient != 1 or len(monomial) != 1 or monomial[0].op != "min" or rows not in monomial[0].args:
        return False
    return any(isinstance(a, int) and a > 1 for a in monomial[0].args)


def _counts_up(indices: Value) -> bool:
    """Whether every row of `indices` is known to be 0, 1, 2, ..."""
    value = indices
    while value.data is None:
        node = value.producer
        if node is None or node.inputs[0] is None:
            return False
        if node.op == "Range":
            start, step = node.inputs[0], node.input(2)
            numbers = [None if v is None or v.array is None else int(v.array.reshape(-1)[0]) for v in (start, step)]
            return numbers == [0, 1]
        if node.op == "Slice":
            if not _slices_from_zero(node):
                return False
        elif node.op not in ("Unsqueeze", "Cast", "Identity", "Expand"):
            return False
        value = node.inputs[0]
    array = np.asarray(value.data.numpy())
    if array.ndim == 0:
        return False
    return bool((array == np.arange(array.shape[-1])).all())


def _slices_from_zero(node: Node) -> bool:
    starts, axes, steps = node.input(1), node.input(3), node.input(4)
    rank = len(node.output.shape or ())
    if starts is None or starts.array is None or axes is None or axes.array is None or rank == 0:
        return False
    unit = steps is None or (steps.array is not None and bool((steps.array == 1).all()))
    last = [int(a) % rank == rank - 1 for a in axes.array]
    return unit and all(int(s) == 0 for s, is_last in zip(starts.array, last, strict=True) if is_last)


def _position_ids(term: _Lookup, builder: Builder) -> Value:
    value, shape = _indices(term, builder), term.indices.shape
    if shape is not None and len(shape) == 1:
        return builder.add("Unsqueeze", [value, builder.ints([0])], value, (1, *shape))
    return value


def _indices(term: _Lookup, builder: Builder) -> Value:
    """The lookup's indices as int32, none of them counted from the end."""
    value, shape = term.indices, term.indices.shape
    if dtype_of(value) is not dtypes.INT32:
        to = {"to": dtypes.INT32.onnx_code}
        value = builder.add("Cast", [value], value, shape, to, dtype=dtypes.INT32)
    if _never_negative(term.indices):
        return value
    assert term.table.data is not None
    zero, rows = builder.number(0, value), builder.number(term.table.data.shape[0], value)
    negative = builder.add("Less", [value, zero], value, shape, dtype=dtypes.BOOL)
    counted = builder.add("Add", [value, rows], value, shape)
    return builder.add("Where", [negative, counted, value], value, shape)


_MOVEMENT = frozenset(
    {
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


def _never_negative(value: Value) -> bool:
    """Whether the elements come from constants, or from a range, that hold nothing below zero."""
    while value.data is None:
        node = value.producer
        if node is None or node.inputs[0] is None:
            return False
        if node.op == "Range":
            start, step = node.inputs[0].array, node.inputs[2].array if node.inputs[2] is not None else None
            return start is not None and step is not None and bool(start >= 0 and step > 0)
        if node.op not in _MOVEMENT:
            return False
        value = node.inputs[0]
    return value.data.size == 0 or bool((np.asarray(value.data.numpy()) >= 0).all())
