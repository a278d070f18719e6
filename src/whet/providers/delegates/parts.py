"""What all delegates' parts have in common."""

from __future__ import annotations

from collections.abc import Sequence

from whet.providers.base import RunState, Subgraph
from whet.runtime.values import RuntimeValue


class NoOutputs:
    """A part that nobody reads from: there is nothing to run."""

    def run(self, inputs: Sequence[RuntimeValue], state: RunState) -> list[RuntimeValue]:
        """No results."""
        return []


def part_name(subgraph: Subgraph) -> str:
    """How messages name a part: its first and last node."""
    nodes = subgraph.nodes
    if not nodes:
        return subgraph.graph.name
    if len(nodes) == 1:
        return nodes[0].label
    return f"{nodes[0].label} to {nodes[-1].label}, {len(nodes)} nodes"
