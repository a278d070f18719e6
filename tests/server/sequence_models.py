"""Models of sequences and their configurations, as users of Triton write them."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto
from onnx import helper as oh


def save(path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto],
         outputs: list[onnx.ValueInfoProto], constants: list[onnx.TensorProto] | None = None) -> None:  # fmt: skip
    graph = oh.make_graph(nodes, path.stem, inputs, outputs, constants or [])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)])
    model.ir_version = 10
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return oh.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def integers(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return oh.make_tensor_value_info(name, TensorProto.INT64, list(shape))


def save_running_sum(path: Path, batch: str | None = "n") -> None:
    """total_out = total_in + x; y = total_out; flags = 100 start + 10 end + ready; id = the sequence's."""
    lead: list[int | str] = [batch] if batch else []
    nodes = [
        oh.make_node("Add", ["total_in", "x"], ["total_out"]),
        oh.make_node("Identity", ["total_out"], ["y"]),
        oh.make_node("Mul", ["start", "hundred"], ["a"]),
        oh.make_node("Mul", ["end", "ten"], ["b"]),
        oh.make_node("Add", ["a", "b"], ["c"]),
        oh.make_node("Add", ["c", "ready"], ["flags"]),
        oh.make_node("Identity", ["corrid"], ["id"]),
    ]
    controls = [floats(n, *lead, 1) for n in ("start", "end", "ready")]
    save(
        path, nodes, [floats("x", *lead, 2), floats("total_in", *lead, 2), *controls, integers("corrid", *lead, 1)],
        [floats("y", *lead, 2), floats("total_out", *lead, 2), floats("flags", *lead, 1), integers("id", *lead, 1)],
        [oh.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in (("hundred", 100.0), ("ten", 10.0))],
    )  # fmt: skip


SEQUENCE_CONFIG = """
max_batch_size: %(rows)d
input [ { name: "x" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [
  { name: "y" data_type: TYPE_FP32 dims: [ 2 ] },
  { name: "flags" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "id" data_type: TYPE_INT64 dims: [ 1 ] }
]
sequence_batching {
  max_sequence_idle_microseconds: %(idle)d
  %(strategy)s
  control_input [
    { name: "start" control [ { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } ] },
    { name: "end" control [ { kind: CONTROL_SEQUENCE_END fp32_false_true: [ 0, 1 ] } ] },
    { name: "ready" control [ { kind: CONTROL_SEQUENCE_READY fp32_false_true: [ 0, 1 ] } ] },
    { name: "corrid" control [ { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_INT64 } ] }
  ]
  state [ { input_name: "total_in" output_name: "total_out" data_type: TYPE_FP32 dims: [ 2 ] %(initial)s } ]
}
"""


def sequence_config(rows: int = 4, idle: int = 10_000_000, strategy: str = "direct { }", initial: str = "") -> str:
    return SEQUENCE_CONFIG % {"rows": rows, "idle": idle, "strategy": strategy, "initial": initial}
