"""Views whose innermost dimension has a few elements only: the kernels that take several such rows at a time."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.lowering import Lowering
from whet.compiler.step import Address, Word
from whet.compiler.views import hint
from whet.graph.dims import Known, ceil_div
from whet.kernels.expression import Tape
from whet.kernels.short_rows import ShortRows, can_hold, fits, is_fast

LEAST_ROWS = 16
"""With fewer there is nothing to gain."""
BLOCK_ELEMENTS = 2048
"""Of a tile, about: a microsecond or two."""


def short_rows(
    ctx: Lowering, tape: Tape, extents: Sequence[Known], inputs: Sequence[Sequence[Known]],
    outputs: Sequence[Sequence[Known]],
) -> ShortRows | None:  # fmt: skip
    """The kernel for a tape over operands of these extents and strides, or None where rows are not short, or lie
    otherwise than it takes them."""
    length = extents[-1]
    if len(extents) != 2 or not isinstance(length, int) or hint(extents[0]) < LEAST_ROWS:
        return None
    if not (can_hold(ctx.target, tape, length) and is_fast(ctx.target, tape)):
        return None
    of: list[int | None] = []
    for row, inner in inputs:
        if row == 0 and inner == 0:
            of.append(None)
        elif isinstance(row, int) and inner == 1 and (row == 0 or fits(length, row)):
            of.append(row)
        else:
            return None
    to = [row for row, inner in outputs if isinstance(row, int) and inner == 1 and fits(length, row)]
    return ShortRows(tape, length, tuple(of), tuple(to)) if len(to) == len(outputs) else None


def short_rows_words(
    rows: Known, length: int, inputs: Sequence[Address], outputs: Sequence[Address]
) -> tuple[dict[str, Word], Known]:
    """The kernel's words, and its number of tiles."""
    words: dict[str, Word] = {f"in{i}": place for i, place in enumerate(inputs)}
    words |= {f"out{i}": place for i, place in enumerate(outputs)}
    block = BLOCK_ELEMENTS // length
    return words | {"n0": rows, "block": block}, ceil_div(rows, block)
