"""What lowering along axes has in common: loops over the other axes, tiles, where results go, work behind results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import copy
from whet.compiler.lower.epilogue import finish
from whet.compiler.lowering import Lowering, dtype_of
from whet.compiler.step import Word
from whet.compiler.tape import computed, scalar_constant
from whet.compiler.views import View, collapse, hint, product
from whet.graph import Node, Value
from whet.graph.dims import Known, ceil_div, floor_div, maximum
from whet.kernels.expression import Tape

WORK = 16384
"""Elements that one tile reads, about."""

Loops = list[tuple[Known, list[Known]]]
"""Loop dimensions from outer to inner: an extent, and the stride of each operand."""


def loop_order(view: View, axes: Sequence[int] | None = None) -> list[int]:
    """Axes (all unless given) from slow to fast in memory; repeated ones (stride 0) are slowest."""

    def key(axis: int) -> tuple[int, int, int]:
        size = abs(hint(view.strides[axis]))
        return (int(size != 0), -size, axis)

    return sorted(range(view.rank) if axes is None else axes, key=key)


def loops(shape: Sequence[Known], strides: Sequence[Sequence[Known]], order: Sequence[int]) -> Loops:
    """At least one loop over the axes of `order`; extents of 1 are left out, neighbours joined."""
    return collapse(shape, strides, [axis for axis in order if shape[axis] != 1]) or [(1, [0] * len(strides))]


def loop_words(name: str, operands: Sequence[str], dims: Loops) -> dict[str, Word]:
    """Argument words of loops: extents `{name}0`.., strides `{operand}_{name}0`.."""
    words: dict[str, Word] = {}
    for i, (extent, strides) in enumerate(dims):
        words[f"{name}{i}"] = extent
        for operand, stride in zip(operands, strides, strict=True):
            words[f"{operand}_{name}{i}"] = stride
    return words


def tile_for(work: Known, step: int = 1) -> Known:
    """Positions of one tile where each is `work` elements: a multiple of `step`, decided by extents alone."""
    if isinstance(work, int):
        return max(1, WORK // (max(work, 1) * step)) * step
    return maximum(floor_div(WORK // step, maximum(work, 1)), 1) * step


def grid(dims: Loops, tile: Known) -> Known:
    """Tiles of a grid over `dims` with `tile` positions of the last one each."""
    return product(extent for extent, _ in dims[:-1]) * ceil_div(dims[-1][0], tile)


@contextmanager
def written(ctx: Lowering, value: Value, order: Sequence[int], fits: Callable[[View], bool]) -> Iterator[View]:
    """Memory that a step writes `value` to, dense in `order` where that `fits`: it is copied to its place behind."""
    place = ctx.new(value, order)
    if fits(place):
        yield place
        return
    made = ctx.temporary(place.element, place.shape, order, value.name)
    yield made
    copy(ctx, made, place)


def known_ints(value: Value | None) -> tuple[int, ...] | None:
    """The elements of an operand that is a constant by now; None where it is left out."""
    if value is None:
        return None
    if value.data is not None:
        return tuple(int(i) for i in value.data.numpy().reshape(-1))
    assert value.symbolic is not None, f"{value.name} is not known"
    assert all(isinstance(e, int) for e in value.symbolic), f"{value.name} is not known"
    return tuple(int(e) for e in value.symbolic if isinstance(e, int))


def takes_scalars(node: Node, group: Group) -> bool:
    """Whether the group reads nothing but the node's result and fixed numbers."""
    return all(scalar_constant(value) is not None for value in group.inputs)


def behind(ctx: Lowering, node: Node, group: Group | None) -> tuple[Value, Tape | None, str]:
    """The value that a node with its group makes, the group as a tape of one input (None: no work), the operators."""
    if group is None:
        return node.output, None, node.op_type
    done = finish(ctx, node, group, computed(dtype_of(node.output)), -1)
    return done.result, done.epilogue.tape if done.epilogue is not None else None, done.ops
