"""A graph as text, for people and for tests: one line a node, types behind a colon, provenance on request."""

from __future__ import annotations

from collections.abc import Iterator

from whet.graph.core import Attribute, Graph, Node, Value
from whet.graph.tensor import TensorData


def format_graph(graph: Graph, *, types: bool = True, provenance: bool = False) -> str:
    """The graph's text: a header with inputs and outputs, then its nodes, subgraphs indented below their node."""
    return "\n".join(_lines(graph, "", types, provenance))


def _lines(graph: Graph, indent: str, types: bool, provenance: bool) -> Iterator[str]:
    inputs = ", ".join(_value(v, True) for v in graph.inputs)
    outputs = ", ".join(_value(v, True) for v in graph.outputs)
    yield f"{indent}{graph.name or 'graph'}({inputs}) => ({outputs})"
    for node in graph:
        yield f"{indent}  {_node(node, types)}" + (f"  # {_origin(node)}" if provenance and node.provenance else "")
        for subgraph in node.subgraphs():
            yield from _lines(subgraph, indent + "    ", types, provenance)


def _node(node: Node, types: bool) -> str:
    inputs = ", ".join("_" if v is None else _operand(v) for v in node.inputs)
    attributes = ", ".join(f"{k}={_attribute(a)}" for k, a in sorted(node.attributes.items()))
    outputs = ", ".join(_value(v, types) for v in node.outputs)
    return f"{outputs} = {node.op}({inputs})" + (f" {{{attributes}}}" if attributes else "")


def _operand(value: Value) -> str:
    if value.data is not None and value.data.size <= 4 and not value.name:
        return str(value.data)
    if value.data is not None and value.data.size == 1 and value.data.dtype.name != "string":
        return f"{value.name}({value.data.scalar()})"
    return value.name


def _value(value: Value, types: bool) -> str:
    return f"{value.name}: {value.type or '?'}" if types else value.name


def _attribute(attribute: Attribute) -> str:
    if isinstance(attribute, Graph):
        return f"<graph {attribute.name}>"
    if isinstance(attribute, TensorData):
        return repr(attribute)
    if isinstance(attribute, tuple):
        return "[" + ", ".join(_attribute(a) for a in attribute) + "]"
    return repr(attribute)


def _origin(node: Node) -> str:
    assert node.provenance is not None
    return f"{node.provenance.rewrite} #{node.provenance.patch} of {', '.join(node.provenance.nodes)}"
