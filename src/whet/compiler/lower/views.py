"""Operators that move no element where memory allows: the result is another view of the operand."""

from __future__ import annotations

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy, dense
from whet.compiler.lower.demand import broadcast, demand, integers
from whet.compiler.lower.measure import bounded_step, clamped_start, measure_reshape, measure_slice
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, shape_of
from whet.compiler.views import View, dense_strides, hint, memory_order, product
from whet.graph import Node
from whet.graph.dims import Known


def lower_reshape(ctx: Lowering, node: Node, group: Group | None) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the target shape is known by inference."""
    source = node.inputs[0]
    assert source is not None
    view, shape = ctx.view(source), shape_of(node.output)
    measure_reshape(ctx, node)
    result = view.reshape(shape)
    if result is None:
        view = dense(ctx, view)
        result = view.reshape(shape)
    if result is None:
        demand(ctx, "equal", product(shape), view.size, "the shape has another number of elements")
        result = View(view.buffer, shape, dense_strides(shape), view.offset, view.dtype)
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
    ctx.define(node.output, broadcast(ctx, ctx.view(source), shape_of(node.output)))


def lower_slice(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    view, shape = ctx.view(source), shape_of(node.output)
    starts, axes, steps = measure_slice(ctx, node), integers(ctx, node.input(3)), integers(ctx, node.input(4))
    axes = axes if axes is not None else tuple(range(len(starts)))
    steps = steps if steps is not None else (1,) * len(starts)
    for start, axis, step in zip(starts, axes, steps, strict=True):
        axis %= view.rank
        first = clamped_start(start, view.shape[axis], step)
        view = view.slice(axis, first, shape[axis], bounded_step(step))
    ctx.define(node.output, view)


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
    demand(ctx, "equal", offset, view.shape[axis], "the lengths do not add up to the axis")


def lower_concat(ctx: Lowering, node: Node, group: Group | None) -> None:
    """Operands that were not written where the result lies are copied there."""
    views = [ctx.view(v) for v in node.inputs if v is not None]
    if len(views) == 1:
        ctx.define(node.output, views[0])
        return
    if ctx.has_view(node.output):
        result = ctx.view(node.output)
    else:
        result = ctx.new(node.output, memory_order(max(views, key=lambda view: hint(view.size))))
    axis = node.int_attr("axis", 0) % result.rank
    offset: Known = 0
    for view in views:
        length = view.shape[axis]
        for other, extent in enumerate(view.shape):
            if other != axis:
                demand(ctx, "equal", extent, result.shape[other], "the extents differ")
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
