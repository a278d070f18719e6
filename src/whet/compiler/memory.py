"""The arena's layout: buffers that are never needed at the same time share memory."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from whet.compiler.step import Row, Step
from whet.compiler.views import Buffer

ALIGNMENT = 64
"""Bytes; also the gap that keeps whole-register reads at a buffer's end inside the arena."""


@dataclass(frozen=True, slots=True)
class Life:
    """From the first to the last step that touches a buffer."""

    buffer: Buffer
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Buffers with their lives, after buffers that share memory in place were joined."""

    lives: tuple[Life, ...]
    root: dict[Buffer, Buffer]
    """For each buffer the one whose memory it uses."""


def lifetimes(rows: Sequence[Row], loops: Sequence[tuple[int, int]] = ()) -> Lifetimes:
    """The lives of all arena buffers. `loops` are ranges of rows that repeat: what enters one lives to its end, and
    what leaves one lives from its start. What does neither is written in each round before it is read."""
    first: dict[Buffer, int] = {}
    last: dict[Buffer, int] = {}
    for index, row in enumerate(rows):
        for buffer in (*row.reads, *row.writes):
            if buffer.place == "arena":
                first.setdefault(buffer, index)
                last[buffer] = index
    for begin, end in loops:
        for buffer in first:
            if first[buffer] < begin <= last[buffer] < end:
                last[buffer] = end - 1
            elif begin <= first[buffer] < end <= last[buffer]:
                first[buffer] = begin
    root: dict[Buffer, Buffer] = {buffer: buffer for buffer in first}

    def find(buffer: Buffer) -> Buffer:
        while root[buffer] is not buffer:
            buffer = root[buffer]
        return buffer

    for index, step in enumerate(rows):
        for source, result in step.in_place if isinstance(step, Step) else ():
            if source.place != "arena" or result.place != "arena":
                continue
            a, b = find(source), find(result)
            fits = source.elements == result.elements and source.dtype.bits == result.dtype.bits
            if a is not b and fits and last[a] == index and first[b] == index:
                root[b] = a
                last[a] = last[b]
                break
    lives = tuple(Life(b, first[b], last[b]) for b in first if root[b] is b)
    return Lifetimes(lives, {b: find(b) for b in first})


def plan(lives: Sequence[Life], sizes: dict[Buffer, int], steps: int) -> tuple[dict[Buffer, int], int]:
    """(offset of each buffer, size of the arena) in bytes, by best fit over free blocks in order of time."""
    starts: list[list[Life]] = [[] for _ in range(steps)]
    ends: list[list[Life]] = [[] for _ in range(steps)]
    for life in lives:
        starts[life.first].append(life)
        ends[life.last].append(life)
    offsets: dict[Buffer, int] = {}
    free: list[tuple[int, int]] = []  # (offset, size), by offset, never adjacent
    top = 0
    for index in range(steps):
        for life in sorted(starts[index], key=lambda life: -sizes[life.buffer]):
            size = _rounded(sizes[life.buffer])
            best = -1
            for i, (_, room) in enumerate(free):
                if room >= size and (best < 0 or room < free[best][1]):
                    best = i
            if best >= 0:
                offset, room = free.pop(best)
                if room > size:
                    free.insert(best, (offset + size, room - size))
            elif free and free[-1][0] + free[-1][1] == top:
                offset, _ = free.pop()
                top = offset + size
            else:
                offset, top = top, top + size
            offsets[life.buffer] = offset
        for life in ends[index]:
            _release(free, offsets[life.buffer], _rounded(sizes[life.buffer]))
    return offsets, top


def _rounded(size: int) -> int:
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT + ALIGNMENT


def _release(free: list[tuple[int, int]], offset: int, size: int) -> None:
    at = bisect.bisect_left(free, (offset, 0))
    if at < len(free) and offset + size == free[at][0]:
        size += free.pop(at)[1]
    if at and free[at - 1][0] + free[at - 1][1] == offset:
        at -= 1
        before, room = free.pop(at)
        offset, size = before, room + size
    free.insert(at, (offset, size))
