"""Topological order of a graph's nodes."""

from __future__ import annotations

from whet.errors import InvalidGraph
from whet.graph.core import Graph, Node


def sort(graph: Graph) -> None:
    """Put nodes into topological order, keeping their present order where it is valid (Kahn, stable).

    Reads by a node's subgraphs count as reads by the node. Raises InvalidGraph that names a node on a cycle.
    """
    nodes = graph.nodes
    position = {node: i for i, node in enumerate(nodes)}
    producers: list[set[int]] = []
    in_order = True
    for i, node in enumerate(nodes):
        before = {
            position[v.producer]
            for v in (*node.inputs, *node.captured())
            if v is not None and v.producer is not None and v.producer in position
        }
        in_order = in_order and all(p < i for p in before)
        producers.append(before)
    if in_order:
        return
    graph.reorder([nodes[i] for i in _stable_order(nodes, producers)])


def _stable_order(nodes: list[Node], producers: list[set[int]]) -> list[int]:
    order: list[int] = []
    state = [0] * len(nodes)  # 0 not seen, 1 on the stack, 2 placed
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            i = stack[-1]
            if state[i] == 2:
                stack.pop()
                continue
            waiting = [p for p in producers[i] if state[p] != 2]
            if not waiting:
                state[i] = 2
                order.append(i)
                stack.pop()
                continue
            state[i] = 1
            for p in sorted(waiting, reverse=True):
                if state[p] == 1:
                    raise InvalidGraph(
                        "the nodes form a cycle",
                        node=nodes[i].label,
                        found=f"{nodes[p].label} and {nodes[i].label} need each other's outputs",
                        expected="a directed graph without cycles",
                    )
                stack.append(p)
    return order
