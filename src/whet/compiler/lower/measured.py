"""Operators whose results are as long as the data says: they count first, then write."""

from __future__ import annotations

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import dense
from whet.compiler.lower.demand import demand, dense_result, need
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering
from whet.compiler.step import Word, address
from whet.compiler.views import View, product
from whet.dtypes import INT64
from whet.graph import Node
from whet.graph.dims import Known, ceil_div, minimum
from whet.kernels.gather import Gather
from whet.kernels.nonzero import NonZeroCount, NonZeroWrite

BLOCK = 4096
"""Elements of a slice in one tile."""


def lower_non_zero(ctx: Lowering, node: Node, group: Group | None) -> None:
    view = dense(ctx, ctx.view(need(node, 0)))
    names = ctx.undeclared(node.output)
    _count(ctx, view, names[1], view.size)
    with dense_result(ctx, node.output) as out:
        _write(ctx, view, out)


def _count(ctx: Lowering, view: View, name: str, most: Known) -> None:
    """Let `name` be the number of elements that are not 0."""
    count = ctx.temporary(INT64, (1,), label=name)
    words: dict[str, Word] = {"x": address(view), "count": address(count), "size": view.size}
    ctx.emit(NonZeroCount(view.element), words, 1, [view], [count], parallel=False)
    ctx.load({name: (count, most)})


def _write(ctx: Lowering, view: View, out: View) -> None:
    words: dict[str, Word] = {
        "x": address(view), "out": address(out), "out_row": out.strides[0],
        **{f"extent{i}": extent for i, extent in enumerate(view.shape)},
    }  # fmt: skip
    ctx.emit(NonZeroWrite(view.element, view.rank), words, 1, [view], [out], parallel=False)


def lower_compress(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, condition = ctx.view(need(node, 0)), dense(ctx, ctx.view(need(node, 1)))
    axis = node.attributes.get("axis")
    data = dense(ctx, data)
    if not isinstance(axis, int):
        flat = data.reshape((data.size,))
        assert flat is not None
        data, axis = flat, 0
    axis %= data.rank
    extent = data.shape[axis]
    demand(ctx, "at_most", condition.shape[0], extent, "the condition is longer than the axis")
    names = ctx.undeclared(node.output)
    (name,) = names.values()
    _count(ctx, condition, name, minimum(condition.size, extent))
    with dense_result(ctx, node.output) as out:
        count = out.shape[axis]
        indices = ctx.temporary(INT64, (1, count), label=f"kept of {node.output.name}")
        _write(ctx, condition, indices)
        outer, inner = product(data.shape[:axis]), product(data.shape[axis + 1 :])
        spec = Gather(data.element.bits // 8, INT64, 1 if inner == 1 else None)
        words: dict[str, Word] = {
            "data": address(data), "indices": address(indices), "out": address(out), "outer": outer, "axis": extent,
            "count": count, "inner": inner, "block": BLOCK,
        }  # fmt: skip
        ctx.emit(spec, words, outer * count * ceil_div(inner, BLOCK), [data, indices], [out])


def _non_zero_refusal(node: Node) -> str | None:
    reason = tensor_refusal(node)
    return reason or ("its operand is a scalar" if not need(node, 0).shape else None)


def _compress_refusal(node: Node) -> str | None:
    reason = tensor_refusal(node)
    if reason is None and len(need(node, 1).shape or ()) != 1:
        reason = "its condition is no vector"
    return reason or ("its operand is a scalar" if not need(node, 0).shape else None)


NON_ZERO = Rule(lower_non_zero, _non_zero_refusal)
COMPRESS = Rule(lower_compress, _compress_refusal)
