"""A KServe v2 server made for tests: it notes what arrives and answers, late or badly where it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from typing import Any

METADATA = {"name": "m", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}], "outputs": []}


class FakeServer:
    """Listens on loopback in a thread of its own while the block runs.

    `behaviour` is one of: echo, fail (HTTP 503), close (the connection, without an answer), mute, chunked, halves (the
    answer in two pieces), serial (one request at a time, `delay_s` each), stall (nothing is answered during
    `stall_s`, once).
    """

    def __init__(
        self,
        behaviour: str = "echo",
        metadata: dict[str, Any] | None = None,
        delay_s: float = 0.0,
        stall_s: float = 0.0,
    ) -> None:
        self.behaviour = behaviour
        self.metadata = metadata or METADATA
        self.delay_s = delay_s
        self.stall_s = stall_s
        self.connections = 0
        self.arrivals: list[float] = []
        self.paths: Counter[str] = Counter()
        self.bodies: set[bytes] = set()
        self.headers: dict[str, str] = {}
        self.port = 0
        self._up = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> FakeServer:
        self._thread.start()
        self._up.wait()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._one = asyncio.Lock()
        self._stalled_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=512)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:] if line)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = lines[0].split(" ")
                if method == "GET":
                    await self._write(writer, 200, json.dumps(self.metadata).encode())
                    continue
                self.arrivals.append(time.monotonic())
                self.paths[path] += 1
                self.bodies.add(body)
                self.headers = headers
                if not await self._answer(writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> bool:
        if self.behaviour == "close":
            return False
        if self.behaviour == "mute":
            await asyncio.sleep(3600)
        if self.behaviour == "stall":
            if len(self.arrivals) == 50:
                self._stalled_until = time.monotonic() + self.stall_s
            await asyncio.sleep(max(0.0, self._stalled_until - time.monotonic()))
        if self.behaviour == "serial":
            async with self._one:
                await asyncio.sleep(self.delay_s)
        elif self.delay_s:
            await asyncio.sleep(self.delay_s)
        if self.behaviour == "fail":
            await self._write(writer, 503, b'{"error":"the queue is full"}')
        else:
            await self._write(writer, 200, b'{"outputs":[]}')
        return True

    async def _write(self, writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
        if self.behaviour == "chunked" and b"outputs" in body[:12]:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
            return
        head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
        if self.behaviour == "halves":
            writer.write(head[:20])
            await writer.drain()
            await asyncio.sleep(0.001)
            writer.write(head[20:] + body[:5])
            await writer.drain()
            await asyncio.sleep(0.001)
            writer.write(body[5:])
        else:
            writer.write(head + body)
