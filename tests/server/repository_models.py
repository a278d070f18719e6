"""Models and repositories for the tests of the repository, and a repository in this process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, numpy_helper
from onnx import helper as oh

from whet.server.data_plane import DataPlane
from whet.server.datatypes import BY_NAME
from whet.server.options import ServerOptions
from whet.server.repository.manager import Repository
from whet.server.request import InferRequest, InputTensor

BROKEN = b"\x08\x0anot a model"


def scale_bytes(factor: float, width: int | str = 4, weights: npt.NDArray[Any] | None = None) -> bytes:
    """The model y = factor * x over rows of `width` floats. `weights`: floats that are in it and change nothing."""
    x = oh.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])
    y = oh.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])
    constant = oh.make_tensor("a", TensorProto.FLOAT, [], [factor])
    nodes, constants = [oh.make_node("Mul", ["x", "a"], ["y"])], [constant]
    if weights is not None:
        constants.append(numpy_helper.from_array(weights, "w"))
        constants.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
        constants.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
        nodes = [
            oh.make_node("Gather", ["w", "picked"], ["u"]),
            oh.make_node("Shape", ["x"], ["s"]),
            oh.make_node("Gather", ["s", "first"], ["picked"]),
            oh.make_node("Mul", ["u", "zero"], ["v"]),
            oh.make_node("Mul", ["x", "a"], ["t"]),
            oh.make_node("Add", ["t", "v"], ["y"]),
        ]
        nodes = [nodes[1], nodes[2], nodes[0], *nodes[3:]]
    graph = oh.make_graph(nodes, "scale", [x], [y], constants)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def write_model(folder: Path, content: bytes, version: int = 1, config: str | None = None) -> None:
    """`folder/version/model.onnx`, and maybe config.pbtxt."""
    place = folder / str(version)
    place.mkdir(parents=True, exist_ok=True)
    # As copied by a tool that renames: the file is there whole or not at all.
    (place / ".part").write_bytes(content)
    (place / ".part").rename(place / "model.onnx")
    if config is not None:
        (folder / "config.pbtxt").write_text(config)


ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input [{ name: "in" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "out" data_type: TYPE_FP32 dims: [4] }]
ensemble_scheduling { step [
  { model_name: "a" model_version: -1 input_map { key: "x" value: "in" } output_map { key: "y" value: "t" } },
  { model_name: "b" model_version: -1 input_map { key: "x" value: "t" } output_map { key: "y" value: "out" } }
] }
"""


@contextlib.asynccontextmanager
async def running(folder: Path, **options: Any) -> AsyncIterator[tuple[DataPlane, Repository]]:
    """A data plane with the repository, not yet started, as the server wires them. Unless `options` say otherwise, all
    models are loaded at start, and models may be loaded and unloaded."""
    if "control_mode" not in options:
        options = {"control_mode": "explicit", "load_models": ("*",), **options}
    plane = DataPlane()
    repository = Repository(plane, ServerOptions(folder, **options))
    plane.repository = repository
    try:
        yield plane, repository
    finally:
        await repository.close()


async def ask(
    plane: DataPlane, model: str, x: npt.NDArray[Any], version: str = "", name: str = "x"
) -> npt.NDArray[Any]:
    """The only output of a model for its only input."""
    response = await plane.infer(InferRequest(model, [InputTensor(name, BY_NAME["FP32"], x)], version=version))
    return response.outputs[0].array


def rows(count: int = 2, width: int = 4) -> npt.NDArray[Any]:
    return np.random.default_rng().standard_normal((count, width)).astype(np.float32)


def states(repository: Repository, ready: bool = False) -> dict[str, str]:
    """`name:version` to the state."""
    return {f"{r['name']}:{r['version']}": r["state"] for r in repository.index(ready)}
