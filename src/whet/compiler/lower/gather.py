"""Gathers and scatters: elements and slices that an index tensor names. Kernels check every index."""

from __future__ import annotations

from typing import cast

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy, dense, relayout
from whet.compiler.lower.demand import demand, demand_same, dense_result, need
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.views import View, memory_order, product
from whet.dtypes import INT32, INT64
from whet.graph import Node, TensorType
from whet.graph.dims import Known, ceil_div
from whet.kernels import gather as gathers
from whet.kernels import scatter as scatters
from whet.ops.common import static_ints

BLOCK = 4096
"""Elements of a slice in one tile."""
REDUCTIONS = ("none", "add", "mul", "max", "min")


def _refusal(node: Node) -> str | None:
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    indices = need(node, 1).type
    assert isinstance(indices, TensorType)
    if indices.dtype not in (INT32, INT64):
        return f"its indices have element type {indices.dtype}"
    data = need(node, 0).shape
    if data == ():
        return "its data is a scalar"
    if node.str_attr("reduction", "none") not in REDUCTIONS:
        return f"no reduction {node.str_attr('reduction', 'none')}"
    return None


def _tuple_refusal(node: Node) -> str | None:
    reason = _refusal(node)
    if reason is not None:
        return reason
    indices = need(node, 1).shape
    if not indices or not isinstance(indices[-1], int):
        return "the length of its index tuples is not fixed"
    return None


def lower_gather(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, wanted = ctx.view(need(node, 0)), need(node, 1)
    axis = node.int_attr("axis", 0) % data.rank
    extent = data.shape[axis]
    chosen = static_ints(wanted) if shape_of(wanted) == () else None
    if chosen is not None and isinstance(extent, int) and -extent <= chosen[0] < extent:
        ctx.define(node.output, data.slice(axis, chosen[0] % extent, 1).drop(axis))
        return
    indices = dense(ctx, ctx.view(wanted))
    outer, inner = product(data.shape[:axis]), product(data.shape[axis + 1 :])
    data = dense(ctx, data)
    spec = gathers.Gather(data.element.bits // 8, indices.element, 1 if inner == 1 else None)
    with dense_result(ctx, node.output) as out:
        words: dict[str, Word] = {
            "data": address(data), "indices": address(indices), "out": address(out), "outer": outer, "axis": extent,
            "count": indices.size, "inner": inner, "block": BLOCK,
        }  # fmt: skip
        tiles = outer * indices.size * ceil_div(inner, BLOCK)
        ctx.emit(spec, words, tiles, [data, indices], [out], nbytes=_twice(out))


def lower_gather_elements(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, indices = ctx.view(need(node, 0)), dense(ctx, ctx.view(need(node, 1)))
    axis = node.int_attr("axis", 0) % data.rank
    _demand_inside(ctx, indices.shape, data.shape, axis)
    spec = gathers.GatherElements(data.element.bits // 8, indices.element, data.rank, axis)
    with dense_result(ctx, node.output) as out:
        words: dict[str, Word] = {
            "data": address(data), "indices": address(indices), "out": address(out), "axis": data.shape[axis],
            **{f"n{d}": extent for d, extent in enumerate(out.shape)},
            **{f"data_s{d}": stride for d, stride in enumerate(data.strides)},
        }  # fmt: skip
        ctx.emit(spec, words, product(out.shape[:-1]), [data, indices], [out], nbytes=_twice(out), flops=out.size * 20)


def _demand_inside(ctx: Lowering, indices: tuple[Known, ...], data: tuple[Known, ...], axis: int) -> None:
    """The extents of `indices` are at most those of `data`, except along the axis that they index."""
    for other, (one, limit) in enumerate(zip(indices, data, strict=True)):
        if other != axis:
            demand(ctx, "at_most", one, limit, f"the indices reach past the data along axis {other}")


def lower_gather_nd(ctx: Lowering, node: Node, group: Group | None) -> None:
    data, indices = ctx.view(need(node, 0)), dense(ctx, ctx.view(need(node, 1)))
    batch, width = node.int_attr("batch_dims", 0), indices.shape[-1]
    assert isinstance(width, int)
    demand_same(ctx, indices.shape[:batch], data.shape[:batch], "the batch extents of data and indices differ")
    inner = _part(data, batch + width, data.rank)
    batches = _part(data, 0, batch).reshape((product(data.shape[:batch]),))
    if not inner.is_dense() or batches is None:
        data = relayout(ctx, data)
        inner = _part(data, batch + width, data.rank)
        batches = _part(data, 0, batch).reshape((product(data.shape[:batch]),))
    assert batches is not None
    spec = gathers.GatherND(data.element.bits // 8, indices.element, width)
    with dense_result(ctx, node.output) as out:
        words: dict[str, Word] = {
            "data": address(data), "indices": address(indices), "out": address(out),
            "per_batch": product(indices.shape[batch:-1]), "batch_stride": batches.strides[0] if batch else 0,
            "inner": inner.size,
            **{f"axis{j}": data.shape[batch + j] for j in range(width)},
            **{f"data_s{j}": data.strides[batch + j] for j in range(width)},
        }  # fmt: skip
        ctx.emit(spec, words, product(indices.shape[:-1]), [data, indices], [out], nbytes=_twice(out))


def lower_scatter_elements(ctx: Lowering, node: Node, group: Group | None) -> None:
    data = ctx.view(need(node, 0))
    indices, updates = (dense(ctx, ctx.view(need(node, i))) for i in (1, 2))
    axis = node.int_attr("axis", 0) % data.rank
    _demand_inside(ctx, indices.shape, data.shape, axis)
    demand_same(ctx, updates.shape, indices.shape, "the updates do not fit the indices")
    out = ctx.new(node.output, memory_order(data))
    copy(ctx, data, out)
    spec = scatters.ScatterElements(data.element, indices.element, data.rank, axis, _reduction(node))
    words: dict[str, Word] = {
        "out": address(out), "indices": address(indices), "updates": address(updates), "axis": data.shape[axis],
        **{f"n{d}": extent for d, extent in enumerate(indices.shape)},
        **{f"out_s{d}": stride for d, stride in enumerate(out.strides)},
    }  # fmt: skip
    tiles = product(extent for d, extent in enumerate(indices.shape) if d != axis)
    ctx.emit(spec, words, tiles, [indices, updates, out], [out], nbytes=_twice(updates), flops=updates.size * 20)


def lower_scatter_nd(ctx: Lowering, node: Node, group: Group | None) -> None:
    data = ctx.view(need(node, 0))
    indices, updates = (dense(ctx, ctx.view(need(node, i))) for i in (1, 2))
    width = indices.shape[-1]
    assert isinstance(width, int)
    wanted = (*indices.shape[:-1], *data.shape[width:])
    if len(wanted) != updates.rank:
        raise ctx.refuse(f"updates of rank {updates.rank} where {len(wanted)} is needed")
    demand_same(ctx, updates.shape, wanted, "the updates do not fit the data")
    result = ctx.new(node.output)
    out = result
    if not _part(out, width, out.rank).is_dense():
        out = ctx.temporary(dtype_of(node.output), shape_of(node.output), None, node.output.name)
    copy(ctx, data, out)
    inner = product(data.shape[width:])
    spec = scatters.ScatterND(data.element, indices.element, width, _reduction(node))
    words: dict[str, Word] = {
        "out": address(out), "indices": address(indices), "updates": address(updates),
        "count": product(indices.shape[:-1]), "inner": inner, "block": BLOCK,
        **{f"axis{j}": data.shape[j] for j in range(width)},
        **{f"out_s{j}": out.strides[j] for j in range(width)},
    }  # fmt: skip
    ctx.emit(spec, words, ceil_div(inner, BLOCK), [indices, updates, out], [out], nbytes=_twice(updates))
    if out is not result:
        copy(ctx, out, result)


def _reduction(node: Node) -> scatters.Reduction:
    return cast(scatters.Reduction, node.str_attr("reduction", "none"))


def _part(view: View, first: int, last: int) -> View:
    """The dimensions from `first` up to `last` alone."""
    return View(view.buffer, view.shape[first:last], view.strides[first:last])


def _twice(view: View) -> Known:
    return view.size * (view.element.bits // 8) * 2


GATHER = Rule(lower_gather, _refusal)
GATHER_ELEMENTS = Rule(lower_gather_elements, _refusal)
GATHER_ND = Rule(lower_gather_nd, _tuple_refusal)
SCATTER_ELEMENTS = Rule(lower_scatter_elements, _refusal)
SCATTER_ND = Rule(lower_scatter_nd, _tuple_refusal)
