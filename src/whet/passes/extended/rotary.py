"""Raises rotary position embeddings from their parts to RotaryEmbedding (opset 23)."""

from __future__ import annotations

from dataclasses import dataclass

from whet import dtypes
from whet.graph import Attribute, Node, Patch, Value
from whet.graph.dims import Shape, product
from whet.passes.base import NodePass, PassContext, producer
from whet.passes.extended.attention_views import HEADS_INNER, IDENTITY, Builder, same, same_dims
from whet.passes.extended.rotary_angles import Angles, angles_of


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of the last axis of `root`: `count` of them from `start`, every `step`-th."""

    root: Value
    start: int
    step: int
    count: int

    def half(self, *, second: bool, interleaved: bool) -> Columns:
        """The first or second half; interleaved: the even or odd columns."""
        half = self.count // 2
        if interleaved:
            return Columns(self.root, self.start + second * self.step, self.step * 2, half)
        return Columns(self.root, self.start + second * half * self.step, self.step, half)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Columns rotated by angles whose cosines and sines are given, for the whole width or for half of it."""

    source: Columns
    cos: Value
    sin: Value
    interleaved: bool
    repeated: bool
    """Cosines and sines have the width of `source`: each angle stands there twice."""


class FuseRotary(NodePass):
    """x * cos + rotate(x) * sin, by halves or by pairs, of all columns or of the first ones, as RotaryEmbedding."""

    name = "rotary-embedding"
    roots = frozenset({"Add", "Concat", "Reshape"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        rotation = _READERS[node.op](node)
        if rotation is None:
            return None
        whole = rotation.source.root.shape
        if any(v.quantization is not None for v in node.inputs if v is not None):
            context.refuse(self.name, node, "a term is quantized")
            return None
        if whole is None or len(whole) != 4 or rotation.source.count % 2 or rotation.source.step != 1:
            context.refuse(self.name, node, "the rotated value has no rank of 4 or no even last extent")
            return None
        shape = (*whole[:3], rotation.source.count)
        heads_axis = _heads_axis(rotation, shape)
        if heads_axis is None:
            context.refuse(self.name, node, "the angles are not one row a position, the same for all heads")
            return None
        builder = Builder()
        caches: list[Value] = []
        for table in (rotation.cos, rotation.sin):
            angles = angles_of(table, heads_axis, rotation.repeated, rotation.interleaved)
            if isinstance(angles, str):
                context.refuse(self.name, node, angles)
                return None
            caches.append(_cache(angles, rotation.source.root, builder))
        return _patch(node, rotation, heads_axis, caches, builder)


def _patch(node: Node, rotation: Rotation, heads_axis: int, caches: list[Value], builder: Builder) -> Patch:
    columns, anchor = rotation.source, node
    attributes: dict[str, Attribute] = {"interleaved": int(rotation.interleaved)}
    partial = _partial(node, columns)
    if partial is not None:
        attributes["rotary_embedding_dim"] = columns.count
        columns, anchor = partial
    root = columns.root
    inner = root if heads_axis == 2 else _before_transpose(root)
    if inner is not None and inner.shape is not None and isinstance(inner.shape[2], int):
        source = _select(inner, columns, builder)
        assert source.shape is not None
        heads = inner.shape[2]
        attributes["num_heads"] = heads
        flat = builder.merge_last_two(source)
        rotated = builder.add("RotaryEmbedding", [flat, *caches], source, flat.shape, attributes)
        split = builder.add("Reshape", [rotated, builder.ints([0, 0, heads, columns.count])], source, source.shape)
        result = split if heads_axis == 2 else builder.transpose(split, HEADS_INNER)
    else:
        source = _select(root, columns, builder)
        perm = IDENTITY if heads_axis == 1 else HEADS_INNER
        turned = builder.transpose(source, perm)
        rotated = builder.add("RotaryEmbedding", [turned, *caches], source, turned.shape, attributes)
        result = builder.transpose(rotated, perm)
    return Patch(anchor, builder.nodes, {anchor.output: result})


def _select(value: Value, columns: Columns, builder: Builder) -> Value:
    """The columns, cut from `value`, whose last axis is the root's."""
    shape = value.shape
    assert shape is not None
    if columns.start == 0 and same(shape[-1], columns.count):
        return value
    bounds = [builder.ints([n]) for n in (columns.start, columns.start + columns.count, len(shape) - 1, 1)]
    return builder.add("Slice", [value, *bounds], value, (*shape[:-1], columns.count))


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
            parts, interleaved = _joined(rotated)
            negated = producer(parts[0], "Neg") if parts is not None else None
            if parts is None or negated is None or sin is None:
                continue
            halves = columns_of(parts[1]), columns_of(negated.inputs[0])
            for x, cos in (plain.inputs, plain.inputs[::-1]):
                source = columns_of(x)
                if source is not None and cos is not None and halves == _halves(source, interleaved):
                    return Rotation(source, cos, sin, interleaved, True)
    return None


def _halves(source: Columns, interleaved: bool) -> tuple[Columns, Columns]:
    return source.half(second=False, interleaved=interleaved), source.half(second=True, interleaved=interleaved)


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
            first, second = columns_of(x1), columns_of(x2)
            if first is None or second is None or cos is None or sin is None:
                continue
            source = _whole(first, second, interleaved)
            wanted = {_pair(x2, cos), _pair(x1, sin)}
            if source is not None and {_pair(*s.inputs) for s in sums if s is not None} == wanted:
                return Rotation(source, cos, sin, interleaved, False)
    return None


def _whole(first: Columns, second: Columns, interleaved: bool) -> Columns | None:
    """The columns whose halves these two are."""
    step = first.step // 2 if interleaved else first.step
    found = Columns(first.root, first.start, step, first.count * 2)
    return found if step and _halves(found, interleaved) == (first, second) else None


def _pair(a: Value | None, b: Value | None) -> frozenset[Value | None]:
    return frozenset((a, b))


_READERS = {"Add": _read_sum, "Concat": _read_pair, "Reshape": _read_pair}


def columns_of(value: Value | None) -> Columns | None:
    """`value` as columns of what it is cut from (itself when it is cut from nothing), or None for unknown extents."""
    if value is None or not value.shape or not isinstance(value.shape[-1], int):
        return None
    start, step, root = 0, 1, value
    while True:
        node = root.producer
        cut = _cut(node, root) if node is not None else None
        if node is None or cut is None or node.inputs[0] is None or root.quantization is not None:
            return Columns(root, start, step, value.shape[-1])
        start, step, root = cut[0] + start * cut[1], step * cut[1], node.inputs[0]


def _cut(node: Node, value: Value) -> tuple[int, int] | None:
    """(start, step) when `value` is a part of the last axis alone of the node's first input."""
    source = node.inputs[0] if node.inputs else None
    if source is None or not source.shape or not isinstance(source.shape[-1], int):
        return None
    last = len(source.shape) - 1
    if node.op == "Split" and node.int_attr("axis", 0) % len(source.shape) == last:
        before = [o.shape[-1] if o.shape else None for o in node.outputs[: value.output_index]]
        return (sum(e for e in before if isinstance(e, int)), 1) if all(isinstance(e, int) for e in before) else None
    if node.op != "Slice":
        return None
    start, axis = _only_int(node.input(1)), _only_int(node.input(3))
    step = 1 if node.input(4) is None else _only_int(node.input(4))
    if start is None or axis is None or step is None or step < 1 or axis % len(source.shape) != last:
        return None
    return (max(start + source.shape[-1], 0) if start < 0 else start, step)


def _only_int(value: Value | None) -> int | None:
    if value is None:
        return None
    if value.array is not None:
        return int(value.array.reshape(-1)[0]) if value.array.size == 1 else None
    known = value.symbolic
    return known[0] if known is not None and len(known) == 1 and isinstance(known[0], int) else None


def _partial(node: Node, rotated: Columns) -> tuple[Columns, Node] | None:
    """The wider columns, and the Concat that joins the result with those which are not rotated."""
    concat = node.output.only_use
    if concat is None or concat.op != "Concat" or len(concat.inputs) != 2 or concat.inputs[0] is not node.output:
        return None
    rank = len(concat.output.shape or ())
    rest = columns_of(concat.inputs[1])
    if rest is None or rank == 0 or concat.int_attr("axis", 0) % rank != rank - 1:
        return None
    if rest != Columns(rotated.root, rotated.start + rotated.count, 1, rest.count):
        return None
    return Columns(rotated.root, rotated.start, 1, rotated.count + rest.count), concat
