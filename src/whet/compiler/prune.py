"""Steps whose results nobody reads: shape arithmetic that has become part of the slots, outputs that are not used."""

from __future__ import annotations

from collections import Counter

from whet.compiler.lowering import Lowering
from whet.compiler.step import Step
from whet.compiler.views import Buffer


def drop_unread(ctx: Lowering) -> None:
    """Take out the steps that write only memory that no row reads; checks, which write nothing, stay."""
    readers: Counter[Buffer] = Counter(buffer for row in ctx.rows for buffer in set(row.reads))
    writers: dict[Buffer, list[Step]] = {}
    for row in ctx.rows:
        if isinstance(row, Step):
            for buffer in set(row.writes):
                writers.setdefault(buffer, []).append(row)

    def unread(step: Step) -> bool:
        # A step that reads what it writes, a part of a larger result, does not keep itself.
        own = set(step.reads)
        return bool(step.writes) and all(b.place == "arena" and readers[b] == (b in own) for b in step.writes)

    dropped: set[int] = set()
    waiting = [row for row in ctx.rows if isinstance(row, Step)]
    while waiting:
        step = waiting.pop()
        if id(step) in dropped or not unread(step):
            continue
        dropped.add(id(step))
        for buffer in set(step.reads):
            readers[buffer] -= 1
            waiting.extend(writers.get(buffer, ()))
    ctx.rows[:] = [row for row in ctx.rows if id(row) not in dropped]
