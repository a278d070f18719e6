"""What an HTTP connection takes for a request: framing, bodies, forms; and its port."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools")
uvloop = pytest.importorskip("uvloop")

from tests.server.certificates import make_certificates  # noqa: E402
from tests.server.http_lab import BODY_BYTES, Client, Lab, chunked, get, lab, post  # noqa: E402
from tests.server.running import free_port  # noqa: E402
from whet.errors import EPFail  # noqa: E402
from whet.server.http import connection as http_connection  # noqa: E402
from whet.server.http import server as http_server  # noqa: E402
from whet.server.http.connection import IN_PLACE, Connection  # noqa: E402
from whet.server.http.exchange import Exchange  # noqa: E402
from whet.server.http.port import READ_BYTES, Port  # noqa: E402
from whet.server.http.server import HttpServer, check_port  # noqa: E402

Run = Callable[[Coroutine[Any, Any, None]], None]
LOOPS: dict[str, Run] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    return LOOPS[request.param]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(params=["plain", "tls"])
def certificates(request: pytest.FixtureRequest) -> Path | None:
    return request.getfixturevalue("made") if request.param == "tls" else None


# What is HTTP.


class Wire:
    """A transport that notes what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.is_closed = self.is_half_closed = self.is_paused = False

    def write(self, content: bytes) -> None:
        assert not self.is_half_closed
        self.written += content

    def writelines(self, parts: tuple[bytes, ...]) -> None:
        self.write(b"".join(parts))

    def close(self) -> None:
        self.is_closed = True

    def write_eof(self) -> None:
        self.is_half_closed = True

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def get_extra_info(self, name: str) -> None:
        return None

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.written.split(b"HTTP/1.1 ")[1:]]


def fed(*reads: bytes, body_bytes: int = BODY_BYTES) -> tuple[list[Exchange], Wire]:
    """The requests that a connection makes of what is read, and what it answers; each is answered at once."""
    asked: list[Exchange] = []

    def handle(exchange: Exchange) -> None:
        asked.append(exchange)
        exchange.respond(200, content=exchange.path.encode())

    connection, wire = Connection(Port(handle, body_bytes, 1.0, 1.0, 1.0)), Wire()
    connection.connection_made(wire)
    for content in reads:
        while content:
            buffer = connection.get_buffer(-1)
            assert len(buffer) > 0
            part = content[: len(buffer)]
            buffer[: len(part)] = part
            connection.buffer_updated(len(part))
            content = content[len(part) :]
    return asked, wire


POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
TE = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = get("/smuggled")

# What may be read in two ways, and is refused.
REFUSED: dict[str, bytes] = {
    "lines end with LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "a header ends with LF": b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
    "a header ends with CR": b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
    "a header begins with a space": b"GET / HTTP/1.1\r\n X: b\r\nHost: a\r\n\r\n",
    "a header without a name": b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
    "a space before a colon": POST + b"Content-Length : 3\r\n\r\nabc",
    "a folded header": POST + b"X: a\r\n Content-Length: 3\r\n\r\nabc",
    "chunks and a length": POST + TE + b"Content-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    "a length and chunks": POST + b"Content-Length: 3\r\n" + TE + b"\r\n3\r\nabc\r\n0\r\n\r\n",
    "a length and another": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    "no length": POST + b"Content-Length: \r\n\r\n",
    "two lengths in one": POST + b"Content-Length: 3 4\r\n\r\nabc",
    "chunked twice": POST + TE + TE + b"\r\n0\r\n\r\n",
    "another coding before": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another coding in a header before": POST + b"Transfer-Encoding: gzip\r\n" + TE + b"\r\n0\r\n\r\n",
    "another coding behind": POST + TE + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "no coding": POST + b"Transfer-Encoding: \r\n\r\n0\r\n\r\n",
    "chunks in 1.0": (POST + TE).replace(b"1.1", b"1.0") + b"Connection: keep-alive\r\n\r\n0\r\n\r\n",
    "a chunk's size ends with LF": POST + TE + b"\r\n3\nabc\r\n0\r\n\r\n",
    "a chunk's extension ends with LF": POST + TE + b"\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
    "a space behind a chunk's size": POST + TE + b"\r\n3 \r\nabc\r\n0\r\n\r\n",
    "a length as a trailer": POST + TE + b"\r\n0\r\nContent-Length: 30\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "HTTP/2.0 that stays": b"GET / HTTP/2.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    "HTTP/0.9 that stays": b"GET / HTTP/0.9\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    "an answer": b"HTTP/1.1 200 OK\r\n\r\n",
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("before", [b"", get("/before")])
def test_what_could_be_read_in_two_ways(name: str, before: bytes) -> None:
    content = before + REFUSED[name] + SMUGGLED
    for reads in ([content], [content[i : i + 1] for i in range(len(content))]):
        asked, wire = fed(*reads)
        assert [e.path for e in asked] == ["/before"] * bool(before)
        assert wire.statuses == [200] * bool(before) + [400]
        assert wire.is_half_closed


def test_a_header_again_and_again_is_refused_before_it_is_dear() -> None:
    began = time.process_time()
    asked, wire = fed(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x:\r\n" * 15_000 + b"\r\n" + SMUGGLED)
    assert (asked, wire.statuses) == ([], [431])
    asked, _ = fed(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nx: 2\r\ncookie: a\r\nCookie: b\r\n\r\n", get())
    assert (asked[0].headers["x"], asked[0].headers["cookie"]) == ("1, 2", "a; b")
    assert len(asked) == 2
    assert time.process_time() - began < 5


def test_trailers_are_no_headers_of_anything() -> None:
    asked, wire = fed(chunked(b"abc", trailers=b"Host: evil\r\nX-Evil: 1\r\n") + get("/next"))
    assert [e.path for e in asked] == ["/now", "/next"]
    assert asked[0].body == b"abc"
    assert all("x-evil" not in e.headers and e.headers["host"] == "a" for e in asked)
    assert wire.statuses == [200, 200]


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", "X: ü")


@pytest.mark.parametrize("size", [0, 3, 1000, 40_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_wish_for_another_protocol_is_not_heard(size: int, is_chunked: bool) -> None:
    """And the body behind it stays a body, also one that looks like a request."""
    body = (SMUGGLED * 1000)[:size]
    sent = chunked(*([body] if body else []), headers=UPGRADE) if is_chunked else post(body, *UPGRADE)
    sent = sent.replace("ü".encode(), b"\xfc") + get("/next")
    splits = [[sent], [sent[:150], sent[150:]]]
    if size <= 3:
        splits.append([sent[i : i + 1] for i in range(len(sent))])
    for reads in splits:
        asked, wire = fed(*reads)
        assert [(e.method, e.path, bytes(e.body)) for e in asked] == [("POST", "/now", body), ("GET", "/next", b"")]
        assert asked[0].headers["x"] == "ü"
        assert wire.statuses == [200, 200]


def test_a_wish_for_another_protocol_and_an_end() -> None:
    asked, wire = fed(get("/now", "Connection: Upgrade, close", "Upgrade: websocket") + SMUGGLED)
    assert [e.path for e in asked] == ["/now"]
    assert wire.is_closed or wire.is_half_closed


def test_what_follows_connect_is_no_request() -> None:
    asked, wire = fed(get("a:80", "Content-Length: 3", method="CONNECT") + SMUGGLED)
    assert [e.method for e in asked] == ["CONNECT"]
    assert wire.statuses == [200]
    assert wire.is_half_closed


def test_addresses_in_each_form() -> None:
    asked, _ = fed(
        get("/v2/a%20b?c=%2f"), get("http://b:80/v2/x?y"), get("http://b"), get("*", method="OPTIONS"), get("//a/b")
    )
    assert [(e.path, e.authority) for e in asked] == [
        ("/v2/a b", None), ("/v2/x", "b:80"), ("/", "b"), ("*", None), ("//a/b", None),
    ]  # fmt: skip


def test_who_stays_connected() -> None:
    for sent, expected in (
        (get(), None),
        (get("/now", "Connection: keep-alive"), "keep-alive"),
        (get("/now", "Connection: close"), "close"),
        (get(version="1.0"), "close"),
        (get("/now", "Connection: keep-alive", version="1.0"), "keep-alive"),
        (get("/close"), "close"),
    ):
        asked, wire = fed(sent) if b"/close" not in sent else closing(sent)
        assert (b"connection: %b\r\n" % (expected or "").encode() in wire.written) is (expected is not None)
        assert wire.is_closed is (expected == "close")
        assert len(asked) == 1


def closing(sent: bytes) -> tuple[list[Exchange], Wire]:
    """As `fed`, on a port that closes."""
    asked: list[Exchange] = []
    port, wire = Port(lambda exchange: (asked.append(exchange), exchange.respond(200))[0], 10, 1.0, 1.0, 1.0), Wire()
    port.closing = True
    connection = Connection(port)
    connection.connection_made(wire)
    port.buffer[: len(sent)] = sent
    connection.buffer_updated(len(sent))
    return asked, wire


def test_head_has_the_length_and_not_the_body() -> None:
    _, wire = fed(get("/twelve-bytes", method="HEAD") + get("/next"))
    head, _, rest = wire.written.partition(b"\r\n\r\n")
    assert b"content-length: 13" in head
    assert rest.startswith(b"HTTP/1.1 200 OK")
    for before in (b"", get()):
        _, wire = fed(before + get("/now", "Content-Length: 99999999", method="HEAD"))
        assert wire.statuses[-1] == 413
        assert wire.written.endswith(b"\r\n\r\n")


def test_all_that_was_read_before_the_end_is_answered() -> None:
    asked: list[Exchange] = []
    connection, wire = Connection(Port(asked.append, BODY_BYTES, 1.0, 1.0, 1.0)), Wire()
    connection.connection_made(wire)
    sent = get("/a") + get("/b") + get("/c")
    connection.get_buffer(-1)[: len(sent)] = sent
    connection.buffer_updated(len(sent))
    assert connection.eof_received() is True
    for n in range(3):
        assert len(asked) == n + 1
        assert not wire.is_closed
        asked[n].respond(200)
    assert wire.statuses == [200] * 3
    assert wire.is_closed


def test_expectations() -> None:
    expect = "Expect: 100-continue"
    for sent, expected in (
        (post(b"abc", expect), [100, 200]),
        (post(b"abc", "Expect: 100-Continue"), [100, 200]),
        (post(b"abc", expect, version="1.0"), [200]),
        (post(b"abc", "Expect: miracles"), [200]),
        (get("/now", "Content-Length: 99999999", expect, method="POST"), [413]),
    ):
        assert fed(sent)[1].statuses == expected


def test_an_expectation_behind_a_slow_request(run: Run) -> None:
    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            head, body = post(b"abc", "Expect: 100-continue", path="/second")[:-3], b"abc"
            await client.send(get("/later") + head)
            await served.came.wait()
            served.go.set()
            assert (await client.answer())[2] == b"/later"
            assert (await client.answer())[0] == 100
            await client.send(body)
            assert (await client.answer())[2] == b"/second"
            client.close()

    run(scenario())


# The last answer.


QUEUE = [get("/a") + get("/b"), get("/a") + post(b"abc")[:-1], get("/a") + get("/b")[:-1], get("/a") + b"junk\r\n"]


@pytest.mark.parametrize("sent", [*QUEUE, get("/a")])
def test_who_sent_more_than_is_answered_can_read_the_last_answer(sent: bytes) -> None:
    """A connection that is closed with something unread takes back what it has sent."""
    asked: list[Exchange] = []
    port, wire = Port(asked.append, BODY_BYTES, 1.0, 1.0, 1.0), Wire()
    connection = Connection(port)
    connection.connection_made(wire)
    connection.get_buffer(-1)[: len(sent)] = sent
    connection.buffer_updated(len(sent))
    port.closing = True
    asked[0].respond(200)
    assert (wire.is_half_closed, wire.is_closed) == ((True, False) if sent in QUEUE else (False, True))
    assert not wire.is_paused
    connection.get_buffer(-1)[: len(sent)] = sent
    connection.buffer_updated(len(sent))
    assert len(asked) == 1
    assert wire.statuses == [200]


# Bodies.


@pytest.mark.parametrize("size", [IN_PLACE - 1, IN_PLACE, READ_BYTES, READ_BYTES + IN_PLACE, 300_001])
def test_a_body_takes_exactly_its_own_bytes(size: int) -> None:
    body = bytes(i * 7 % 251 for i in range(size))
    sent = post(body, path="/long") + get("/behind") + post(b"abc", path="/last")
    for reads in ([sent], [sent[:100], sent[100:]], [sent[i : i + 5000] for i in range(0, len(sent), 5000)]):
        asked, wire = fed(*reads)
        assert [(e.path, bytes(e.body)) for e in asked] == [("/long", body), ("/behind", b""), ("/last", b"abc")]
        assert wire.statuses == [200] * 3


def test_no_more_is_read_than_the_rest_of_a_body() -> None:
    connection = Connection(Port(lambda exchange: exchange.respond(200), BODY_BYTES, 1.0, 1.0, 1.0))
    connection.connection_made(Wire())
    sent = post(bytes(100_000))[:READ_BYTES]
    connection.get_buffer(-1)[:] = sent
    connection.buffer_updated(len(sent))
    left = len(post(bytes(100_000))) - len(sent)
    assert len(connection.get_buffer(1 << 30)) == left
    connection.buffer_updated(left - 5)
    assert len(connection.get_buffer(-1)) == 5
    connection.buffer_updated(5)
    assert len(connection.get_buffer(-1)) == READ_BYTES


def test_a_body_that_there_is_no_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*given: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(http_connection.np, "empty", no_memory)
    asked, wire = fed(post(bytes(100_000)) + get())
    assert asked == []
    assert wire.statuses == [400]
    assert b"no memory for the body" in wire.written


def test_long_bodies_and_what_is_right_behind_them(run: Run, certificates: Path | None) -> None:
    async def scenario() -> None:
        async with lab(certificates) as served:
            client = await served.connect()
            sizes = [0, 1, IN_PLACE, 40_000, 32_768, 100_001, 1_000_000, 65_536]
            bodies = [bytes([n]) * size for n, size in enumerate(sizes)]
            client.writer.write(b"".join(post(body) + get("/behind") for body in bodies))
            for _ in range(2 * len(sizes)):
                assert (await client.answer())[0] == 200
            assert [body for method, _, body, _ in served.asked if method == "POST"] == bodies
            client.close()

    run(scenario())


def test_a_client_that_ends_tls_in_a_body(run: Run, made: Path) -> None:
    async def scenario() -> None:
        async with lab(made) as served:
            for sent in (post(b"a" * 100_000)[:-1], get()[:-1], b""):
                client = await served.connect()
                await client.send(sent)
                client.writer.close()
            await served.until(lambda: not served.connections)
            assert served.paths == []

    run(scenario())


# Ports.


def test_two_servers_on_one_port(run: Run) -> None:
    async def scenario() -> None:
        async with lab() as served:
            with pytest.raises(EPFail, match="Another program listens there"):
                check_port("127.0.0.1", served.port)
            other = HttpServer.__new__(HttpServer)
            with pytest.MonkeyPatch.context() as patch:
                # As if both had looked before either listened.
                patch.setattr(http_server, "check_port", lambda host, port: None)
                other.__init__(served.handle, "127.0.0.1", served.port)  # type: ignore[misc]
            with pytest.raises(EPFail, match="Another program listens there"):
                await other.start()
            await other.stop(0)

    run(scenario())


@pytest.mark.parametrize("host", ["::1", "localhost"])
def test_hosts(run: Run, host: str) -> None:
    async def scenario() -> None:
        port = free_port()
        server = HttpServer(Lab().handle, host, port)
        await server.start()
        reader, writer = await asyncio.open_connection(host, port)
        client = Client(reader, writer)
        await client.send(get())
        assert (await client.answer())[0] == 200
        client.close()
        await server.stop(0)

    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
    run(scenario())


def test_localhost_on_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        create = loop.create_server

        async def no_ipv6(*given: Any, family: int, **named: Any) -> asyncio.Server:
            if family != socket.AF_INET:
                raise OSError(errno.EADDRNOTAVAIL, "no such address")
            return await create(*given, family=family, **named)

        monkeypatch.setattr(loop, "create_server", no_ipv6)
        server = HttpServer(Lab().handle, "localhost", free_port())
        await server.start()
        await server.stop(0)

    asyncio.run(scenario())


def test_a_host_that_is_none() -> None:
    for host in ("no.such.host.example", "x" * 300, "ü" * 70):
        with pytest.raises(Exception, match="the host is no address") as caught:
            check_port(host, free_port())
        assert type(caught.value).__name__ == "InvalidArgument"


FEW_FILES = """
import asyncio, resource, sys, uvloop
from whet.server.http.server import HttpServer

async def main():
    server = HttpServer(lambda exchange: exchange.respond(200), "127.0.0.1", int(sys.argv[1]))
    await server.start()
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    print("ready", flush=True)
    await asyncio.sleep(1000)

uvloop.run(main())
"""


def test_more_connections_than_files() -> None:
    """Those that cannot be had are lost; when others go, it goes on."""
    port = free_port()
    command = [sys.executable, "-c", FEW_FILES, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            held = [socket.create_connection(("127.0.0.1", port), 30) for _ in range(100)]
            for connection in held:
                connection.close()
            end = time.monotonic() + 30
            answer = b""
            while b" 200 " not in answer and time.monotonic() < end:
                try:
                    with socket.create_connection(("127.0.0.1", port), 30) as connection:
                        connection.sendall(get())
                        answer = connection.recv(4096)
                except ConnectionError:
                    pass
            assert b" 200 " in answer
        finally:
            server.kill()


def test_a_port_that_its_loop_gave_up_is_opened_again(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            served.server._server.close()
            await served.until(lambda: "is open again" in caplog.text)
            other = await served.connect()
            for each in (client, other):
                await each.send(get())
                assert (await each.answer())[0] == 200
        assert not served.server._server.sockets

    with caplog.at_level(logging.WARNING, "whet.server.http"):
        run(scenario())


def test_a_server_may_open_what_the_system_allows() -> None:
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(2048, hard if hard != resource.RLIM_INFINITY else 2048)
    program = f"""
import resource
from whet.server.open_files import allow_files
resource.setrlimit(resource.RLIMIT_NOFILE, (100, {most}))
allow_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(most)] * 2


def test_silent_clients_are_asked_whether_they_are_there(run: Run) -> None:
    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            await served.until(lambda: len(served.connections) == 1)
            taken = served.connections[0]._transport.get_extra_info("socket")
            assert taken.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if sys.platform.startswith("linux"):
                assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == http_server.GONE_AFTER_S
            client.close()

    run(scenario())
