"""What one run of the reference provider owns, and the shapes of the functions that it passes through."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from whet.config import Limits
from whet.providers.base import RunState


class Run:
    """What one run owns: its state, limits, and the numbering of its random nodes."""

    __slots__ = ("_counts", "entropy", "limits", "state")

    def __init__(self, state: RunState, limits: Limits) -> None:
        self.state = state
        self.limits = limits
        self.entropy = int.from_bytes(os.urandom(8), "little") if state.seed is None else state.seed
        """Seeds the random nodes that carry no seed of their own."""
        self._counts: dict[str, int] = {}

    def next_count(self, name: str) -> int:
        """How often the random node `name` has run before in this run (more than once in a loop)."""
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        return count


Body = Callable[[Sequence[Any], Sequence[Any], Run], list[Any]]
"""A subgraph: `body(inputs, captured, run)`."""

Call = Callable[[Sequence[Any], Run], list[Any]]
"""A bound node: its inputs, then the values that its subgraphs capture."""
