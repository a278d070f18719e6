"""What a delegate needs to ask its library about one node: the node as a model, and a memory of the answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from whet.graph import Graph, MapType, Model, Node, OptionalType, SequenceType, TensorData, TensorType, Value, extract
from whet.graph.types import Type
from whet.providers.base import Claim, Refuse

VERDICTS = 4096
"""How many answers a delegate remembers."""

_CONTENT_BYTES = 512
"""Constants up to this size are part of a signature by content (axes, shapes, scales), larger ones by type only."""


class Verdicts:
    """Remembers the claim for each signature; the oldest go first."""

    def __init__(self, limit: int = VERDICTS) -> None:
        self._limit = limit
        self._known: OrderedDict[object, Claim] = OrderedDict()

    def get(self, node: Node, context: object, ask: Callable[[], Claim]) -> Claim:
        """The claim for a node like this one in a like `context`: remembered, or what `ask` says now."""
        key = (signature(node), context)
        found = self._known.get(key)
        if found is None:
            found = ask()
            self._known[key] = found
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(key)
        return found

    def __len__(self) -> int:
        return len(self._known)


def signature(node: Node) -> object:
    """What the answer for `node` may depend on: operator, attributes, and types (names of dimensions left out)."""
    dims: dict[str, int] = {}
    return (
        node.op,
        len(node.outputs),
        tuple(_value_key(v, dims) for v in node.inputs),
        tuple(_type_key(v.type, dims) for v in node.outputs),
        tuple((name, _attribute_key(node.attributes[name], dims)) for name in sorted(node.attributes)),
    )


def _value_key(value: Value | None, dims: dict[str, int]) -> object:
    if value is None:
        return None
    if value.data is None:
        return _type_key(value.type, dims)
    return _data_key(value.data)


def _data_key(data: TensorData) -> object:
    small = data.nbytes <= _CONTENT_BYTES
    return ("constant", data.dtype.name, data.shape, data.digest() if small else None)


def _type_key(declared: Type | None, dims: dict[str, int]) -> object:
    if isinstance(declared, TensorType):
        name = declared.dtype.name if declared.dtype is not None else None
        if declared.shape is None:
            return (name, None)
        shape = tuple(d if d is None or isinstance(d, int) else f"d{dims.setdefault(str(d), len(dims))}"
                      for d in declared.shape)  # fmt: skip
        return (name, shape)
    return str(declared)


def _attribute_key(attribute: object, dims: dict[str, int]) -> object:
    if isinstance(attribute, Graph):
        return _graph_key(attribute, dims)
    if isinstance(attribute, TensorData):
        return _data_key(attribute)
    if isinstance(attribute, tuple):
        return tuple(_attribute_key(a, dims) for a in attribute)
    # 1 and 1.0 are equal in Python and different attributes in ONNX.
    return (type(attribute).__name__, str(attribute) if isinstance(attribute, float) else attribute)


def _graph_key(graph: Graph, dims: dict[str, int]) -> object:
    names: dict[Value, int] = {}

    def number(value: Value | None) -> object:
        if value is None:
            return None
        if value.data is not None:
            return _data_key(value.data)
        return (names.setdefault(value, len(names)), _type_key(value.type, dims))

    return (
        tuple(number(v) for v in graph.inputs),
        tuple(
            (
                node.op,
                tuple(number(v) for v in node.inputs),
                tuple(number(v) for v in node.outputs),
                tuple((n, _attribute_key(node.attributes[n], dims)) for n in sorted(node.attributes)),
            )
            for node in graph
        ),
        tuple(number(v) for v in graph.outputs),
    )


def single_node_model(node: Node) -> Model:
    """A model of `node` alone; what its subgraphs capture are inputs too."""
    inputs = {v: None for v in (*node.inputs, *node.captured()) if v is not None and v.data is None}
    graph = extract(node.graph or Graph(), [node], inputs, [v for v in node.outputs if v.name], "probe")
    model = Model(graph=graph, opset_imports={n.domain: 1 for n in _all_nodes(graph)})
    for inner in graph.all_graphs():
        for value in inner.inputs:
            model.names.reserve(value.name)
        for each in inner:
            model.names.reserve(each.name)
            for value in (*each.outputs, *(v for v in each.inputs if v is not None)):
                model.names.reserve(value.name)
    return model


def unknown_type(node: Node) -> Refuse | None:
    """A refusal that names a value whose element type is not known, or None."""
    for value in (*node.inputs, *node.captured(), *node.outputs):
        if value is not None and value.data is None and not _is_known(value.type):
            return Refuse(f"the type of {value.name!r} is not known at load: {value.type or '?'}")
    return None


def values_of(node: Node) -> Iterable[Value]:
    """Every value that the node and the nodes in its subgraphs read or write."""
    for value in (*node.inputs, *node.outputs):
        if value is not None:
            yield value
    for graph in node.subgraphs():
        for inner in graph:
            yield from values_of(inner)


def nodes_of(node: Node) -> Iterable[Node]:
    """The node, and the nodes of its subgraphs at every depth."""
    yield node
    for graph in node.subgraphs():
        for inner in graph:
            yield from nodes_of(inner)


def tensor_types(declared: Type | None) -> Iterable[TensorType]:
    """The tensor types inside a type."""
    if isinstance(declared, TensorType):
        yield declared
    elif isinstance(declared, (SequenceType, OptionalType)):
        yield from tensor_types(declared.element)
    elif isinstance(declared, MapType):
        yield from tensor_types(declared.value)


def _is_known(declared: Type | None) -> bool:
    if isinstance(declared, TensorType):
        return declared.dtype is not None
    if isinstance(declared, (SequenceType, OptionalType)):
        return _is_known(declared.element)
    return isinstance(declared, MapType)


def _all_nodes(graph: Graph) -> Iterable[Node]:
    for inner in graph.all_graphs():
        yield from inner
