"""Random and damaged streams of HTTP requests: right ones are answered in order, wrong ones harm nobody.

usage: python -m tests.server.http_fuzz [--seconds 600] [--seed 0]
Starts a server of a model `wide` (2x + 1 of any length). A stream is some requests behind one another on a connection:
lengths or chunks, JSON or binary tensors of a few bytes to some 100 kB, methods, upgrades, trailers, all cut into
pieces anywhere. Some streams are damaged somewhere: what lies before the damage is answered as ever, and what comes
behind it is an answer that HTTP knows, or the end of the connection.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import re
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto
from onnx import helper as oh

WAIT_S = 60.0
QUIET_S = 0.15
"""How long a damaged stream is listened to after what has to come."""
CONNECTIONS = 12
GROWTH_BYTES = 64 << 20
"""What the server's memory may grow by after the first tenth of a run."""
INFER = "/v2/models/wide/infer"
WIDTHS = (1, 2, 3, 16, 100, 1000, 4000, 9000, 20_000, 70_000)
REFUSALS = {400, 403, 404, 405, 408, 413, 415, 431, 501}


def save_wide(path: Path) -> None:
    """The model `wide`."""
    x, y = (oh.make_tensor_value_info(n, TensorProto.FLOAT, ["n", "k"]) for n in "xy")
    constants = [oh.make_tensor(n, TensorProto.FLOAT, [], [v]) for n, v in (("two", 2), ("one", 1))]
    nodes = [oh.make_node("Mul", ["x", "two"], ["t"]), oh.make_node("Add", ["t", "one"], ["y"])]
    model = oh.make_model(oh.make_graph(nodes, "wide", [x], [y], constants), opset_imports=[oh.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.save(model, path)


@dataclass(frozen=True)
class Request:
    """Bytes of a request, and what has to be answered: a status, and the model's output where there is one."""

    content: bytes
    status: int
    is_head: bool = False
    output: Any = None


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    content: bytes


class Fuzzer:
    """Streams of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.rng = np.random.default_rng(seed)

    def stream(self, heads: bool) -> list[Request]:
        """Requests for one connection; the last one ends it. `heads`: HEAD may be among them."""
        count = self.random.choice((1, 1, 2, 3, 5, 12))
        found: list[Request] = []
        while len(found) < count:
            request = self.request(last=len(found) == count - 1)
            if heads or not request.is_head:
                found.append(request)
        return found

    def request(self, last: bool) -> Request:
        """Any request that is right."""
        choose = self.random
        headers = [("Host", "localhost")]
        if last:
            headers.append(("Connection", choose.choice(("close", "Close"))))
        elif choose.random() < 0.2:
            headers.append(("Connection", "keep-alive"))
        elif choose.random() < 0.1:
            headers += [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABk")]
        if choose.random() < 0.3:
            headers.append((choose.choice(("User-Agent", "accept", "X-A")), choose.choice(("*/*", "a" * 300, "é", ""))))
        if choose.random() < 0.65:
            return self._infer(headers)
        method, path, status, body = choose.choice((
            ("GET", "/v2", 200, b""),
            ("GET", "/v2/health/live", 200, b"a body that nobody reads"),
            ("HEAD", "/v2/models/wide", 200, b""),
            ("OPTIONS", "/v2", 204, b""),
            ("GET", "/v2/models/w%69de?a=b&c", 200, b""),
            ("GET", "/nowhere", 404, b"x" * 50_000),
            ("HEAD", "/nowhere", 404, b""),
            ("DELETE", "/v2", 405, b""),
            ("POST", INFER, 400, b"{}"),
            ("POST", "/v2/models/other/infer", 404, b'{"inputs":[]}'),
        ))  # fmt: skip
        return Request(self._framed(method, path, headers, body), status, method == "HEAD")

    def _infer(self, headers: list[tuple[str, str]]) -> Request:
        choose = self.random
        x = self.rng.standard_normal((choose.choice((1, 1, 1, 2)), choose.choice(WIDTHS)), np.float32)
        entry: dict[str, Any] = {"name": "x", "shape": x.shape, "datatype": "FP32"}
        document: dict[str, Any] = {"inputs": [entry]}
        if choose.random() < 0.5:
            document["parameters"] = {"binary_data_output": True}
        tensor = b""
        if x.size > 5000 or choose.random() < 0.5:
            tensor = x.tobytes()
            entry["parameters"] = {"binary_data_size": len(tensor)}
        else:
            entry["data"] = x.tolist() if choose.random() < 0.5 else x.reshape(-1).tolist()
        head = json.dumps(document).encode()
        if tensor:
            headers = [*headers, ("Inference-Header-Content-Length", str(len(head)))]
        if choose.random() < 0.1:
            headers = [*headers, ("Expect", "100-continue")]
        return Request(self._framed("POST", INFER, headers, head + tensor), 200, output=2 * x + 1)

    def _framed(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
        choose = self.random
        frame: bytes
        if body and choose.random() < 0.3:
            headers = [*headers, ("Transfer-Encoding", "chunked")]
            frame, at = b"", 0
            while at < len(body):
                size = choose.choice((1, 7, 500, 16_384, 100_000)) if at > 300 else 100
                # Many chunks of one byte are refused: see `connection.py`.
                size = min(max(size, len(body) // 40), len(body) - at)
                extension = choose.choice((b"", b"", b";a=b"))
                frame += b"%x%b\r\n%b\r\n" % (size, extension, body[at : at + size])
                at += size
            frame += b"0\r\n" + choose.choice((b"", b"X-Trailer: Host: a\r\n")) + b"\r\n"
        else:
            frame = body
            if body or method == "POST" or choose.random() < 0.2:
                headers = [*headers, ("Content-Length", str(len(body)))]
        lines = [f"{method} {path} HTTP/1.1"]
        choose.shuffle(headers)
        for name, value in headers:
            spelled = choose.choice((name, name.lower(), name.upper()))
            lines.append(f"{spelled}:{choose.choice((' ', '', '  '))}{value}")
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + frame

    def damaged(self, content: bytes) -> tuple[bytes, int]:
        """The bytes with some changed, cut out or put in; and how many before that are as they were."""
        choose = self.random
        at = choose.randrange(len(content))
        if choose.random() < 0.7:  # in a head, where more can go wrong
            heads = [m.start() for m in re.finditer(rb" HTTP/1\.1\r\n", content)]
            at = min(len(content) - 1, max(0, choose.choice(heads) + choose.randrange(-10, 200)))
        some = choose.choice((
            choose.randbytes(choose.randrange(1, 9)), b"\r\n", b"\n", b"\r\n\r\n", b"\0", b" ", b":", b"\t",
            b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Host: b\r\n", b"GET / HTTP/1.1\r\n\r\n",
            b"X: " + b"y" * choose.choice((10, 70_000)), b"0\r\n\r\n", b"ffffffffffffffff\r\n",
        ))  # fmt: skip
        match choose.randrange(4):
            case 0:
                return content[:at] + bytes((content[at] ^ 1 << choose.randrange(8),)) + content[at + 1 :], at
            case 1:
                return content[:at] + content[at + choose.choice((1, 2, 20, 1000)) :], at
            case 2:
                return content[:at] + some + content[at:], at
        return content[:at], at


def parse(received: bytes, heads: list[bool]) -> tuple[list[Answer], bytes]:
    """The answers, interim ones left out, and what is left over. `heads`: which of them have no body."""
    found: list[Answer] = []
    while (end := received.find(b"\r\n\r\n")) >= 0:
        first, *lines = received[:end].decode("latin-1").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1", received[:100]
        headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
        if status == "100":
            received = received[end + 4 :]
            continue
        is_bare = status == "204" or (len(found) < len(heads) and heads[len(found)])
        size = 0 if is_bare else int(headers["content-length"])
        if len(received) < end + 4 + size:
            break
        found.append(Answer(int(status), headers, received[end + 4 : end + 4 + size]))
        received = received[end + 4 + size :]
    return found, received


def check(request: Request, answer: Answer) -> None:
    """A wrong answer is an AssertionError."""
    assert answer.status == request.status, (answer, request.content[:400])
    assert "date" in answer.headers
    if request.output is None:
        return
    length = answer.headers.get("inference-header-content-length")
    head = answer.content if length is None else answer.content[: int(length)]
    (output,) = json.loads(head)["outputs"]
    if length is None:
        found = np.array(output["data"], np.float32)
    else:
        found = np.frombuffer(answer.content[int(length) :], np.float32)
    assert output["shape"] == list(request.output.shape)
    np.testing.assert_allclose(found.reshape(output["shape"]), request.output, rtol=1e-6, atol=1e-6)


class Conversation:
    """One connection: sends pieces, collects what comes."""

    def __init__(self, port: int, choose: random.Random) -> None:
        self._port = port
        self._random = choose
        self.received = b""
        self.is_ended = False

    async def run(self, content: bytes, heads: list[bool], needed: int | None) -> None:
        """Send; return when the server ends the connection, or after `needed` answers and some silence."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        sending = asyncio.create_task(self._send(writer, content))
        end = time.monotonic() + WAIT_S
        try:
            while time.monotonic() < end:
                is_enough = needed is not None and sending.done() and len(parse(self.received, heads)[0]) >= needed
                try:
                    part = await asyncio.wait_for(reader.read(1 << 16), QUIET_S if is_enough else WAIT_S)
                except TimeoutError:
                    assert is_enough, (content[:2000], self.received[-400:])
                    return
                except ConnectionError:
                    part = b""
                if not part:
                    self.is_ended = True
                    return
                self.received += part
            raise AssertionError("the connection does not end")
        finally:
            sending.cancel()
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await asyncio.gather(sending, writer.wait_closed(), return_exceptions=True)

    async def _send(self, writer: asyncio.StreamWriter, content: bytes) -> None:
        at = 0
        with contextlib.suppress(ConnectionError):
            while at < len(content):
                size = self._random.choice((1, 3, 40, 1000, 32_768, 1 << 20, 1 << 20))
                writer.write(content[at : at + size])
                await writer.drain()
                at += size
                if self._random.random() < 0.3:
                    await asyncio.sleep(self._random.choice((0, 0.0005, 0.003)))


async def one_stream(port: int, fuzzer: Fuzzer, counts: Counter[str]) -> None:
    """A stream and its answers."""
    # Whether the answer to a damaged request has a body is known where it cannot ask for the head only.
    is_right = fuzzer.random.random() < 0.5
    requests = fuzzer.stream(heads=is_right)
    content = b"".join(r.content for r in requests)
    heads = [r.is_head for r in requests]
    conversation = Conversation(port, fuzzer.random)
    if is_right:
        await conversation.run(content, heads, None)
        answers, left = parse(conversation.received, heads)
        assert conversation.is_ended
        assert left == b"", left[:200]
        assert len(answers) == len(requests), (content[:1000], answers)
        for request, answer in zip(requests, answers, strict=True):
            check(request, answer)
        assert answers[-1].headers["connection"] == "close"
        counts["right"] += len(answers)
        return
    content, intact = fuzzer.damaged(content)
    whole, at = 0, 0
    for request in requests:
        at += len(request.content)
        whole += at <= intact
    await conversation.run(content, heads, whole)
    answers, _ = parse(conversation.received, heads)
    assert len(answers) >= whole, (content[:2000], intact, answers)
    for request, answer in zip(requests[:whole], answers, strict=False):
        check(request, answer)
    for answer in answers[whole:]:
        assert answer.status in REFUSALS | {200, 204}, (content[:2000], answer)
        counts[str(answer.status)] += 1
    counts["damaged"] += 1


def fuzz(port: int, seconds: float, seed: int) -> Counter[str]:
    """Streams for a while, a few at once; returns what was answered. A fault is an AssertionError."""
    counts: Counter[str] = Counter()

    async def client(number: int) -> None:
        fuzzer = Fuzzer(seed * CONNECTIONS + number)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            await one_stream(port, fuzzer, counts)

    async def go() -> None:
        await asyncio.gather(*(client(n) for n in range(CONNECTIONS)))

    asyncio.run(go())
    return counts


def long_run(seconds: float, seed: int) -> None:
    """Fuzz a server of its own, one seed after the other; print what was answered and how the server's memory went."""
    from tests.server.options_server import OptionsServer
    from tests.server.running import free_port

    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        save_wide(Path(folder) / "wide.onnx")
        port = free_port()
        with OptionsServer(Path(folder), http_port=port, body_s=2.0) as server:
            assert server.process is not None
            process = psutil.Process(server.process.pid)
            total += fuzz(port, seconds / 10, seed)
            before = process.memory_info().rss
            end = time.monotonic() + seconds * 0.9
            while time.monotonic() < end:
                seed += 1
                total += fuzz(port, min(30, max(1, end - time.monotonic())), seed)
                grown = process.memory_info().rss - before
                print(f"{grown / 1e6:+7.1f} MB  {dict(total)}", flush=True)
                assert grown < GROWTH_BYTES, grown
            assert "Traceback" not in server.log, server.log


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    long_run(given.seconds, given.seed)
