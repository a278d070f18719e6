"""Patches: the only way in which a pass changes a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from whet.graph.core import Graph, Model, Node, Provenance, Value


@dataclass(frozen=True, slots=True)
class Patch:
    """New nodes, put in front of `anchor`; values replaced in all their readers; nodes to remove.

    A replaced value that is an output of its graph hands its name to its replacement, so that a model's outputs keep
    their names. Nodes that lose their last reader are left to the dead-code pass unless listed in `remove`; a node in
    `remove` may keep no reader once `replace` is done.
    """

    anchor: Node
    nodes: Sequence[Node] = ()
    replace: Mapping[Value, Value] = field(default_factory=dict)
    remove: Sequence[Node] = ()
    reason: str = ""


def apply(model: Model, patch: Patch, rewrite: str) -> int:
    """Apply `patch` on behalf of the pass called `rewrite`; returns its number. Provenance is written to new nodes.

    Raises AssertionError when the patch itself is malformed (a removed node still read): a bug of the pass.
    """
    graph = patch.anchor.graph
    assert graph is not None, "the patch's anchor is in no graph"
    model.patches += 1
    number = model.patches
    origin = _origins(patch)
    for node in patch.nodes:
        node.provenance = Provenance(rewrite, number, origin)
        if not node.name:
            node.name = model.names.fresh(f"{node.op_type}_{number}")
        for value in node.outputs:
            if not value.name:
                value.name = model.names.fresh(f"{node.name}_out")
        graph.insert_before(patch.anchor, node)
    for old, new in patch.replace.items():
        replace_value(model, graph, old, new)
    for node in patch.remove:
        assert all(v.use_count == 0 for v in node.outputs), f"{rewrite} removes {node.label}, which is still read"
        if node.graph is not None:
            node.graph.remove(node)
    return number


def replace_value(model: Model, graph: Graph, old: Value, new: Value) -> None:
    """Let every reader of `old` (nodes here and in subgraphs, graph outputs) read `new`.

    A graph output must keep its name and must be made by a node of its own graph: when `new` cannot take the name
    over (an input, a constant, another graph's value, or an output itself), an Identity node carries it.
    """
    if new.type is None:
        new.type = old.type
    for reader in list(old.uses):
        reader.replace_input(old, new)
    if not old.graph_outputs:
        return
    for owner in _graphs_with_output(graph, old):
        producer = new.producer
        takes_name = (
            producer is not None and producer.graph is owner and new.graph_outputs == 0 and old.graph_outputs == 1
        )
        if takes_name:
            old.name, new.name = new.name, old.name
            owner.replace_output(old, new)
        else:
            carrier = Node("Identity", [new], [Value(old.name, old.type or new.type)])
            carrier.name = model.names.fresh(f"{old.name}_identity")
            carrier.provenance = Provenance("keep-output-name", model.patches, ())
            old.name = model.names.fresh(f"{old.name}_replaced")
            owner.append(carrier)
            owner.replace_output(old, carrier.output)


def _graphs_with_output(graph: Graph, value: Value) -> list[Graph]:
    """The graphs whose output `value` is; it may be captured by subgraphs and be their output as well."""
    if graph.outputs.count(value) == value.graph_outputs:
        return [graph]  # the common case, without a look at every node for subgraphs
    return [g for g in graph.all_graphs() if value in g.outputs]


def _origins(patch: Patch) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for node in (*patch.remove, *(v.producer for v in patch.replace if v.producer is not None)):
        if node.provenance is not None:
            for name in node.provenance.nodes:
                found[name] = None
        else:
            found[node.name or node.label] = None
    return tuple(found)
