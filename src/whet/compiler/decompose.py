"""Takes operators apart that have no lowering of their own but are made of ones that have."""

from __future__ import annotations

from whet.compiler.lower.einsum_chain import pairs
from whet.compiler.lower.losses import negative_log_likelihood, softmax_cross_entropy
from whet.compiler.lower.parts import Parts, TakeApart
from whet.config import Limits
from whet.graph import Model, Node, Patch
from whet.passes.base import NodePass, PassContext, PassDriver
from whet.passes.basic.propagate import ShapePropagation

PARTS: dict[str, TakeApart] = {
    "Einsum": pairs,
    "NegativeLogLikelihoodLoss": negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
}


class Decomposition(NodePass):
    """Puts its parts in the place of every node whose operator is in PARTS."""

    name = "decomposition"
    roots = frozenset(PARTS)

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        parts = Parts(node, context.model.names)
        results = PARTS[node.op](node, parts)
        if results is None:
            return None
        for old, new in zip(node.outputs, results, strict=True):
            new.type = old.type
        return Patch(node, parts.nodes, dict(zip(node.outputs, results, strict=True)), [node])


def decompose(model: Model, limits: Limits) -> None:
    """Take apart what can be, in the main graph and in subgraphs."""
    if any(node.op in PARTS for node in model.graph.all_nodes()):
        PassDriver(model, limits).run((Decomposition(), ShapePropagation()))
