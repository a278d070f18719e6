"""Every ONNX node to the newest form of its operator."""

from __future__ import annotations

from collections.abc import Mapping

from whet.formats.onnx.rewriting import Rewriter
from whet.formats.onnx.upgrade_table import ML_STEPS, ONNX_STEPS
from whet.graph import Model, Node

_TABLES = {"": ONNX_STEPS, "ai.onnx.ml": ML_STEPS}


def upgrade(model: Model, versions: Mapping[Node, Mapping[str, int]]) -> None:
    """Rewrite the model's nodes in place. `versions` holds the imports of nodes that came from local functions."""
    rewriter = Rewriter(model.names)
    for graph in list(model.graph.all_graphs()):
        for node in graph:
            table = _TABLES.get(node.domain)
            steps = table.get(node.op_type) if table is not None else None
            if steps is None:
                continue
            version = versions.get(node, model.opset_imports)[node.domain]
            current: Node | None = node
            for since, adapter in steps:
                if current is not None and version < since:
                    current = adapter(rewriter, current)
