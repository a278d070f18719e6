"""What each engine says of its steps: how long each takes, and which nodes of the model it stands for.

A step is known by the values of the model that it leaves behind. It does every node that those need and that no earlier
step of the engine did: so a fused step stands for all that was fused into it, whatever the engine calls it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import onnx
from feeds import make_feed

RUNS = 15
"""Profiled runs; a step's time is its shortest."""
PEERS = ("onnxruntime", "openvino")


@dataclass(slots=True)
class LayerStep:
    """One step of an engine."""

    name: str
    what: str
    """Operators and tactic, in the engine's words."""
    ns: float
    outputs: list[str] = field(default_factory=list)
    """The model's values that it leaves behind; none where the engine does not tell."""
    nodes: list[str] = field(default_factory=list)
    """The model's nodes that it names itself."""
    flops: int = 0
    nbytes: int = 0
    parallel: bool = True


def steps_of(engine: str, model: str, threads: int) -> tuple[str, list[LayerStep]]:
    """The engine's version and steps, from a process of its own."""
    command = [sys.executable, __file__, engine, model, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed on {model}: {done.stderr[-500:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["version"], [LayerStep(**step) for step in answer["steps"]]


def named(model: str, folder: Path) -> str:
    """The model, or a copy in `folder` whose nodes all have names."""
    graph = onnx.load(model, load_external_data=False)
    if all(node.name for node in graph.graph.node):
        return model
    for index, node in enumerate(graph.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    copy = folder / Path(model).name
    copy.write_bytes(graph.SerializeToString())
    return str(copy)


def whet_steps(model: str, threads: int) -> tuple[str, list[LayerStep]]:
    """Whet's, with the arithmetic and bytes of each."""
    import whet
    from whet.profiling.members import step_nodes

    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    session = whet.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = make_feed(session.get_inputs())
    nodes = {node.name or node.label: node for node in session.optimized_model.graph.all_nodes()}
    order = {node: index for index, node in enumerate(nodes.values())}
    session.profile(feed, 2)
    best: dict[int, LayerStep] = {}
    for _ in range(RUNS):
        for index, event in enumerate(session.profile(feed, 1)):
            known = best.get(index)
            if known is not None:
                known.ns = min(known.ns, event.duration_ns)
                continue
            step = LayerStep(event.name, f"{event.op} ({event.args.get('tactic', event.provider)})", event.duration_ns)
            step.flops, step.nbytes = int(event.args.get("flops", 0)), int(event.args.get("bytes", 0))
            step.parallel = bool(event.args.get("parallel"))
            if event.name in nodes:
                found = step_nodes(nodes[event.name], event.op, order)
                step.outputs = [value.name for value in max(found, key=lambda node: order[node]).outputs]
                step.nodes = [name for node in found if node.provenance for name in node.provenance.nodes]
            best[index] = step
    return whet.__version__, list(best.values())


def onnxruntime_steps(model: str, threads: int) -> tuple[str, list[LayerStep]]:
    """ONNX Runtime's, from its profile and the model that it optimized."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/profile"
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        feed = make_feed(session.get_inputs())
        for _ in range(RUNS + 2):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    results = _results(optimized, onnx.load(model, load_external_data=False).graph)
    best: dict[str, LayerStep] = {}
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if event["cat"] != "Node" or name == event["name"]:
            continue
        ns = event["dur"] * 1e3
        if name in best:
            best[name].ns = min(best[name].ns, ns)
            continue
        best[name] = LayerStep(name, event["args"]["op_name"], ns, results.get(name, []))
    return onnxruntime.__version__, list(best.values())


def _results(optimized: Any, graph: Any) -> dict[str, list[str]]:
    """The model's values that each node of ONNX Runtime's optimized model leaves behind: its own or, where it has none,
    its readers'; changes of layout leave none."""
    readers, users = _readers_of(graph), _readers_of(optimized)
    known = {value for node in graph.node for value in node.output}
    found: dict[str, list[str]] = {}
    for node in reversed(optimized.node):  # in topological order: readers first
        if node.op_type.startswith("Reorder"):
            found[node.name] = []
        elif node.name.endswith("_nchwc"):
            found[node.name] = [_blocked_result(node, readers)]
        else:
            left = [value for value in node.output if value in known]
            later = [user.name for value in node.output for user in users.get(value, [])]
            found[node.name] = left or next((found[name] for name in later if found.get(name)), [])
    return found


def _blocked_result(node: Any, readers: dict[str, list[Any]]) -> str:
    """What a node in blocks of channels leaves behind: its name tells, but for the sum that was fused into it later."""
    value = str(node.name).removesuffix("_nchwc")
    fused = ["Add"] if len(node.input) > 3 and node.input[3] else []
    fused += [a.s.decode() for a in node.attribute if a.name == "activation"] if fused else []
    for operator in fused:
        found = [reader for reader in readers.get(value, []) if reader.op_type == operator]
        if len(found) != 1:
            break
        value = found[0].output[0]
    return value


def _readers_of(graph: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for node in graph.node:
        for value in node.input:
            found.setdefault(value, []).append(node)
    return found


def openvino_steps(model: str, threads: int) -> tuple[str, list[LayerStep]]:
    """OpenVINO's, from its counters; its clock counts whole microseconds."""
    import openvino

    properties = {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": "YES",
        "INFERENCE_NUM_THREADS": str(threads),
    }  # fmt: skip
    compiled = openvino.Core().compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()
    import whet

    feed = make_feed(whet.InferenceSession(model, providers=["ReferenceExecutionProvider"]).get_inputs())
    known = Cover(model).by_any_name()
    origins: dict[str, list[str]] = {}
    whats = {}
    for operation in reversed(compiled.get_runtime_model().get_ordered_ops()):
        info, name = operation.get_rt_info(), operation.get_friendly_name()
        whats[name] = str(info["primitiveType"].astype(str))
        layers = (name, *str(info["originalLayersNames"].astype(str)).split(","))
        origins[name] = list(dict.fromkeys(known[layer] for layer in layers if layer in known))
        if not origins[name] and str(info["layerType"].astype(str)) != "Reorder":
            # A part of something that the plugin took apart: its reader stands for the whole.
            users = [t.get_node().get_friendly_name() for o in operation.outputs() for t in o.get_target_inputs()]
            origins[name] = next((origins[user] for user in users if origins.get(user)), [])
    best: dict[str, LayerStep] = {}
    for number in range(RUNS + 2):
        request.infer(feed)
        for entry in request.profiling_info if number > 1 else []:
            ns = entry.real_time.total_seconds() * 1e9
            if str(entry.status) != "Status.EXECUTED":
                continue
            name = entry.node_name
            if name in best:
                best[name].ns = min(best[name].ns, ns)
            else:
                what = f"{entry.node_type} ({whats.get(name, '')})"
                best[name] = LayerStep(name, what, ns, nodes=origins.get(name, []))
    return openvino.__version__, list(best.values())


_READERS = {"whet": whet_steps, "onnxruntime": onnxruntime_steps, "openvino": openvino_steps}


class Cover:
    """The nodes of a model, which all have names, and which of them steps stand for."""

    def __init__(self, path: str) -> None:
        graph = onnx.load(path, load_external_data=False).graph
        self.nodes = list(graph.node)
        self.names = [node.name for node in self.nodes]
        producer = {value: index for index, node in enumerate(self.nodes) for value in node.output if value}
        given = {i.name for i in graph.input} - {t.name for t in graph.initializer}
        self.fixed: set[int] = set()
        """Nodes of constants and of shapes alone: arithmetic that is done once, or that all steps share."""
        for index, node in enumerate(self.nodes):
            makers = [producer[value] for value in node.input if value in producer]
            if node.op_type in ("Shape", "Size") or (
                not any(value in given for value in node.input) and all(maker in self.fixed for maker in makers)
            ):
                self.fixed.add(index)
        self._producer = {value: index for value, index in producer.items() if index not in self.fixed}
        self._index = {name: index for index, name in enumerate(self.names) if index not in self.fixed}

    def by_any_name(self) -> dict[str, str]:
        """The node of each name: nodes go by their own, or by that of a value that they make."""
        made = {value: self.names[index] for value, index in self._producer.items()}
        return made | {name: name for name in self._index}

    def seeds(self, step: LayerStep) -> list[int]:
        """The nodes that a step names, or that make its results."""
        made = [self._producer[value] for value in step.outputs if value in self._producer]
        return made + [self._index[name] for name in step.nodes if name in self._index]

    def sets(self, steps: Iterable[LayerStep]) -> list[set[int]]:
        """For each step the nodes that it does: those that it names, and what its results need and no earlier step did.

        A step that only goes on with what another has begun has those of its nodes that it names.
        """
        done: set[int] = set()
        found = []
        for step in steps:
            mine: set[int] = set()
            waiting = self.seeds(step)
            while waiting:
                index = waiting.pop()
                if index in done or index in mine:
                    continue
                mine.add(index)
                waiting.extend(self._producer[v] for v in self.nodes[index].input if v in self._producer)
            done |= mine
            found.append(mine or set(self.seeds(step)[:1]))
        return found


def main() -> None:
    engine, model, threads = sys.argv[1:]
    version, steps = _READERS[engine](model, int(threads))
    print(json.dumps({"version": version, "steps": [asdict(step) for step in steps]}))


if __name__ == "__main__":
    main()
