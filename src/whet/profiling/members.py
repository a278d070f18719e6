"""Which nodes a step of a profile stands for: events name one node and say which operators the step computes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from whet.graph import Graph, Node, Value
from whet.providers.base import ProfileEvent


def step_nodes(node: Node, operators: str, order: Mapping[Node, int]) -> set[Node]:
    """The nodes of the step that is named after `node` and computes these operators, joined by + in topological order.

    They hang together: behind the node, before it, or around it. `order` numbers the graph's nodes topologically.
    """
    kinds = operators.split("+")
    found = {node}
    for ways in ((_readers,), (_makers,), (_readers, _makers)):
        found = _gather(node, kinds, ways)
        if [_kind(n) for n in sorted(found, key=lambda n: order[n])] == kinds:
            break
    return found


def _gather(node: Node, kinds: list[str], ways: Sequence[Callable[[Node], Iterable[Node]]]) -> set[Node]:
    wanted = Counter(kinds)
    wanted.subtract([_kind(node)])
    found, waiting = {node}, deque([node])
    while waiting:
        here = waiting.popleft()
        for other in (neighbour for way in ways for neighbour in way(here)):
            kind = _kind(other)
            if other not in found and wanted[kind] > 0:
                wanted[kind] -= 1
                found.add(other)
                waiting.append(other)
    return found


def step_results(graph: Graph, events: Iterable[ProfileEvent]) -> list[tuple[Value, ...]]:
    """For each event the values of `graph` that its step leaves behind; none where the graph does not have its node."""
    nodes = list(graph.all_nodes())
    order = {node: index for index, node in enumerate(nodes)}
    by_name = {node.name or node.label: node for node in nodes}
    found: list[tuple[Value, ...]] = []
    for event in events:
        node = by_name.get(event.name)
        members = () if node is None else step_nodes(node, event.op, order)
        found.append(max(members, key=lambda n: order[n]).outputs if members else ())
    return found


def _readers(node: Node) -> Iterable[Node]:
    for value in node.outputs:
        yield from value.uses


def _makers(node: Node) -> Iterable[Node]:
    return (v.producer for v in node.inputs if v is not None and v.producer is not None)


def _kind(node: Node) -> str:
    """The operator without its domain, as events name it."""
    return node.op.rpartition(".")[2]
