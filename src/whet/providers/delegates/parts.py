"""What all delegates' parts have in common."""

from __future__ import annotations

from collections.abc import Sequence

from whet import dtypes
from whet.graph import Graph, Model, Node, TensorType, Value
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


def origin(subgraph: Subgraph) -> Graph:
    """The graph that the part was cut from."""
    graph = subgraph.nodes[0].graph if subgraph.nodes else None
    return graph if graph is not None else subgraph.graph


def identity_model() -> Model:
    """The smallest model, on which a library checks options."""
    kind = TensorType(dtypes.FLOAT32, (1,))
    graph = Graph("options")
    graph.inputs = [Value("x", kind)]
    graph.append(Node("Identity", graph.inputs, [Value("y", kind)]))
    graph.set_outputs(node.output for node in graph)
    return Model(graph=graph, opset_imports={"": 1})
