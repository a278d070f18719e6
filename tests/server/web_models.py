"""The repository that the web page is tested with. Names and labels in it try to be markup."""

from __future__ import annotations

from pathlib import Path

from onnx import TensorProto
from onnx import helper as oh

from tests.server.repository_models import BROKEN, ENSEMBLE, scale_bytes, write_model

EVIL = "<img src=x onerror=window.hacked=1>"
EVIL_INPUT = "<b>\"input'&"
EVIL_LABEL = "<script>window.hacked=2</script>"
LABELS = ("cat", EVIL_LABEL, "dog & co", "owl")

CLASSES = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [4] label_filename: "labels.txt" }]
"""
MANY = {"BOOL": "BOOL", "INT64": "INT64", "UINT8": "UINT8", "FP16": "FLOAT16", "FP64": "DOUBLE", "BYTES": "STRING"}
"""Inputs of the model `many`, each of which is its output, too."""


def write_repository(folder: Path) -> None:
    """`scale`, `classes` with labels, a broken one, an ensemble, an image, one of many types, and an evil one."""
    write_model(folder / "scale", scale_bytes(2.0))
    write_model(folder / "classes", scale_bytes(1.0), config=CLASSES)
    (folder / "classes" / "labels.txt").write_text("\n".join(LABELS) + "\n")
    write_model(folder / "broken", BROKEN)
    for name in ("a", "b"):
        write_model(folder / name, scale_bytes(3.0))
    (folder / "chain").mkdir()
    (folder / "chain" / "config.pbtxt").write_text(ENSEMBLE)
    write_model(folder / "image", _identities({"pixels": ("FLOAT", ["n", 3, 8, 8])}))
    write_model(folder / "many", _identities({name: (kind, [2, 2]) for name, kind in MANY.items()}))
    write_model(folder / EVIL, _identities({EVIL_INPUT: ("FLOAT", ["n", 2])}))


def _identities(tensors: dict[str, tuple[str, list[int | str]]]) -> bytes:
    """A model whose outputs are its inputs, named so with `-out` behind them."""
    kinds = {name: (getattr(TensorProto, kind), shape) for name, (kind, shape) in tensors.items()}
    inputs = [oh.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    outputs = [oh.make_tensor_value_info(f"{name}-out", *kind) for name, kind in kinds.items()]
    nodes = [oh.make_node("Identity", [name], [f"{name}-out"]) for name in kinds]
    graph = oh.make_graph(nodes, "identities", inputs, outputs)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())
