"""The whole path: batches, sequences, ensembles and timeouts of a server, asked by Triton's client."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import TensorProto
from onnx import helper as oh

from tests.server.running import RunningServer
from tests.server.sequence_models import floats, save, save_running_sum, sequence_config

tritonclient_http = pytest.importorskip("tritonclient.http")
tritonclient_grpc = pytest.importorskip("tritonclient.grpc")

ENSEMBLE = """
platform: "ensemble"
max_batch_size: 8
input [ { name: "in" data_type: TYPE_FP32 dims: [ 64 ] } ]
output [ { name: "out" data_type: TYPE_FP32 dims: [ 64 ] } ]
ensemble_scheduling {
  step [
    { model_name: "mix" model_version: -1 input_map { key: "x" value: "in" } output_map { key: "y" value: "mid" } },
    { model_name: "double" model_version: -1 input_map { key: "x" value: "mid" } output_map { key: "y" value: "out" } }
  ]
}
"""

MIX = """
max_batch_size: 16
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 2000 }
instance_group [ { count: 2 } ]
"""


def weights() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32) / 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("repository") / "models"
    x, y = floats("x", "n", 64), floats("y", "n", 64)
    w = oh.make_tensor("w", TensorProto.FLOAT, [64, 64], weights().tobytes(), raw=True)
    two = oh.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    save(folder / "mix" / "1" / "model.onnx", [oh.make_node("MatMul", ["x", "w"], ["y"])], [x], [y], [w])
    (folder / "mix" / "config.pbtxt").write_text(MIX)
    save(folder / "double.onnx", [oh.make_node("Mul", ["x", "two"], ["y"])], [x], [y], [two])
    (folder / "all").mkdir()
    (folder / "all" / "config.pbtxt").write_text(ENSEMBLE)
    save_running_sum(folder / "sum" / "1" / "model.onnx")
    (folder / "sum" / "config.pbtxt").write_text(sequence_config(8))
    with RunningServer(folder) as running:
        yield running


def ask(kind: object, client: object, model: str, name: str, x: np.ndarray, out: str, **more: object) -> np.ndarray:
    tensor = kind.InferInput(name, x.shape, "FP32")  # type: ignore[attr-defined]
    tensor.set_data_from_numpy(x)
    found: np.ndarray = client.infer(model, [tensor], **more).as_numpy(out)  # type: ignore[attr-defined]
    return found


def test_batches_of_many_clients_hold_their_own_rows(server: RunningServer) -> None:
    def one(seed: int) -> None:
        random = np.random.default_rng(seed)
        with tritonclient_http.InferenceServerClient(server.http) as client:
            for _ in range(20):
                x = random.standard_normal((int(random.integers(1, 5)), 64)).astype(np.float32)
                y = ask(tritonclient_http, client, "mix", "x", x, "y")
                np.testing.assert_allclose(y, x @ weights(), rtol=1e-4, atol=1e-4)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    with tritonclient_grpc.InferenceServerClient(server.grpc) as client:
        stats = client.get_inference_statistics("mix", as_json=True)["model_stats"][0]
    sizes = {int(b["batch_size"]): int(b["compute_infer"]["count"]) for b in stats["batch_stats"]}
    assert int(stats["inference_stats"]["success"]["count"]) == 160
    assert sum(size * count for size, count in sizes.items()) == int(stats["inference_count"])
    assert sum(sizes.values()) == int(stats["execution_count"]) < 160
    assert max(sizes) > 4


def test_an_ensemble_without_a_version_folder(server: RunningServer) -> None:
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    for kind, address in ((tritonclient_http, server.http), (tritonclient_grpc, server.grpc)):
        with kind.InferenceServerClient(address) as client:
            out = ask(kind, client, "all", "in", x, "out")
            np.testing.assert_allclose(out, 2 * (x @ weights()), rtol=1e-4, atol=1e-4)


def test_sequences_over_both_protocols(server: RunningServer) -> None:
    def one(number: int) -> None:
        kind, address = ((tritonclient_http, server.http), (tritonclient_grpc, server.grpc))[number % 2]
        steps = np.random.default_rng(number).standard_normal((10, 1, 2)).astype(np.float32)
        total = np.zeros((1, 2), np.float32)
        with kind.InferenceServerClient(address) as client:
            for index, x in enumerate(steps):
                total = total + x
                y = ask(
                    kind, client, "sum", "x", x, "y", sequence_id=500 + number, sequence_start=index == 0,
                    sequence_end=index == 9,
                )  # fmt: skip
                np.testing.assert_array_equal(y, total)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(one, range(6)))


def test_a_sequence_that_does_not_go_on(server: RunningServer) -> None:
    with tritonclient_http.InferenceServerClient(server.http) as client:
        with pytest.raises(tritonclient_http.InferenceServerException, match="no sequence of this id goes on"):
            ask(tritonclient_http, client, "sum", "x", np.zeros((1, 2), np.float32), "y", sequence_id=77)
        with pytest.raises(tritonclient_http.InferenceServerException, match="requests of sequences only"):
            ask(tritonclient_http, client, "sum", "x", np.zeros((1, 2), np.float32), "y")


def test_a_deadline_that_the_batching_delay_cannot_keep(server: RunningServer) -> None:
    x = np.zeros((1, 64), np.float32)
    with (
        tritonclient_http.InferenceServerClient(server.http) as client,
        pytest.raises(tritonclient_http.InferenceServerException, match="time was over"),
    ):
        ask(tritonclient_http, client, "mix", "x", x, "y", timeout=1)
