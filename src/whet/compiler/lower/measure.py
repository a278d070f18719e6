"""Small integers that the program reads from memory while it runs, because they decide the extents of what follows."""

from __future__ import annotations

from whet.compiler.lower.demand import demand, integers, need
from whet.compiler.lowering import Lowering, shape_of
from whet.compiler.views import product
from whet.graph import Node, Value
from whet.graph.dims import Expr, Known, ceil_div, floor_div, maximum, minimum, symbol
from whet.ops.common import elements, static_ints

LONGEST = 1 << 40
"""More elements than an axis has."""
MOST = 1 << 31
"""Factors of the extents of a tensor without elements: the product of two is a number of 64 bits."""


def measured(ctx: Lowering, value: Value) -> tuple[Known, ...]:
    """The elements of a scalar or vector of fixed length: those that are known, and names of the others.

    Names may stand for negative numbers here: what is assigned from them must not.
    """
    fixed = static_ints(value)
    if fixed is not None:
        return fixed
    view = ctx.view(value)
    length = view.shape[0] if view.rank else 1
    assert isinstance(length, int)
    found: list[Known | None] = list(elements(value) or (None,) * length)
    names: dict[str, tuple] = {}  # type: ignore[type-arg]
    result: list[Known] = []
    for i, element in enumerate(found):
        if element is None:
            name = ctx.name(f"{value.name}[{i}]")
            names[name] = (view.slice(0, i, 1) if view.rank else view, None)
            element = symbol(name)
        result.append(element)
    if names:
        ctx.load(names)
    return tuple(result)


def measure_reshape(ctx: Lowering, node: Node) -> None:
    """Declare the extents of a Reshape's result that its operand decides."""
    names = ctx.undeclared(node.output)
    if not names:
        return
    source = ctx.view(need(node, 0))
    whole = source.size
    most = maximum(whole, MOST)
    factors: list[Known] = []
    inferred: list[Known] = []
    keeps_zeros = node.int_attr("allowzero", 0) != 0
    for axis, wanted in enumerate(measured(ctx, need(node, 1))):
        if isinstance(wanted, int):
            factors.append(1 if wanted == -1 else source.shape[axis] if wanted == 0 and not keeps_zeros else wanted)
            inferred.append(int(wanted == -1))
            continue
        demand(ctx, "at_most", -1, wanted, "an extent is less than -1")
        demand(ctx, "at_most", wanted, most, "the shape has another number of elements")
        free = minimum(maximum(-wanted, 0), 1)
        same: Known = source.shape[axis] if axis < source.rank and not keeps_zeros else 0
        name = ctx.name(f"factor {axis} of {node.output.name}")
        ctx.assign({name: wanted + free * 2 + (1 - minimum(maximum(wanted, -wanted), 1)) * same}, whole)
        factors.append(symbol(name))
        inferred.append(free)
    total: Known = 1
    for factor in factors:
        total = total * factor
        if isinstance(total, Expr):
            # Else a product that is larger than 64 bits could pass for the right one.
            demand(ctx, "at_most", total, most, "the shape has another number of elements")
    rest = ctx.name(f"rest of {node.output.name}")
    ctx.assign({rest: floor_div(whole, product(factors))}, whole)
    shape = shape_of(node.output)
    values: dict[str, Known] = {}
    for axis, name in names.items():
        ctx.bounds[name] = whole
        values[name] = inferred[axis] * symbol(rest) + (1 - inferred[axis]) * factors[axis]
    ctx.assign(values)
    fixed = product(d for axis, d in enumerate(shape) if axis not in names)
    ctx.bounds.products[tuple(names.values())] = floor_div(whole, fixed) if isinstance(fixed, int) and fixed else whole


def measure_slice(ctx: Lowering, node: Node) -> tuple[Known, ...]:
    """The starts of a Slice; declares the extents of its result that its operands decide."""
    starts = measured(ctx, need(node, 1))
    names = ctx.undeclared(node.output)
    if not names:
        return starts
    view = ctx.view(need(node, 0))
    ends = measured(ctx, need(node, 2))
    axes = integers(ctx, node.input(3)) or tuple(range(len(starts)))
    steps = integers(ctx, node.input(4)) or (1,) * len(starts)
    values: dict[str, Known] = {}
    for start, end, axis, given in zip(starts, ends, axes, steps, strict=True):
        axis, step = axis % view.rank, bounded_step(given)
        if axis not in names:
            continue
        extent = view.shape[axis]
        first, last = (at + minimum(maximum(-at, 0), 1) * extent for at in (start, end))
        if step > 0:
            # Into the axis before anything is taken away: the data may hold any number.
            first, last = (maximum(minimum(at, extent), 0) for at in (first, last))
            length = maximum(ceil_div(last - first, step), 0)
        else:
            first, last = (maximum(minimum(at, extent - 1), -1) for at in (first, last))
            length = maximum(ceil_div(first - last, -step), 0)
        ctx.bounds[names[axis]] = ceil_div(extent, abs(step))
        values[names[axis]] = length
    ctx.assign(values)
    return starts


def bounded_step(step: int) -> int:
    """The step of a slice, or one that goes past the end of every axis as it does and takes less room."""
    return max(-LONGEST, min(step, LONGEST))


def clamped_start(start: Known, extent: Known, step: int) -> Known:
    """Where a slice begins, counted from the front and inside of the axis, if that is not empty."""
    # 1 where the start is negative, which counts from the end.
    negative = minimum(maximum(-start, 0), 1)
    return maximum(minimum(start + negative * extent, extent if step > 0 else extent - 1), 0)


def measure_top_k(ctx: Lowering, node: Node, axis: int) -> None:
    """Declare K where the data decides it."""
    names = ctx.undeclared(node.output)
    if not names:
        return
    extent = ctx.view(need(node, 0)).shape[axis]
    (count,) = measured(ctx, need(node, 1))
    for name in names.values():
        ctx.bounds[name] = extent
        ctx.assign({name: count})
