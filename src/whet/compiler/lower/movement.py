"""Operators that only move elements: padding, tiling, blocks of channels, triangles, sequences turned round."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy, dense, relayout
from whet.compiler.lower.demand import demand, demand_same, integers, need, numbers
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, shape_of
from whet.compiler.step import Word, address
from whet.compiler.views import View, collapse, hint, memory_order, product
from whet.dtypes import INT64
from whet.graph import Node, TensorType
from whet.graph.dims import Known, ceil_div, maximum, minimum
from whet.kernels.generate import Trilu
from whet.kernels.periodic import Periodic
from whet.kernels.reverse import ReverseSequence

FILL_BYTES = 1 << 17
"""Results up to this size are filled whole before the inside is written, which are fewer steps than borders alone."""
ROWS = 16
"""Rows in one tile."""
BLOCK = 4096
PAD_MODES = ("constant", "reflect", "edge", "wrap")


def pad_refusal(node: Node) -> str | None:
    if node.str_attr("mode", "constant") not in PAD_MODES:
        return f"no padding {node.str_attr('mode', 'constant')}"
    return tensor_refusal(node)


def lower_pad(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, mode = ctx.view(need(node, 0)), node.str_attr("mode", "constant")
    amounts, chosen = numbers(ctx, need(node, 1)), integers(ctx, node.input(3))
    assert amounts is not None
    axes = [a % data.rank for a in chosen] if chosen is not None else list(range(data.rank))
    before: list[Known] = [0] * data.rank
    after: list[Known] = [0] * data.rank
    for position, axis in enumerate(axes):
        front, back = amounts[position], amounts[position + len(axes)]
        cut = maximum(-front, 0)
        left = maximum(data.shape[axis] - cut - maximum(-back, 0), 0)
        # What is cut off more than there is leaves an empty axis: its start must not lie outside.
        data = data.slice(axis, minimum(cut, data.shape[axis]), left)
        before[axis], after[axis] = maximum(front, 0), maximum(back, 0)
    out = ctx.new(node.output, memory_order(data))
    inside = out
    for axis in range(out.rank):
        inside = inside.slice(axis, before[axis], data.shape[axis])
    if mode == "constant":
        value = node.input(2)
        fill = ctx.view(value).reshape(()) if value is not None else ctx.zeros(1, data.element).drop(0)
        assert fill is not None
        _fill_around(ctx, fill, out, before, data.shape)
        copy(ctx, data, inside)
        return
    copy(ctx, data, inside)
    # Axis by axis: what lies around along the axes before it is there already.
    place = inside
    for axis in range(out.rank):
        place = _whole(out, place, axis)
        if before[axis] == 0 and after[axis] == 0:
            continue
        _continue(ctx, mode, place, axis, before[axis], data.shape[axis], after[axis])


def _whole(out: View, place: View, axis: int) -> View:
    """`place`, a window of `out`, with all of `axis`; the axes before are whole already."""
    before = place.slice(axis, 0, 1)
    shape = list(place.shape)
    shape[axis] = out.shape[axis]
    offset = out.offset
    for other in range(axis + 1, out.rank):
        offset = offset + _start(out, before, other)
    return View(out.buffer, tuple(shape), out.strides, offset, out.dtype)


def _fill_around(
    ctx: Lowering, fill: View, out: View, before: Sequence[Known], extents: Sequence[Known]
) -> None:
    """Write `fill` to every element of `out` that lies outside of the window [before, before + extents)."""
    if hint(out.size) * (out.element.bits // 8) <= FILL_BYTES:
        copy(ctx, fill.broadcast(out.shape), out)
        return
    place = out
    for axis in range(out.rank):
        start, length, end = before[axis], extents[axis], before[axis] + extents[axis]
        for first, count in ((0, start), (end, out.shape[axis] - end)):
            if count != 0:
                part = place.slice(axis, first, count)
                copy(ctx, fill.broadcast(part.shape), part)
        place = place.slice(axis, start, length)
