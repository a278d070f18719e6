"""How much of each model is compiled: nodes by family, subgraphs counted, and the share of the run time.

usage: python benchmarks/coverage.py [--backend] [--output FILE.json] MODEL.onnx ...

Nodes are those that the passes leave, constants not counted; a node of a subgraph counts with the node around it.
`--backend` also counts onnx's conformance cases that are compiled from end to end (tests/ must be importable).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from feeds import make_feed

import whet
from whet.graph import Node
from whet.providers.base import RunState
from whet.runtime.values import Tensor

MAIN = {
    "Conv": "convolution", "ConvTranspose": "convolution", "MatMul": "product", "Gemm": "product",
    "Attention": "attention", "LayerNormalization": "norm", "GroupNormalization": "norm",
    "InstanceNormalization": "norm", "BatchNormalization": "norm", "RMSNormalization": "norm",
    "com.microsoft.EmbedLayerNormalization": "norm", "Softmax": "softmax", "LogSoftmax": "softmax",
    "LSTM": "recurrent", "GRU": "recurrent", "RNN": "recurrent",
}  # fmt: skip
"""Families that must be compiled wholly; everything else is `other`."""
RUNS = 5
COMPILED = "CPUExecutionProvider"


def inner_nodes(node: Node) -> list[Node]:
    """The node and everything in its subgraphs."""
    return [node, *(n for graph in node.subgraphs() for n in graph.all_nodes())]


def measure(path: str) -> dict[str, Any]:
    session = whet.InferenceSession(path, providers=[COMPILED])
    compiled: Counter[str] = Counter()
    total: Counter[str] = Counter()
    parts = session._main.compiled.parts
    for part in parts:
        for node in part.nodes:
            for inner in inner_nodes(node):
                family = MAIN.get(inner.op, "other")
                total[family] += 1
                compiled[family] += part.provider.name == COMPILED
    feed = make_feed(session.get_inputs())
    values = [Tensor.from_numpy(feed[i.name]) for i in session.get_inputs()]
    times: Counter[str] = Counter()
    for _ in range(RUNS):
        events: list[Any] = []
        session._main.compiled.executor.run(values, RunState(events=events))
        for event in events:
            times[event.provider] += event.duration_ns
    share = times[COMPILED] / max(1, sum(times.values()))
    return {
        "model": Path(path).stem,
        "nodes": {family: [compiled[family], total[family]] for family in sorted(total)},
        "compiled_nodes": sum(compiled.values()),
        "total_nodes": sum(total.values()),
        "partitions": len(parts),
        "compiled_time_share": round(share, 4),
    }


def backend() -> dict[str, int]:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.backend_cases import load_cases

    cases = load_cases()
    found = 0
    for case in cases:
        try:
            session = whet.InferenceSession(case.model, providers=[COMPILED])
        except whet.errors.WhetError:
            continue
        found += set(session.placement.by_provider) <= {COMPILED}
    return {"compiled_cases": found, "cases": len(cases)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--backend", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rows = []
    for path in arguments.models:
        row = measure(path)
        rows.append(row)
        families = ", ".join(f"{name} {a}/{b}" for name, (a, b) in row["nodes"].items())
        print(
            f"{row['model']:<26}{row['compiled_nodes']:>5}/{row['total_nodes']:<5} nodes "
            f"{100 * row['compiled_time_share']:6.2f}% of time  {families}",
            flush=True,
        )
    report: dict[str, Any] = {"whet": whet.__version__, "models": rows}
    if arguments.backend:
        report["backend"] = backend()
        print(f"{report['backend']['compiled_cases']} of {report['backend']['cases']} conformance cases compiled")
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
