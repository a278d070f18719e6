"""Stopping: nobody who was let in goes without an answer, and nothing keeps a server from ending."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("httptools")
grpc = pytest.importorskip("grpc")

from tests.server.grpc_models import make_repository  # noqa: E402
from tests.server.pounding import (  # noqa: E402
    Account,
    GrpcAccount,
    pound_grpc,
    pound_http,
    pound_stream,
    scale_request,
)
from tests.server.running import RunningServer  # noqa: E402
from whet.server.protocol.messages import message  # noqa: E402

FOREVER = 2_000_000_000
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_repository(tmp_path_factory.mktemp("shutdown") / "models")
    (folder / "broken.onnx").unlink()
    return folder


def terminate(server: RunningServer) -> None:
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)


def exit_status(server: RunningServer, within_s: float = 30.0) -> int:
    assert server.process is not None
    return server.process.wait(within_s)


def slow_request(steps: int) -> bytes:
    body = json.dumps({"inputs": [{"name": "steps", "shape": [1], "datatype": "INT64", "data": [steps]}]}).encode()
    return (
        f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )


def slow_message(steps: int) -> bytes:
    request = message("inference.ModelInferRequest")(model_name="slow")
    request.inputs.add(name="steps", datatype="INT64", shape=[1])
    request.raw_input_contents.append(np.int64(steps).tobytes())
    return bytes(request.SerializeToString())


def steps_of(seconds: float, server: RunningServer, connected: Connect) -> int:
    """Steps of `slow` that take about as long on this machine now."""
    steps = 100
    while True:
        began = time.monotonic()
        assert answer_of(connected(server, slow_request(steps)))[0] == 200
        took = time.monotonic() - began
        if took > 0.2:
            return max(int(steps * seconds / took), 1)
        steps *= 4


Connect = Callable[[RunningServer, bytes], socket.socket]


@pytest.fixture
def connected() -> Iterator[Connect]:
    """Connects, sends, and closes at the end of the test."""
    with contextlib.ExitStack() as kept:

        def connect(server: RunningServer, content: bytes) -> socket.socket:
            connection = kept.enter_context(socket.create_connection(("127.0.0.1", server.http_port), 60))
            connection.sendall(content)
            return connection

        yield connect


def answer_of(connection: socket.socket) -> tuple[int, dict[str, str], Any]:
    """Status, headers, and the document; the connection is kept."""
    with http.client.HTTPResponse(connection) as answer:
        answer.begin()
        content = answer.read()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(content) if content else None


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def pound(server: RunningServer, before_s: float) -> Account:
    """128 clients, half of them as fast as they are answered; SIGTERM after a while; what became of their requests."""

    async def go() -> Account:
        account, stop = Account(), asyncio.Event()
        clients = [
            asyncio.create_task(pound_http(server.http_port, account, seed, stop, 0.3 * (seed % 2)))
            for seed in range(128)
        ]
        while sum(account.statuses.values()) < 300:
            await asyncio.sleep(0.02)
        await asyncio.sleep(before_s)
        terminate(server)
        done, left = await asyncio.wait(clients, timeout=60)
        assert not left
        for client in done:
            client.result()
        return account

    return asyncio.run(go())


def test_no_http_request_is_lost(repository: Path) -> None:
    with RunningServer(repository, "--drain-delay-s", "1") as server:
        account = pound(server, 0.3)
        assert exit_status(server) == 0
        assert account.lost == []
        assert account.wrong == []
        # Everything that was sent, also after the signal, was answered and not refused.
        assert set(account.statuses) == {200}
        assert account.closes_told > 0
        assert "Traceback" not in server.log, server.log


def test_no_call_is_lost(repository: Path) -> None:
    """Each unary call, and each request of a stream, is answered, or its client is told that the server stops."""
    with RunningServer(repository) as server:
        unary, stream = GrpcAccount(), GrpcAccount()
        stop = threading.Event()
        threads = [
            threading.Thread(target=pound_stream, args=(server.grpc, stream, seed, stop, 4), daemon=True)
            for seed in range(3)
        ]

        async def go() -> None:
            ended = asyncio.Event()
            clients = [asyncio.create_task(pound_grpc(server.grpc, unary, seed, ended)) for seed in range(12)]
            while unary.answered < 60:
                await asyncio.sleep(0.02)
            terminate(server)
            _, left = await asyncio.wait(clients, timeout=60)
            assert not left

        for thread in threads:
            thread.start()
        asyncio.run(go())
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        assert exit_status(server) == 0
        # By the server, or by gRPC for a call that begins when it no longer listens.
        told = "UNAVAILABLE: the server is shutting down. Ask another one."
        assert told in unary.told
        assert told in stream.told
        assert all(text.startswith(("UNAVAILABLE", "CANCELLED")) for text in (*unary.told, *stream.told))
        assert unary.wrong == stream.wrong == []
        assert stream.answered > 0
        assert stream.unanswered <= 3 * 4
        assert "Traceback" not in server.log, server.log


def test_what_runs_is_answered_and_nothing_new_comes_in(repository: Path, connected: Connect) -> None:
    with RunningServer(repository, "--drain-delay-s", "2") as server:
        steps = steps_of(6.0, server, connected)
        idle = connected(server, scale_request(np.float32([[1, 2, 3, 4]])))
        assert answer_of(idle)[2]["outputs"][0]["data"] == [3, 5, 7, 9]
        whole = scale_request(np.float32([[5, 6, 7, 8]]))
        half = connected(server, whole[:-10])
        running = connected(server, slow_request(steps))
        with grpc.insecure_channel(server.grpc) as channel:
            call = channel.unary_unary(INFER, response_deserializer=message("inference.ModelInferResponse").FromString)
            rpc = call.future(slow_message(steps), timeout=60)
            time.sleep(0.3)
            terminate(server)
            time.sleep(0.2)
            # Within the delay: new connections come in, and everyone is told to go elsewhere.
            status, headers, _ = answer_of(connected(server, get("/v2/health/ready")))
            assert (status, headers["connection"]) == (503, "close")
            assert answer_of(connected(server, get("/v2/health/live")))[0] == 200
            fresh = answer_of(connected(server, scale_request(np.float32([[0, 0, 0, 1]]))))
            assert (fresh[0], fresh[1]["connection"]) == (200, "close")
            # An idle connection brings one more request, and half of a body is followed by the other half.
            time.sleep(0.6)
            idle.sendall(scale_request(np.float32([[2, 2, 2, 2]])))
            half.sendall(whole[-10:])
            for connection, expected in ((idle, [5, 5, 5, 5]), (half, [11, 13, 15, 17])):
                status, headers, document = answer_of(connection)
                assert (status, headers["connection"]) == (200, "close")
                assert document["outputs"][0]["data"] == expected
                assert connection.recv(1) == b""
            status, headers, document = answer_of(running)
            assert (status, headers["connection"], document["outputs"][0]["data"]) == (200, "close", [steps])
            assert np.frombuffer(rpc.result().raw_output_contents[0], np.int64).tolist() == [steps]
        assert exit_status(server) == 0
        assert "Traceback" not in server.log, server.log


def test_what_takes_longer_than_a_stop_waits_is_told_so(repository: Path, connected: Connect) -> None:
    with RunningServer(repository, "--drain-s", "1") as server:
        running = connected(server, slow_request(FOREVER))
        with grpc.insecure_channel(server.grpc) as channel:
            rpc = channel.unary_unary(INFER).future(slow_message(FOREVER), timeout=60)
            time.sleep(0.3)
            began = time.monotonic()
            terminate(server)
            status, headers, document = answer_of(running)
            assert (status, headers["connection"]) == (503, "close")
            assert "the server stopped before the answer was ready" in document["error"]
            assert rpc.exception().code().name in ("UNAVAILABLE", "CANCELLED")
        assert exit_status(server) == 0
        assert time.monotonic() - began < 15


def test_a_second_signal_ends_it_at_once(repository: Path, connected: Connect) -> None:
    server = RunningServer(repository)
    server.__enter__()
    connected(server, slow_request(FOREVER))
    time.sleep(0.3)
    keep = connected(server, get("/v2/health/ready"))
    assert answer_of(keep)[0] == 200
    terminate(server)
    # The first one has been seen when the server is not ready any more.
    keep.sendall(get("/v2/health/ready"))
    while answer_of(keep)[0] == 200:
        keep.sendall(get("/v2/health/ready"))
    began = time.monotonic()
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGINT)
    assert exit_status(server) == 1
    assert time.monotonic() - began < 5
