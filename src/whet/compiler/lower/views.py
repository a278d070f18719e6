"""Operators that move no element where memory allows: the result is another view of the operand."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy, relayout
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, shape_of
from whet.compiler.views import memory_order
from whet.graph import Node, Value
from whet.graph.dims import Known, maximum, minimum


def lower_reshape(ctx: Lowering, node: Node, group: Group | None) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the target shape is known by inference."""
    source = node.inputs[0]
    assert source is not None
    view, shape = ctx.view(source), shape_of(node.output)
    result = view.reshape(shape)
    if result is None:
        result = relayout(ctx, view).reshape(shape)
    if result is None:
        raise ctx.refuse(f"no way from {view.shape} to {shape}")
    ctx.define(node.output, result)


def lower_transpose(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    view = ctx.view(source)
    order = node.ints_attr("perm", tuple(reversed(range(view.rank))))
    ctx.define(node.output, view.transpose(order))


def lower_expand(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    ctx.define(node.output, ctx.view(source).broadcast(shape_of(node.output)))


def _ints(value: Value | None) -> tuple[int, ...] | None:
    if value is None or value.data is None:
        return None
    return tuple(int(i) for i in value.data.numpy().reshape(-1))


def lower_slice(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    view, shape = ctx.view(source), shape_of(node.output)
    starts, axes, steps = _elements(node.input(1)), _ints(node.input(3)), _ints(node.input(4))
    if starts is None:
        raise ctx.refuse("the starts of a slice are not known")
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    for start, axis, step in zip(starts, axes, steps, strict=True):
        axis %= view.rank
        extent = view.shape[axis]
        first = clamped_start(start, extent, step)
        if first is None:
            raise ctx.refuse(f"the start {start} of a slice over {extent} may lie on either side of 0")
        view = view.slice(axis, first, shape[axis], step)
    ctx.define(node.output, view)


def clamped_start(start: Known, extent: Known, step: int) -> Known | None:
    """Where a slice begins, counted from the front; None where extents decide whether that is inside."""
    if isinstance(start, int):
        from_front = start if start >= 0 else maximum(extent + start, 0)
    elif any(c < 0 for c in start.terms.values()):
        return None
    else:
        from_front = start
    return minimum(from_front, extent if step > 0 else extent - 1)


def _elements(value: Value | None) -> Sequence[Known] | None:
    known = _ints(value)
    if known is not None or value is None:
        return known
    if value.symbolic is None or any(e is None for e in value.symbolic):
        return None
    return [e for e in value.symbolic if e is not None]


def lower_split(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    view = ctx.view(source)
    axis = node.int_attr("axis", 0) % view.rank
    offset: Known = 0
    for value in node.outputs:
        length = shape_of(value)[axis]
        ctx.define(value, view.slice(axis, offset, length))
        offset = offset + length


def lower_concat(ctx: Lowering, node: Node, group: Group | None) -> None:
    """Operands that were not written where the result lies are copied there."""
    first = next(v for v in node.inputs if v is not None)
    if ctx.has_view(node.output):
        result = ctx.view(node.output)
    else:
        result = ctx.new(node.output, memory_order(ctx.view(first)))
    axis = node.int_attr("axis", 0) % result.rank
    offset: Known = 0
    for value in node.inputs:
        assert value is not None
        view = ctx.view(value)
        length = view.shape[axis]
        place = result.slice(axis, offset, length)
        if not (view.buffer is place.buffer and view.offset == place.offset and view.strides == place.strides):
            copy(ctx, view, place)
        offset = offset + length


RESHAPE = Rule(lower_reshape, tensor_refusal)
TRANSPOSE = Rule(lower_transpose, tensor_refusal)
EXPAND = Rule(lower_expand, tensor_refusal)
SLICE = Rule(lower_slice, tensor_refusal)
SPLIT = Rule(lower_split, tensor_refusal)
CONCAT = Rule(lower_concat, tensor_refusal)
