"""Removal of nodes that nothing reads."""

from __future__ import annotations

from collections.abc import Iterator

from whet.graph import Graph, Patch
from whet.passes.base import PassContext


class DeadCode:
    """Removes nodes none of whose outputs are read, last first, so that what fed only them goes in the same sweep."""

    name = "dead-code"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        for node in reversed(graph):
            if not any(v.graph_outputs or v.uses for v in node.outputs):
                yield Patch(node, remove=(node,))
            elif node.attributes:
                for subgraph in node.subgraphs():
                    yield from self.patches(subgraph, context)
