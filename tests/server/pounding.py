"""Clients that send as fast as they are answered and keep account of every request: for tests of stopping servers.

A request is *lost* when its bytes went out on a connection that was open and no whole answer came back.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from whet.server.protocol.messages import message

Rows: TypeAlias = npt.NDArray[np.float32]

ANSWER_S = 30.0


@dataclass
class Account:
    """What became of requests. `statuses`: of whole answers. `lost`: how the connections ended that gave none."""

    statuses: Counter[int] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    refused_connections: int = 0
    closes_told: int = 0
    """Answers with `Connection: close`."""

    @property
    def sent(self) -> int:
        return sum(self.statuses.values()) + len(self.lost)


def scale_request(x: Rows) -> bytes:
    """A whole request to the model `scale` (2x + 1) over rows of 4."""
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.reshape(-1).tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    return (
        b"POST /v2/models/scale/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    )  # fmt: skip


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body. Raises ConnectionError and IncompleteReadError where the connection ends before."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return int(head[0].split(" ")[1]), headers, await reader.readexactly(int(headers.get("content-length", "0")))


async def pound_http(
    port: int, account: Account, seed: int, stop: asyncio.Event, idle_s: float = 0.0, reconnect: bool = True
) -> None:
    """One client: a request after the other on a keep-alive connection, a new one when it was told to close.

    Ends when connections are refused, or at `stop`. `idle_s`: the longest pause between two requests.
    """
    rng = np.random.default_rng(seed)
    while not stop.is_set():
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            account.refused_connections += 1
            return
        used = 0
        try:
            while not stop.is_set():
                x = rng.integers(-999, 999, (1, 4)).astype(np.float32)
                try:
                    # A connection that has ended is not used for another request.
                    if reader.at_eof():
                        break
                    writer.write(scale_request(x))
                    status, headers, body = await asyncio.wait_for(read_answer(reader), ANSWER_S)
                except (OSError, EOFError, TimeoutError) as error:
                    account.lost.append(f"{type(error).__name__}: {error}; request {used} of its connection")
                    break
                used += 1
                account.statuses[status] += 1
                if status == 200:
                    found = json.loads(body)["outputs"][0]["data"]
                    if found != (2 * x + 1).reshape(-1).tolist():
                        account.wrong.append(f"{found} for {x}")
                if headers.get("connection") == "close":
                    account.closes_told += 1
                    break
                if idle_s:
                    await asyncio.sleep(float(rng.random()) * idle_s)
        finally:
            writer.close()
        if not reconnect:
            return


@dataclass
class GrpcAccount:
    """What became of calls and of the requests of streams. `told`: with what calls and streams ended."""

    answered: int = 0
    told: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unanswered: int = 0
    """Requests of streams that ended with a refusal before they were answered."""


def grpc_request(x: Rows) -> bytes:
    request = message("inference.ModelInferRequest")(model_name="scale")
    request.inputs.add(name="x", datatype="FP32", shape=list(x.shape))
    request.raw_input_contents.append(x.tobytes())
    return bytes(request.SerializeToString())


def _outputs(response: Any) -> Rows:
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(response.outputs[0].shape)


async def pound_grpc(address: str, account: GrpcAccount, seed: int, stop: asyncio.Event) -> None:
    """One client of unary calls, one after the other. Ends at the first that is not answered, or at `stop`."""
    rng = np.random.default_rng(seed)
    answer = message("inference.ModelInferResponse").FromString
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", response_deserializer=answer)
        while not stop.is_set():
            x = rng.integers(-999, 999, (1, 4)).astype(np.float32)
            try:
                y = _outputs(await infer(grpc_request(x), timeout=ANSWER_S))
            except grpc.aio.AioRpcError as error:
                _note_end(account, error)
                return
            account.answered += 1
            if not np.array_equal(y, 2 * x + 1):
                account.wrong.append(f"{y} for {x}")


def pound_stream(address: str, account: GrpcAccount, seed: int, stop: threading.Event, ahead: int = 8) -> None:
    """One client with one stream, `ahead` requests before the answers. Ends with the stream, or at `stop`.

    Not on asyncio: there, grpcio drops the answers that were not read yet when a stream ends.
    """
    rng = np.random.default_rng(seed)
    answer = message("inference.ModelStreamInferResponse").FromString
    sent: queue.SimpleQueue[Rows] = queue.SimpleQueue()
    room = threading.Semaphore(ahead)
    ended = threading.Event()
    count = 0

    def requests() -> Iterator[bytes]:
        nonlocal count
        while room.acquire(timeout=ANSWER_S) and not stop.is_set() and not ended.is_set():
            x = rng.integers(-999, 999, (1, 4)).astype(np.float32)
            sent.put(x)
            count += 1
            yield grpc_request(x)

    answered = 0
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer", response_deserializer=answer
        )  # fmt: skip
        try:
            for response in infer(requests()):
                x = sent.get()
                if response.error_message:
                    account.wrong.append(response.error_message)
                elif not np.array_equal(_outputs(response.infer_response), 2 * x + 1):
                    account.wrong.append(f"{response} for {x}")
                answered += 1
                room.release()
        except grpc.RpcError as error:
            _note_end(account, error)
        # The generator waits for room: it ends, and counts nothing more.
        ended.set()
        room.release()
    account.answered += answered
    account.unanswered += count - answered


def _note_end(account: GrpcAccount, error: Any) -> None:
    text = f"{error.code().name}: {error.details()}"
    account.told[text] += 1
