"""Limits that guard loading, optimizing and running. One frozen value, passed down; nothing reads the environment."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a model may make Whet do. Sizes are in bytes, counts in items.

    A model that passes a bound is refused with an error that names the field here, so that a user who means it can
    raise the bound.
    """

    model_bytes: int = 2 * GIB - 1
    """Largest protobuf message without its tensors' raw data (protobuf's own bound)."""
    nodes: int = 4_000_000
    """Nodes in all graphs of a model together, local functions expanded."""
    nesting: int = 64
    """Depth of subgraphs (If in If ...) and of local functions that call each other."""
    name_bytes: int = 64 * KIB
    """Longest name of a node, value or operator."""
    rank: int = 64
    """Most dimensions of a tensor (numpy's own bound)."""
    tensor_bytes: int = 16 * GIB
    """Largest tensor that a node may make at run; checked before it is allocated."""
    fold_bytes: int = 16 * MIB
    """Largest constant that constant folding may make, unless it is no larger than its inputs."""
    fold_seconds: float = 10.0
    """Total time that constant folding may spend on one model."""
    cse_bytes: int = 64 * KIB
    """Largest initializer whose content is compared when equal constants are merged."""
    pass_rounds: int = 16
    """Most repetitions of a group of passes that repeats until nothing changes."""


DEFAULT_LIMITS = Limits()
