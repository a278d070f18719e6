"""TLS, limits of connections, and how the gRPC server starts and stops."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.server.certificates import make_certificates
from tests.server.grpc_models import make_repository, save_scale
from tests.server.options_server import LOADABLE, OptionsServer
from tests.server.running import free_port
from whet.errors import EPFail, InvalidArgument, NoSuchFile
from whet.server.data_plane import DataPlane
from whet.server.grpc.server import GrpcServer
from whet.server.options import ServerOptions
from whet.server.protocol.messages import message

triton = pytest.importorskip("tritonclient.grpc")
utils = pytest.importorskip("tritonclient.utils")

Request = message("inference.ModelInferRequest")
StreamResponse = message("inference.ModelStreamInferResponse")
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ports") / "models"
    folder.mkdir()
    save_scale(folder / "scale.onnx", 2.0)
    return folder


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def scale_input(x: np.ndarray) -> list[Any]:
    tensor = triton.InferInput("x", x.shape, "FP32")
    tensor.set_data_from_numpy(x)
    return [tensor]


def check_answer(client: Any) -> None:
    x = np.random.default_rng(8).standard_normal((2, 4), np.float32)
    answer = client.infer("scale", scale_input(x), client_timeout=10)
    np.testing.assert_array_equal(answer.as_numpy("y"), 2 * x + 1)


def tls_server(models: Path, certificates: Path, **options: Any) -> OptionsServer:
    return OptionsServer(
        models, tls_certificate=certificates / "server.crt", tls_key=certificates / "server.key",
        **options,
    )  # fmt: skip


def wait_for_tls(server: OptionsServer, **files: str) -> Any:
    """A client, when the server is ready."""
    client = triton.InferenceServerClient(server.grpc, ssl=True, **files)
    for _ in range(400):
        assert server.process is not None
        assert server.process.poll() is None, server.log
        try:
            if client.is_model_ready("scale", client_timeout=5):
                return client
        except utils.InferenceServerException as error:
            if error.status() != "StatusCode.UNAVAILABLE":
                raise
            client.close()
            client = triton.InferenceServerClient(server.grpc, ssl=True, **files)
        time.sleep(0.05)
    raise AssertionError(server.log)


def test_tls_and_administration_on_the_main_port(models: Path, certificates: Path) -> None:
    server = tls_server(models, certificates, admin_on_main_port=True, **LOADABLE)
    server._wait = False
    with server:
        with wait_for_tls(server, root_certificates=str(certificates / "ca.crt")) as client:
            check_answer(client)
            client.unload_model("scale")
            assert not client.is_model_ready("scale")
            client.load_model("scale")
            check_answer(client)
        for wrong in (
            triton.InferenceServerClient(server.grpc),
            triton.InferenceServerClient(server.grpc, ssl=True, root_certificates=str(certificates / "stranger.crt")),
        ):
            with pytest.raises(utils.InferenceServerException) as caught:
                wrong.is_server_live(client_timeout=5)
            assert caught.value.status() == "StatusCode.UNAVAILABLE"
            wrong.close()


@contextlib.contextmanager
def served_here(options: ServerOptions) -> Iterator[str]:
    """The address of a server without models, on a thread of this process: enough for what the port itself decides."""
    found: queue.Queue[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def run() -> None:
        server = GrpcServer(DataPlane(), options, 0)
        await server.start()
        stopped = asyncio.Event()
        found.put((f"127.0.0.1:{server.port}", asyncio.get_running_loop(), stopped))
        await stopped.wait()
        await server.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    address, loop, stopped = found.get(timeout=60)
    try:
        yield address
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join(60)


def test_mutual_tls(models: Path, certificates: Path) -> None:
    root = str(certificates / "ca.crt")

    def files(name: str) -> dict[str, str]:
        return {
            "private_key": str(certificates / f"{name}.key"),
            "certificate_chain": str(certificates / f"{name}.crt"),
        }

    options = ServerOptions(
        models, tls_certificate=certificates / "server.crt", tls_key=certificates / "server.key",
        tls_client_ca=certificates / "ca.crt",
    )  # fmt: skip
    with served_here(options) as address:
        with triton.InferenceServerClient(address, ssl=True, root_certificates=root, **files("client")) as client:
            assert client.is_server_live(client_timeout=20)
            assert client.get_server_metadata(client_timeout=20).name == "whet"
        for wrong in (
            triton.InferenceServerClient(address, ssl=True, root_certificates=root),
            triton.InferenceServerClient(address, ssl=True, root_certificates=root, **files("stranger")),
        ):
            with pytest.raises(utils.InferenceServerException) as caught:
                wrong.is_server_live(client_timeout=5)
            assert caught.value.status() == "StatusCode.UNAVAILABLE"
            wrong.close()


def make(options: ServerOptions, port: int) -> None:
    async def run() -> None:
        server = GrpcServer(DataPlane(), options, port)
        await server.start()
        await server.stop(0)

    asyncio.run(run())


def test_files_for_tls_that_are_not_there(models: Path, certificates: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="certificate and its key"):
        make(ServerOptions(models, tls_certificate=certificates / "server.crt"), 0)
    with pytest.raises(NoSuchFile, match=r"nothing\.key"):
        make(ServerOptions(models, tls_certificate=certificates / "ca.crt", tls_key=tmp_path / "nothing.key"), 0)


def test_a_port_that_is_taken(models: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EPFail, match=str(taken.getsockname()[1])):
            make(ServerOptions(models), taken.getsockname()[1])
    make(ServerOptions(models), free_port())


def test_metadata_over_the_limit_and_pings_without_end(grpc_server: OptionsServer) -> None:
    """One connection sends metadata that is too large, one only pings: the server refuses them and serves others."""
    server = grpc_server
    with triton.InferenceServerClient(server.grpc) as client, pytest.raises(utils.InferenceServerException):
        client.is_server_live(headers={"large": "a" * 100_000}, client_timeout=5)
    with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=10) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4))
        # All at once: were some still on their way when the server closes, its last words would be lost.
        raw.sendall(b"".join(frame(6, struct.pack("!Q", number)) for number in range(20)))
        received = b""
        with contextlib.suppress(ConnectionError):
            while part := raw.recv(65536):
                received += part
        assert b"too_many_pings" in received
    with triton.InferenceServerClient(server.grpc) as client:
        check_answer(client)


def frame(kind: int, payload: bytes = b"") -> bytes:
    """A frame of HTTP/2 for the whole connection."""
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload


def test_a_stop_answers_what_was_read_and_ends_idle_streams(tmp_path: Path) -> None:
    folder = make_repository(tmp_path / "models", ("scale", "slow"))
    server = OptionsServer(folder, drain_s=20)
    with server, grpc.insecure_channel(server.grpc) as channel:
        requests: queue.Queue[Any] = queue.Queue()
        stream = channel.stream_stream(STREAM, Request.SerializeToString, StreamResponse.FromString)
        call = stream(iter(requests.get, None))
        slow = Request(model_name="slow", raw_input_contents=[struct.pack("<q", 50_000)])
        slow.inputs.add(name="steps", datatype="INT64", shape=[1])
        quick = Request(model_name="scale", raw_input_contents=[np.float32([1, 2, 3, 4]).tobytes()])
        quick.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        requests.put(quick)
        assert next(call).error_message == ""
        # The quick one behind it is answered only after it; that it ran shows that both were read.
        requests.put(slow)
        requests.put(quick)
        with triton.InferenceServerClient(server.grpc) as client:
            while client.get_inference_statistics("scale").model_stats[0].inference_count < 2:
                pass
        assert server.process is not None
        server.process.send_signal(signal.SIGTERM)
        assert next(call).infer_response.raw_output_contents[0] == struct.pack("<q", 50_000)
        assert next(call).error_message == ""
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        requests.put(None)
        assert server.process.wait(timeout=10) == 0
