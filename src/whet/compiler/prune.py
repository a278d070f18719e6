"""What nobody reads: steps of shape arithmetic that has become part of the slots, constants that were packed anew."""

from __future__ import annotations

from collections import Counter

from whet.compiler.lowering import Lowering
from whet.compiler.step import Address, Step
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


def drop_unused_weights(ctx: Lowering) -> None:
    """Let go of constants that no row reads: what was packed in another form, what only shaped the program."""
    read: dict[Buffer, None] = {}
    for row in ctx.rows:
        words = tuple(row.words.values()) if isinstance(row, Step) else ()
        for buffer in (*row.reads, *(word.buffer for word in words if isinstance(word, Address))):
            if buffer.place == "weight":
                read[buffer] = None
    kept = sorted(read, key=lambda buffer: buffer.index)
    weights = [ctx.weights[buffer.index] for buffer in kept]
    for index, buffer in enumerate(kept):
        buffer.index = index
    ctx.weights[:] = weights
