"""From Graph to ModelProto, at an opset that readers know."""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from whet import dtypes
from whet.errors import InvalidGraph
from whet.formats.onnx.attributes import encode_attribute
from whet.formats.onnx.opsets import Misfit, attributes_at, choose_opsets, ir_version
from whet.formats.onnx.schemas import KNOWN_DOMAINS, newest
from whet.formats.onnx.tensors import encode_tensor
from whet.formats.onnx.types import encode_type
from whet.formats.onnx.wire import Payloads
from whet.graph import Attribute, Graph, Model, Node, TensorType, Value
from whet.version import __version__

_A = onnx.AttributeProto


def to_proto(model: Model, *, opset: int | None = None) -> onnx.ModelProto:
    """The model as a proto, its weights inside.

    `opset` is ai.onnx's version; by default the least one, from the model's own on and at least 17, in which every
    operator has its meaning and that ONNX Runtime 1.31 reads. Raises InvalidGraph, naming the node, when there is none.
    """
    return Writer(model, opset, None).model()


def node_to_proto(node: Node) -> onnx.NodeProto:
    """One node in its canonical form, inputs and outputs by value name; subgraphs are written in full."""
    writer = _NodeWriter(None)
    proto = onnx.NodeProto()
    writer.node(node, node.attributes, proto)
    return proto


class _NodeWriter:
    """Writes nodes and graphs. Values keep their names; nameless and clashing ones get new ones."""

    def __init__(self, payloads: Payloads | None) -> None:
        self.payloads = payloads
        self.names: dict[Value, str] = {}
        self.used: set[str] = set()
        self.constants: dict[Value, str] = {}
        """Constants that have been read so far, with their names: the main graph's initializers."""

    def attributes(self, node: Node) -> dict[str, Attribute]:
        """How the node's attributes read at the opset being written."""
        return node.attributes

    def name(self, value: Value) -> str:
        """The name under which `value` is written."""
        known = self.names.get(value)
        if known is not None:
            return known
        name = base = value.name or ("constant" if value.data is not None else "value")
        number = 2
        while name in self.used:
            name = f"{base}_{number}"
            number += 1
        self.used.add(name)
        self.names[value] = name
        if value.data is not None:
            self.constants[value] = name
        return name

    def node(self, node: Node, attributes: dict[str, Attribute], proto: onnx.NodeProto) -> None:
        proto.op_type = node.op_type
        if node.domain:
            proto.domain = node.domain
        if node.name:
            proto.name = node.name
        proto.input.extend("" if v is None else self.name(v) for v in node.inputs)
        proto.output.extend(self.name(v) if v.name or v.use_count else "" for v in node.outputs)
        for name, value in attributes.items():
            self._attribute(node, name, value, proto)
        for key, text in node.metadata.items():
            proto.metadata_props.add(key=key, value=text)

    def _attribute(self, node: Node, name: str, value: Attribute, proto: onnx.NodeProto) -> None:
        if isinstance(value, Graph):
            target = proto.attribute.add(name=name, type=_A.GRAPH)
            self.subgraph(value, target.g)
        elif isinstance(value, tuple) and value and isinstance(value[0], Graph):
            target = proto.attribute.add(name=name, type=_A.GRAPHS)
            for graph in value:
                assert isinstance(graph, Graph)
                self.subgraph(graph, target.graphs.add())
        else:
            kind = None
            if value == ():
                schema = newest(node.domain, node.op_type) if node.domain in KNOWN_DOMAINS else None
                kind = schema.attributes.get(name) if schema is not None else None
            proto.attribute.append(encode_attribute(name, value, self.payloads, kind))

    def subgraph(self, graph: Graph, proto: onnx.GraphProto) -> None:
        proto.name = graph.name or "subgraph"
        proto.doc_string = graph.doc_string
        for value in graph.inputs:
            self.value_info(value, proto.input.add())
        self.nodes(graph, proto)
        made = {o for node in graph for o in node.outputs} | set(graph.inputs)
        taken: set[Value] = set()
        for value in graph.outputs:
            # An output must be made inside its graph, once; anything else is carried there by an Identity.
            if value in made and value not in taken:
                taken.add(value)
                self.value_info(value, proto.output.add())
                continue
            carried = Value(f"{value.name or 'value'}_result", value.type)
            node = proto.node.add(op_type="Identity")
            node.input.append(self.name(value))
            node.output.append(self.name(carried))
            self.value_info(carried, proto.output.add())

    def nodes(self, graph: Graph, proto: onnx.GraphProto) -> None:
        for node in graph:
            self.node(node, self.attributes(node), proto.node.add())

    def value_info(self, value: Value, proto: onnx.ValueInfoProto) -> None:
        proto.name = self.name(value)
        if value.type is not None:
            proto.type.CopyFrom(encode_type(value.type))


class Writer(_NodeWriter):
    """Writes one model; long tensors go to `payloads` where that is given."""

    def __init__(self, model: Model, opset: int | None, payloads: Payloads | None) -> None:
        super().__init__(payloads)
        self._model = model
        nodes = list(model.graph.all_nodes())
        self._opsets = choose_opsets(nodes, model.opset_imports, opset)
        self.types = set(_element_types(model.graph))

    def attributes(self, node: Node) -> dict[str, Attribute]:
        found = attributes_at(node, self._opsets[node.domain])
        if isinstance(found, Misfit):
            raise InvalidGraph(
                "a node cannot be written at this opset",
                node=node.label,
                found=found.reason,
                expected=f"opset {self._opsets[node.domain]}",
            )
        return found

    def model(self) -> onnx.ModelProto:
        """The whole model."""
        model, graph = self._model, self._model.graph
        proto = onnx.ModelProto(
            ir_version=ir_version(self._opsets, self.types, model.ir_version),
            producer_name=model.producer_name or "whet",
            producer_version=model.producer_version if model.producer_name else __version__,
            domain=model.domain,
            model_version=model.model_version,
            doc_string=model.doc_string,
        )
        for domain, version in self._opsets.items():
            proto.opset_import.add(domain=domain, version=version)
        for key, text in model.metadata.items():
            proto.metadata_props.add(key=key, value=text)
        self._reserve(graph)
        self._graph(graph, proto.graph)
        return proto

    def _reserve(self, graph: Graph) -> None:
        """Give the names that callers use to their values before anything else can take them."""
        for value in (*graph.inputs, *graph.overridable, *graph.outputs):
            self.name(value)
        for inner in graph.all_graphs():
            for value in inner.inputs:
                self.name(value)
            for node in inner:
                for value in node.outputs:
                    if value.name:
                        self.name(value)

    def _graph(self, graph: Graph, proto: onnx.GraphProto) -> None:
        proto.name = graph.name or "graph"
        proto.doc_string = graph.doc_string
        for value in (*graph.inputs, *graph.overridable):
            self.value_info(value, proto.input.add())
        self.nodes(graph, proto)
        for value in graph.outputs:
            self.value_info(value, proto.output.add())
        outside = {*graph.inputs, *graph.overridable, *graph.outputs}
        for node in graph:
            for value in node.outputs:
                if value.type is not None and value.name and value not in outside:
                    self.value_info(value, proto.value_info.add())
        for value, name in self.constants.items():
            assert value.data is not None
            proto.initializer.append(encode_tensor(value.data, name, self.payloads))


def _element_types(graph: Graph) -> Iterable[str]:
    for inner in graph.all_graphs():
        for value in (*inner.inputs, *inner.outputs, *inner.constants(), *(o for n in inner for o in n.outputs)):
            if isinstance(value.type, TensorType) and value.type.dtype is not None:
                yield value.type.dtype.name


def stored_bytes(value: Value) -> int:
    """Bytes of a constant in a file."""
    assert value.data is not None
    return 0 if value.data.dtype is dtypes.STRING else value.data.nbytes
