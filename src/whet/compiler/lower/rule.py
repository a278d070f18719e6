"""What a lowering rule is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from whet.compiler.fuse import Group
from whet.compiler.lowering import Lowering
from whet.graph import Node

Lower = Callable[[Lowering, Node, Group | None], None]
"""Emit a node's steps; the group, if any, is pointwise work on its result that the node has agreed to do."""
Refusal = Callable[[Node], str | None]
"""Why the node cannot be lowered (its types are known, its extents need not be), or None."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How an operator is lowered, and which of its forms are refused."""

    lower: Lower
    refusal: Refusal
