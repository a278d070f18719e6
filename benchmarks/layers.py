"""Layer by layer: what Whet's steps take, what the peers' take for the same nodes, and the least that it could be.

usage: python benchmarks/layers.py [--threads 2] [--top 25] [--peers NAME,NAME] [--output FILE.json] MODEL.onnx

Engines fuse differently. Steps that share nodes of the model form one row, across all engines; a row holds the least
sets of nodes for which every engine has steps of its own. The floor of a row is the time that its arithmetic (as for
direct convolution: Winograd may pass below it) or its bytes take at the measured peak of this machine. Times are each
step's shortest of some runs, from the engines' own profiles, a process each; such a profile costs time itself, so that
only `zoo.py` tells who is faster. Rows are sorted by what they cost over the best peer. Nodes of subgraphs count with
the node around them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from layer_profiles import PEERS, Cover, LayerStep, named, steps_of

from whet.profiling.peak import Peak, machine_peak

KINDS = {
    "Conv": "convolution", "ConvTranspose": "convolution", "MatMul": "product", "Gemm": "product",
    "Attention": "attention", "Softmax": "attention", "LayerNormalization": "norm", "GroupNormalization": "norm",
    "InstanceNormalization": "norm", "BatchNormalization": "norm", "ReduceMean": "reduction",
    "GlobalAveragePool": "reduction", "MaxPool": "pooling", "AveragePool": "pooling", "LSTM": "recurrent",
    "GRU": "recurrent", "Resize": "resize", "Transpose": "movement", "Concat": "movement", "Slice": "movement",
    "Reshape": "movement", "Gather": "movement", "Split": "movement", "Pad": "movement",
}  # fmt: skip
"""What a node counts as; everything else is pointwise."""
ORDER = ("attention", "recurrent", "convolution", "product", "norm", "pooling", "reduction", "resize", "pointwise")
"""A row counts as the first of its nodes' kinds."""


@dataclass(slots=True)
class Row:
    """Steps of all engines for one set of nodes."""

    nodes: list[str]
    kind: str
    steps: dict[str, list[LayerStep]] = field(default_factory=dict)
    floor_ns: float = 0.0

    def ns(self, engine: str) -> float | None:
        """What the engine's steps take together; None without any."""
        steps = self.steps.get(engine)
        return sum(step.ns for step in steps) if steps else None

    def behind_ns(self, engines: list[str]) -> float:
        """What Whet takes more than the best peer; below 0 where it is ahead, all of it where no peer has a step."""
        theirs = [ns for name in engines if name != "whet" and (ns := self.ns(name)) is not None]
        return (self.ns("whet") or 0.0) - min(theirs, default=0.0)


def least_ns(step: LayerStep, peak: Peak, threads: int) -> float:
    """The least time of a step on this machine with so many threads (one, or all that it may use)."""
    return max(peak.least_ns(step.flops, step.nbytes, threads != 1 and step.parallel))


def kind_of(cover: Cover, nodes: set[int], images: dict[int, str]) -> str:
    """What a set of nodes counts as; convolutions by their form."""
    kinds = {images.get(i) or KINDS.get(cover.nodes[i].op_type, "pointwise") for i in nodes}
    for kind in ORDER:
        for found in sorted(kinds):
            if found.startswith(kind):
                return found
    return "movement" if kinds else "layout"


def convolutions(path: str) -> dict[int, str]:
    """For each convolution by its index, a kind that tells 1x1, depthwise, grouped and strided ones apart."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    found = {}
    for index, node in enumerate(graph.node):
        if node.op_type != "Conv":
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        shape, group = shapes.get(node.input[1], []), attributes.get("group", 1)
        form = "x".join(map(str, shape[2:]))
        if max(attributes.get("strides", [1]), default=1) > 1:
            form += f"/{max(attributes['strides'])}"
        if group > 1:
            form += " depthwise" if shape[:2] == [group, 1] else " grouped"
        found[index] = f"convolution {form}"
    return found


def match(cover: Cover, engines: dict[str, list[LayerStep]], images: dict[int, str]) -> list[Row]:
    """Rows, in the order of the model; steps that stand for no node come last, a row for each engine."""
    parent = list(range(len(cover.nodes)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    sets = {engine: cover.sets(steps) for engine, steps in engines.items()}
    for found in (nodes for each in sets.values() for nodes in each):
        for index in found:
            parent[root(index)] = root(min(found))
    groups: dict[int, set[int]] = defaultdict(set)
    for index in range(len(cover.nodes)):
        groups[root(index)].add(index)
    rows = {}
    for key, nodes in groups.items():
        rows[key] = Row([cover.names[i] for i in sorted(nodes)], kind_of(cover, nodes, images))
    rest = []
    for engine, steps in engines.items():
        alone = Row([], "layout")
        for step, nodes in zip(steps, sets[engine], strict=True):
            row = rows[root(min(nodes))] if nodes else alone
            row.steps.setdefault(engine, []).append(step)
        if alone.steps:
            rest.append(alone)
    found_rows = [rows[key] for key in sorted(rows, key=lambda key: min(groups[key])) if rows[key].steps]
    return [*found_rows, *rest]


def as_text(ns: float | None) -> str:
    return f"{'':>9}" if ns is None else f"{ns / 1e6:9.3f}"


def print_rows(rows: list[tuple[str, Row]], engines: list[str]) -> None:
    """A table in milliseconds, one line a row."""
    print(f"{'':<44}{''.join(f'{name[:8]:>9}' for name in engines)}{'floor':>9}{'of floor':>9}{'behind':>9}")
    for label, row in rows:
        ours = row.ns("whet")
        share = f"{row.floor_ns / ours:9.0%}" if ours and row.floor_ns else f"{'':>9}"
        label = label if len(label) <= 43 else f"{label[:20]}…{label[-22:]}"
        print(f"{label:<44}{''.join(as_text(row.ns(name)) for name in engines)}{as_text(row.floor_ns)}{share}"
              f"{as_text(row.behind_ns(engines))}")  # fmt: skip


def totals(rows: list[Row], engines: list[str]) -> list[tuple[str, Row]]:
    """A row for each kind, and one for all, longest first."""
    kinds: dict[str, Row] = {}
    whole = Row([], "all")
    for row in rows:
        for total in (kinds.setdefault(row.kind, Row([], row.kind)), whole):
            total.floor_ns += row.floor_ns
            for engine in engines:
                total.steps.setdefault(engine, []).extend(row.steps.get(engine, []))
    ordered = sorted(kinds.values(), key=lambda row: -(row.ns("whet") or 0.0))
    return [(row.kind, row) for row in (*ordered, whole)]


def document(row: Row, engines: list[str]) -> dict[str, Any]:
    """The row for JSON."""
    return {
        "nodes": row.nodes,
        "kind": row.kind,
        "floor_ms": row.floor_ns / 1e6,
        **{
            engine: {"ms": (row.ns(engine) or 0.0) / 1e6, "steps": [asdict(step) for step in row.steps.get(engine, [])]}
            for engine in engines
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--top", type=int, default=25, help="rows of the table; 0 for all")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    engines = ["whet", *(name for name in arguments.peers.split(",") if name)]
    unknown = set(engines) - {"whet", *PEERS}
    if unknown:
        parser.error(f"no profile of {', '.join(sorted(unknown))}; there are: {', '.join(PEERS)}")
    with tempfile.TemporaryDirectory() as folder:
        model = named(arguments.model, Path(folder))
        found = {engine: steps_of(engine, model, arguments.threads) for engine in engines}
        cover, images = Cover(model), convolutions(model)
    rows, peak = match(cover, {engine: steps for engine, (_, steps) in found.items()}, images), machine_peak()
    for row in rows:
        row.floor_ns = sum(least_ns(step, peak, arguments.threads) for step in row.steps.get("whet", []))
    print("totals by kind, ms")
    print_rows(totals(rows, engines), engines)
    print("\nrows, by what they take over the best peer")
    slow = sorted(rows, key=lambda row: -row.behind_ns(engines))
    labels = [(" + ".join(s.what for s in row.steps.get("whet", [])) or row.kind, row) for row in slow]
    shown = labels[: arguments.top or None]
    print_rows([(f"{row.nodes[0] if row.nodes else ''} {label}", row) for label, row in shown], engines)
    if arguments.output is not None:
        report = {
            "model": Path(arguments.model).name, "threads": arguments.threads, "peak": asdict(peak),
            "versions": {engine: version for engine, (version, _) in found.items()},
            "totals": [document(row, engines) | {"nodes": len(row.nodes)} for _, row in totals(rows, engines)],
            "rows": [document(row, engines) for row in rows],
        }  # fmt: skip
        for total in report["totals"]:
            for engine in engines:
                total[engine] = total[engine]["ms"]
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
