"""Shape propagation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from whet.graph import Graph, Patch
from whet.ops.base import Infer
from whet.ops.infer import NO_CUSTOM, infer_graph
from whet.passes.base import PassContext


class ShapePropagation:
    """Infers the type, shape and symbolic elements of every value; changes no node."""

    name = "shape-propagation"

    def __init__(self, custom: Mapping[str, Infer] = NO_CUSTOM) -> None:
        self.custom = custom

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        infer_graph(graph, self.custom)
        return iter(())
