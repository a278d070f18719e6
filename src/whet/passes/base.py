"""What a pass is, and the driver that applies passes one numbered patch at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import WhetError
from whet.graph import Graph, Model, Node, Patch, Value, apply
from whet.graph.order import sort
from whet.graph.verify import verify


@dataclass(slots=True)
class PassContext:
    """What passes may read besides the graph, and where they leave what they decline."""

    model: Model
    limits: Limits = DEFAULT_LIMITS
    refusals: list[Refusal] = field(default_factory=list)
    folding_seconds: float = 0.0
    """Time that constant folding has spent on this model so far."""
    _refused: set[Refusal] = field(default_factory=set)

    def refuse(self, rewrite: str, node: Node, reason: str) -> None:
        """Record why a node that looked right for `rewrite` was left alone."""
        refusal = Refusal(rewrite, node.label, reason)
        if refusal not in self._refused:
            self._refused.add(refusal)
            self.refusals.append(refusal)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A near miss: the pass, the node and why it does not apply."""

    rewrite: str
    node: str
    reason: str


class Pass(Protocol):
    """A graph-to-graph rewrite. `patches` yields one patch at a time; each is applied before the generator goes on."""

    name: str

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        """Yield patches for `graph` and the subgraphs in it, until nothing is left to do."""
        ...


class NodePass:
    """Base of a local rewrite: looks at every node whose operator is in `roots`, subgraphs included."""

    name: str = ""
    roots: frozenset[str] = frozenset()
    """Operators as `Node.op` writes them: `Conv`, `com.microsoft.Gelu`."""

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        """The patch that replaces what is rooted at `node`, or None. The patch's anchor is normally `node`."""
        raise NotImplementedError

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        for node in graph:
            for subgraph in node.subgraphs():
                yield from self.patches(subgraph, context)
            if node.op in self.roots and node.graph is graph:
                patch = self.rewrite(node, context)
                if patch is not None:
                    yield patch


@dataclass(frozen=True, slots=True)
class Repeat:
    """Passes repeated in order until a round changes nothing (at most `Limits.pass_rounds` rounds)."""

    passes: tuple[Pass, ...]


Pipeline = Sequence[Pass | Repeat]


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did in one go."""

    name: str
    patches: int
    first_patch: int
    seconds: float


@dataclass(slots=True)
class PassReport:
    """The record of a whole pipeline: what ran, how many patches, how long, and the near misses."""

    records: list[PassRecord] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def patches(self) -> int:
        return sum(r.patches for r in self.records)

    def counts(self) -> dict[str, int]:
        """Patches by pass name, in order of first use, zeros left out."""
        totals: dict[str, int] = {}
        for record in self.records:
            if record.patches:
                totals[record.name] = totals.get(record.name, 0) + record.patches
        return totals


class PassDriver:
    """Runs pipelines over a model. `stop_after` bounds the number of patches, so that a wrong one can be bisected."""

    def __init__(
        self,
        model: Model,
        limits: Limits = DEFAULT_LIMITS,
        *,
        stop_after: int | None = None,
        check_each_patch: bool = False,
    ) -> None:
        self.context = PassContext(model, limits)
        self.report = PassReport(refusals=self.context.refusals)
        self.stop_after = stop_after
        self.check_each_patch = check_each_patch

    def run(self, pipeline: Pipeline) -> PassReport:
        """Apply the pipeline to the model's graph in place."""
        for entry in pipeline:
            if isinstance(entry, Repeat):
                self._repeat(entry)
            else:
                self._run_pass(entry)
        if self.report.patches:
            verify(self.context.model)
        return self.report

    def _repeat(self, group: Repeat) -> None:
        for _ in range(self.context.limits.pass_rounds):
            changed = False
            for entry in group.passes:
                changed = self._run_pass(entry) > 0 or changed
            if not changed:
                return

    def _run_pass(self, entry: Pass) -> int:
        model = self.context.model
        first, started, count = model.patches + 1, time.perf_counter(), 0
        patches = entry.patches(model.graph, self.context)
        while self.stop_after is None or model.patches < self.stop_after:
            patch = next(patches, None)
            if patch is None:
                break
            self._apply(entry, patch)
            count += 1
        if count:
            for graph in list(model.graph.all_graphs()):
                sort(graph)
        self.report.records.append(PassRecord(entry.name, count, first, time.perf_counter() - started))
        return count

    def _apply(self, entry: Pass, patch: Patch) -> None:
        number = apply(self.context.model, patch, entry.name)
        if self.check_each_patch:
            try:
                for graph in list(self.context.model.graph.all_graphs()):
                    sort(graph)
                verify(self.context.model)
            except WhetError as error:
                raise AssertionError(f"pass {entry.name}, patch {number}, broke the graph: {error}") from error


def only_reader(value: Value, op: str) -> Node | None:
    """The one node that reads `value`, when nothing else reads it and its operator is `op`."""
    node = value.only_use
    return node if node is not None and node.op == op else None


def producer(value: Value | None, op: str) -> Node | None:
    """The node that makes `value`, when its operator is `op`."""
    node = value.producer if value is not None else None
    return node if node is not None and node.op == op else None
