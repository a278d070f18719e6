"""Rotary position embedding: the standard's operator and com.microsoft's."""

from __future__ import annotations

from dataclasses import dataclass

from whet.compiler.fuse import Group
from whet.compiler.lower.along import written
from whet.compiler.lower.copy import cast_copy, dense, relayout
from whet.compiler.lower.demand import demand, demand_same, need
from whet.compiler.lower.matmul import same_whole
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.step import Word, address
from whet.compiler.views import View, memory_order
from whet.dtypes import INT32, INT64
from whet.graph import Node, Value
from whet.kernels.rotary import Positions as Kind
from whet.kernels.rotary import RotaryEmbedding

CONTRIB = "com.microsoft.RotaryEmbedding"


@dataclass(frozen=True, slots=True)
class Heads:
    """How the operand is made of heads: how many (of a 3-D one), a head's extent, half of what is turned of it."""

    count: int
    head: int
    half: int


def _operands(node: Node) -> tuple[Value, Value, Value, Value | None]:
    """x, cosines, sines, positions."""
    if node.op == CONTRIB:
        return need(node, 0), need(node, 2), need(node, 3), need(node, 1)
    return need(node, 0), need(node, 1), need(node, 2), node.input(3)


def _heads(node: Node) -> Heads | str:
    """The node's heads, or why they are not known or do not fit."""
    x, cos, _, _ = _operands(node)
    shape = x.shape or ()
    last, half = shape[-1], (cos.shape or (None,))[-1]
    count, turned = node.int_attr("num_heads", 0), node.int_attr("rotary_embedding_dim", 0)
    if not isinstance(last, int) or not isinstance(half, int):
        return "the extent of a head is not known"
    head = last
    if len(shape) == 3:
        if count == 0 and node.op == CONTRIB and not turned and half and last % (2 * half) == 0:
            count = last // (2 * half)
        if count < 1 or last % count:
            return "its number of heads does not fit"
        head = last // count
    if (turned or head) != 2 * half or 2 * half > head or half < 1:
        return "its caches do not fit a head"
    return Heads(count, head, half)


def refusal(node: Node) -> str | None:
    """Why a rotary embedding cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    x, cos, sin, positions = _operands(node)
    if any(dtype_of(v).kind != "float" for v in (x, cos, sin)):
        return f"no rotary embedding of {dtype_of(x)}"
    if len(x.shape or ()) not in (3, 4):
        return "its operand has not 3 or 4 dimensions"
    if any(len(v.shape or ()) != (3 if positions is None else 2) for v in (cos, sin)):
        return "its caches have another rank than its positions ask for"
    if positions is not None:
        if dtype_of(positions) not in (INT32, INT64):
            return f"its positions have element type {dtype_of(positions)}"
        rank = len(positions.shape or ())
        if rank != 2 and not (node.op == CONTRIB and rank < 2):
            return "its positions are no matrix"
    heads = _heads(node)
    return heads if isinstance(heads, str) else None


def lower_rotary(ctx: Lowering, node: Node, group: Group | None) -> None:
    source, cos, sin, positions = _operands(node)
    heads = _heads(node)
    assert not isinstance(heads, str), heads
    x = ctx.view(source)
    if not x.unit(x.rank - 1):
        x = relayout(ctx, x)
    order = memory_order(x) if memory_order(x)[-1] == x.rank - 1 else tuple(range(x.rank))
    with written(ctx, node.output, order, lambda view: view.unit(view.rank - 1)) as out:
        emit_rotary(
            ctx, split_heads(x, heads.count, heads.head), split_heads(out, heads.count, heads.head),
            ctx.view(cos), ctx.view(sin), None if positions is None else ctx.view(positions),
            half=heads.half, interleaved=node.int_attr("interleaved", 0) != 0, from_end=node.op != CONTRIB,
            whole=same_whole(x, out),
        )  # fmt: skip


def split_heads(view: View, count: int, head: int) -> View:
    """[batch, heads, rows, head] of a 4-D operand, or of a 3-D one whose rows hold `count` heads."""
    if view.rank == 4:
        return view
    split = View(
        view.buffer, (*view.shape[:2], count, head), (*view.strides[:2], view.strides[2] * head, view.strides[2]),
        view.offset, view.dtype,
    )  # fmt: skip
    return split.transpose((0, 2, 1, 3))


def emit_rotary(
    ctx: Lowering, x: View, y: View, cos: View, sin: View, positions: View | None, *, half: int,
    interleaved: bool = False, from_end: bool = False, whole: bool = False,
) -> None:  # fmt: skip
    """Emit the turn of `x` into `y`, both [batch, heads, rows, head] with heads in a row.

    Without positions the caches are [batch, rows, half]; else [any, half], looked up by positions [batch, rows], or by
    one number, from which all rows count on. `whole`: x and y may be the same memory.
    """
    batch, _, rows, head = x.shape
    assert isinstance(head, int)
    element = x.element
    caches = [dense(ctx, c if c.element is element else cast_copy(ctx, c, element)) for c in (cos, sin)]
    demand_same(ctx, sin.shape, cos.shape, "the caches have different shapes")
    kind: Kind = "rows" if positions is None else "ids" if positions.rank == 2 else "first"
    spec = RotaryEmbedding(element, head, half, interleaved, kind, from_end)
    words: dict[str, Word] = {
        "x": address(x), "y": address(y), "cos": address(caches[0]), "sin": address(caches[1]),
        "heads": x.shape[1], "rows": rows, "cache_row": half,
    }  # fmt: skip
    for name, view in (("x", x), ("y", y)):
        words |= {f"{name}_batch": view.strides[0], f"{name}_head": view.strides[1], f"{name}_row": view.strides[2]}
    reads = [x, *caches]
    if positions is None:
        demand_same(ctx, cos.shape, (batch, rows, half), "the caches do not fit the operand")
        words["cache_batch"] = caches[0].strides[0]
    else:
        if positions.element is not INT64:
            positions = cast_copy(ctx, positions, INT64)
        words |= {"position_ids": address(positions), "cache_rows": cos.shape[0]}
        reads.append(positions)
        if kind == "ids":
            demand_same(ctx, positions.shape, (batch, rows), "the positions do not fit the operand")
            words |= {"ids_batch": positions.strides[0], "ids_row": positions.strides[1]}
        else:
            for extent in positions.shape:
                demand(ctx, "equal", extent, 1, "the positions are more than one")
    in_place = [(x, y)] if whole else []
    ctx.emit(spec, words, batch * rows, reads, [y], flops=x.size * 3, in_place=in_place, tactic="rotary")


ROTARY = Rule(lower_rotary, refusal)
