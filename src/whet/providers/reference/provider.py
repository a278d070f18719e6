"""ReferenceExecutionProvider: every operator, by numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from whet.errors import InvalidArgument, did_you_mean
from whet.graph import Graph, Node
from whet.ops.custom import CustomOp
from whet.ops.evaluate import has_kernel
from whet.passes.base import Pass
from whet.providers.base import Accept, Claim, CompileEnv, Level, Refuse, Subgraph
from whet.providers.reference.control import CONTROL
from whet.providers.reference.executable import ReferenceExecutable
from whet.providers.reference.gradient import GRADIENT, find_part
from whet.providers.reference.random import RANDOM

ComputeType = Literal["model", "float64"]

_OPTIONS = ("compute_dtype",)


class ReferenceExecutionProvider:
    """Runs every operator that has a numpy kernel, node by node.

    Option `compute_dtype`: `model` (the default) computes in the model's own types; `float64` widens every float16,
    bfloat16 and float32 input, constant, Cast and type attribute, and gives float results as float64.
    """

    name = "ReferenceExecutionProvider"

    def __init__(self, options: Mapping[str, str] | None = None, custom_ops: Sequence[CustomOp] = ()) -> None:
        given = dict(options or {})
        for key in given:
            if key not in _OPTIONS:
                raise InvalidArgument(
                    f"unknown option of {self.name}",
                    found=key,
                    expected=", ".join(_OPTIONS),
                    hint=did_you_mean(key, _OPTIONS),
                )
        compute = given.get("compute_dtype", "model")
        if compute not in get_args(ComputeType):
            raise InvalidArgument(
                f"option compute_dtype of {self.name} has an unknown value",
                found=compute,
                expected=" or ".join(get_args(ComputeType)),
                hint=did_you_mean(str(compute), get_args(ComputeType)),
            )
        self._compute = compute
        self._custom = {op.op: op for op in custom_ops}

    def claim(self, node: Node, graph: Graph) -> Claim:
        """Accept every node that has a kernel, or whose subgraphs' nodes all do."""
        if node.op in CONTROL:
            for subgraph in node.subgraphs():
                for inner in subgraph:
                    claim = self.claim(inner, subgraph)
                    if isinstance(claim, Refuse):
                        return Refuse(f"in {subgraph.name or 'its subgraph'}: {inner.label}: {claim.reason}")
            return Accept()
        if node.op in self._custom or node.op in RANDOM or has_kernel(node):
            return Accept()
        if node.op == GRADIENT:
            part = find_part(node, graph)
            return Refuse(part) if isinstance(part, str) else Accept()
        if any(True for _ in node.subgraphs()):
            return Refuse(f"operator {node.op} has subgraphs and is none of {', '.join(sorted(CONTROL))}")
        if node.domain not in ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft"):
            return Refuse(f"no Python operator is registered for {node.op} of the custom domain {node.domain!r}")
        return Refuse(f"no kernel for operator {node.op}")

    def passes(self, level: Level) -> tuple[Pass, ...]:
        """None: this provider runs the graph as it is given."""
        return ()

    def compile(self, subgraph: Subgraph, env: CompileEnv) -> ReferenceExecutable:
        """Bind every node's kernel. Raises NotImplemented naming the first node that has none."""
        return ReferenceExecutable(
            subgraph.graph, limits=env.limits, widen=self._compute == "float64", custom=self._custom
        )

    def options(self) -> dict[str, str]:
        """The options in effect."""
        return {"compute_dtype": self._compute}
