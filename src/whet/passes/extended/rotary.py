"""Raises rotary position embeddings from their parts to RotaryEmbedding (opset 23)."""

from __future__ import annotations

from dataclasses import dataclass

from whet import dtypes
from whet.graph import Attribute, Node, Patch, Value
from whet.graph.dims import Shape, product
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.extended.attention_views import HEADS_INNER, Builder, same, same_dims
from whet.passes.extended.rotary_angles import Angles, angles_of


@dataclass(frozen=True, slots=True)
class Half:
    """One of the two halves of the last axis of `source`: the first or second, or every second column."""

    source: Value
    second: bool
    interleaved: bool


@dataclass(frozen=True, slots=True)
class Rotation:
    """`source` rotated by angles whose cosines and sines are given, for the whole width or for half of it."""

    source: Value
    cos: Value
    sin: Value
    interleaved: bool
    repeated: bool
    """Cosines and sines have the width of `source`: each angle stands there twice."""


class FuseRotary(NodePass):
    """x * cos + rotate(x) * sin, by halves or by pairs, of all columns or of the first ones, as RotaryEmbedding."""

    name = "fuse-rotary"
    roots = frozenset({"Add", "Concat", "Reshape"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        rotation = _READERS[node.op](node)
        if rotation is None:
            return None
        builder = Builder()
        shape = rotation.source.shape
        if shape is None or len(shape) != 4 or not isinstance(shape[3], int) or shape[3] % 2:
            context.refuse(self.name, node, "the rotated value has no rank of 4 or no even last extent")
            return None
        heads_axis = _heads_axis(rotation, shape)
        if heads_axis is None:
            context.refuse(self.name, node, "the angles are not one row a position, the same for all heads")
            return None
        caches: list[Value] = []
        for table in (rotation.cos, rotation.sin):
            angles = angles_of(table, heads_axis, shape, rotation.repeated, rotation.interleaved)
            if isinstance(angles, str):
                context.refuse(self.name, node, angles)
                return None
            caches.append(_cache(angles, rotation.source, builder))
        return _patch(node, rotation, heads_axis, caches, builder)


def _patch(node: Node, rotation: Rotation, heads_axis: int, caches: list[Value], builder: Builder) -> Patch:
    source, anchor, width = rotation.source, node, 0
    partial = _partial(node, rotation.source)
    if partial is not None:
        source, anchor = partial
        assert rotation.source.shape is not None
        extent = rotation.source.shape[3]
        assert isinstance(extent, int)
        width = extent
    attributes: dict[str, Attribute] = {"interleaved": int(rotation.interleaved)}
    if width:
        attributes["rotary_embedding_dim"] = width
    shape = source.shape
    assert shape is not None
    inner = source if heads_axis == 2 else _before_transpose(source)
    if inner is not None and inner.shape is not None and isinstance(inner.shape[2], int):
        heads, size = inner.shape[2], inner.shape[3]
        assert isinstance(size, int)
        attributes["num_heads"] = heads
        flat = builder.merge_last_two(inner)
        rotated = builder.add("RotaryEmbedding", [flat, *caches], source, flat.shape, attributes)
        split = builder.add("Reshape", [rotated, builder.ints([0, 0, heads, size])], source, inner.shape)
        result = split if heads_axis == 2 else builder.transpose(split, HEADS_INNER)
    elif heads_axis == 1:
        result = builder.add("RotaryEmbedding", [source, *caches], source, shape, attributes)
    else:
        swapped = builder.transpose(source, HEADS_INNER)
        rotated = builder.add("RotaryEmbedding", [swapped, *caches], source, swapped.shape, attributes)
        result = builder.transpose(rotated, HEADS_INNER)
    return Patch(anchor, builder.nodes, {anchor.output: result})


def _before_transpose(value: Value) -> Value | None:
    """(batch, rows, heads, columns) of which `value` (batch, heads, rows, columns) is the transpose, or None."""
    node = producer(value, "Transpose")
    if node is None or node.ints_attr("perm") != HEADS_INNER:
        return None
    source = node.inputs[0]
    static = source is not None and source.shape is not None and all(isinstance(d, int) for d in source.shape[2:])
    return source if static else None


def _cache(angles: Angles, source: Value, builder: Builder) -> Value:
    """The angles' cosines (or sines) as (batch, rows, columns / 2), with the batch that RotaryEmbedding asks for."""
    table = angles.build(builder)
    shape, batch = table.shape, source.shape[0] if source.shape is not None else None
    assert shape is not None
    if same(shape[0], batch):
        return table
    rows = builder.add("Shape", [source], source, (1,), {"start": 0, "end": 1}, dtype=dtypes.INT64)
    target = builder.add("Concat", [rows, builder.ints([1, 1])], rows, (3,), {"axis": 0})
    return builder.add("Expand", [table, target], table, (batch, *shape[1:]))


def _heads_axis(rotation: Rotation, shape: Shape) -> int | None:
    """1 or 2: the axis over which the angles do not change, where the other of both is the position."""
    found: int | None = None
    for table in (rotation.cos, rotation.sin):
        dims = table.shape
        if dims is None or len(dims) > 4 or len(dims) < 2:
            return None
        padded = (1,) * (4 - len(dims)) + dims
        width = shape[3] if rotation.repeated else _half(shape[3])
        if not same(padded[3], width) or not (same(padded[0], 1) or same(padded[0], shape[0])):
            return None
        if same(padded[1], 1) and same(padded[2], shape[2]) and found in (None, 1):
            found = 1
        elif same(padded[2], 1) and same(padded[1], shape[1]) and found in (None, 2):
            found = 2
        else:
            return None
    return found


def _half(extent: object) -> int | None:
    return extent // 2 if isinstance(extent, int) else None


def _read_sum(node: Node) -> Rotation | None:
    """x * cos + rotate(x) * sin, the tables as wide as x."""
    first, second = producer(node.inputs[0], "Mul"), producer(node.inputs[1], "Mul")
    if first is None or second is None:
        return None
    for plain, turned in ((first, second), (second, first)):
        for rotated, sin in (turned.inputs, turned.inputs[::-1]):
            found = _rotated(rotated)
            if found is None or sin is None:
                continue
            source, interleaved = found
            for x, cos in (plain.inputs, plain.inputs[::-1]):
                if x is source and cos is not None:
                    return Rotation(source, cos, sin, interleaved, True)
    return None


def _rotated(value: Value | None) -> tuple[Value, bool] | None:
    """(x, interleaved) when `value` is (-x2, x1) for the halves x1 and x2 of x."""
    parts, interleaved = _joined(value)
    if parts is None:
        return None
    negated = producer(parts[0], "Neg")
    second, first = half_of(negated.inputs[0]) if negated is not None else None, half_of(parts[1])
    if first is None or second is None or first.source is not second.source:
        return None
    ordered = second.second and not first.second
    if not ordered or first.interleaved != interleaved or second.interleaved != interleaved:
        return None
    return first.source, interleaved


def _joined(value: Value | None) -> tuple[tuple[Value, Value] | None, bool]:
    """The two halves that `value` is made of, and whether they are interleaved."""
    node = value.producer if value is not None else None
    interleaved = False
    if node is not None and node.op == "Reshape":
        stacked = node.inputs[0]
        outer, inner = node.output.shape, stacked.shape if stacked is not None else None
        if outer is None or inner is None or len(inner) != len(outer) + 1 or not same(inner[-1], 2):
            return None, False
        if not same_dims(outer[:-1], inner[:-2]) or not same(outer[-1], product(inner[-2:])):
            return None, False
        interleaved, node = True, stacked.producer if stacked is not None else None
    if node is None or node.op != "Concat" or len(node.inputs) != 2:
        return None, False
    rank = len(node.output.shape) if node.output.shape is not None else 0
    if rank == 0 or node.int_attr("axis", 0) % rank != rank - 1:
        return None, False
    parts = [_unstacked(v, rank) if interleaved else v for v in node.inputs]
    if parts[0] is None or parts[1] is None:
        return None, False
    return (parts[0], parts[1]), interleaved


def _unstacked(value: Value | None, rank: int) -> Value | None:
    """x in Unsqueeze(x, -1)."""
    node = producer(value, "Unsqueeze")
    axes = node.input(1) if node is not None else None
    if node is None or axes is None or axes.array is None or axes.array.size != 1:
        return None
    return node.inputs[0] if int(axes.array.reshape(-1)[0]) % rank == rank - 1 else None


def _read_pair(node: Node) -> Rotation | None:
    """(x1 * cos - x2 * sin, x2 * cos + x1 * sin), the tables half as wide as x."""
    parts, interleaved = _joined(node.output)
    if parts is None:
        return None
    real, imaginary = producer(parts[0], "Sub"), producer(parts[1], "Add")
    if real is None or imaginary is None:
        return None
    plain, crossed = producer(real.inputs[0], "Mul"), producer(real.inputs[1], "Mul")
    sums = [producer(v, "Mul") for v in imaginary.inputs]
    if plain is None or crossed is None or any(s is None for s in sums):
        return None
    for x1, cos in (plain.inputs, plain.inputs[::-1]):
        for x2, sin in (crossed.inputs, crossed.inputs[::-1]):
            first, second = half_of(x1), half_of(x2)
            if first is None or second is None or cos is None or sin is None or first.source is not second.source:
                continue
            if first.second or not second.second or {first.interleaved, second.interleaved} != {interleaved}:
                continue
            wanted = {_pair(x2, cos), _pair(x1, sin)}
            if {_pair(*s.inputs) for s in sums if s is not None} == wanted:
                return Rotation(first.source, cos, sin, interleaved, False)
    return None


def _pair(a: Value | None, b: Value | None) -> frozenset[Value | None]:
    return frozenset((a, b))


_READERS = {"Add": _read_sum, "Concat": _read_pair, "Reshape": _read_pair}


def half_of(value: Value | None) -> Half | None:
    """The half of a last axis that `value` is, by Slice or Split, or None."""
    node = value.producer if value is not None else None
    if value is None or node is None or node.inputs[0] is None:
        return None
    source = node.inputs[0]
    whole, part = source.shape, value.shape
    if not whole or not part or len(whole) != len(part) or not isinstance(whole[-1], int):
        return None
    half = whole[-1] // 2
    if part[-1] != half or whole[-1] % 2 or not same_dims(whole[:-1], part[:-1]):
        return None
    if node.op == "Split" and len(node.outputs) == 2 and node.int_attr("axis", 0) % len(whole) == len(whole) - 1:
        return Half(source, value.output_index == 1, False)
    bounds = last_axis_slice(node)
    if bounds == (0, 1) or bounds == (half, 1):
        return Half(source, bounds[0] != 0, False)
    if bounds == (0, 2) or bounds == (1, 2):
        return Half(source, bounds[0] == 1, True)
    return None


def last_axis_slice(node: Node) -> tuple[int, int] | None:
    """(start, step) of a Slice over the last axis alone, start counted from the front; None for anything else."""
    source = node.inputs[0]
    if node.op != "Slice" or source is None or not source.shape or not isinstance(source.shape[-1], int):
        return None
    numbers = [_only_int(node.input(index)) for index in (1, 3, 4)]
    start, axis, step = numbers[0], numbers[1], 1 if node.input(4) is None else numbers[2]
    if start is None or axis is None or step is None or axis % len(source.shape) != len(source.shape) - 1:
        return None
    return (start + source.shape[-1] if start < 0 else start, step)


def _only_int(value: Value | None) -> int | None:
    if value is None:
        return None
    if value.array is not None:
        return int(value.array.reshape(-1)[0]) if value.array.size == 1 else None
    known = value.symbolic
    return known[0] if known is not None and len(known) == 1 and isinstance(known[0], int) else None


def _partial(node: Node, rotated: Value) -> tuple[Value, Node] | None:
    """(x, concat) when `rotated` is the first columns of x and `concat` joins the result with x's other columns."""
    concat, first = node.output.only_use, rotated.producer
    if concat is None or concat.op != "Concat" or len(concat.inputs) != 2 or first is None or first.inputs[0] is None:
        return None
    joined, source = concat.output.shape, first.inputs[0]
    rest = concat.inputs[1]
    if joined is None or source.shape is None or rest is None or rest.producer is None or rotated.shape is None:
        return None
    if concat.inputs[0] is not node.output or concat.int_attr("axis", 0) % len(joined) != len(joined) - 1:
        return None
    if rest.producer.inputs[0] is not source or not same_dims(joined, source.shape):
        return None
    if first.op == "Split" and rest.producer is first and len(first.outputs) == 2:
        return (source, concat) if rotated.output_index == 0 and rest.output_index == 1 else None
    if last_axis_slice(first) == (0, 1) and last_axis_slice(rest.producer) == (rotated.shape[-1], 1):
        return source, concat
    return None
