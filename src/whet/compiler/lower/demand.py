"""What the lowering of movement has in common: demands on extents, results in C order, small operands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from whet.compiler.lower.copy import copy
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.views import View, is_not_one
from whet.errors import InvalidArgument
from whet.graph import Node, Value
from whet.graph.dims import Known
from whet.kernels.check import Check, Relation
from whet.ops.common import elements, static_ints


def demand(ctx: Lowering, relation: Relation, a: Known, b: Known, what: str) -> None:
    """See to it that `a` is `b`, or at most `b`: now where both are known, else by a step of the program.

    Raises InvalidArgument naming the node where it is wrong for every run.
    """
    difference = b - a
    if isinstance(difference, int):
        if difference == 0 or (relation == "at_most" and difference > 0):
            return
        if isinstance(a, int):
            raise InvalidArgument(what, node=ctx.node.label if ctx.node is not None else None, found=a, expected=b)
    ctx.emit(Check(relation), {"a": a, "b": b}, 1, (), (), nbytes=0, parallel=False, tactic="check")


def demand_same(ctx: Lowering, a: Sequence[Known], b: Sequence[Known], what: str) -> None:
    """See to it that two shapes of one rank are equal."""
    for one, other in zip(a, b, strict=True):
        demand(ctx, "equal", one, other, what)


def broadcast(ctx: Lowering, view: View, shape: Sequence[Known]) -> View:
    """The view repeated to `shape`; where only a run can tell whether an extent is 1 or fits, the program checks it."""
    missing = len(shape) - view.rank
    for own, wanted in zip(view.shape, shape[missing:], strict=True):
        if own not in (1, wanted):
            demand(ctx, "equal", own, is_not_one(own) * (wanted - 1) + 1, "the extents do not broadcast")
    return view.broadcast(shape)


def need(node: Node, index: int) -> Value:
    """An operand that the operator must have."""
    value = node.inputs[index]
    assert value is not None, f"{node.label} lacks input {index}"
    return value


def numbers(ctx: Lowering, value: Value | None) -> tuple[Known, ...] | None:
    """The elements of a small integer operand, as numbers or of the extents; None where it is left out."""
    if value is None:
        return None
    found = static_ints(value)
    if found is not None:
        return found
    symbolic = elements(value)
    known = () if symbolic is None else tuple(e for e in symbolic if e is not None)
    if symbolic is None or len(known) != len(symbolic):
        raise ctx.refuse(f"the elements of {value.name} are not known")
    return known


def integers(ctx: Lowering, value: Value | None) -> tuple[int, ...] | None:
    """The elements of an operand that must be constant; None where it is left out."""
    found = numbers(ctx, value)
    if found is None:
        return None
    plain = tuple(n for n in found if isinstance(n, int))
    if len(plain) != len(found):
        raise ctx.refuse(f"{value.name if value is not None else '?'} depends on the extents")
    return plain


@contextmanager
def dense_result(ctx: Lowering, value: Value) -> Iterator[View]:
    """Memory in C order for a result; where it belongs somewhere with gaps, it is copied there after the block."""
    result = ctx.new(value)
    made = result if result.is_dense() else ctx.temporary(dtype_of(value), shape_of(value), None, value.name)
    yield made
    if made is not result:
        copy(ctx, made, result)
