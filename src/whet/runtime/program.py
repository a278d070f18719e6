"""The compiled form of a subgraph as data: tables of numbers that the native executor walks.

Three arrays of int64 belong to each run context. *Slots* hold what is known only at run: free extents, small integers
that the data decides, and everything computed from them. *Words* are the arguments of all kernels, one behind the
other. *Bases* are addresses of memory: the arena, the inputs, the outputs, the weights. The tables say how slots become
words and addresses; the rows say what is done with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Table = np.ndarray[Any, np.dtype[np.int64]]

# What a row does (its first number). The other numbers of a row, in order:
KERNEL = 0
"""kernel index, first argument word, word that holds the number of tiles, 1 if threads may share the tiles, node."""
EVALUATE = 1
"""Ranges (begin, end) of `code`, `moves`, `addresses` and `checks`, done in this order."""
JUMP = 2
"""the row to go on with."""
JUMP_IF_ZERO = 3
"""the row to go on with, the slot that is tested."""
LOAD_SLOT = 4
"""slot, word that holds the address, kind of number in memory (LOAD_*), node."""

ROW_NUMBERS = 10

LOAD_INT64 = 0
LOAD_INT32 = 1
LOAD_BOOL = 2

# Operations of the slot code: (operation, target slot, first operand slot, second operand slot).
ADD = 0
SUBTRACT = 1
MULTIPLY = 2
FLOOR_DIVIDE = 3
"""Rounds toward minus infinity; 0 where the divisor is 0."""
MINIMUM = 4
MAXIMUM = 5
COPY = 6
"""The second operand is not looked at."""

ARENA = 0
"""The base of the arena. Behind it stand the inputs, the outputs and the weights, in this order."""


@dataclass(frozen=True, slots=True)
class Program:
    """Immutable and relocatable: it holds no address. Offsets and sizes are in bytes.

    A program fits every run whose slots pass `checks`; the arena's layout is part of it.
    """

    rows: Table
    """[rows, ROW_NUMBERS]. Row 0 is the EVALUATE that turns the slots given by the caller into everything else."""
    words: Table
    """[words]: the argument words, constants in place."""
    slots: Table
    """[slots]: the slots, constants in place. The caller sets the first ones, as many as there are `symbols`."""
    symbols: tuple[str, ...]
    """Names of the slots that the caller sets."""
    code: Table
    """[operations, 4]."""
    moves: Table
    """[moves, 2]: word, slot. The word becomes the slot's number."""
    addresses: Table
    """[addresses, 4]: word, base, offset, slot or -1. The word becomes base + offset (+ the slot's number)."""
    io_addresses: Table
    """Like `addresses`, for inputs and outputs: done in every run, after row 0."""
    checks: Table
    """[checks, 3]: slot, least, most. A run whose slot lies outside gets the status CHECK_FAILED and does nothing."""
    kernels: tuple[str, ...]
    """Symbols of the kernels, by their index in the rows."""
    nodes: tuple[str, ...]
    """Labels of the nodes that the rows name."""
    inputs: int
    outputs: int
    weights: int
    arena_bytes: int
    scratch_bytes: int


# What a run ends with.
DONE = 0
CHECK_FAILED = 1
"""A check of row 0 failed: this program is laid out for other extents."""
KERNEL_FAILED = 2
"""A kernel gave a status; the context says which row and what status."""
CANCELLED = 3
"""The cancel word was set."""
LATE = 4
"""The deadline passed."""
