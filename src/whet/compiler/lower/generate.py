"""Tensors that are made rather than moved: shapes, ranges, constants, diagonals, one-hot rows."""

from __future__ import annotations

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import dense
from whet.compiler.lower.demand import demand, dense_result, need
from whet.compiler.lower.pointwise import IN_MEMORY, tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.views import product
from whet.graph import Node, TensorData
from whet.graph.dims import Known, ceil_div
from whet.kernels import generate as kernels
from whet.kernels.store import StoreNumbers

BLOCK = 4096
ROWS = 16


def lower_shape(ctx: Lowering, node: Node, group: Group | None) -> None:
    extents = shape_of(need(node, 0))
    start, end = node.int_attr("start", 0), node.int_attr("end", len(extents))
    _store(ctx, node, list(extents[start:end]))


def lower_size(ctx: Lowering, node: Node, group: Group | None) -> None:
    _store(ctx, node, [product(shape_of(need(node, 0)))])


def _store(ctx: Lowering, node: Node, found: list[Known]) -> None:
    with dense_result(ctx, node.output) as out:
        words: dict[str, Word] = {"out": address(out), **{f"v{i}": number for i, number in enumerate(found)}}
        ctx.emit(StoreNumbers(dtype_of(node.output), len(found)), words, 1, [], [out], parallel=False)


def lower_constant_of_shape(ctx: Lowering, node: Node, group: Group | None) -> None:
    """One element, seen everywhere."""
    value = node.attributes.get("value")
    if not isinstance(value, TensorData):
        value = TensorData.from_array(np.zeros(1, np.float32))
    one = ctx.constant(value).reshape(())
    assert one is not None
    ctx.define(node.output, one.broadcast(shape_of(node.output)))


def lower_range(ctx: Lowering, node: Node, group: Group | None) -> None:
    start, delta = ctx.view(need(node, 0)), ctx.view(need(node, 2))
    with dense_result(ctx, node.output) as out:
        words: dict[str, Word] = {
            "start": address(start), "delta": address(delta), "out": address(out), "count": out.size, "tile": BLOCK,
        }  # fmt: skip
        ctx.emit(kernels.Range(out.element), words, ceil_div(out.size, BLOCK), [start, delta], [out])


def lower_eye_like(ctx: Lowering, node: Node, group: Group | None) -> None:
    with dense_result(ctx, node.output) as out:
        words: dict[str, Word] = {
            "out": address(out), "rows": out.shape[0], "columns": out.shape[1],
            "diagonal": node.int_attr("k", 0), "tile": ROWS,
        }  # fmt: skip
        ctx.emit(kernels.EyeLike(out.element), words, ceil_div(out.shape[0], ROWS), [], [out])


def _eye_refusal(node: Node) -> str | None:
    reason = tensor_refusal(node)
    return reason or ("its input is no matrix" if len(need(node, 0).shape or ()) != 2 else None)


def lower_one_hot(ctx: Lowering, node: Node, group: Group | None) -> None:
    indices, values = (dense(ctx, ctx.view(need(node, i))) for i in (0, 2))
    demand(ctx, "equal", values.shape[0], 2, "there must be two values, for off and on")
    axis = node.int_attr("axis", -1) % (indices.rank + 1)
    outer, inner = product(indices.shape[:axis]), product(indices.shape[axis:])
    with dense_result(ctx, node.output) as out:
        words: dict[str, Word] = {
            "indices": address(indices), "values": address(values), "out": address(out), "outer": outer,
            "depth": out.shape[axis], "inner": inner, "tile": ROWS,
        }  # fmt: skip
        spec = kernels.OneHot(indices.element, out.element)
        ctx.emit(spec, words, ceil_div(outer, ROWS), [indices, values], [out])


def _one_hot_refusal(node: Node) -> str | None:
    depth = need(node, 1)
    reason = tensor_refusal(node)
    if reason is None and len(need(node, 2).shape or ()) != 1:
        reason = "its values are no vector"
    return reason or ("its depth is no scalar" if len(depth.shape or ()) > 1 else None)


def _constant_refusal(node: Node) -> str | None:
    value = node.attributes.get("value")
    if isinstance(value, TensorData) and (value.dtype not in IN_MEMORY or value.size != 1):
        return f"its value is {value}"
    return tensor_refusal(node)


SHAPE = Rule(lower_shape, tensor_refusal)
SIZE = Rule(lower_size, tensor_refusal)
CONSTANT_OF_SHAPE = Rule(lower_constant_of_shape, _constant_refusal)
RANGE = Rule(lower_range, tensor_refusal)
EYE_LIKE = Rule(lower_eye_like, _eye_refusal)
ONE_HOT = Rule(lower_one_hot, _one_hot_refusal)
