"""Which provider runs each node: priority order, typed refusals, convex parts, and the report of all that."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from whet.errors import NotImplemented
from whet.graph import Graph, Model, Node, TensorType, Value
from whet.graph.dims import product
from whet.providers.base import Accept, ExecutionProvider, Refuse


@dataclass(frozen=True, slots=True)
class NodePlacement:
    """One node: the provider that runs it, its part, and why each provider ahead of that one refused."""

    node: str
    op: str
    provider: str
    partition: int
    refusals: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Crossing:
    """A value that passes from one part to another; `nbytes` is None while its extents are free."""

    value: str
    source: str
    target: str
    nbytes: int | None


@dataclass(frozen=True, slots=True)
class Placement:
    """The placement report of a session."""

    nodes: tuple[NodePlacement, ...]
    partitions: tuple[tuple[str, int], ...]
    """Provider and number of nodes of each part, in execution order."""
    crossings: tuple[Crossing, ...]
    notes: tuple[str, ...] = ()

    @property
    def by_provider(self) -> dict[str, int]:
        """Number of nodes for each provider that runs any."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            counts[node.provider] = counts.get(node.provider, 0) + 1
        return counts

    @property
    def crossing_bytes(self) -> int:
        """Bytes that pass between parts in one run, as far as extents are known."""
        return sum(c.nbytes or 0 for c in self.crossings)

    def refusal_counts(self) -> dict[tuple[str, str], list[str]]:
        """Nodes by (provider, reason), for a short report."""
        grouped: dict[tuple[str, str], list[str]] = {}
        for node in self.nodes:
            for refusal in node.refusals:
                grouped.setdefault(refusal, []).append(node.node)
        return grouped

    def summary(self) -> str:
        """One line: nodes per provider, parts, bytes crossing."""
        total = len(self.nodes)
        parts = ", ".join(f"{count}/{total} nodes on {name}" for name, count in self.by_provider.items())
        least = "at least " if any(c.nbytes is None for c in self.crossings) else ""
        return f"{parts or '0 nodes'}; {len(self.partitions)} partitions; {least}{self.crossing_bytes} bytes crossing"


@dataclass(slots=True)
class Part:
    """A convex set of nodes for one provider, with what it reads and what others read of it."""

    provider: ExecutionProvider
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)


def partition(
    model: Model, providers: Sequence[ExecutionProvider], notes: Iterable[str] = ()
) -> tuple[list[Part], Placement]:
    """Place every node of the main graph on the first provider that accepts it; a node takes its subgraphs with it.

    Parts come in an order in which they can run. Raises NotImplemented that names the node and every provider's
    reason when nobody accepts it.
    """
    graph = model.graph
    placed: list[tuple[Node, int, tuple[tuple[str, str], ...]]] = []
    for node in graph:
        refusals: list[tuple[str, str]] = []
        for index, provider in enumerate(providers):
            claim = provider.claim(node, graph)
            if isinstance(claim, Accept):
                placed.append((node, index, tuple(refusals)))
                break
            assert isinstance(claim, Refuse)
            refusals.append((provider.name, claim.reason))
        else:
            raise NotImplemented(
                "no execution provider of this session runs the node",
                node=node.label,
                file=model.path,
                found="; ".join(f"{name}: {reason}" for name, reason in refusals),
                hint="Register it (SessionOptions.register_custom_op), or add a provider that has it.",
            )
    part_of = _cluster(placed)
    order = _order_parts(placed, part_of)
    rank = {part: i for i, part in enumerate(order)}
    parts = [Part(providers[index]) for index in _providers_of(placed, part_of, order)]
    for node, _, _ in placed:
        parts[rank[part_of[node]]].nodes.append(node)
    _connect(graph, parts)
    return parts, _report(placed, part_of, rank, parts, providers, notes)


def _sources(node: Node) -> Iterable[Node]:
    for value in (*node.inputs, *node.captured()):
        if value is not None and value.producer is not None:
            yield value.producer


def _cluster(placed: Sequence[tuple[Node, int, tuple[tuple[str, str], ...]]]) -> dict[Node, int]:
    """Greedy convex clustering in node order; `ancestors` holds, a bit each, the parts that a part depends on."""
    part_of: dict[Node, int] = {}
    provider_of: list[int] = []
    ancestors: list[int] = []
    for node, index, _ in placed:
        before = {part_of[s] for s in _sources(node) if s in part_of}
        chosen = next(
            (
                part
                for part in range(len(provider_of) - 1, -1, -1)
                if provider_of[part] == index and not any(p != part and ancestors[p] >> part & 1 for p in before)
            ),
            None,
        )
        if chosen is None:
            chosen = len(provider_of)
            provider_of.append(index)
            ancestors.append(0)
        part_of[node] = chosen
        added = 0
        for p in before - {chosen}:
            added |= ancestors[p] | 1 << p
        if added & ~ancestors[chosen]:
            for part in range(len(ancestors)):
                if part == chosen or ancestors[part] >> chosen & 1:
                    ancestors[part] |= added
    return part_of


def _order_parts(
    placed: Sequence[tuple[Node, int, tuple[tuple[str, str], ...]]], part_of: dict[Node, int]
) -> list[int]:
    depends: dict[int, set[int]] = {}
    for node, _, _ in placed:
        own = part_of[node]
        depends.setdefault(own, set()).update(part_of[s] for s in _sources(node) if s in part_of and part_of[s] != own)
    readers: dict[int, list[int]] = {part: [] for part in depends}
    for part, needed in depends.items():
        for other in needed:
            readers[other].append(part)
    # Of the parts that can run, the one that was opened first goes first: the order of the model's own nodes.
    waiting = {part: len(needed) for part, needed in depends.items()}
    ready = [part for part, count in waiting.items() if not count]
    heapq.heapify(ready)
    order: list[int] = []
    while ready:
        part = heapq.heappop(ready)
        order.append(part)
        for reader in readers[part]:
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    assert len(order) == len(depends), "parts depend on each other in a circle"
    return order


def _providers_of(
    placed: Sequence[tuple[Node, int, tuple[tuple[str, str], ...]]], part_of: dict[Node, int], order: Sequence[int]
) -> list[int]:
    found = {part_of[node]: index for node, index, _ in placed}
    return [found[part] for part in order]


def _connect(graph: Graph, parts: Sequence[Part]) -> None:
    owner = {node: i for i, part in enumerate(parts) for node in part.nodes}
    outputs: list[dict[Value, None]] = [{} for _ in parts]
    for i, part in enumerate(parts):
        inputs: dict[Value, None] = {}
        for node in part.nodes:
            for value in (*node.inputs, *node.captured()):
                if value is None or value.data is not None or (value.producer and owner.get(value.producer) == i):
                    continue
                inputs[value] = None
                if value.producer is not None:
                    outputs[owner[value.producer]][value] = None
        part.inputs = list(inputs)
    for value in graph.outputs:
        if value.producer is not None and value.producer in owner:
            outputs[owner[value.producer]][value] = None
    for part, made in zip(parts, outputs, strict=True):
        part.outputs = list(made)


def _report(
    placed: Sequence[tuple[Node, int, tuple[tuple[str, str], ...]]],
    part_of: dict[Node, int],
    rank: dict[int, int],
    parts: Sequence[Part],
    providers: Sequence[ExecutionProvider],
    notes: Iterable[str],
) -> Placement:
    nodes = tuple(
        NodePlacement(node.label, node.op, providers[index].name, rank[part_of[node]], refusals)
        for node, index, refusals in placed
    )
    crossings = []
    for part in parts:
        for value in part.inputs:
            if value.producer is not None:
                source = parts[rank[part_of[value.producer]]].provider.name
                crossings.append(Crossing(value.name, source, part.provider.name, _nbytes(value)))
    return Placement(nodes, tuple((p.provider.name, len(p.nodes)) for p in parts), tuple(crossings), tuple(notes))


def _nbytes(value: Value) -> int | None:
    if not isinstance(value.type, TensorType) or value.type.dtype is None or value.type.shape is None:
        return None
    elements = product(value.type.shape)
    return value.type.dtype.storage_bytes(elements) if isinstance(elements, int) else None
