"""Softmax, LogSoftmax and Hardmax."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.fuse import Group
from whet.compiler.lower.along import grid, loop_order, loop_words, loops, tile_for, written
from whet.compiler.lower.copy import relayout
from whet.compiler.lower.matmul import same_whole
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lower.short_rows import BLOCK_ELEMENTS, LEAST_ROWS
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.step import Word, address
from whet.compiler.tape import computed
from whet.compiler.views import View, hint
from whet.graph import Node
from whet.graph.dims import Known, ceil_div
from whet.kernels.expression import identity
from whet.kernels.short_rows import is_fast
from whet.kernels.softmax import COLUMN_VECTORS, Softmax, SoftmaxKind
from whet.kernels.softmax_short import SoftmaxShort

KINDS: dict[str, SoftmaxKind] = {"Softmax": "softmax", "LogSoftmax": "log_softmax", "Hardmax": "hardmax"}


def refusal(node: Node) -> str | None:
    """Why a softmax cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is None and dtype_of(node.output).kind != "float":
        return f"no {node.op} of {dtype_of(node.output)}"
    if reason is None and not node.output.shape:
        return "its operand has no axis"
    return reason


def lower_softmax(ctx: Lowering, node: Node, group: Group | None) -> None:
    source = node.inputs[0]
    assert source is not None
    x = ctx.view(source)
    axis = node.int_attr("axis", -1) % x.rank
    kept = [a for a in range(x.rank) if a != axis]
    if not x.unit(axis) and not _unit(x, kept):
        x = relayout(ctx, x, [*loop_order(x, kept), axis])
    rows = x.unit(axis)
    order = loop_order(x)
    fast = None if rows else [a for a in order if a != axis and x.shape[a] != 1][-1]

    def fits(view: View) -> bool:
        return view.unit(axis) if fast is None else view.strides[fast] == 1

    with written(ctx, node.output, order, fits) as out:
        dims = loops(x.shape, [x.strides, out.strides], [a for a in order if a != axis])
        length = x.shape[axis]
        if rows and _emit_short(ctx, KINDS[node.op], x, out, length, dims):
            return
        fixed = length if isinstance(length, int) else None
        spec = Softmax(KINDS[node.op], x.element, out.element, "rows" if rows else "columns", len(dims), fixed)
        tile = tile_for(length, 1 if rows else COLUMN_VECTORS * ctx.target.lanes(computed(x.element)))
        words: dict[str, Word] = {
            "x": address(x), "out": address(out), "length": length, "tile": tile,
            "x_axis": x.strides[axis], "out_axis": out.strides[axis], **loop_words("kept", ("x", "out"), dims),
        }  # fmt: skip
        in_place = [(x, out)] if same_whole(x, out) and node.op != "Hardmax" else []
        ctx.emit(spec, words, grid(dims, tile), [x], [out], flops=x.size * 16, in_place=in_place)


def _emit_short(
    ctx: Lowering, kind: SoftmaxKind, x: View, out: View, length: Known, dims: Sequence[tuple[Known, Sequence[Known]]]
) -> bool:  # fmt: skip
    """Emit the kernel for rows of a few elements where it takes these."""
    if len(dims) != 1 or kind == "hardmax" or not isinstance(length, int) or x.element is not out.element:
        return False
    count, (of, to) = dims[0]
    if not isinstance(of, int) or not isinstance(to, int) or hint(count) < LEAST_ROWS:
        return False
    if not SoftmaxShort.suits(ctx.target, x.element, length, of, to) or not is_fast(ctx.target, identity(x.element)):
        return False
    spec = SoftmaxShort(kind, length, of, to, x.element)
    block = BLOCK_ELEMENTS // length
    words: dict[str, Word] = {"x": address(x), "out": address(out), "n0": count, "block": block}
    in_place = [(x, out)] if same_whole(x, out) else []
    ctx.emit(spec, words, ceil_div(count, block), [x], [out], flops=x.size * 16, in_place=in_place, tactic="softmax")
    return True


def _unit(view: View, axes: list[int]) -> bool:
    """Whether the innermost of `axes` has neighbours in memory."""
    order = [a for a in loop_order(view, axes) if view.shape[a] != 1]
    return bool(order) and view.strides[order[-1]] == 1


SOFTMAX = Rule(lower_softmax, refusal)
