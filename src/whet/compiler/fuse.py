"""Groups of nodes that become one kernel: pointwise neighbours, and the node whose result they work on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from whet.graph import Graph, Node, TensorType, Value

MOST_NODES = 48
"""Larger groups would take long to compile and spill registers."""


@dataclass(slots=True)
class Group:
    """Pointwise nodes that are computed together, all of one shape; nobody outside reads any value but `root`."""

    root: Value
    nodes: list[Node] = field(default_factory=list)
    """In topological order."""
    anchor: Node | None = None
    """The node whose first output the group reads in the registers that it is computed in."""

    @property
    def inputs(self) -> list[Value]:
        """What the group reads from outside, the anchor's output left out; each once, in order of first use."""
        inner = {v for node in self.nodes for v in node.outputs}
        if self.anchor is not None:
            inner.add(self.anchor.output)
        found: dict[Value, None] = {}
        for node in self.nodes:
            for value in node.inputs:
                if value is not None and value not in inner:
                    found[value] = None
        return list(found)


AnchorTest = Callable[[Node, Group], bool]
"""Whether the node can compute the group's values before it stores its own result."""


def form_groups(
    graph: Graph, is_pointwise: Callable[[Node], bool], anchors: Mapping[str, AnchorTest]
) -> dict[Node, Group]:
    """The group of every pointwise node, and of every anchor that has one, by node.

    A node joins the group of its readers when they all are in one group of its own shape. So a group is convex, and its
    inputs are ready where its last node stands.
    """
    groups: dict[Node, Group] = {}
    for node in reversed(graph):
        if is_pointwise(node):
            group = _readers_group(node, groups)
            if group is None or not _takes(group, node):
                group = Group(node.output)
            group.nodes.insert(0, node)
            groups[node] = group
        elif node.op in anchors:
            group = _readers_group(node, groups)
            if group is None or group.anchor is not None or not _same_shape(node.output, group.root):
                continue
            group.anchor = node
            if anchors[node.op](node, group):
                groups[node] = group
            else:
                group.anchor = None
    return groups


def _takes(group: Group, node: Node) -> bool:
    """Whether a pointwise node may join the group of all its readers."""
    return group.anchor is None and len(group.nodes) < MOST_NODES and _same_shape(node.output, group.root)


def _readers_group(node: Node, groups: Mapping[Node, Group]) -> Group | None:
    """The one group that holds all readers of the node's output, where nothing else reads it."""
    if any(v.use_count for v in node.outputs[1:]) or node.output.graph_outputs:
        return None
    readers = list(node.output.uses)
    group = groups.get(readers[0]) if readers else None
    # A reader may be the anchor of its group: it needs the value before the group's own work begins.
    if group is None or any(reader not in group.nodes for reader in readers):
        return None
    return group


def _same_shape(a: Value, b: Value) -> bool:
    return isinstance(a.type, TensorType) and isinstance(b.type, TensorType) and a.type.shape == b.type.shape


def order_of_work(graph: Graph, groups: Mapping[Node, Group]) -> Sequence[Node | Group]:
    """What to lower, in order: groups stand where their last node stands."""
    work: list[Node | Group] = []
    for node in graph:
        group = groups.get(node)
        if group is None:
            work.append(node)
        elif group.nodes[-1] is node:
            work.append(group)
    return work
