"""Every public call of tritonclient's four clients has a test; those of the two HTTP clients are here."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.server import test_grpc_calls
from tests.server.grpc_models import RAW_ONLY, TYPES, make_repository, random_tensor, save_scale
from tests.server.options_server import LOADABLE, OptionsServer
from tests.server.running import free_port
from whet.server.data_plane import EXTENSIONS

http = pytest.importorskip("tritonclient.http")
http_aio = pytest.importorskip("tritonclient.http.aio")
grpc = pytest.importorskip("tritonclient.grpc")
grpc_aio = pytest.importorskip("tritonclient.grpc.aio")
utils = pytest.importorskip("tritonclient.utils")

TOKEN = "a-token"
BEARER = {"authorization": f"Bearer {TOKEN}"}


class Served:
    """Addresses of a server's main and admin ports, and its models."""

    def __init__(self, server: OptionsServer, port: int, admin: int) -> None:
        self.folder = server.repository
        self.main, self.admin = f"127.0.0.1:{port}", f"127.0.0.1:{admin}"
        self.grpc, self.admin_grpc = server.grpc, server.admin_grpc


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = make_repository(tmp_path_factory.mktemp("clients") / "models")
    port, admin = free_port(), free_port()
    with OptionsServer(
        folder, admin=True, http_port=port, admin_port=admin, admin_token=TOKEN, strict_readiness=False, **LOADABLE
    ) as server:
        yield Served(server, port, admin)


class Both:
    """The calls of the blocking client and of its asyncio twin, both blocking, so that one test is for both."""

    def __init__(self, module: Any, address: str) -> None:
        self.is_asyncio = module is http_aio
        self._loop = asyncio.new_event_loop() if self.is_asyncio else None
        if self._loop is not None:
            self.client = self._loop.run_until_complete(self._make(address))
        else:
            self.client = http.InferenceServerClient(address, concurrency=8)

    async def _make(self, address: str) -> Any:
        return http_aio.InferenceServerClient(address)

    def run(self, awaitable: Awaitable[Any]) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(awaitable)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self.client, name)
        return lambda *given, **named: self.run(call(*given, **named)) if self.is_asyncio else call(*given, **named)

    def close(self) -> None:
        if self._loop is not None:
            self.run(self.client.close())
            self._loop.close()
        else:
            self.client.close()


@pytest.fixture(params=["http", "http.aio"])
def client(request: pytest.FixtureRequest, served: Served) -> Iterator[Both]:
    both = Both(http_aio if request.param == "http.aio" else http, served.main)
    yield both
    both.close()


@pytest.fixture
def admin(client: Both, served: Served) -> Iterator[Both]:
    both = Both(http_aio if client.is_asyncio else http, served.admin)
    yield both
    both.close()


def refused(status: int, call: Callable[..., Any], *given: Any, **named: Any) -> str:
    """The message of the error that the call raises, which has this status."""
    with pytest.raises(utils.InferenceServerException) as caught:
        call(*given, **named)
    assert caught.value.status() in (str(status), None), caught.value
    return str(caught.value.message())


def scale_input(x: np.ndarray, binary: bool = True) -> list[Any]:
    tensor = http.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return [tensor]


def test_health(client: Both) -> None:
    assert client.is_server_live() is True
    assert client.is_server_ready() is True
    assert client.is_model_ready("scale") is True
    assert client.is_model_ready("scale", "1") is True
    assert client.is_model_ready("scale", "2") is False
    assert client.is_model_ready("broken") is False


def test_metadata(client: Both) -> None:
    found = client.get_server_metadata()
    assert (found["name"], tuple(found["extensions"])) == ("whet", EXTENSIONS)
    assert client.get_model_metadata("scale", "1")["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}]
    assert [i["datatype"] for i in client.get_model_metadata("echo")["inputs"]] == [name for name, _, _ in TYPES]
    assert "'scale'" in refused(404, client.get_model_metadata, "scal")
    config = client.get_model_config("scores", "1")
    assert (config["name"], config["max_batch_size"], config["backend"]) == ("scores", 8, "onnxruntime")


def test_statistics(client: Both) -> None:
    def count() -> int:
        (found,) = client.get_inference_statistics("scale", "1")["model_stats"]
        return int(found["inference_count"])

    before = count()
    client.infer("scale", scale_input(np.zeros((3, 4), np.float32)))
    assert count() == before + 3
    assert "plain" in [m["name"] for m in client.get_inference_statistics()["model_stats"]]


def test_repository(client: Both, admin: Both, served: Served) -> None:
    name = f"more-{client.is_asyncio}"
    save_scale(served.folder / f"{name}.onnx", 3.0)
    assert "admin" in refused(403, client.load_model, name)
    admin.load_model(name, headers=BEARER, config=json.dumps({"max_batch_size": 5}))
    states = {m["name"]: m["state"] for m in client.get_model_repository_index()}
    assert (states[name], states["broken"]) == ("READY", "UNAVAILABLE")
    assert client.get_model_config(name)["max_batch_size"] == 5
    refused(403, client.unload_model, name)
    admin.unload_model(name, headers=BEARER, unload_dependents=True)
    assert not client.is_model_ready(name)
    files = {"file:1/model.onnx": b"x"}
    assert "files" in refused(501, admin.load_model, name, headers=BEARER, config="{}", files=files)


def test_settings(client: Both, admin: Both) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    refused(403, client.update_trace_settings, settings={"trace_rate": "5"})
    changed = admin.update_trace_settings("scale", {"trace_rate": "5", "trace_level": ["TENSORS"]}, headers=BEARER)
    assert changed["trace_rate"] == "5"
    assert client.get_trace_settings("scale")["trace_level"] == ["TENSORS"]
    settings = {"trace_rate": None, "trace_level": None}
    assert admin.update_trace_settings("scale", settings, headers=BEARER)["trace_level"] == ["OFF"]
    assert client.get_log_settings()["log_info"] is True
    refused(403, client.update_log_settings, {"log_info": False})
    assert admin.update_log_settings({"log_verbose_level": 0}, headers=BEARER)["log_verbose_level"] == 0


@pytest.mark.parametrize(
    ("call", "given"),
    [
        ("get_system_shared_memory_status", ()),
        ("get_system_shared_memory_status", ("a b?",)),
        ("register_system_shared_memory", ("a", "/key", 16)),
        ("unregister_system_shared_memory", ()),
        ("unregister_system_shared_memory", ("a",)),
        ("get_cuda_shared_memory_status", ()),
        ("get_cuda_shared_memory_status", ("a",)),
        ("register_cuda_shared_memory", ("a", b"aGFuZGxl", 0, 16)),
        ("unregister_cuda_shared_memory", ()),
        ("unregister_cuda_shared_memory", ("a",)),
    ],
)
def test_shared_memory_is_refused_by_name(client: Both, call: str, given: tuple[Any, ...]) -> None:
    assert "shared memory" in refused(501, getattr(client, call), *given)


def test_a_tensor_in_shared_memory_is_refused(client: Both) -> None:
    tensor = http.InferInput("x", [1, 4], "FP32")
    tensor.set_shared_memory("region", 16)
    assert "shared memory" in refused(501, client.infer, "scale", [tensor])
    wanted = http.InferRequestedOutput("y")
    wanted.set_shared_memory("region", 16)
    inputs = scale_input(np.zeros((1, 4), np.float32))
    assert "shared memory" in refused(501, client.infer, "scale", inputs, outputs=[wanted])


@pytest.mark.parametrize("binary", [True, False])
def test_infer(client: Both, binary: bool) -> None:
    x = np.random.default_rng().standard_normal((5, 4), np.float32)
    wanted = [http.InferRequestedOutput("y", binary_data=binary)]
    found = client.infer(
        "scale", scale_input(x, binary), model_version="1", outputs=wanted, request_id="id 7", priority=1,
        timeout=20_000_000, request_compression_algorithm="gzip", response_compression_algorithm="deflate",
        parameters={"mine": "a"},
    )  # fmt: skip
    np.testing.assert_allclose(found.as_numpy("y"), 2 * x + 1, rtol=1e-6)
    response = found.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("id 7", "scale", "1")


@pytest.mark.parametrize("binary", [True, False])
def test_every_type(client: Both, binary: bool) -> None:
    rng = np.random.default_rng()
    names = [name for name, _, _ in TYPES if binary or name not in RAW_ONLY]
    sent = {name: random_tensor(name, (3, 5), rng) for name in names}
    tensors = []
    for name, x in sent.items():
        tensors.append(http.InferInput(f"in_{name}", x.shape, name))
        tensors[-1].set_data_from_numpy(x, binary_data=binary)
    wanted = [http.InferRequestedOutput(f"out_{name}", binary_data=binary) for name in names]
    found = client.infer("echo" if binary else "plain", tensors, outputs=wanted)
    for name, x in sent.items():
        y = found.as_numpy(f"out_{name}")
        if name == "BYTES":
            assert [e.encode() for e in x.flat] == [e if isinstance(e, bytes) else e.encode() for e in y.flat]
        else:
            np.testing.assert_array_equal(y, x)


def test_classification(client: Both) -> None:
    x = np.float32([[-1, -3, -2], [5, 6, 4]])
    tensor = http.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    found = client.infer("scores", [tensor], outputs=[http.InferRequestedOutput("y", class_count=1)])
    assert found.as_numpy("y").tolist() == [[b"3.000000:1:birch"], [b"-4.000000:2:cedar"]]


def test_many_at_once(served: Served) -> None:
    rng = np.random.default_rng()
    sent = [rng.standard_normal((1 + i % 3, 4), np.float32) for i in range(60)]
    with http.InferenceServerClient(served.main, concurrency=6) as client:
        asked = [client.async_infer("scale", scale_input(x), request_id=str(i)) for i, x in enumerate(sent)]
        for i, (x, one) in enumerate(zip(sent, asked, strict=True)):
            found = one.get_result(timeout=30)
            assert found.get_response()["id"] == str(i)
            np.testing.assert_array_equal(found.as_numpy("y"), 2 * x + 1)

    async def gather() -> list[Any]:
        async with http_aio.InferenceServerClient(served.main) as client:
            return list(await asyncio.gather(*(client.infer("scale", scale_input(x)) for x in sent)))

    for x, found in zip(sent, asyncio.run(gather()), strict=True):
        np.testing.assert_array_equal(found.as_numpy("y"), 2 * x + 1)


@pytest.mark.parametrize("module", [http, http_aio])
def test_bodies_made_apart(module: Any, served: Served) -> None:
    """`generate_request_body` and `parse_response_body`: for those who send the bytes themselves."""
    x = np.random.default_rng().standard_normal((2, 4), np.float32)
    body, length = module.InferenceServerClient.generate_request_body(scale_input(x))
    headers = {"Inference-Header-Content-Length": str(length)}
    url = f"http://{served.main}/v2/models/scale/infer"
    with urllib.request.urlopen(urllib.request.Request(url, bytes(body), headers)) as answer:
        content = answer.read()
        size = answer.headers["Inference-Header-Content-Length"]
    found = module.InferenceServerClient.parse_response_body(content, header_length=int(size) if size else None)
    np.testing.assert_allclose(found.as_numpy("y"), 2 * x + 1, rtol=1e-6)


class AddsToken(http.InferenceServerClientPlugin):  # type: ignore[misc]
    def __call__(self, request: Any) -> None:
        request.headers.update(BEARER)


CLIENTS: dict[str, Any] = {"http": http, "http.aio": http_aio, "grpc": grpc, "grpc.aio": grpc_aio}


def with_client(name: str, address: str, use: Callable[[Any, Callable[[Any], Any]], None]) -> None:
    """Let `use` have a client that is not closed, and what waits for the results of its calls."""
    if not name.endswith(".aio"):
        use(CLIENTS[name].InferenceServerClient(address), lambda result: result)
        return
    loop = asyncio.new_event_loop()

    async def make() -> Any:
        return CLIENTS[name].InferenceServerClient(address)

    use(loop.run_until_complete(make()), loop.run_until_complete)
    loop.close()


@pytest.mark.parametrize("name", CLIENTS)
def test_a_plugin_adds_the_token(name: str, served: Served) -> None:
    def use(client: Any, result: Callable[[Any], Any]) -> None:
        assert client.plugin() is None
        plugin = AddsToken()
        client.register_plugin(plugin)
        assert client.plugin() is plugin
        result(client.load_model("scores"))
        client.unregister_plugin()
        with pytest.raises(utils.InferenceServerException, match="token"):
            result(client.load_model("scores"))
        result(client.close())

    with_client(name, served.admin_grpc if name.startswith("grpc") else served.admin, use)


@pytest.mark.parametrize("name", CLIENTS)
def test_close(name: str, served: Served) -> None:
    def use(client: Any, result: Callable[[Any], Any]) -> None:
        assert result(client.is_server_live())
        result(client.close())

    with_client(name, served.grpc if name.startswith("grpc") else served.main, use)


SETTINGS = ("get_trace_settings", "update_trace_settings", "get_log_settings", "update_log_settings")
SHARED_MEMORY = tuple(
    f"{verb}_{kind}_shared_memory{end}"
    for kind in ("system", "cuda")
    for verb, end in (("get", "_status"), ("register", ""), ("unregister", ""))
)
METADATA = ("get_server_metadata", "get_model_metadata", "get_model_config")
HEALTH = ("is_server_live", "is_server_ready", "is_model_ready")
LOADS = ("load_model", "unload_model")
PLUGIN = ("plugin", "register_plugin", "unregister_plugin")
BODIES = ("generate_request_body", "parse_response_body")

# The tests that make the public calls of each client.
Tests = tuple[tuple[Callable[..., None], tuple[str, ...]], ...]
BOTH: Tests = ((test_a_plugin_adds_the_token, PLUGIN), (test_close, ("close",)))
HTTP: Tests = (
    *BOTH,
    (test_health, HEALTH),
    (test_metadata, METADATA),
    (test_statistics, ("get_inference_statistics",)),
    (test_repository, (*LOADS, "get_model_repository_index")),
    (test_settings, SETTINGS),
    (test_shared_memory_is_refused_by_name, SHARED_MEMORY),
    (test_infer, ("infer",)),
    (test_bodies_made_apart, BODIES),
)
CALLS: dict[str, Tests] = {
    "http": (*HTTP, (test_many_at_once, ("async_infer",))),
    "http.aio": HTTP,
    "grpc": (
        *BOTH,
        (test_grpc_calls.test_health, HEALTH[:2]),
        (test_grpc_calls.test_model_ready, HEALTH[2:]),
        (test_grpc_calls.test_server_metadata, METADATA[:1]),
        (test_grpc_calls.test_model_metadata, METADATA[1:2]),
        (test_grpc_calls.test_model_config, METADATA[2:]),
        (test_grpc_calls.test_statistics, ("get_inference_statistics",)),
        (test_grpc_calls.test_repository_index, ("get_model_repository_index",)),
        (test_grpc_calls.test_load_and_unload, LOADS),
        (test_grpc_calls.test_trace_settings, SETTINGS[:2]),
        (test_grpc_calls.test_log_settings, SETTINGS[2:]),
        (test_grpc_calls.test_shared_memory_is_refused_by_name, SHARED_MEMORY),
        (test_grpc_calls.test_infer, ("infer",)),
        (test_grpc_calls.test_async_infer, ("async_infer",)),
        (test_grpc_calls.test_stream_infer, ("start_stream", "async_stream_infer", "stop_stream")),
    ),
    "grpc.aio": (
        *BOTH,
        (
            test_grpc_calls.test_the_asyncio_client,
            (*HEALTH, *METADATA, "get_inference_statistics", "get_model_repository_index", *SETTINGS, *SHARED_MEMORY),
        ),
        (test_grpc_calls.test_the_asyncio_client_as_administrator, LOADS),
        (test_grpc_calls.test_asyncio_inferences, ("infer", "stream_infer")),
    ),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_every_public_call_has_a_test(name: str) -> None:
    kind = CLIENTS[name].InferenceServerClient
    public = {n for n, _ in inspect.getmembers(kind, callable) if not n.startswith("_")}
    tested = {call for _, calls in CALLS[name] for call in calls}
    assert tested == public
    for test, calls in CALLS[name]:
        source = inspect.getsource(test)
        for call in calls:
            assert re.search(rf"\b{call}\b", source), f"{test.__name__} does not call {call}"
