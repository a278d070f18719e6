"""One model, one request, over each protocol."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx import helper as oh

from tests.server.running import RunningServer

tritonclient_http = pytest.importorskip("tritonclient.http")
tritonclient_grpc = pytest.importorskip("tritonclient.grpc")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("repository") / "models"
    folder.mkdir()
    save_scale_model(folder / "scale.onnx")
    with RunningServer(folder) as running:
        yield running


def save_scale_model(path: Path) -> None:
    """y = 2x + 1 over [n, 4]."""
    x = oh.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])
    y = oh.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    constants = [
        oh.make_tensor("two", TensorProto.FLOAT, [], [2.0]),
        oh.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    nodes = [oh.make_node("Mul", ["x", "two"], ["t"]), oh.make_node("Add", ["t", "one"], ["y"])]
    model = oh.make_model(oh.make_graph(nodes, "scale", [x], [y], constants), opset_imports=[oh.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.save(model, path)


def test_json(server: RunningServer) -> None:
    body = {"id": "7", "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 2, -3]}]}
    request = urllib.request.Request(f"http://{server.http}/v2/models/scale/infer", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        document = json.load(answer)
    assert document == {
        "model_name": "scale",
        "model_version": "1",
        "id": "7",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 3.0, 5.0, -5.0]}],
    }


def test_binary_tensors(server: RunningServer) -> None:
    client = tritonclient_http.InferenceServerClient(server.http)
    x = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    tensor = tritonclient_http.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    np.testing.assert_array_equal(client.infer("scale", [tensor]).as_numpy("y"), 2 * x + 1)
    client.close()


def test_grpc(server: RunningServer) -> None:
    client = tritonclient_grpc.InferenceServerClient(server.grpc)
    x = np.random.default_rng(1).standard_normal((3, 4), np.float32)
    tensor = tritonclient_grpc.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    np.testing.assert_array_equal(client.infer("scale", [tensor]).as_numpy("y"), 2 * x + 1)
    client.close()
