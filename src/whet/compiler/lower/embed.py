"""com.microsoft.EmbedLayerNormalization: rows of up to three tables added, the sum normalized."""

from __future__ import annotations

from whet.compiler.fuse import Group
from whet.compiler.lower.along import behind, takes_scalars, written
from whet.compiler.lower.copy import cast_copy, copy, dense
from whet.compiler.lower.demand import broadcast, demand, demand_same, need
from whet.compiler.lower.norm import Rows, emit_norm, is_row, row_order, row_vector
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.reduce import Reduction, reduce_to
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder, computed
from whet.compiler.views import View
from whet.dtypes import BOOL, INT32, INT64
from whet.graph import Node, Value
from whet.kernels.lookup import LookupSum, Table

_TABLES: tuple[tuple[str, int, int], ...] = (
    ("word_embedding", 2, 0),
    ("position_embedding", 3, 8),
    ("segment_embedding", 4, 1),
)
"""The tables in the order in which their rows are added: name, input of the table, input of its indices."""
_RANKS: dict[int, int] = {0: 2, 1: 2, 2: 2, 3: 2, 4: 2, 5: 1, 6: 1, 7: 2, 8: 2}


def refusal(node: Node) -> str | None:
    """Why a normalized sum of embeddings cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    if (node.input(1) is None) != (node.input(4) is None):
        return "segments and their table go together"
    for index, rank in _RANKS.items():
        value = node.input(index)
        if value is None:
            continue
        if len(value.shape or ()) != rank:
            return f"{value.name} has not {rank} dimensions"
        if index in (0, 1, 8) and dtype_of(value) not in (INT32, INT64):
            return f"the indices {value.name} have element type {dtype_of(value)}"
        if 2 <= index <= 6 and dtype_of(value).kind != "float":
            return f"{value.name} has element type {dtype_of(value)}"
    if len({computed(dtype_of(need(node, i))) for i in (2, 3, 5, 6)}) != 1:
        return "the tables have different element types"
    if _is_read(node, 1) and node.int_attr("mask_index_type", 1) != 1:
        return "its mask index of another type than 1 is read"
    return None


def takes_group(node: Node, group: Group) -> bool:
    """Whether the norm can do the group's work on its results."""
    return refusal(node) is None and takes_scalars(node, group)


def _is_read(node: Node, index: int) -> bool:
    return index < len(node.outputs) and node.outputs[index].use_count > 0


def lower_embed(ctx: Lowering, node: Node, group: Group | None) -> None:
    total = _sum(ctx, node)
    if _is_read(node, 2):
        place = ctx.new(node.outputs[2])
        copy(ctx, cast_copy(ctx, total, place.element), place)
    result, epilogue, ops = behind(ctx, node, group)
    vectors = {}
    for name, index in (("scale", 5), ("bias", 6)):
        view = ctx.view(need(node, index))
        demand(ctx, "equal", view.shape[0], total.shape[2], f"{name} has another extent than the tables")
        vectors[name] = row_vector(ctx, view, total.shape, 2)
    epsilon = node.float_attr("epsilon", 1e-12)
    with written(ctx, result, row_order(total, 2), lambda view: is_row(view, 2)) as out:
        emit_norm(ctx, node, Rows(2, epsilon, {"x": total, "out": out}, vectors, {}, epilogue, ops))
    if _is_read(node, 1):
        _count_ones(ctx, node.input(7), node.outputs[1], ctx.view(need(node, 0)))


def _sum(ctx: Lowering, node: Node) -> View:
    """The sum of the chosen rows [batch, columns, width], in the type that registers hold."""
    ids = ctx.view(need(node, 0))
    width = ctx.view(need(node, 2)).shape[1]
    element = computed(dtype_of(need(node, 2)))
    out = ctx.temporary(element, (*ids.shape, width), None, f"sum of {node.output.name}")
    words: dict[str, Word] = {"out": address(out), "columns": ids.shape[1], "width": width}
    tables: list[Table] = []
    reads: list[View] = []
    for name, table_input, index_input in _TABLES:
        value, chosen = node.input(table_input), node.input(index_input)
        if value is None:
            continue
        table = dense(ctx, ctx.view(value))
        t = len(tables)
        demand(ctx, "equal", table.shape[1], width, f"{name} has rows of another extent")
        words[f"table{t}"] = address(table)
        reads.append(table)
        if chosen is None:
            demand(ctx, "at_most", ids.shape[1], table.shape[0], "the sequence is longer than the position embedding")
            tables.append(Table(table.element, None))
            continue
        index = ctx.view(chosen)
        if index_input == 8:
            # One row of positions may stand for all of the batch.
            demand(ctx, "equal", index.shape[1], ids.shape[1], "position_ids have another extent than input_ids")
            index = broadcast(ctx, index, ids.shape)
        else:
            demand_same(ctx, index.shape, ids.shape, f"the indices of {name} have another shape than input_ids")
        words |= {
            f"index{t}": address(index), f"rows{t}": table.shape[0],
            f"index{t}_i": index.strides[0], f"index{t}_j": index.strides[1],
        }  # fmt: skip
        tables.append(Table(table.element, index.element))
        reads.append(index)
    moved = out.size * (out.element.bits // 8) * (len(tables) + 1)
    tiles = ids.shape[0] * ids.shape[1]
    ctx.emit(LookupSum(tuple(tables), element), words, tiles, reads, [out], nbytes=moved, tactic="lookup")
    return out


def _count_ones(ctx: Lowering, mask: Value | None, result: Value, ids: View) -> None:
    """How many ones each row of the mask has; zeros where there is no mask."""
    if mask is None:
        copy(ctx, ctx.zeros(1, INT32).broadcast((ids.shape[0],)), ctx.new(result))
        return
    view = ctx.view(mask)
    demand_same(ctx, view.shape, ids.shape, "the mask has another shape than input_ids")
    tape = TapeBuilder([view.element])
    ones = tape.add("equal", BOOL, 0, tape.constant(1, view.element))
    marks = ctx.temporary(INT32, view.shape, None, "ones of the mask")
    copy(ctx, view, marks, tape.tape(tape.cast(ones, INT32)))
    reduce_to(ctx, marks, [1], result, False, Reduction("sum"))


EMBED = Rule(lower_embed, refusal)
