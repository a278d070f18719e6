"""Steps whose results nobody reads: shape arithmetic that has become part of the slots, outputs that are not used."""

from __future__ import annotations

from whet.compiler.lowering import Lowering
from whet.compiler.step import Step
from whet.compiler.views import Buffer


def drop_unread(ctx: Lowering) -> None:
    """Take out the steps that write only memory that no row reads; checks, which write nothing, stay."""
    while True:
        read: set[Buffer] = {buffer for row in ctx.rows for buffer in row.reads}

        def unread(row: object, read: set[Buffer] = read) -> bool:
            return (
                isinstance(row, Step)
                and bool(row.writes)
                and all(buffer.place == "arena" and buffer not in read for buffer in row.writes)
            )

        kept = [row for row in ctx.rows if not unread(row)]
        if len(kept) == len(ctx.rows):
            return
        ctx.rows[:] = kept
