"""The IR's rules, checked by the pass driver before and after patches and by tests."""

from __future__ import annotations

from whet.errors import InvalidGraph
from whet.graph.core import Graph, Model, Value


def verify(model: Model) -> None:
    """Raise InvalidGraph when the graph breaks a rule: order, single definition, unique names, use lists."""
    names: dict[str, Value] = {}
    _verify_graph(model.graph, set(), names)


def _verify_graph(graph: Graph, outer: set[Value], names: dict[str, Value]) -> None:
    defined = set(outer)
    for value in (*graph.inputs, *graph.overridable):
        _define(value, defined, names, f"input of graph {graph.name!r}")
    nodes = graph.nodes
    if len(nodes) != len(graph):
        raise InvalidGraph(
            f"nodes of graph {graph.name!r} belong to another graph", found=len(nodes), expected=f"{len(graph)} nodes"
        )
    for node in nodes:
        for read in node.inputs:
            if read is None:
                continue
            if read.data is None and read not in defined:
                raise InvalidGraph("a node reads a value before it is made", node=node.label, value=read.name)
            if read.uses.get(node, 0) != sum(v is read for v in node.inputs):
                raise InvalidGraph("a value's use list is wrong", node=node.label, value=read.name)
        for subgraph in node.subgraphs():
            _verify_graph(subgraph, defined, names)
        for index, value in enumerate(node.outputs):
            if value.producer is not node or value.output_index != index:
                raise InvalidGraph("a value names another producer", node=node.label, value=value.name)
            _define(value, defined, names, node.label)
    for value in graph.outputs:
        if value.data is None and value not in defined:
            raise InvalidGraph("a graph output is never made", value=value.name)
        if value.graph_outputs < 1:
            raise InvalidGraph("a value does not know that it is a graph output", value=value.name)


def _define(value: Value, defined: set[Value], names: dict[str, Value], where: str) -> None:
    if value in defined:
        raise InvalidGraph("a value is made twice", node=where, value=value.name)
    if value.name and names.setdefault(value.name, value) is not value:
        raise InvalidGraph("two values share a name", node=where, value=value.name)
    defined.add(value)
