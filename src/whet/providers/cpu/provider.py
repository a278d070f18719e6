"""CPUExecutionProvider: which nodes the compiler takes, and the options of the provider."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from whet.codegen.target import host_target
from whet.compiler.claim import refusal, unbounded
from whet.compiler.decompose import decompose
from whet.compiler.passes import CPU_PASSES
from whet.errors import InvalidArgument, NotImplemented, did_you_mean
from whet.graph import Graph, Node
from whet.passes.base import Pass
from whet.providers.base import Accept, Claim, CompileEnv, Executable, Level, Refuse, Subgraph
from whet.providers.cpu.executable import CpuExecutable

ACCEPTED_OPTIONS: frozenset[str] = frozenset({"use_arena", "arena_extend_strategy"})
"""ONNX Runtime's options of this provider; they change nothing here."""

GRADIENT = "ai.onnx.preview.training.Gradient"


class CPUExecutionProvider:
    """Compiles subgraphs to machine code for this CPU."""

    name = "CPUExecutionProvider"

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self._options = dict(options or {})
        for key in self._options:
            if key not in ACCEPTED_OPTIONS:
                raise InvalidArgument(
                    "unknown option of CPUExecutionProvider",
                    value=key,
                    hint=did_you_mean(key, ACCEPTED_OPTIONS) or f"Known: {', '.join(sorted(ACCEPTED_OPTIONS))}.",
                )
        try:
            host_target()
            self._unsupported: str | None = None
        except NotImplemented as error:
            self._unsupported = str(error)
        self._unbounded_nodes: weakref.WeakKeyDictionary[Graph, tuple[set[Node], dict[Node, str]]] = (
            weakref.WeakKeyDictionary()
        )
        self._differentiated: weakref.WeakKeyDictionary[Graph, bool] = weakref.WeakKeyDictionary()

    def claim(self, node: Node, graph: Graph) -> Claim:
        """Accept what can be lowered once the model's small integers are known; binding for every shape."""
        if self._unsupported is not None:
            return Refuse(self._unsupported)
        if self._is_differentiated(graph):
            return Refuse("a Gradient node of the graph needs every node with it")
        reason = self._unbounded(graph, node) or refusal(node, graph.inputs)
        return Accept() if reason is None else Refuse(reason)

    def _unbounded(self, graph: Graph, node: Node) -> str | None:
        found = self._unbounded_nodes.get(graph)
        if found is None or node not in found[0]:
            found = self._unbounded_nodes[graph] = set(graph), unbounded(graph)
        return found[1].get(node)

    def _is_differentiated(self, graph: Graph) -> bool:
        """Whether a node of the graph names other ones whose derivatives it is."""
        found = self._differentiated.get(graph)
        if found is None:
            found = self._differentiated[graph] = any(n.op == GRADIENT for n in graph)
        return found

    def passes(self, level: Level) -> tuple[Pass, ...]:
        return CPU_PASSES if level == "all" else ()

    def compile(self, subgraph: Subgraph, env: CompileEnv) -> Executable:
        decompose(subgraph.model, env.limits)
        return CpuExecutable(subgraph, env)

    def options(self) -> dict[str, str]:
        return dict(self._options)
