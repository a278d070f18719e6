"""The opsets that a delegate's parts of one graph are written at: one choice for the claims and for the parts."""

from __future__ import annotations

import weakref

from whet.errors import InvalidGraph
from whet.formats.onnx.opsets import READER_OPSET, choose_opsets
from whet.graph import Graph, Model, copy_graph
from whet.passes.export import lower_for_onnxruntime


class OpsetChoice:
    """Remembers the versions for each graph.

    What a library runs may differ between the versions of an operator. A claim binds, so a node is asked about at the
    versions that its part will have, whatever else is in that part: those that fit the whole graph.
    """

    def __init__(self) -> None:
        self._chosen: weakref.WeakKeyDictionary[Graph, dict[str, int]] = weakref.WeakKeyDictionary()

    def of(self, graph: Graph) -> dict[str, int]:
        """Version by domain for the parts of `graph`."""
        found = self._chosen.get(graph)
        if found is None:
            found = self._chosen[graph] = _choose(graph)
        return found


def _choose(graph: Graph) -> dict[str, int]:
    lowered = Model(graph=copy_graph(graph, {}), opset_imports={})
    lower_for_onnxruntime(lowered, fuse=False)
    nodes = list(lowered.graph.all_nodes())
    try:
        return choose_opsets(nodes, {}, None)
    except InvalidGraph:
        writable = []
        for node in nodes:
            try:
                choose_opsets([node], {}, None)
            except InvalidGraph:
                continue
            writable.append(node)
    try:
        return choose_opsets(writable, {}, None)
    except InvalidGraph:
        # No version fits all that remain; those that the newest lacks will be refused one by one.
        return {**{n.domain: 1 for n in writable}, **READER_OPSET}
