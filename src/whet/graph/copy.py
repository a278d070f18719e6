"""Copies of graphs: new nodes and values, the same (immutable) constants."""

from __future__ import annotations

from collections.abc import Iterable

from whet.graph.core import Attribute, Graph, Model, NameScope, Node, Value


def copy_model(model: Model) -> Model:
    """A model whose graph can be changed without touching the original; constants are shared."""
    names = NameScope()
    names._used = set(model.names._used)
    names._next = dict(model.names._next)
    return Model(
        graph=copy_graph(model.graph, {}),
        opset_imports=dict(model.opset_imports),
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        metadata=dict(model.metadata),
        denotations=dict(model.denotations),
        path=model.path,
        patches=model.patches,
        names=names,
    )


def copy_graph(graph: Graph, values: dict[Value, Value]) -> Graph:
    """A copy of `graph`. `values` maps values of enclosing graphs to their copies, and receives those made here.

    Values that it does not map and that no node here makes (captured ones, constants) are shared with the original.
    """
    copy = Graph(graph.name)
    copy.doc_string = graph.doc_string
    copy.inputs = [_copy_value(v, values) for v in graph.inputs]
    copy.overridable = [_copy_value(v, values) for v in graph.overridable]
    for node in graph:
        copy.append(copy_node(node, values))
    copy.set_outputs([_read(v, values) for v in graph.outputs])
    return copy


def extract(graph: Graph, nodes: Iterable[Node], inputs: Iterable[Value], outputs: Iterable[Value], name: str) -> Graph:
    """A graph of copies of `nodes` (in order) whose inputs and outputs are copies of the given values of `graph`."""
    values: dict[Value, Value] = {}
    part = Graph(name)
    part.inputs = [_copy_value(v, values) for v in inputs]
    for node in nodes:
        part.append(copy_node(node, values))
    part.set_outputs([_read(v, values) for v in outputs])
    return part


def copy_node(node: Node, values: dict[Value, Value]) -> Node:
    """A copy of `node` that reads the copies in `values` and adds its own outputs there."""
    attributes = {name: _copy_attribute(attribute, values) for name, attribute in node.attributes.items()}
    copy = Node(
        node.op_type,
        [None if v is None else _read(v, values) for v in node.inputs],
        [_copy_value(v, values) for v in node.outputs],
        attributes,
        domain=node.domain,
        name=node.name,
    )
    copy.provenance = node.provenance
    copy.metadata = dict(node.metadata)
    return copy


def _read(value: Value, values: dict[Value, Value]) -> Value:
    found = values.get(value)
    if found is None and value.data is not None:
        # Constants are copied too, so that use lists of the two graphs stay apart.
        found = _copy_value(value, values)
    return value if found is None else found


def _copy_value(value: Value, values: dict[Value, Value]) -> Value:
    copy = values.get(value)
    if copy is None:
        copy = Value(value.name, value.type, value.data)
        copy.symbolic = value.symbolic
        copy.quantization = value.quantization
        values[value] = copy
    return copy


def _copy_attribute(attribute: Attribute, values: dict[Value, Value]) -> Attribute:
    if isinstance(attribute, Graph):
        return copy_graph(attribute, values)
    if isinstance(attribute, tuple) and attribute and isinstance(attribute[0], Graph):
        return tuple(copy_graph(g, values) for g in attribute if isinstance(g, Graph))
    return attribute
