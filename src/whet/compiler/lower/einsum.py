"""Einsum of one or two operands: diagonals and transposes are views, what is left is a sum or a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy, relayout
from whet.compiler.lower.demand import broadcast, demand, need
from whet.compiler.lower.epilogue import finish
from whet.compiler.lower.matmul import PRODUCTS, emit_product
from whet.compiler.lower.pointwise import MAX_RANK, tensor_refusal
from whet.compiler.lower.reduce import Reduction, reduce_to, reduce_view
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.tape import computed
from whet.compiler.views import View, product
from whet.graph import Node, TensorType, Value
from whet.graph.dims import Known

Labels = tuple[str, ...]
"""A letter for each axis; axes of the ellipsis are "...0", "...1", .. counted from the last one."""


@dataclass(frozen=True, slots=True)
class Equation:
    """The labels of each operand and of the result."""

    operands: tuple[Labels, ...]
    result: Labels


def parse(text: str, ranks: Sequence[int]) -> Equation | str:
    """An equation over operands of these ranks, or what is wrong with it."""
    left, arrow, right = text.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        return "its equation has another number of operands"
    operands: list[Labels] = []
    longest = 0
    for term, rank in zip(terms, ranks, strict=True):
        before, dots, behind = term.partition("...")
        letters = (*before, *behind)
        hidden = rank - len(letters)
        if not all(letter.isalpha() for letter in letters) or hidden < 0 or (hidden and not dots):
            return f"the term {term!r} does not fit an operand of {rank} dimensions"
        longest = max(longest, hidden)
        operands.append((*before, *_hidden(hidden), *behind))
    if arrow:
        before, dots, behind = right.partition("...")
        result = (*before, *(_hidden(longest) if dots else ()), *behind)
        if not dots and longest:
            return "its result leaves axes of the ellipsis out"
    else:
        seen = [label for labels in operands for label in labels if label.isalpha()]
        result = (*_hidden(longest), *sorted(label for label in set(seen) if seen.count(label) == 1))
    known = {label for labels in operands for label in labels}
    if len(set(result)) != len(result) or not set(result) <= known:
        return "its result names a letter twice, or one that no operand has"
    return Equation(tuple(operands), result)


def _hidden(count: int) -> Labels:
    return tuple(f"...{i}" for i in reversed(range(count)))


def _equation(node: Node) -> Equation | str:
    ranks = [len(v.shape or ()) for v in node.inputs if v is not None]
    return parse(node.str_attr("equation", ""), ranks)


def refusal(node: Node) -> str | None:
    """Why the node cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    if len(node.inputs) > 2:
        return f"it has {len(node.inputs)} operands"
    if dtype_of(node.output) not in PRODUCTS:
        return f"no products of {dtype_of(node.output)}"
    equation = _equation(node)
    if isinstance(equation, str):
        return equation
    labels = {label for operand in equation.operands for label in operand}
    if len(labels) > MAX_RANK or len(equation.result) != len(node.output.shape or ()):
        return "it has too many axes"
    extents: dict[str, int] = {}
    for value, operand in zip(node.inputs, equation.operands, strict=True):
        assert value is not None
        for label, extent in zip(operand, value.shape or (), strict=True):
            if not isinstance(extent, int) or (extent == 1 and label.startswith("...")):
                continue
            if extents.setdefault(label, extent) != extent:
                return f"the extents of {label!r} differ"
    return None


def lower_einsum(ctx: Lowering, node: Node, group: Group | None) -> None:
    equation = _equation(node)
    assert not isinstance(equation, str), equation
    operands = [_diagonal(ctx, ctx.view(need(node, i)), labels) for i, labels in enumerate(equation.operands)]
    if len(operands) == 1:
        _sum(ctx, node, *operands[0], equation.result)
        return
    constant = need(node, 1).data is not None and len(set(equation.operands[1])) == len(equation.operands[1])
    _product(ctx, node, operands[0], operands[1], equation.result, constant)


def _diagonal(ctx: Lowering, view: View, labels: Labels) -> tuple[View, Labels]:
    """Axes of one letter become one axis: a step along it is a step along all of them."""
    kept = tuple(dict.fromkeys(labels))
    if len(kept) == len(labels):
        return view, labels
    shape: list[Known] = []
    strides: list[Known] = []
    for label in kept:
        axes = [i for i, other in enumerate(labels) if other == label]
        stride: Known = 0
        for axis in axes:
            demand(ctx, "equal", view.shape[axis], view.shape[axes[0]], f"the extents of {label!r} differ")
            stride = stride + view.strides[axis]
        shape.append(view.shape[axes[0]])
        strides.append(stride)
    return View(view.buffer, tuple(shape), tuple(strides), view.offset, view.dtype), kept


def _ordered(view: View, labels: Labels, wanted: Sequence[str]) -> View:
    """Axes in another order; axes that the view lacks have extent 1."""
    view = view.transpose([labels.index(label) for label in wanted if label in labels])
    for axis, label in enumerate(wanted):
        if label not in labels:
            view = view.expand_dims(axis)
    return view


def _sum(ctx: Lowering, node: Node, view: View, labels: Labels, result: Labels) -> None:
    """One operand: a transpose, or a sum over what the result lacks."""
    gone = [label for label in labels if label not in result]
    view = _ordered(view, labels, (*result, *gone))
    if gone:
        axes = range(len(result), view.rank)
        reduce_to(ctx, view, axes, node.output, False, Reduction("sum"))
    else:
        ctx.define(node.output, view)


def _product(
    ctx: Lowering, node: Node, left: tuple[View, Labels], right: tuple[View, Labels], result: Labels, constant: bool
) -> None:
    """Two operands: a product of matrices for each index that both have and the result as well."""
    a, a_labels = _summed(ctx, *left, {*right[1], *result})
    b, b_labels = _summed(ctx, *right, {*left[1], *result})
    batch = [label for label in result if label in a_labels and label in b_labels]
    rows = [label for label in result if label in a_labels and label not in batch]
    columns = [label for label in result if label in b_labels and label not in batch]
    depth = [label for label in a_labels if label in b_labels and label not in result]
    extents = {label: a.shape[i] for i, label in enumerate(a_labels)}
    for i, label in enumerate(b_labels):
        own = b.shape[i]
        if label not in extents:
            extents[label] = own
        elif not label.startswith("..."):
            demand(ctx, "equal", own, extents[label], f"the extents of {label!r} differ")
    # Repeated axes and equal letters have the extents that inference gave the result.
    extents |= {label: shape_of(node.output)[result.index(label)] for label in batch}
    shapes = {name: tuple(extents[label] for label in part) for name, part in
              (("batch", batch), ("rows", rows), ("columns", columns), ("depth", depth))}  # fmt: skip
    a = _matrices(ctx, _ordered(a, a_labels, [*batch, *rows, *depth]), shapes["batch"], len(rows))
    b = _ordered(b, b_labels, [*batch, *depth, *columns])
    value = _right(ctx, node, b, b_labels, [*batch, *depth, *columns], shapes["batch"], len(depth), constant)
    order = [result.index(label) for label in (*batch, *rows, *columns)]
    done = finish(ctx, node, None, computed(dtype_of(node.output)), -1)
    out = ctx.new(node.output, order)
    wanted = (*a.shape[:-2], product(shapes["rows"]), product(shapes["columns"]))
    target = out.transpose(order).reshape(wanted)
    made = out
    if target is None or not target.unit(target.rank - 1):
        made = ctx.temporary(out.element, out.shape, order)
        target = made.transpose(order).reshape(wanted)
    assert target is not None, "the result is dense in the order of the product"
    emit_product(ctx, a, value, False, computed(dtype_of(node.output)), target, done)
    if made is not out:
        copy(ctx, made, out)


def _summed(ctx: Lowering, view: View, labels: Labels, kept: set[str]) -> tuple[View, Labels]:
    """The operand without the axes that nothing else has."""
    axes = [i for i, label in enumerate(labels) if label not in kept]
    if not axes:
        return view, labels
    view = reduce_view(ctx, view, axes, Reduction("sum"), computed(view.element))
    for axis in reversed(axes):
        view = view.drop(axis)
    return view, tuple(label for label in labels if label in kept)


def _matrices(ctx: Lowering, view: View, batch: Sequence[Known], rows: int) -> View:
    """[batch, rows, depth] with each of them joined to one axis; the batch stays as it is where it has at most two."""
    matrix = view.shape[len(batch) :]
    parts = (product(matrix[:rows]), product(matrix[rows:]))
    whole = broadcast(ctx, view, (*batch, *matrix)).broadcast((*batch, *matrix))
    if len(batch) > 2:
        joined: View | None = relayout(ctx, whole).reshape((product(batch), *parts))
    else:
        joined = whole.reshape((*batch, *parts))
        if joined is None:
            joined = relayout(ctx, whole).reshape((*batch, *parts))
    assert joined is not None, "a dense view takes any shape"
    return joined


def _right(
    ctx: Lowering, node: Node, b: View, labels: Labels, wanted: Sequence[str], batch: Sequence[Known], depth: int,
    constant: bool,
) -> Value:  # fmt: skip
    """The right operand as a value [batch, depth, columns]; a constant stays one, so that it is packed beforehand."""
    data = need(node, 1).data
    if constant and data is not None and not batch and set(labels) == set(wanted):
        array = data.numpy().transpose([labels.index(label) for label in wanted])
        rows = int(np.prod(array.shape[:depth], dtype=np.int64))
        columns = int(np.prod(array.shape[depth:], dtype=np.int64))
        return Value.constant("right operand", np.ascontiguousarray(array.reshape(rows, columns)))
    view = _matrices(ctx, b, batch, depth)
    value = Value("", TensorType(view.element, view.shape))
    ctx.define(value, view)
    return value


EINSUM = Rule(lower_einsum, refusal)
