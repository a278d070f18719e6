"""com.microsoft.BiasSplitGelu: one half of each row times the Gelu of the other."""

from __future__ import annotations

from whet.compiler.fuse import Group
from whet.compiler.lower.demand import broadcast, demand, need
from whet.compiler.lower.pointwise import emit_tape, tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.tape import TapeBuilder, computed
from whet.graph import Node
from whet.graph.dims import floor_div


def refusal(node: Node) -> str | None:
    """Why the operator cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    x, bias = need(node, 0), need(node, 1)
    if len(x.shape or ()) != 3 or len(bias.shape or ()) != 1:
        return "its operand has not 3 dimensions, or its bias not 1"
    if dtype_of(x).kind != "float" or dtype_of(bias) is not dtype_of(x):
        return f"no Gelu of {dtype_of(x)}"
    return None


def lower(ctx: Lowering, node: Node, group: Group | None) -> None:
    """The halves are views."""
    x, bias = ctx.view(need(node, 0)), ctx.view(need(node, 1))
    extent = x.shape[2]
    half = extent // 2 if isinstance(extent, int) else floor_div(extent, 2)
    demand(ctx, "equal", half * 2, extent, "the last extent is odd")
    bias = broadcast(ctx, bias, x.shape)
    parts = [v.slice(2, start, half) for v in (x, bias) for start in (0, half)]
    element = computed(x.element)
    tape = TapeBuilder([v.element for v in parts])
    left, right, left_bias, right_bias = (tape.cast(i, element) for i in range(4))
    first, second = (tape.add("add", element, a, b) for a, b in ((left, left_bias), (right, right_bias)))
    result = tape.add("mul", element, first, tape.add("gelu", element, second))
    emit_tape(ctx, tape.tape(tape.cast(result, dtype_of(node.output))), parts, node.output)


SPLIT_GELU = Rule(lower, refusal)
