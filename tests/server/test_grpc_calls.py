"""Every call of the published service through `tritonclient.grpc` and its asyncio twin, unmodified."""

from __future__ import annotations

import asyncio
import json
import queue
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.server.conftest import ADMIN_TOKEN
from tests.server.grpc_models import TYPES, save_scale
from tests.server.options_server import OptionsServer
from whet.server.data_plane import EXTENSIONS
from whet.server.protocol.messages import message
from whet.version import __version__

triton = pytest.importorskip("tritonclient.grpc")
aio = pytest.importorskip("tritonclient.grpc.aio")
utils = pytest.importorskip("tritonclient.utils")

BEARER = {"authorization": f"Bearer {ADMIN_TOKEN}"}


@pytest.fixture(scope="module")
def server(grpc_server: OptionsServer) -> OptionsServer:
    return grpc_server


@pytest.fixture(scope="module")
def client(server: OptionsServer) -> Iterator[Any]:
    with triton.InferenceServerClient(server.grpc) as found:
        yield found


@pytest.fixture(scope="module")
def admin(server: OptionsServer) -> Iterator[Any]:
    with triton.InferenceServerClient(server.admin_grpc) as found:
        yield found


def scale_input(x: np.ndarray) -> list[Any]:
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


def refused(code: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> str:
    """The message of the error that the call raises, which has this status."""
    with pytest.raises(utils.InferenceServerException) as caught:
        call(*arguments, **named)
    assert caught.value.status() == f"StatusCode.{code}", caught.value
    return str(caught.value.message())


def with_aio(address: str, use: Callable[[Any], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with aio.InferenceServerClient(address) as found:
            return await use(found)

    return asyncio.run(run())


def test_health(client: Any) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True


def test_model_ready(client: Any) -> None:
    assert client.is_model_ready("scale") is True
    assert client.is_model_ready("scale", "1") is True
    assert client.is_model_ready("scale", "2") is False
    assert client.is_model_ready("broken") is False
    assert client.is_model_ready("no such") is False


def test_server_metadata(client: Any) -> None:
    found = client.get_server_metadata()
    assert (found.name, found.version, tuple(found.extensions)) == ("whet", __version__, EXTENSIONS)


def test_model_metadata(client: Any) -> None:
    assert client.get_model_metadata("scale", as_json=True) == {
        "name": "scale",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": ["-1", "4"]}],
    }
    assert [i.datatype for i in client.get_model_metadata("echo").inputs] == [name for name, _, _ in TYPES]
    assert "'scale'" in refused("NOT_FOUND", client.get_model_metadata, "scal")
    refused("NOT_FOUND", client.get_model_metadata, "scale", "7")


def test_model_config(client: Any) -> None:
    config = client.get_model_config("scores").config
    assert (config.name, config.max_batch_size, config.backend) == ("scores", 8, "onnxruntime")
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("x", 11, [3])]
    assert client.get_model_config("scale", as_json=True)["config"]["max_batch_size"] == 32


def test_statistics(client: Any) -> None:
    x = np.zeros((3, 4), np.float32)

    def counts() -> tuple[int, int]:
        (found,) = client.get_inference_statistics("scale").model_stats
        assert found.name == "scale"
        assert found.version == "1"
        return found.inference_count, found.inference_stats.success.count

    before = counts()
    client.infer("scale", scale_input(x))
    assert counts() == (before[0] + 3, before[1] + 1)
    names = [m.name for m in client.get_inference_statistics().model_stats]
    assert names == ["echo", "plain", "scale", "scores", "slow"]
    refused("NOT_FOUND", client.get_inference_statistics, "nothing")


def test_repository_index(client: Any) -> None:
    models = {m.name: (m.version, m.state, m.reason) for m in client.get_model_repository_index().models}
    assert models["scale"][:2] == ("1", "READY")
    assert models["broken"][1] == "UNAVAILABLE"
    assert models["broken"][2]


def test_load_and_unload(server: OptionsServer, client: Any, admin: Any) -> None:
    x = np.float32([[1, 2, 3, 4]])
    save_scale(server.repository / "other.onnx", 3.0)
    assert "admin" in refused("PERMISSION_DENIED", client.load_model, "other")
    assert "token" in refused("PERMISSION_DENIED", admin.load_model, "other")
    refused("PERMISSION_DENIED", admin.load_model, "other", headers={"authorization": "Bearer wrong"})
    admin.load_model("other", headers=BEARER)
    np.testing.assert_array_equal(client.infer("other", scale_input(x)).as_numpy("y"), 3 * x + 1)
    refused("PERMISSION_DENIED", client.unload_model, "other")
    admin.unload_model("other", headers=BEARER)
    assert not client.is_model_ready("other")
    refused("NOT_FOUND", admin.unload_model, "nothing", headers=BEARER)
    assert "files" in refused(
        "UNIMPLEMENTED", admin.load_model, "scale", headers=BEARER, config="{}", files={"file:1/model.onnx": b"x"}
    )


def test_load_with_a_configuration(client: Any, admin: Any) -> None:
    admin.load_model("scale", headers=BEARER, config=json.dumps({"max_batch_size": 5}))
    assert client.get_model_config("scale").config.max_batch_size == 5
    refused("INVALID_ARGUMENT", admin.load_model, "scale", headers=BEARER, config="{")
    admin.load_model("scale", headers=BEARER)
    assert client.get_model_config("scale").config.max_batch_size == 32


def test_trace_settings(client: Any, admin: Any) -> None:
    def shown(found: Any) -> dict[str, list[str]]:
        return {name: list(value.value) for name, value in found.settings.items()}

    assert shown(client.get_trace_settings())["trace_rate"] == ["1000"]
    refused("PERMISSION_DENIED", client.update_trace_settings, settings={"trace_rate": "5"})
    changed = admin.update_trace_settings(
        "scale", {"trace_rate": "5", "trace_level": ["TIMESTAMPS", "TENSORS"]}, headers=BEARER
    )
    assert shown(changed)["trace_rate"] == ["5"]
    assert shown(client.get_trace_settings("scale"))["trace_level"] == ["TIMESTAMPS", "TENSORS"]
    assert shown(client.get_trace_settings())["trace_level"] == ["OFF"]
    back = admin.update_trace_settings("scale", {"trace_rate": None}, headers=BEARER)
    assert shown(back)["trace_rate"] == ["1000"]
    refused("INVALID_ARGUMENT", admin.update_trace_settings, settings={"trace_rate": "x"}, headers=BEARER)
    refused("UNIMPLEMENTED", admin.update_trace_settings, settings={"trace_file": "/etc/passwd"}, headers=BEARER)
    refused("NOT_FOUND", client.get_trace_settings, "nothing")


def test_log_settings(client: Any, admin: Any) -> None:
    assert client.get_log_settings(as_json=True)["settings"]["log_info"] == {"bool_param": True}
    refused("PERMISSION_DENIED", client.update_log_settings, {"log_info": False})
    changed = admin.update_log_settings({"log_info": False, "log_verbose_level": 2}, headers=BEARER)
    assert changed.settings["log_info"].bool_param is False
    assert client.get_log_settings().settings["log_verbose_level"].uint32_param == 2
    refused("UNIMPLEMENTED", admin.update_log_settings, {"log_file": "/tmp/x"}, headers=BEARER)
    refused("INVALID_ARGUMENT", admin.update_log_settings, {"log_format": "xml"}, headers=BEARER)
    admin.update_log_settings({"log_info": True, "log_verbose_level": 0}, headers=BEARER)


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ("get_system_shared_memory_status", ()),
        ("register_system_shared_memory", ("a", "/key", 16)),
        ("unregister_system_shared_memory", ()),
        ("get_cuda_shared_memory_status", ()),
        ("register_cuda_shared_memory", ("a", b"aGFuZGxl", 0, 16)),
        ("unregister_cuda_shared_memory", ()),
    ],
)
def test_shared_memory_is_refused_by_name(client: Any, call: str, arguments: tuple[Any, ...]) -> None:
    assert "shared memory" in refused("UNIMPLEMENTED", getattr(client, call), *arguments)


def test_a_tensor_in_shared_memory_is_refused(client: Any) -> None:
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_shared_memory("region", 16)
    assert "shared memory" in refused("UNIMPLEMENTED", client.infer, "scale", [tensor])


def test_infer(client: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 4), np.float32)
    found = client.infer("scale", scale_input(x), request_id="id 7", outputs=[triton.InferRequestedOutput("y")])
    np.testing.assert_array_equal(found.as_numpy("y"), 2 * x + 1)
    response = found.get_response()
    assert (response.id, response.model_name, response.model_version) == ("id 7", "scale", "1")


def test_async_infer(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    rng = np.random.default_rng(1)
    sent = {str(i): rng.standard_normal((1 + i % 3, 4), np.float32) for i in range(40)}
    for name, x in sent.items():
        client.async_infer("scale", scale_input(x), lambda result, error: answers.put((result, error)), request_id=name)
    for _ in range(len(sent)):
        result, error = answers.get(timeout=20)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("y"), 2 * sent.pop(result.get_response().id) + 1)
    assert not sent


def test_stream_infer(server: OptionsServer) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    rng = np.random.default_rng(2)
    sent = [rng.standard_normal((1 + i % 3, 4), np.float32) for i in range(40)]
    with triton.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for index, x in enumerate(sent):
            client.async_stream_infer("scale", scale_input(x), request_id=str(index))
        for index, x in enumerate(sent):
            result, error = answers.get(timeout=20)
            assert error is None
            response = result.get_response()
            assert response.id == str(index)
            assert response.parameters["triton_final_response"].bool_param is True
            np.testing.assert_array_equal(result.as_numpy("y"), 2 * x + 1)
        client.stop_stream()


def test_the_asyncio_client(server: OptionsServer) -> None:
    """Every call of `tritonclient.grpc.aio` that is not an inference."""

    async def use(client: Any) -> None:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("scale")
        assert not await client.is_model_ready("broken")
        assert (await client.get_server_metadata()).name == "whet"
        assert (await client.get_model_metadata("scale")).inputs[0].name == "x"
        assert (await client.get_model_config("scores")).config.max_batch_size == 8
        assert (await client.get_inference_statistics("scale")).model_stats[0].name == "scale"
        assert "scale" in [m.name for m in (await client.get_model_repository_index()).models]
        assert (await client.get_trace_settings()).settings["trace_rate"].value == ["1000"]
        assert (await client.get_log_settings()).settings["log_error"].bool_param is True
        for call, arguments in (
            (client.load_model, ("scale",)),
            (client.unload_model, ("scale",)),
            (client.update_trace_settings, (None, {"trace_rate": "2"})),
            (client.update_log_settings, ({"log_info": False},)),
        ):
            with pytest.raises(utils.InferenceServerException) as caught:
                await call(*arguments)
            assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        for call, arguments in (
            (client.get_system_shared_memory_status, ()),
            (client.register_system_shared_memory, ("a", "/key", 16)),
            (client.unregister_system_shared_memory, ()),
            (client.get_cuda_shared_memory_status, ()),
            (client.register_cuda_shared_memory, ("a", b"aGFuZGxl", 0, 16)),
            (client.unregister_cuda_shared_memory, ()),
        ):
            with pytest.raises(utils.InferenceServerException) as caught:
                await call(*arguments)
            assert caught.value.status() == "StatusCode.UNIMPLEMENTED"

    with_aio(server.grpc, use)


def test_the_asyncio_client_as_administrator(server: OptionsServer) -> None:
    async def use(client: Any) -> None:
        await client.load_model("scores", headers=BEARER)
        await client.unload_model("scores", headers=BEARER)
        assert not await client.is_model_ready("scores")
        await client.load_model("scores", headers=BEARER)
        assert await client.is_model_ready("scores")
        changed = await client.update_trace_settings("scores", {"trace_rate": "7"}, headers=BEARER)
        assert changed.settings["trace_rate"].value == ["7"]
        logs = await client.update_log_settings({"log_warning": True}, headers=BEARER)
        assert logs.settings["log_warning"].bool_param is True

    with_aio(server.admin_grpc, use)


def test_asyncio_inferences(server: OptionsServer) -> None:
    rng = np.random.default_rng(3)
    sent = [rng.standard_normal((1 + i % 3, 4), np.float32) for i in range(40)]

    async def use(client: Any) -> None:
        answers = await asyncio.gather(*(client.infer("scale", scale_input(x)) for x in sent))
        for x, answer in zip(sent, answers, strict=True):
            np.testing.assert_array_equal(answer.as_numpy("y"), 2 * x + 1)

        async def requests() -> Any:
            for x in sent:
                yield {"model_name": "scale", "inputs": scale_input(x)}

        found = [answer async for answer in client.stream_infer(requests())]
        assert [error for _, error in found] == [None] * len(sent)
        for x, (answer, _) in zip(sent, found, strict=True):
            np.testing.assert_array_equal(answer.as_numpy("y"), 2 * x + 1)

    with_aio(server.grpc, use)


def test_health_service(server: OptionsServer) -> None:
    request, answer = message("grpc.health.v1.HealthCheckRequest"), message("grpc.health.v1.HealthCheckResponse")
    with grpc.insecure_channel(server.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", request.SerializeToString, answer.FromString)
        assert check(request()).status == 1
        assert check(request(service="inference.GRPCInferenceService")).status == 1
        with pytest.raises(grpc.RpcError) as caught:
            check(request(service="other"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", request.SerializeToString, answer.FromString)
        with pytest.raises(grpc.RpcError) as caught:
            next(watch(request()))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
