"""CPUExecutionProvider: the machine-code compiler's place in the order of providers."""

from __future__ import annotations

from collections.abc import Mapping

from whet.errors import EPFail, InvalidArgument, did_you_mean
from whet.graph import Graph, Node
from whet.passes.base import Pass
from whet.providers.base import Claim, CompileEnv, Executable, Level, Refuse, Subgraph

ACCEPTED_OPTIONS: frozenset[str] = frozenset({"use_arena", "arena_extend_strategy"})
"""ONNX Runtime's options of this provider; they change nothing here."""


class CPUExecutionProvider:
    """Claims nothing yet, and says so: its nodes run on the next provider in the session's order."""

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

    def claim(self, node: Node, graph: Graph) -> Claim:
        return Refuse("the CPU compiler is not part of this version")

    def passes(self, level: Level) -> tuple[Pass, ...]:
        return ()

    def compile(self, subgraph: Subgraph, env: CompileEnv) -> Executable:
        raise EPFail("the CPU compiler is not part of this version", hint="It claims no node, so nothing reaches it.")

    def options(self) -> dict[str, str]:
        return dict(self._options)
