"""Div and Mod of integers: a divisor that is only known at run is looked at before anything is divided by it."""

from __future__ import annotations

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import dense
from whet.compiler.lower.pointwise import lower_group, pointwise_refusal, single
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering
from whet.compiler.step import address
from whet.graph import Node, TensorType
from whet.graph.dims import ceil_div
from whet.kernels.checks import RequireNonZero

BLOCK = 4096
"""Elements per tile."""


def needs_check(node: Node) -> bool:
    """Whether the node divides integers by what may be 0."""
    if node.op not in ("Div", "Mod"):
        return False
    divisor = node.input(1)
    kind = divisor.type if divisor is not None else None
    if divisor is None or not isinstance(kind, TensorType) or kind.dtype is None or not kind.dtype.is_integer:
        return False
    return divisor.data is None or not bool((divisor.data.numpy() != 0).all())


def lower_division(ctx: Lowering, node: Node, group: Group | None) -> None:
    divisor = node.inputs[1]
    assert divisor is not None
    view = dense(ctx, ctx.view(divisor))
    words = {"x": address(view), "n": view.size, "block": BLOCK}
    ctx.emit(RequireNonZero(view.element), words, ceil_div(view.size, BLOCK), [view], [], tactic="check")
    lower_group(ctx, single(node))


DIVISION = Rule(lower_division, pointwise_refusal)
