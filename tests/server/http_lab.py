"""A port whose requests are answered by their address, and clients that send bytes: connections without models."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.server.running import free_port
from whet.server.http.exchange import Exchange
from whet.server.http.server import HttpServer

BIG = bytes(range(256)) * (24 << 12)
"""24 MB: more than the kernel's buffers of a connection hold."""
BODY_BYTES = 1 << 20
WAIT_S = 60.0

Answer = tuple[int, dict[str, str], bytes]


class Lab:
    """`/later` and `/infer` are answered when `go` is set, `/infer` ends with its client; `/big` is long, `/never` has
    no answer, `/fails` raises, `/close` is the last; everything else is answered at once with its address.

    `asked`: method, address, body and headers of each request that came.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.server: Any = None
        self.asked: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.cancelled = 0
        self.clients: list[Client] = []
        self.go = asyncio.Event()
        self.came = asyncio.Event()
        self.on_call: Callable[[Exchange], None] = lambda exchange: None
        self._client_tls: ssl.SSLContext | None = None

    def handle(self, exchange: Exchange) -> None:
        self.asked.append((exchange.method, exchange.path, bytes(exchange.body), dict(exchange.headers)))
        self.came.set()
        self.on_call(exchange)
        path = exchange.path
        if path in ("/later", "/infer"):
            exchange.start(self._later(exchange), ends_with_client=path == "/infer")
        elif path == "/fails":
            raise LookupError("nobody catches this")
        elif path != "/never":
            exchange.respond(200, content=BIG if path == "/big" else path.encode(), close=path == "/close")

    async def _later(self, exchange: Exchange) -> None:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            if exchange.ended == "overdue":
                exchange.respond(503, content=b"overdue", close=True)
            return
        exchange.respond(200, content=exchange.path.encode())

    @property
    def paths(self) -> list[str]:
        return [path for _, path, _, _ in self.asked]

    @property
    def connections(self) -> list[Any]:
        """The server's sides of what is connected."""
        return list(self.server._port.connections)

    def secured(self, connection: socket.socket) -> socket.socket:
        """A client's connection, with TLS where the port has it."""
        tls = self._client_tls
        return connection if tls is None else tls.wrap_socket(connection, server_hostname="localhost")

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def beats(self, count: int) -> None:
        """Return when the port has looked at its connections so many times."""
        for _ in range(count):
            before = self.server._port.now
            await self.until(lambda before=before: self.server._port.now != before)  # type: ignore[misc]

    async def connect(self) -> Client:
        tls = self._client_tls
        name = "localhost" if tls else None
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, server_hostname=name)
        self.clients.append(Client(reader, writer))
        return self.clients[-1]


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()

    def half_close(self) -> None:
        self.writer.write_eof()

    def close(self) -> None:
        self.writer.transport.abort()

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer; `method` is what was asked with."""
        async with asyncio.timeout(WAIT_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").strip().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines)
            assert first.startswith("HTTP/1.1 ")
            length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
            return int(first.split()[1]), headers, await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """All that comes until the server has ended the connection."""
        async with asyncio.timeout(WAIT_S):
            with contextlib.suppress(ConnectionError):
                return await self.reader.read()
        return b""

    async def statuses(self) -> list[int]:
        """The statuses of all answers until the end."""
        return [int(part[:3]) for part in (await self.rest()).split(b"HTTP/1.1 ")[1:]]


@contextlib.asynccontextmanager
async def lab(certificates: Path | None = None, **limits: Any) -> AsyncIterator[Lab]:
    """A lab whose port is open; with TLS where there are certificates."""
    made = Lab()
    files: tuple[Path, ...] = ()
    if certificates is not None:
        files = certificates / "server.crt", certificates / "server.key"
        made._client_tls = ssl.create_default_context(cafile=certificates / "ca.crt")
    made.server = HttpServer(made.handle, "127.0.0.1", made.port, *files, **{"body_bytes": BODY_BYTES, **limits})
    await made.server.start()
    try:
        yield made
    finally:
        made.go.set()
        for client in made.clients:
            client.close()
        await made.server.stop(0)
        await made.until(lambda: not made.connections)
        await asyncio.sleep(0)


def get(path: str = "/now", *headers: str, version: str = "1.1", method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: a", *headers, "", ""]).encode()


def post(body: bytes, *headers: str, path: str = "/now", version: str = "1.1") -> bytes:
    return get(path, f"Content-Length: {len(body)}", *headers, version=version, method="POST") + body


def chunked(*parts: bytes, trailers: bytes = b"", headers: tuple[str, ...] = (), path: str = "/now") -> bytes:
    head = get(path, "Transfer-Encoding: chunked", *headers, method="POST")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in parts) + b"0\r\n" + trailers + b"\r\n"
