"""Values, nodes, graphs and models. Mutated only by the loader, by patches and by the pass driver."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

from whet.graph.dims import Dim, Known, Shape
from whet.graph.tensor import Array, TensorData
from whet.graph.types import TensorType, Type

Attribute = Union[
    int, float, str, bytes, TensorData, "Graph", Type,
    tuple[int, ...], tuple[float, ...], tuple[str, ...], tuple[bytes, ...],
    tuple[TensorData, ...], tuple["Graph", ...], tuple[Type, ...],
]  # fmt: skip
"""A node attribute: a plain Python value whose type is the attribute's type (text that is not UTF-8 stays bytes)."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a node that a pass made comes from: the pass, its patch number, the model's own nodes that it replaces."""

    rewrite: str
    patch: int
    nodes: tuple[str, ...]


class Value:
    """An edge of the graph: written once, by a node, as a graph input, or as a constant (`data`)."""

    __slots__ = (
        "_uses",
        "data",
        "graph_outputs",
        "name",
        "output_index",
        "producer",
        "quantization",
        "symbolic",
        "type",
    )

    def __init__(self, name: str, type: Type | None = None, data: TensorData | None = None) -> None:  # noqa: A002
        self.name = name
        self.type = type
        self.data = data
        self.producer: Node | None = None
        self.output_index = 0
        self.graph_outputs = 0
        """How many times this value stands among the outputs of a graph."""
        self.symbolic: tuple[Known | None, ...] | None = None
        """The elements of a small integer scalar or vector as symbolic dimensions, where they are known."""
        self.quantization: object | None = None
        """Scale, zero point, axis and type of this value, where a Q/DQ pair said so (see passes.extended)."""
        self._uses: dict[Node, int] = {}

    @classmethod
    def constant(cls, name: str, array: Array | TensorData) -> Value:
        """A new constant value."""
        data = array if isinstance(array, TensorData) else TensorData.from_array(array)
        return cls(name, TensorType(data.dtype, data.shape), data)

    @property
    def uses(self) -> Mapping[Node, int]:
        """The nodes that read this value (in this graph or in a subgraph), with how many of their inputs do."""
        return self._uses

    @property
    def use_count(self) -> int:
        """Reads by node inputs plus appearances among graph outputs."""
        return sum(self._uses.values()) + self.graph_outputs

    @property
    def only_use(self) -> Node | None:
        """The one node that reads this value when nothing else does, else None."""
        if self.graph_outputs == 0 and len(self._uses) == 1:
            node, count = next(iter(self._uses.items()))
            if count == 1:
                return node
        return None

    @property
    def shape(self) -> Shape | None:
        """The tensor shape, or None when this is no tensor or its rank is unknown."""
        return self.type.shape if isinstance(self.type, TensorType) else None

    @property
    def array(self) -> Array | None:
        """The constant's array, or None when this is no constant."""
        return None if self.data is None else self.data.numpy()

    def __repr__(self) -> str:
        return f"Value({self.name!r}: {self.type or '?'}{' const' if self.data is not None else ''})"


class Node:
    """One operation. `inputs` may hold None for an optional input left out. Hashed by identity."""

    __slots__ = (
        "_inputs", "_next", "_owner", "_prev", "attributes", "domain", "metadata", "name", "op_type", "outputs",
        "provenance",
    )  # fmt: skip

    def __init__(
        self,
        op_type: str,
        inputs: Iterable[Value | None],
        outputs: Iterable[Value | str],
        attributes: Mapping[str, Attribute] | None = None,
        *,
        domain: str = "",
        name: str = "",
    ) -> None:
        self.op_type = op_type
        self.domain = domain
        self.name = name
        self._inputs: tuple[Value | None, ...] = tuple(inputs)
        self.outputs: tuple[Value, ...] = tuple(Value(o) if isinstance(o, str) else o for o in outputs)
        self.attributes: dict[str, Attribute] = dict(attributes or {})
        self.provenance: Provenance | None = None
        self.metadata: dict[str, str] = {}
        self._owner: weakref.ref[Graph] | None = None
        self._prev: Node | None = None
        self._next: Node | None = None
        for value in self._inputs:
            if value is not None:
                value._uses[self] = value._uses.get(self, 0) + 1
        for index, value in enumerate(self.outputs):
            value.producer = self
            value.output_index = index

    @property
    def inputs(self) -> tuple[Value | None, ...]:
        return self._inputs

    @property
    def graph(self) -> Graph | None:
        """The graph in whose list this node stands; None once that is gone."""
        owner = self._owner
        return None if owner is None else owner()

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    @property
    def op(self) -> str:
        """`op_type`, with its domain in front where that is not ONNX's own."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type

    @property
    def label(self) -> str:
        """How messages name this node: operator, and name or else first output."""
        name = self.name or next((f"-> {o.name}" for o in self.outputs if o.name), "")
        return f"{self.op}({name})"

    def input(self, index: int) -> Value | None:
        """The input at `index`, or None when it is left out."""
        return self._inputs[index] if index < len(self._inputs) else None

    def set_input(self, index: int, value: Value | None) -> None:
        """Read `value` at `index` from now on."""
        inputs = list(self._inputs)
        self._drop_use(inputs[index])
        inputs[index] = value
        if value is not None:
            value._uses[self] = value._uses.get(self, 0) + 1
        self._inputs = tuple(inputs)

    def replace_input(self, old: Value, new: Value) -> None:
        """Read `new` wherever `old` is read now."""
        for index, value in enumerate(self._inputs):
            if value is old:
                self.set_input(index, new)

    def detach(self) -> None:
        """Stop reading all inputs (before this node is thrown away)."""
        for value in self._inputs:
            self._drop_use(value)
        self._inputs = ()
        for graph in self.subgraphs():
            graph.detach()

    def subgraphs(self) -> Iterator[Graph]:
        """The graphs among the attributes (branches and loop bodies)."""
        for attribute in self.attributes.values():
            if isinstance(attribute, Graph):
                yield attribute
            elif isinstance(attribute, tuple) and attribute and isinstance(attribute[0], Graph):
                for graph in attribute:
                    assert isinstance(graph, Graph)
                    yield graph

    def captured(self) -> list[Value]:
        """Values of enclosing graphs that this node's subgraphs read, each once, in order of first use."""
        found: dict[Value, None] = {}
        for graph in self.subgraphs():
            for value in graph.captured():
                found[value] = None
        return list(found)

    # Attribute access with the operator's default, typed for the reader.

    def int_attr(self, name: str, default: int) -> int:
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def float_attr(self, name: str, default: float) -> float:
        value = self.attributes.get(name, default)
        return float(value) if isinstance(value, (int, float)) else default

    def str_attr(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        return value if isinstance(value, str) else default

    def ints_attr(self, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        value = self.attributes.get(name)
        return tuple(int(v) for v in value) if isinstance(value, tuple) else tuple(default)  # type: ignore[arg-type]

    def _untie(self) -> None:
        """Let nothing that this node holds hold it. Inputs and outputs stay, for whoever has the node."""
        self._prev = self._next = None
        for value in self._inputs:
            if value is not None:
                value._uses.pop(self, None)
        for value in self.outputs:
            if value.producer is self:
                value.producer = None

    def _drop_use(self, value: Value | None) -> None:
        if value is None:
            return
        count = value._uses.get(self, 0)
        if count > 1:
            value._uses[self] = count - 1
        else:
            value._uses.pop(self, None)

    def __repr__(self) -> str:
        inputs = ", ".join("_" if v is None else v.name for v in self._inputs)
        return f"{', '.join(o.name for o in self.outputs)} = {self.op}({inputs})"


class Graph:
    """Inputs, nodes in topological order, outputs. Nodes form a doubly linked list: insertion and removal are O(1).

    Constants belong to no list: they are the values with data that nodes and outputs read (`constants`). A subgraph may
    read values of the graphs around it.

    Nodes live in their graph: once nobody holds it any more, its values have no producer and no uses. So its memory,
    the constants above all, is free at that moment and not when Python's collector comes by.
    """

    def __init__(self, name: str = "") -> None:
        self._own = weakref.ref(self)
        self.name = name
        self.inputs: list[Value] = []
        self.overridable: list[Value] = []
        """Initializers that are also graph inputs: constants, unless a run gives another tensor."""
        self._outputs: list[Value] = []
        self._first: Node | None = None
        self._last: Node | None = None
        self._count = 0
        self.doc_string = ""

    def __del__(self) -> None:
        node = self._first
        while node is not None and node._owner is self._own:
            following = node._next
            node._untie()
            node = following

    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(self._outputs)

    def set_outputs(self, outputs: Iterable[Value]) -> None:
        for value in self._outputs:
            value.graph_outputs -= 1
        self._outputs = list(outputs)
        for value in self._outputs:
            value.graph_outputs += 1

    def replace_output(self, old: Value, new: Value) -> None:
        """Let `new` stand wherever `old` is a graph output."""
        # Values compare by identity, so that the list is searched at its own speed: a graph may have many outputs.
        count, position = self._outputs.count(old), -1
        for _ in range(count):
            position = self._outputs.index(old, position + 1)
            self._outputs[position] = new
        old.graph_outputs -= count
        new.graph_outputs += count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Node]:
        """Nodes in order. The current node may be removed, and nodes inserted, while iterating."""
        node = self._first
        while node is not None:
            following = node._next
            yield node
            # Nodes removed meanwhile still point at what followed them: go on from the first one that still stands.
            while following is not None and following._owner is not self._own:
                following = following._next
            node = following

    def __reversed__(self) -> Iterator[Node]:
        node = self._last
        while node is not None:
            previous = node._prev
            yield node
            while previous is not None and previous._owner is not self._own:
                previous = previous._prev
            node = previous

    @property
    def nodes(self) -> list[Node]:
        """A list of all nodes, in order (subgraphs not entered)."""
        return list(self)

    def append(self, node: Node) -> None:
        """Add `node` at the end."""
        node._owner = self._own
        node._prev, node._next = self._last, None
        if self._last is None:
            self._first = node
        else:
            self._last._next = node
        self._last = node
        self._count += 1

    def insert_before(self, anchor: Node, node: Node) -> None:
        """Add `node` in front of `anchor`, which is a node of this graph."""
        assert anchor._owner is self._own
        node._owner = self._own
        node._prev, node._next = anchor._prev, anchor
        if anchor._prev is None:
            self._first = node
        else:
            anchor._prev._next = node
        anchor._prev = node
        self._count += 1

    def remove(self, node: Node) -> None:
        """Take `node` out of the list and stop its reads."""
        assert node._owner is self._own
        if node._prev is None:
            self._first = node._next
        else:
            node._prev._next = node._next
        if node._next is None:
            self._last = node._prev
        else:
            node._next._prev = node._prev
        node._owner = None
        self._count -= 1
        node.detach()

    def detach(self) -> None:
        """Stop every read by the nodes and outputs of this graph (before it is thrown away with its node)."""
        for node in self:
            node.detach()
        self.set_outputs(())

    def reorder(self, nodes: Sequence[Node]) -> None:
        """Put the same nodes into another order."""
        assert len(nodes) == self._count
        previous: Node | None = None
        for node in nodes:
            assert node._owner is self._own
            node._prev = previous
            if previous is not None:
                previous._next = node
            previous = node
        if previous is not None:
            previous._next = None
        self._first = nodes[0] if nodes else None
        self._last = previous

    def all_nodes(self) -> Iterator[Node]:
        """Every node of this graph and of all subgraphs, outer before inner."""
        for node in self:
            yield node
            for graph in node.subgraphs():
                yield from graph.all_nodes()

    def all_graphs(self) -> Iterator[Graph]:
        """This graph and all subgraphs, outer before inner."""
        yield self
        for node in self:
            for graph in node.subgraphs():
                yield from graph.all_graphs()

    def constants(self) -> list[Value]:
        """The constants that nodes or outputs of this graph read, each once, in order of first use."""
        found: dict[Value, None] = {}
        for node in self:
            for value in node.inputs:
                if value is not None and value.data is not None:
                    found[value] = None
        for value in self._outputs:
            if value.data is not None:
                found[value] = None
        return list(found)

    def captured(self) -> list[Value]:
        """Values that come from enclosing graphs, each once, in order of first use; constants are not listed."""
        own: set[Value] = set(self.inputs)
        found: dict[Value, None] = {}
        for node in self:
            own.update(node.outputs)
        for node in self:
            for value in (*node.inputs, *node.captured()):
                if value is not None and value.data is None and value not in own:
                    found[value] = None
        for value in self._outputs:
            if value.data is None and value not in own:
                found[value] = None
        return list(found)

    def find_value(self, name: str) -> Value | None:
        """The value called `name` in this graph (subgraphs not searched)."""
        for value in (*self.inputs, *self.overridable, *self._outputs):
            if value.name == name:
                return value
        for node in self:
            for candidate in (*node.outputs, *node.inputs):
                if candidate is not None and candidate.name == name:
                    return candidate
        return None

    def __repr__(self) -> str:
        return f"Graph({self.name!r}, {self._count} nodes)"


@dataclass(slots=True)
class Model:
    """A loaded model: its main graph at the canonical opset, and what the file said about itself."""

    graph: Graph
    opset_imports: dict[str, int]
    """Versions of each domain *as the file had them*; the graph's ONNX operators are in their newest form."""
    ir_version: int = 0
    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc_string: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    denotations: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For each input that has any: the denotation of every dimension (empty where none)."""
    path: str | None = None
    """The file that the model came from, or None for bytes."""
    patches: int = 0
    """How many patches passes have applied so far."""
    names: NameScope = field(default_factory=lambda: NameScope())


class NameScope:
    """Hands out names that no value or node of a model has."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._next: dict[str, int] = {}

    def reserve(self, name: str) -> None:
        """Mark a name as taken."""
        self._used.add(name)

    def fresh(self, base: str) -> str:
        """`base` itself when it is free, else `base_2`, `base_3`, ..."""
        if base and base not in self._used:
            self._used.add(base)
            return base
        number = self._next.get(base, 2)
        while f"{base}_{number}" in self._used:
            number += 1
        self._next[base] = number + 1
        name = f"{base}_{number}"
        self._used.add(name)
        return name


def dim_of(value: Value | None, axis: int) -> Dim:
    """The extent of `value` along `axis` (negative counts from the end), or None when it is not known."""
    shape = value.shape if value is not None else None
    if shape is None or not -len(shape) <= axis < len(shape):
        return None
    return shape[axis]
