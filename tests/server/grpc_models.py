"""The repository that the gRPC tests serve, and tensors for it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto
from onnx import helper as oh

Array = npt.NDArray[Any]

# Protocol's name, ONNX's type, numpy's type.
TYPES: tuple[tuple[str, int, Any], ...] = (
    ("BOOL", TensorProto.BOOL, np.bool_),
    ("UINT8", TensorProto.UINT8, np.uint8),
    ("UINT16", TensorProto.UINT16, np.uint16),
    ("UINT32", TensorProto.UINT32, np.uint32),
    ("UINT64", TensorProto.UINT64, np.uint64),
    ("INT8", TensorProto.INT8, np.int8),
    ("INT16", TensorProto.INT16, np.int16),
    ("INT32", TensorProto.INT32, np.int32),
    ("INT64", TensorProto.INT64, np.int64),
    ("FP16", TensorProto.FLOAT16, np.float16),
    ("FP32", TensorProto.FLOAT, np.float32),
    ("FP64", TensorProto.DOUBLE, np.float64),
    ("BF16", TensorProto.BFLOAT16, ml_dtypes.bfloat16),
    ("BYTES", TensorProto.STRING, np.object_),
)
RAW_ONLY = ("FP16", "BF16")
"""Types that have no field in InferTensorContents."""

LABELS = ("ash", "birch", "cedar")
SLOW_SIZE = 96


def random_tensor(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Random elements of a protocol's type; all bit patterns that are no NaN."""
    kind = next(t for n, _, t in TYPES if n == name)
    if name == "BYTES":
        out = np.empty(shape, object)
        out.reshape(-1)[:] = ["ü" * int(rng.integers(0, 5)) + str(i) for i in range(out.size)]
        return out
    if name == "BOOL":
        return rng.integers(0, 2, shape).astype(np.bool_)
    if name in ("FP16", "FP32", "FP64", "BF16"):
        return rng.standard_normal(shape).astype(kind)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, shape, dtype=kind, endpoint=True)


def make_repository(folder: Path, only: Collection[str] = ()) -> Path:
    """`scale` (2x + 1), `echo` (every type), `plain` (types with fields), `scores` (labels), `slow`, and `broken`.

    `only`: those of them that are single files and to be there; without it all are.
    """
    folder.mkdir()
    if only:
        for name in only:
            _save(folder / f"{name}.onnx", {"scale": lambda: _scale(2.0), "slow": _slow}[name]())
        return folder
    _save(folder / "scale.onnx", _scale(2.0))
    _save(folder / "echo.onnx", _echo([(n, t) for n, t, _ in TYPES]))
    _save(folder / "plain.onnx", _echo([(n, t) for n, t, _ in TYPES if n not in RAW_ONLY]))
    (folder / "scores" / "1").mkdir(parents=True)
    _save(folder / "scores" / "1" / "model.onnx", _scores())
    (folder / "scores" / "labels.txt").write_text("\n".join(LABELS))
    (folder / "scores" / "config.pbtxt").write_text(
        'max_batch_size: 8\noutput [{ name: "y" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }]\n'
        'input [{ name: "x" data_type: TYPE_FP32 dims: [3] }]\ndynamic_batching { preferred_batch_size: [4, 8] }\n'
    )
    _save(folder / "slow.onnx", _slow())
    (folder / "broken.onnx").write_bytes(b"\x08\x0anot a model")
    return folder


def save_scale(path: Path, factor: float) -> None:
    """The model `scale` with another factor."""
    _save(path, _scale(factor))


def _save(path: Path, graph: onnx.GraphProto) -> None:
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.save(model, path)


def _scale(factor: float) -> onnx.GraphProto:
    x = oh.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = oh.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    constants = [oh.make_tensor("a", TensorProto.FLOAT, [], [factor]), oh.make_tensor("b", TensorProto.FLOAT, [], [1])]
    nodes = [oh.make_node("Mul", ["x", "a"], ["t"]), oh.make_node("Add", ["t", "b"], ["y"])]
    return oh.make_graph(nodes, "scale", [x], [y], constants)


def _echo(types: list[tuple[str, int]]) -> onnx.GraphProto:
    inputs = [oh.make_tensor_value_info(f"in_{n}", t, ["n", "k"]) for n, t in types]
    outputs = [oh.make_tensor_value_info(f"out_{n}", t, ["n", "k"]) for n, t in types]
    nodes = [oh.make_node("Identity", [f"in_{n}"], [f"out_{n}"]) for n, _ in types]
    return oh.make_graph(nodes, "echo", inputs, outputs)


def _scores() -> onnx.GraphProto:
    x = oh.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = oh.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    return oh.make_graph([oh.make_node("Neg", ["x"], ["y"])], "scores", [x], [y])


def _slow() -> onnx.GraphProto:
    """A loop of `steps` steps; each a product of two matrices. Its answer is the number of steps."""
    steps = oh.make_tensor_value_info("steps", TensorProto.INT64, [1])
    done = oh.make_tensor_value_info("done", TensorProto.INT64, [1])
    shape = [SLOW_SIZE, SLOW_SIZE]
    body = oh.make_graph(
        [
            oh.make_node("MatMul", ["m_in", "eye"], ["m_out"]),
            oh.make_node("Add", ["c_in", "one"], ["c_out"]),
            oh.make_node("Identity", ["go_in"], ["go_out"]),
        ],
        "body",
        [
            oh.make_tensor_value_info("i", TensorProto.INT64, []),
            oh.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            oh.make_tensor_value_info("m_in", TensorProto.FLOAT, shape),
            oh.make_tensor_value_info("c_in", TensorProto.INT64, [1]),
        ],
        [
            oh.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            oh.make_tensor_value_info("m_out", TensorProto.FLOAT, shape),
            oh.make_tensor_value_info("c_out", TensorProto.INT64, [1]),
        ],
    )
    eye = oh.make_tensor("eye", TensorProto.FLOAT, shape, np.eye(SLOW_SIZE, dtype=np.float32).reshape(-1))
    constants = [
        eye,
        oh.make_tensor("one", TensorProto.INT64, [1], [1]),
        oh.make_tensor("zero", TensorProto.INT64, [1], [0]),
        oh.make_tensor("first", TensorProto.INT64, [], [0]),
    ]
    nodes = [
        oh.make_node("Gather", ["steps", "first"], ["count"]),
        oh.make_node("Loop", ["count", "", "eye", "zero"], ["m", "done"], body=body),
    ]
    return oh.make_graph(nodes, "slow", [steps], [done], constants)
