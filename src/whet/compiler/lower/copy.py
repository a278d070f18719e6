"""Copies between layouts: the steps that move elements and compute nothing."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.lower.short_rows import short_rows, short_rows_words
from whet.compiler.lowering import Lowering
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder
from whet.compiler.views import View, collapse, memory_order, product
from whet.dtypes import DType
from whet.graph.dims import Known, ceil_div
from whet.kernels.copy import StridedCopy
from whet.kernels.expression import Tape, identity
from whet.kernels.pointwise import Pointwise

BLOCK = 4096
"""Innermost elements per tile."""
ROWS = 256
LINE_BYTES = 64
"""A tile of a transposing copy: ROWS elements of the target's contiguous dimension, by a cache line of the source's."""
MOST_DIMENSIONS = 8
"""Loop dimensions of a strided copy; more are left to the pointwise kernel."""


def relayout(ctx: Lowering, view: View, order: Sequence[int] | None = None) -> View:
    """The same elements in new memory, dense in `order` (C order unless given)."""
    result = ctx.temporary(view.element, view.shape, order, view.buffer.label)
    copy(ctx, view, result)
    return result


def dense(ctx: Lowering, view: View) -> View:
    """The view itself where it lies in C order without gaps, else a copy that does."""
    return view if view.is_dense() else relayout(ctx, view)


def copy(ctx: Lowering, source: View, target: View, tape: Tape | None = None) -> None:
    """Write the elements of `source` (what `tape` makes of each) to `target`, a view of the same shape."""
    order = [axis for axis in memory_order(target) if target.shape[axis] != 1]
    dims = collapse(target.shape, [source.strides, target.strides], order)
    extents = [extent for extent, _ in dims] or [1]
    strides = [[s[i] for _, s in dims] or [1] for i in range(2)]
    of, to = [tuple(s if isinstance(s, int) and s in (0, 1) else None for s in row) for row in strides]
    size = source.element.bits // 8
    spec: StridedCopy | Pointwise
    words: dict[str, Word] = {"block": BLOCK}
    tiles: Known
    if tape is None and len(extents) <= MOST_DIMENSIONS:
        spec = StridedCopy(size, of, to)
        if spec.is_transposed:
            words |= {"block": ROWS, "across": LINE_BYTES // size}
            columns = max(d for d, s in enumerate(to) if s == 1), max(d for d, s in enumerate(of) if s == 1)
            tiles = ceil_div(extents[columns[0]], ROWS) * ceil_div(extents[columns[1]], LINE_BYTES // size)
            tiles = tiles * product(e for d, e in enumerate(extents) if d not in columns)
        else:
            tiles = product(extents[:-1]) * ceil_div(extents[-1], BLOCK)
    else:
        spec = Pointwise(tape or identity(source.element), len(extents), (of,), (to,))
        tiles = product(extents[:-1]) * ceil_div(extents[-1], BLOCK)
    words |= {"in0": address(source), "out0": address(target)}
    for name, row in (("in0", strides[0]), ("out0", strides[1])):
        for d, stride in enumerate(row):
            words[f"{name}_s{d}"] = stride
    for d, extent in enumerate(extents):
        words[f"n{d}"] = extent
    short = short_rows(ctx, tape or identity(source.element), extents, strides[:1], strides[1:])
    if short is not None:
        words, tiles = short_rows_words(extents[0], short.length, [address(source)], [address(target)])
    moved = target.size * (size + target.element.bits // 8)
    ctx.emit(short or spec, words, tiles, [source], [target], nbytes=moved, tactic="copy")


def cast_copy(ctx: Lowering, view: View, element: DType) -> View:
    """The same elements as another type, in new memory in C order."""
    result = ctx.temporary(element, view.shape, None, view.buffer.label)
    builder = TapeBuilder([view.element])
    copy(ctx, view, result, builder.tape(builder.cast(0, element)))
    return result
