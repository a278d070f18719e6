"""Bad requests over HTTP: each has its status and an error that says what is wrong, and the server goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import re
import socket
import struct
import threading
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.grpc_models import make_repository
from tests.server.http_requests import INFER, ask, exchange, infer_body, parsed
from tests.server.options_server import LOADABLE, OptionsServer
from tests.server.running import free_port
from whet.server.http import server as http_server
from whet.server.http.exchange import Exchange

BODY_BYTES = 100_000
SLOW = "/v2/models/slow/infer"


class Served(OptionsServer):
    """A server with HTTP only, that knows one more name of itself."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            folder, grpc_port=free_port(), http_port=free_port(), body_bytes=BODY_BYTES, body_s=1.0,
            admin_on_main_port=True, strict_readiness=False, allowed_hosts=["models.example"], **LOADABLE,
        )  # fmt: skip
        self.http_port = self._options["http_port"]
        self.grpc_port = self._options["grpc_port"]

    @property
    def files(self) -> int:
        """How many files and connections the server's process has open."""
        assert self.process is not None
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def failures(self, model: str) -> int:
        """Requests for a model that failed."""
        found = json.loads(ask(self.http_port, "GET", f"/v2/models/{model}/stats")[2])
        return int(found["model_stats"][0]["inference_stats"]["fail"]["count"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(make_repository(tmp_path_factory.mktemp("bad") / "models")) as running:
        yield running


def check_good(port: int) -> None:
    """A good request has its right answer."""
    x = np.random.default_rng().standard_normal((1, 4), np.float32)
    status, _, content = ask(port, "POST", INFER, infer_body(data=x.tolist()))
    assert status == 200, content
    np.testing.assert_allclose(json.loads(content)["outputs"][0]["data"], (2 * x + 1)[0], rtol=1e-6)


def typed(kind: str, data: list[Any]) -> bytes:
    """A request to the model that knows every type."""
    tensor = {"name": f"in_{kind}", "shape": [1, len(data)], "datatype": kind, "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def binary(tensor: bytes, head_bytes: int = 0, size: int | None = None, kind: str = "FP32") -> tuple[bytes, str]:
    """A body with one binary tensor, and its header."""
    parameters = {"binary_data_size": len(tensor) if size is None else size}
    name = "x" if kind == "FP32" else f"in_{kind}"
    entry = {"name": name, "shape": [1, 4], "datatype": kind, "parameters": parameters}
    head = json.dumps({"inputs": [entry]}).encode()
    return head + tensor, f"Inference-Header-Content-Length: {head_bytes or len(head)}"


def with_output(*outputs: Any) -> bytes:
    return infer_body()[:-1] + b',"outputs":' + json.dumps(outputs).encode() + b"}"


def parameter(**given: Any) -> bytes:
    return infer_body()[:-1] + b',"parameters":' + json.dumps(given).encode() + b"}"


ECHO = "/v2/models/echo/infer"
TWICE = infer_body().replace(b"}]}", b'},{"name":"x","shape":[1,4],"datatype":"FP32","data":[0,0,0,0]}]}')
LONG = 1 << 64
GZIP = "Content-Encoding: gzip"
CHUNKED = "Transfer-Encoding: chunked"

# What is wrong, method, address, body, headers, status, and a part of the error.
STATUSES: tuple[tuple[str, str, str, bytes, tuple[str, ...], int, str], ...] = (
    ("no such address", "GET", "/nothing", b"", (), 404, "/nothing"),
    ("no such model", "POST", "/v2/models/scal/infer", infer_body(), (), 404, "'scale'"),
    ("no model", "POST", "/v2/models//infer", infer_body(), (), 404, "nothing"),
    ("version -1", "POST", "/v2/models/scale/versions/-1/infer", infer_body(), (), 404, "-1"),
    ("version 2^64", "POST", f"/v2/models/scale/versions/{LONG}/infer", infer_body(), (), 404, str(LONG)),
    ("version +1", "POST", "/v2/models/scale/versions/+1/infer", infer_body(), (), 404, "+1"),
    ("name ..", "GET", "/v2/models/..", b"", (), 404, ".."),
    ("name %2e%2e", "GET", "/v2/models/%2e%2e/config", b"", (), 404, ".."),
    ("name with %2f", "GET", "/v2/models/..%2f..%2fetc/ready", b"", (), 404, "/v2/models/../../etc"),
    ("address with ..", "GET", "/v2/models/../../etc/passwd", b"", (), 404, ".."),
    ("name with NUL", "GET", "/v2/models/scale%00", b"", (), 404, "scale\\x00"),
    ("name that is no UTF-8", "GET", "/v2/models/%ff%fe", b"", (), 404, "unknown model"),
    ("name with umlauts", "GET", "/v2/models/%c3%bc", b"", (), 404, "ü"),
    ("name with a wrong escape", "GET", "/v2/models/%zz", b"", (), 404, "%zz"),
    ("name of 3 kB", "GET", "/v2/models/" + "a" * 3000, b"", (), 404, "more characters"),
    ("name of 10 kB", "GET", "/v2/models/" + "a" * 10_000, b"", (), 404, "too long"),
    ("wrong method", "DELETE", "/v2", b"", (), 405, "DELETE"),
    ("infer by GET", "GET", INFER, b"", (), 405, "POST"),
    ("body over the limit", "POST", INFER, b"x" * (BODY_BYTES + 1), (), 413, "100001"),
    ("chunked body over the limit", "POST", INFER, b"30d40\r\n" + b"x" * 200_000 + b"\r\n0\r\n\r\n", (CHUNKED,),
     413, "stream"),
    ("gzip bomb", "POST", INFER, gzip.compress(b" " * 50_000_000), (GZIP,), 413, "gzip"),
    ("deflate bomb", "POST", INFER, zlib.compress(b" " * 50_000_000), ("Content-Encoding: deflate",), 413, "deflate"),
    ("gzip of many members", "POST", INFER, gzip.compress(b" " * 4000) * 1000, (GZIP,), 413, "gzip"),
    ("damaged gzip", "POST", INFER, b"nothing", (GZIP,), 400, "decompressed"),
    ("gzip cut off", "POST", INFER, gzip.compress(infer_body())[:-9], (GZIP,), 400, "too early"),
    ("bytes behind deflate", "POST", INFER, zlib.compress(b"{}") + b"x", ("Content-Encoding: deflate",), 400, "left"),
    ("unknown encoding", "POST", INFER, b"{}", ("Content-Encoding: br",), 415, "br"),
    ("two encodings", "POST", INFER, b"{}", ("Content-Encoding: gzip, gzip",), 415, "gzip, gzip"),
    ("a form", "POST", INFER, b"{}", ("Content-Type: multipart/form-data; boundary=a",), 415, "multipart"),
    ("slow body", "POST", INFER, b"{", ("Content-Length: 10",), 408, "in time"),
    ("slow chunks", "POST", INFER, b"1\r\n{\r\n", (CHUNKED,), 408, "in time"),
    ("header length past the end", "POST", INFER, b"{}", ("Inference-Header-Content-Length: 3",), 400, "range"),
    ("header length negative", "POST", INFER, b"{}", ("Inference-Header-Content-Length: -1",), 400, "-1"),
    ("header length +2", "POST", INFER, b"{}", ("Inference-Header-Content-Length: +2",), 400, "number"),
    ("header length of 5 kB", "POST", INFER, b"{}", (f"Inference-Header-Content-Length: {'9' * 5000}",), 400, "range"),
    ("header length too short", "POST", INFER, binary(b"")[0], ("Inference-Header-Content-Length: 5",), 400, "JSON"),
    ("raw too short", "POST", INFER, binary(b"a" * 15)[0], (binary(b"a" * 15)[1],), 400, "15 bytes"),
    ("raw past the end", "POST", INFER, binary(b"a" * 16, size=20)[0], (binary(b"", size=20)[1],), 400, "at most 16"),
    ("raw size negative", "POST", INFER, binary(b"", size=-1)[0], (binary(b"", size=-1)[1],), 400, "-1"),
    ("raw left over", "POST", INFER, binary(b"a" * 17, size=16)[0], (binary(b"", size=16)[1],), 400, "1 bytes"),
    ("BYTES length past the end", "POST", ECHO, binary(b"\xff\xff\xff\x7fabcdabcdabcd", kind="BYTES")[0],
     (binary(b"a" * 16, kind="BYTES")[1],), 400, "passes the end"),
    ("empty", "POST", INFER, b"", (), 400, "JSON"),
    ("no object", "POST", INFER, b"[1]", (), 400, "list"),
    ("no inputs", "POST", INFER, b'{"inputs":[]}', (), 400, "missing"),
    ("inputs of another kind", "POST", INFER, b'{"inputs":{"x":1}}', (), 400, "dict"),
    ("not UTF-8", "POST", INFER, infer_body().replace(b'"x"', b'"\xff"'), (), 400, "JSON"),
    ("UTF-16", "POST", INFER, infer_body().decode().encode("utf-16"), (), 400, "JSON"),
    ("cut off", "POST", INFER, infer_body()[:-1], (), 400, "JSON"),
    ("left over", "POST", INFER, infer_body() + b"{}", (), 400, "JSON"),
    ("depth 101", "POST", INFER, b'{"inputs":' + b"[" * 100 + b"]" * 100 + b"}", (), 400, "100"),
    ("depth 40,000", "POST", INFER, b'{"inputs":' + b"[" * 40_000 + b"]" * 40_000 + b"}", (), 400, ""),
    ("NaN", "POST", INFER, infer_body(data=[0, 1, 2, float("nan")]), (), 400, "JSON"),
    ("Infinity", "POST", INFER, infer_body(data=[0, 1, 2, float("inf")]), (), 400, "JSON"),
    ("null", "POST", INFER, infer_body(data=[0, 1, None, 3]), (), 400, "None (element 2)"),
    ("1e400", "POST", INFER, infer_body().replace(b"-3", b"1e400"), (), 400, "JSON"),
    ("FP32 1e39", "POST", INFER, infer_body(data=[0, 1, 1e39, 0]), (), 400, "1e+39 (element 2)"),
    ("FP32 -1e39", "POST", INFER, infer_body(data=[0, -1e39, 0, 0]), (), 400, "-1e+39 (element 1)"),
    ("FP16 70000", "POST", ECHO, typed("FP16", [0.5, 70000]), (), 400, "70000 (element 1)"),
    ("BF16 1e39", "POST", ECHO, typed("BF16", [1e39]), (), 400, "1e+39 (element 0)"),
    ("UINT8 256", "POST", ECHO, typed("UINT8", [0, 256]), (), 400, "256 (element 1)"),
    ("UINT8 -1", "POST", ECHO, typed("UINT8", [-1]), (), 400, "0 to 255"),
    ("INT64 2^63", "POST", ECHO, typed("INT64", [1 << 63]), (), 400, "9223372036854775808 (element 0)"),
    ("INT64 2^64", "POST", ECHO, typed("INT64", [1 << 64]), (), 400, "wrong JSON type"),
    ("INT32 1.0", "POST", ECHO, typed("INT32", [1.0]), (), 400, "1.0 (element 0)"),
    ("BOOL 1", "POST", ECHO, typed("BOOL", [1]), (), 400, "1 (element 0)"),
    ("number of 5000 digits", "POST", INFER, infer_body().replace(b"-3", b"9" * 5000), (), 400, "JSON"),
    ("int over int64", "POST", INFER, infer_body(shape=[1, LONG]), (), 400, "extent"),
    ("lone surrogate", "POST", INFER, infer_body(name="\ud800"), (), 400, "JSON"),
    ("count and shape", "POST", INFER, infer_body(data=[1, 2, 3]), (), 400, "3 elements"),
    ("no data", "POST", INFER, infer_body(data=None), (), 400, "NoneType"),
    ("shape overflow", "POST", INFER, infer_body(shape=[1 << 40, 1 << 40]), (), 413, "elements"),
    ("shape of 33", "POST", INFER, infer_body(shape=[1] * 33), (), 400, "33"),
    ("negative dims", "POST", INFER, infer_body(shape=[-1, 4]), (), 400, "-1"),
    ("no rows", "POST", INFER, infer_body(shape=[0, 4], data=[]), (), 400, "rows"),
    ("33 rows", "POST", INFER, infer_body(shape=[33, 4], data=[0] * 132), (), 400, "33"),
    ("another rank", "POST", INFER, infer_body(shape=[1, 4, 1]), (), 400, "[1, 4, 1]"),
    ("ragged lists", "POST", INFER, infer_body(data=[[1, 2, 3], [4]]), (), 400, "ragged"),
    ("string for number", "POST", INFER, infer_body(data=["1", 1, 2, 3]), (), 400, "'1' (element 0)"),
    ("input twice", "POST", INFER, TWICE, (), 400, "twice"),
    ("unknown input", "POST", INFER, infer_body(name="X"), (), 400, "'x'"),
    ("unknown output", "POST", INFER, with_output({"name": "Y"}), (), 400, "'y'"),
    ("output twice", "POST", INFER, with_output({"name": "y"}, {"name": "y"}), (), 400, "twice"),
    ("unknown datatype", "POST", INFER, infer_body(datatype="FP31"), (), 400, "FP31"),
    ("another datatype", "POST", INFER, infer_body(datatype="INT32"), (), 400, "INT32"),
    ("priority", "POST", INFER, parameter(priority="high"), (), 400, "priority"),
    ("negative timeout", "POST", INFER, parameter(timeout=-5), (), 400, "timeout"),
    ("sequence without id", "POST", INFER, parameter(sequence_start=True), (), 400, "sequence_id"),
    ("shared memory", "GET", "/v2/systemsharedmemory/status", b"", (), 501, "shared memory"),
    ("generate", "POST", "/v2/models/scale/generate", b"{}", (), 501, "text"),
    ("load of a path", "POST", "/v2/repository/models/..%2f..%2fetc/load", b"{}", (), 404, ""),
    ("load of ..", "POST", "/v2/repository/models/../load", b"{}", (), 404, ".."),
    ("load of files", "POST", "/v2/repository/models/scale/load", b'{"parameters":{"file:1/model.onnx":"AA=="}}', (),
     501, "file:1/model.onnx"),
    ("load from elsewhere", "POST", "/v2/repository/elsewhere/models/scale/load", b"{}", (), 501, "elsewhere"),
    ("log file", "POST", "/v2/logging", b'{"log_file":"/etc/passwd"}', (), 501, "log_file"),
    ("trace file", "POST", "/v2/trace/setting", b'{"trace_file":"/etc/passwd"}', (), 501, "trace_file"),
    ("trace rate in other digits", "POST", "/v2/trace/setting", '{"trace_rate":"٣"}'.encode(), (), 400, "trace_rate"),
)  # fmt: skip


@pytest.mark.parametrize("case", STATUSES, ids=[c[0] for c in STATUSES])
def test_status(served: Served, case: tuple[str, str, str, bytes, tuple[str, ...], int, str]) -> None:
    _, method, path, body, headers, expected, part = case
    status, answered, content = ask(served.http_port, method, path, body, *headers)
    assert status == expected, content
    error = json.loads(content)["error"]
    assert part in error
    assert len(error) < 1000
    assert answered["content-type"] == "application/json"
    assert "Traceback" not in error
    check_good(served.http_port)


GOOD = infer_body()
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
POST = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n".encode()
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close\r\n"
TE = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
ZERO = b"0\r\n\r\n"

# The bytes that are sent, and the statuses of all that comes back until the connection is closed.
FRAMING: dict[str, tuple[bytes, list[int]]] = {
    "two lengths that differ": (POST + LENGTH + b"Content-Length: 3\r\n\r\n" + GOOD, [400]),
    "two equal lengths": (POST + LENGTH + LENGTH + b"\r\n" + GOOD, [400]),
    "a list of lengths": (POST + b"Content-Length: 9, 9\r\n\r\n" + GOOD, [400]),
    "length +": (POST + b"Content-Length: +9\r\n\r\n" + GOOD, [400]),
    "length -1": (POST + b"Content-Length: -1\r\n\r\n" + GOOD, [400]),
    "length in hex": (POST + b"Content-Length: 0x9\r\n\r\n" + GOOD, [400]),
    "length in other digits": (POST + "Content-Length: ٣\r\n\r\n".encode() + GOOD, [400]),
    "length 2^70": (POST + b"Content-Length: 1180591620717411303424\r\n\r\n" + GOOD, [400]),
    "length 2^63": (POST + b"Content-Length: 9223372036854775808\r\n\r\n" + GOOD, [413]),
    # The rest of a body that is not read is no request.
    "a request in a body": (POST + b"Content-Length: 99999999\r\n\r\n" + GET + b"\r\n", [413]),
    "length and chunks": (POST + b"Content-Length: 6\r\n" + TE + b"\r\n" + ZERO + GET + b"\r\n", [400]),
    "not chunked": (POST + b"Transfer-Encoding: identity\r\n\r\n" + GOOD, [400]),
    "chunked is not last": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS, [400]),
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS, [400]),
    "space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS, [400]),
    "chunks in HTTP/1.0": (POST.replace(b"1.1", b"1.0") + TE + b"\r\n" + CHUNKS, [400]),
    "size of a chunk": (POST + TE + b"\r\nzz\r\n{}\r\n0\r\n\r\n", [400]),
    "size of a chunk 2^72": (POST + TE + b"\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n", [400]),
    "size of a chunk -1": (POST + TE + b"\r\n-1\r\n{}\r\n0\r\n\r\n", [400]),
    "no end of a chunk": (POST + TE + b"\r\n2\r\n{}X0\r\n\r\n", [400]),
    "extension of a chunk": (POST + TE + b"\r\n2;" + b"a" * 1_000_000 + b"\r\n{}\r\n0\r\n\r\n", [400]),
    "folded header": (POST + b"X: a\r\n b\r\n" + LENGTH + b"\r\n" + GOOD, [400]),
    "NUL in a header": (POST + b"X: a\0b\r\n" + LENGTH + b"\r\n" + GOOD, [400]),
    "1,000 headers": (GET + b"".join(b"X-%d: a\r\n" % i for i in range(1000)) + b"\r\n", [431]),
    "header of 1 MB": (GET + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n", [431]),
    "address of 1 MB": (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", [414, 431]),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 100 + b"\r\n\r\n", [400]),
    "HTTP/0.9": (b"GET /v2\r\n\r\n", [400]),
    "HTTP/3.7": (GET.replace(b"1.1", b"3.7") + b"\r\n", [400]),
    "HTTP/2 without TLS": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []),
    "method that is no text": (b"G\xe9T /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", [400]),
    "method of 5,000 letters": (b"A" * 5000 + b" /v2 HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", [400]),
    "CONNECT": (b"CONNECT evil.example:80 HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", [403]),
    "another host's address": (
        b"GET http://evil.example/v2 HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", [403],
    ),
}  # fmt: skip


def statuses(answer: bytes) -> list[int]:
    """The statuses of answers one behind another."""
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("name", FRAMING)
def test_framing(served: Served, name: str) -> None:
    content, expected = FRAMING[name]
    received = b""
    with socket.create_connection(("127.0.0.1", served.http_port), timeout=60) as connection:
        # A server that has seen enough may reset the connection while the rest is still being sent.
        with contextlib.suppress(ConnectionError):
            connection.sendall(content)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
    found = statuses(received)
    assert len(found) <= 1
    if found or name != "address of 1 MB":
        assert not expected or found[0] in expected, received[:300]
    check_good(served.http_port)


def test_good_framing(served: Served) -> None:
    """Chunks, trailers, `Expect`, and a request behind a body that nobody reads."""
    for content, expected in (
        (POST + CLOSE + TE + b"\r\n" + CHUNKS, [200]),
        (POST + CLOSE + TE + b"\r\n" + CHUNKS[:-2] + b"X: y\r\n\r\n", [200]),
        (POST + CLOSE + LENGTH + b"Expect: 100-continue\r\n\r\n" + GOOD, [100, 200]),
        (GET + LENGTH + b"\r\n" + GOOD + GET + CLOSE + b"\r\n", [200, 200]),
    ):
        answer = exchange(served.http_port, content)
        assert statuses(answer) == expected, answer


def test_requests_one_behind_another_are_answered_in_order(served: Served) -> None:
    rng = np.random.default_rng()
    sent = [rng.integers(-99, 99, (1, 4)).tolist() for _ in range(40)]
    bodies = [infer_body(data=x) for x in sent]
    requests = [POST + b"Content-Length: %d\r\n\r\n" % len(b) + b for b in bodies]
    answer = exchange(served.http_port, b"".join([*requests, GET + CLOSE + b"\r\n"]))
    found = [json.loads(part.partition(b"\r\n\r\n")[2] or b"0") for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert [f["outputs"][0]["data"] for f in found[:-1]] == [[2 * v + 1 for v in x[0]] for x in sent]


def test_the_last_of_equal_keys_counts(served: Served) -> None:
    body = infer_body().replace(b'"data"', b'"data": [9, 9, 9, 9], "data"')
    status, _, content = ask(served.http_port, "POST", INFER, body)
    assert status == 200
    assert json.loads(content)["outputs"][0]["data"] == [1, 3, 5, -5]


def test_a_body_that_ends_too_early(served: Served) -> None:
    answer = exchange(served.http_port, POST + LENGTH + b"\r\n" + GOOD[:10], end=True)
    status, _, content = parsed(answer)
    assert (status, json.loads(content)["error"]) == (400, "the body is shorter than its Content-Length")


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def reset(connection: socket.socket) -> None:
    """Close a connection as a process that dies does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_clients_that_go_in_the_middle_of_a_body(served: Served, end: Callable[[socket.socket], None]) -> None:
    check_good(served.http_port)
    before = served.files
    for at in range(0, len(GOOD), 4):
        connection = socket.create_connection(("127.0.0.1", served.http_port), timeout=10)
        connection.sendall(POST + LENGTH + b"\r\n" + GOOD[:at])
        end(connection)
    check_good(served.http_port)
    until(lambda: served.files <= before + 1)


def slow_body(steps: int, **parameters: Any) -> bytes:
    tensor = {"name": "steps", "shape": [1], "datatype": "INT64", "data": [steps]}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


def slow_answer(served: Served, steps: int) -> list[int]:
    status, _, content = ask(served.http_port, "POST", SLOW, slow_body(steps))
    assert status == 200, content
    found: list[int] = json.loads(content)["outputs"][0]["data"]
    return found


@pytest.mark.parametrize("end", [reset, socket.socket.close])
def test_clients_that_go_during_a_run_end_it(served: Served, end: Callable[[socket.socket], None]) -> None:
    """The model has one instance: others wait behind a run that would take days."""
    before, files = served.failures("slow"), served.files
    gone = []
    for _ in range(3):
        gone.append(socket.create_connection(("127.0.0.1", served.http_port), timeout=10))
        body = slow_body(1 << 40)
        gone[-1].sendall(f"POST {SLOW} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    for connection in gone:
        end(connection)
    assert slow_answer(served, 9) == [9]
    until(lambda: served.failures("slow") == before + 3)
    until(lambda: served.files <= files + 1)


def test_a_timeout_covers_the_run(served: Served) -> None:
    for timeout in (1, 100_000):
        status, _, content = ask(served.http_port, "POST", SLOW, slow_body(1 << 40, timeout=timeout))
        assert status == 504, content
        assert "time" in json.loads(content)["error"]
    assert slow_answer(served, 3) == [3]


def running(served: Served, model: str) -> int:
    """How many runs of a model are under way."""
    text = ask(served.http_port, "GET", "/metrics")[2].decode()
    found = re.search(rf'^whet_running_batches{{[^}}]*model="{model}"[^}}]*}} (\d+)', text, re.MULTILINE)
    return int(found[1]) if found else 0


def test_unloading_during_a_run(served: Served) -> None:
    answers: list[list[int]] = []
    asking = threading.Thread(target=lambda: answers.append(slow_answer(served, 60_000)))
    asking.start()
    until(lambda: running(served, "slow") == 1)
    assert ask(served.http_port, "POST", "/v2/repository/models/slow/unload", b"{}")[0] == 200
    asking.join()
    assert answers == [[60_000]]
    status, _, content = ask(served.http_port, "POST", SLOW, slow_body(1))
    assert status == 503
    assert "slow" in json.loads(content)["error"]
    assert ask(served.http_port, "POST", "/v2/repository/models/slow/load", b"{}")[0] == 200
    assert slow_answer(served, 2) == [2]


def test_many_slow_clients_hold_nobody_up(served: Served) -> None:
    """Their bodies come byte by byte until they are told that it took too long."""
    slow = [socket.create_connection(("127.0.0.1", served.http_port), timeout=30) for _ in range(100)]
    for connection in slow:
        connection.sendall(POST + b"Content-Length: 1000\r\n\r\n")
    for _ in range(5):
        check_good(served.http_port)
        for connection in slow:
            with contextlib.suppress(ConnectionError):
                connection.sendall(b" ")
    for connection in slow:
        answer = connection.recv(4096)
        assert b" 408 " in answer.partition(b"\r\n")[0]
        connection.close()


def never_asked(exchange: Exchange) -> None:
    raise AssertionError("half a request was given to the application")


def test_slow_headers_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEADER_S", 1)

    async def scenario() -> None:
        port = free_port()
        server = http_server.HttpServer(never_asked, "127.0.0.1", port)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX")
        assert b" 200 " not in await asyncio.wait_for(reader.read(), 30)
        writer.close()
        await server.stop(5)

    asyncio.run(scenario())


HOSTS: tuple[tuple[str, str, str, tuple[str, ...], int], ...] = (
    ("localhost", "GET", "/v2", (), 200),
    ("localhost:8000", "GET", "/v2", (), 200),
    ("LOCALHOST.", "GET", "/v2", (), 200),
    ("127.0.0.1:8000", "GET", "/v2", (), 200),
    ("[::1]:8000", "GET", "/v2", (), 200),
    ("10.1.2.3", "GET", "/v2", (), 200),
    ("models.example", "GET", "/v2", (), 200),
    # A page of this site that lets its name point to 127.0.0.1: without Origin where it only reads.
    ("evil.example", "GET", "/v2", (), 403),
    ("evil.example", "GET", "/v2/models/stats", (), 403),
    ("localhost.evil.example", "GET", "/v2", (), 403),
    ("127.0.0.1.evil.example", "GET", "/v2", (), 403),
    ("evil.example", "POST", INFER, ("Origin: http://evil.example",), 403),
    ("evil.example", "POST", "/v2/repository/models/scale/load", ("Origin: http://evil.example",), 403),
    ("localhost", "POST", INFER, ("Origin: http://localhost",), 200),
    ("models.example", "POST", INFER, ("Origin: http://models.example",), 200),
    # A page of another site, that may not change the server.
    ("localhost", "POST", "/v2/logging", ("Origin: http://evil.example",), 403),
    ("localhost", "POST", "/v2/logging", ("Origin: null",), 403),
    ("localhost", "POST", "/v2/logging", ("Sec-Fetch-Site: cross-site",), 403),
    ("localhost", "POST", "/v2/logging", ("Origin: http://localhost", "Sec-Fetch-Site: same-origin"), 200),
)


@pytest.mark.parametrize(("host", "method", "path", "headers", "expected"), HOSTS)
def test_hosts_and_origins(
    served: Served, host: str, method: str, path: str, headers: tuple[str, ...], expected: int
) -> None:
    body = GOOD if path == INFER else b"{}" if method == "POST" else b""
    status, _, content = ask(served.http_port, method, path, body, f"Host: {host}", *headers)
    assert status == expected, content


def test_the_server_is_whole_after_all(served: Served) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{served.http_port}/v2/health/ready") as answer:
        assert answer.status == 200
    assert "Traceback" not in served.log
    assert "failed" not in served.log
