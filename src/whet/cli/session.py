"""Sessions and provider lists as the verbs make them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from whet.errors import InvalidArgument
from whet.providers.partition import Placement
from whet.session.inference_session import AUTO, InferenceSession
from whet.session.options import GraphOptimizationLevel, SessionOptions

LEVEL_OPTIONS: dict[str, GraphOptimizationLevel] = {
    "disabled": GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def session_options(level: str, threads: int = 0) -> SessionOptions:
    """SessionOptions for a level by name. Raises InvalidArgument for an unknown one."""
    if level not in LEVEL_OPTIONS:
        raise InvalidArgument("unknown optimization level", found=level, expected=", ".join(LEVEL_OPTIONS))
    options = SessionOptions()
    options.graph_optimization_level = LEVEL_OPTIONS[level]
    options.intra_op_num_threads = threads
    return options


def make_session(model: Path, providers: Sequence[str] | None, options: SessionOptions) -> InferenceSession:
    """A session on the named providers; the single name `auto` measures the installed ones."""
    chosen: Sequence[str] | str | None = providers or None
    if chosen and list(chosen) == [AUTO]:
        chosen = AUTO
    return InferenceSession(str(model), options, providers=chosen)


def placement_rows(placement: Placement) -> list[tuple[str, int, str]]:
    """Rows (provider, nodes, reason for being passed over) for the short placement table."""
    rows = [(provider, count, "runs them") for provider, count in placement.by_provider.items()]
    rows += [(name, len(nodes), f"refused: {reason}") for (name, reason), nodes in placement.refusal_counts().items()]
    return rows


def placement_document(placement: Placement) -> dict[str, object]:
    """The placement for JSON output, every node with its refusals."""
    return {
        "summary": placement.summary(),
        "by_provider": placement.by_provider,
        "partitions": [{"provider": p, "nodes": n} for p, n in placement.partitions],
        "crossings": [
            {"value": c.value, "from": c.source, "to": c.target, "bytes": c.nbytes} for c in placement.crossings
        ],
        "nodes": [
            {
                "node": n.node,
                "op": n.op,
                "provider": n.provider,
                "partition": n.partition,
                "refusals": [{"provider": p, "reason": r} for p, r in n.refusals],
            }
            for n in placement.nodes
        ],
        "notes": list(placement.notes),
    }
