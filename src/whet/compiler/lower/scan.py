"""Along one axis: running totals, and the largest elements."""

from __future__ import annotations

from typing import Literal

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy
from whet.compiler.lower.demand import demand, integers, need
from whet.compiler.lower.measure import measure_top_k
from whet.compiler.lower.movement import kept_axes, kept_tiles, kept_words
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, shape_of
from whet.compiler.step import Word, address
from whet.compiler.views import memory_order
from whet.dtypes import BOOL, INT64
from whet.graph import Node, TensorType
from whet.kernels.scan import Cumulative
from whet.kernels.topk import TopK

ROWS = 1
"""Rows in one tile: each may be long."""
COLUMNS = 256
"""Columns in one tile."""


def _refusal(node: Node) -> str | None:
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    kind = need(node, 0).type
    assert isinstance(kind, TensorType)
    if kind.dtype is BOOL:
        return "its input is bool"
    return "its input is a scalar" if kind.shape == () else None


def lower_cumulative(ctx: Lowering, node: Node, group: Group | None) -> None:
    """CumSum and CumProd."""
    data, chosen = ctx.view(need(node, 0)), integers(ctx, need(node, 1))
    assert chosen is not None
    axis = chosen[0] % data.rank
    out = ctx.new(node.output, memory_order(data))
    extents, (of, to) = kept_axes([data, out], [axis])
    layout: Literal["rows", "columns"] = "columns" if of[-1] == 1 and to[-1] == 1 and extents != [1] else "rows"
    kind: Literal["sum", "prod"] = "sum" if node.op == "CumSum" else "prod"
    spec = Cumulative(
        kind, data.element, layout, bool(node.int_attr("exclusive", 0)), bool(node.int_attr("reverse", 0)), len(extents)
    )
    tile = COLUMNS if layout == "columns" else ROWS
    words: dict[str, Word] = {
        "x": address(data), "out": address(out), "length": data.shape[axis], "x_axis": data.strides[axis],
        "out_axis": out.strides[axis], "tile": tile, **kept_words(extents, {"x": of, "out": to}),
    }  # fmt: skip
    ctx.emit(spec, words, kept_tiles(extents, tile), [data], [out], flops=data.size * 8)


def lower_top_k(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, first = ctx.view(need(node, 0)), node.output
    axis = node.int_attr("axis", -1) % data.rank
    measure_top_k(ctx, node, axis)
    shape = shape_of(first)
    count = shape[axis]
    demand(ctx, "at_most", count, data.shape[axis], "K is larger than the axis is long")
    demand(ctx, "at_most", 0, count, "K is negative")
    second = node.outputs[1] if len(node.outputs) > 1 else None
    results = [ctx.new(value) if value is not None else None for value in (first, second)]
    made = [
        view if view is not None and view.is_dense() else ctx.temporary(element, shape, None, first.name)
        for view, element in zip(results, (data.element, INT64), strict=True)
    ]
    extents, (of, to) = kept_axes([data, made[0]], [axis])
    words: dict[str, Word] = {
        "x": address(data), "values": address(made[0]), "indices": address(made[1]), "length": data.shape[axis],
        "x_axis": data.strides[axis], "out_axis": made[0].strides[axis], "count": count, "tile": ROWS,
        **kept_words(extents, {"x": of, "out": to}),
    }  # fmt: skip
    spec = TopK(data.element, bool(node.int_attr("largest", 1)), len(extents))
    ctx.emit(spec, words, kept_tiles(extents, ROWS), [data], made, flops=data.size * 16)
    for view, source in zip(results, made, strict=True):
        if view is not None and view is not source:
            copy(ctx, source, view)


CUMULATIVE = Rule(lower_cumulative, _refusal)
TOP_K = Rule(lower_top_k, _refusal)
