"""Order, times and ends of HTTP connections, on both event loops, with TLS and without."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools")
uvloop = pytest.importorskip("uvloop")

from tests.server.certificates import make_certificates  # noqa: E402
from tests.server.http_lab import BIG, WAIT_S, Client, chunked, get, lab, post  # noqa: E402
from whet.server.access import Access  # noqa: E402
from whet.server.data_plane import DataPlane  # noqa: E402
from whet.server.http import connection as http_connection  # noqa: E402
from whet.server.http import server as http_server  # noqa: E402
from whet.server.http.app import HttpApp  # noqa: E402
from whet.server.http.exchange import Exchange  # noqa: E402
from whet.server.http.port import READ_BYTES  # noqa: E402

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


# Order.


def test_pipelined_requests_are_answered_in_order_and_one_at_a_time(run: Run, certificates: Path | None) -> None:
    async def scenario() -> None:
        async with lab(certificates) as served:
            client = await served.connect()
            await client.send(get("/later") + post(b"abc", path="/a") + get("/later") + get("/b") + get("/c"))
            await served.came.wait()
            await served.beats(2)
            assert served.paths == ["/later"]
            served.go.set()
            found = [(await client.answer())[2] for _ in range(5)]
            assert found == [b"/later", b"/a", b"/later", b"/b", b"/c"]
            client.close()

    run(scenario())


@pytest.mark.parametrize("first", ["/now", "/later"])
def test_a_bad_request_behind_good_ones_is_told_last(run: Run, first: str) -> None:
    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            await client.send(get(first) + get("/b") + b"NO HTTP\r\n\r\n" + get("/c"))
            await served.came.wait()
            served.go.set()
            assert await client.statuses() == [200, 200, 400]
            assert served.paths == [first, "/b"]

    run(scenario())


def test_requests_ahead_of_a_slow_one_are_not_read_without_end(run: Run) -> None:
    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            client.writer.write(get("/later") + get() * 400_000)
            await served.came.wait()
            await served.beats(3)
            [connection] = served.connections
            assert 0 < len(connection._queue) <= READ_BYTES // len(get()) + 1
            assert connection._is_paused
            client.close()

    run(scenario())


def test_who_sends_ahead_lets_others_have_their_turn(run: Run) -> None:
    async def scenario() -> None:
        async with lab() as served:
            served.on_call = lambda exchange: time.sleep(0.001)
            eager, other = await served.connect(), await served.connect()
            await eager.send(get("/eager") * 400)
            await other.send(get("/other"))
            assert (await other.answer())[2] == b"/other"
            assert served.paths.count("/eager") < 400
            for _ in range(400):
                await eager.answer()

    run(scenario())


# Clients that go.


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (get("/later") + get("/b") + get("/c"), [200, 200, 200]),
        (get("/a") + get("/later"), [200, 200]),
        (get("/later") + b"junk\r\n", [200, 400]),
        (get("/later") + post(b"abcdef")[:-1], [200, 400]),
        (get("/a") + chunked(b"abc")[:-5], [200, 400]),
    ],
)
def test_who_has_sent_everything_has_every_answer(run: Run, sent: bytes, expected: list[int]) -> None:
    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            await client.send(sent)
            client.half_close()
            await served.came.wait()
            await served.beats(1)
            served.go.set()
            assert await client.statuses() == expected

    run(scenario())


@pytest.mark.parametrize("behind", [b"", get(), get("/infer") * 3])
@pytest.mark.parametrize("end", [Client.close, Client.half_close])
def test_an_inference_ends_with_its_client(run: Run, behind: bytes, end: Callable[[Client], None]) -> None:
    """Also where requests wait behind it, and so nothing is read."""

    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            await client.send(get("/infer") + behind)
            await served.came.wait()
            end(client)
            await served.until(lambda: not served.connections and served.cancelled == 1)
            assert served.paths == ["/infer"]

    if end is Client.half_close or not behind or sys.platform.startswith("linux"):
        run(scenario())


# Ends.


def slow_times(monkeypatch: pytest.MonkeyPatch, **seconds: float) -> None:
    for name, value in {"LINGER_S": 0.01, "TICK_S": 0.02, **seconds}.items():
        monkeypatch.setattr(http_connection if hasattr(http_connection, name) else http_server, name, value)


@pytest.mark.parametrize("last", [get("/big", "Connection: close"), get("/big")])
def test_a_slow_reader_has_its_whole_answer(
    run: Run, certificates: Path | None, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    slow_times(monkeypatch, IDLE_S=0.01)

    async def scenario() -> None:
        async with lab(certificates) as served:
            loop = asyncio.get_running_loop()

            def read() -> bytes:
                """With pauses, in each of which the server looks at the connection."""
                received, pause = bytearray(), 0
                plain = socket.create_connection(("127.0.0.1", served.port), WAIT_S)
                with plain, served.secured(plain) as client:
                    client.sendall(last)
                    while part := client.recv(1 << 20):
                        received += part
                        if len(received) >= pause:
                            asyncio.run_coroutine_threadsafe(served.beats(3), loop).result()
                            pause += 6 << 20
                return bytes(received)

            # In a thread of its own: uvloop's clients lose what they have not read when TLS ends.
            assert (await asyncio.to_thread(read)).partition(b"\r\n\r\n")[2] == BIG

    run(scenario())


@pytest.mark.parametrize("last", [get("/big", "Connection: close"), get("/big"), get("/big") + b"junk\r\n\r\n"])
def test_who_takes_nothing_of_an_answer_is_cut_off(
    run: Run, certificates: Path | None, monkeypatch: pytest.MonkeyPatch, last: bytes
) -> None:
    slow_times(monkeypatch, STALL_S=0.3, IDLE_S=0.3)

    async def scenario() -> None:
        async with lab(certificates) as served:
            client = await served.connect()
            await client.send(last)
            client.writer.transport.pause_reading()
            await served.came.wait()
            await served.until(lambda: not served.connections)
            client.close()

    run(scenario())


ENDLESS = {
    "a head": (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"a" * 50_000, 431),
    "an address": (b"GET /", b"a" * 50_000, 431),
    "headers": (b"GET / HTTP/1.1\r\nHost: a\r\n", b"X: a\r\n" * 10_000, 431),
    "a trailer": (chunked(b"a" * 500_000)[:-2] + b"X: ", b"a" * 50_000, 400),
    "trailers": (chunked(b"a" * 500_000)[:-2], b"X: a\r\n" * 10_000, 400),
    "an extension": (chunked(b"a" * 500_000)[:-5] + b"3;", b"a" * 50_000, 400),
    "extensions": (chunked()[:-5], (b"1;" + b"a" * 80 + b"\r\na\r\n") * 500, 400),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDLESS)
def test_what_does_not_end_is_refused(run: Run, name: str) -> None:
    async def scenario() -> None:
        begin, more, status = ENDLESS[name]
        async with lab() as served:
            client = await served.connect()
            client.writer.write(begin + more * 40)
            assert (await client.answer())[0] == status
            assert served.paths == []
            client.close()

    run(scenario())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 0),
        (b"\r\n\r\n\r\n", 0),
        (b"G", 408),
        (get()[:-2], 408),
        (post(b"abc")[:-1], 408),
        (chunked(b"abc")[:-4], 408),
        (post(b"a" * 100_000)[:-1], 408),
        (get() + get()[:-2], 408),
        (get(), 0),
    ],
)
def test_every_wait_has_its_end(
    run: Run, certificates: Path | None, monkeypatch: pytest.MonkeyPatch, sent: bytes, status: int
) -> None:
    slow_times(monkeypatch)

    async def scenario() -> None:
        async with lab(certificates) as served:
            client = await served.connect()
            await client.send(sent)
            await served.beats(2)  # it is read: from here on there is little time
            port = served.server._port
            port.head_s = port.body_s = port.idle_s = 0.05
            found = await client.statuses()
            assert found[-1:] == ([status] if status else [200] if sent == get() else [])
            await served.until(lambda: not served.connections)

    run(scenario())


def test_a_request_that_is_never_answered_ends_with_its_client(run: Run) -> None:
    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            await client.send(get("/never") + get())
            await served.came.wait()
            client.half_close()
            await served.server.stop(0.1)
            await served.until(lambda: not served.connections)

    run(scenario())


def test_a_handler_that_fails_ends_its_connection_only(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with lab() as served:
            client, other = await served.connect(), await served.connect()
            await client.send(get("/fails") + get())
            assert await client.rest() == b""
            await other.send(get())
            assert (await other.answer())[0] == 200

    with caplog.at_level(logging.ERROR, "whet.server.http"):
        run(scenario())
    assert "a request has no answer" in caplog.text


def test_a_mistake_of_the_server_is_not_the_clients(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(url: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(http_connection, "_target", no_memory)

    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            await client.send(get())
            assert await client.statuses() == [500]

    with caplog.at_level(logging.ERROR, "whet.server.http"):
        run(scenario())
    assert "MemoryError" in caplog.text


def test_a_connection_that_cannot_be_looked_at_holds_nobody_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_times(monkeypatch, IDLE_S=0.3)

    async def scenario() -> None:
        async with lab() as served:
            await served.connect()
            await served.until(lambda: len(served.connections) == 1)
            served.connections[0]._since = None
            other = await served.connect()
            assert await other.rest() == b""
            await served.until(lambda: not served.connections)

    run(scenario())


def test_a_task_without_an_answer_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def nothing(exchange: Exchange) -> None:
        pass

    async def scenario() -> None:
        app = HttpApp(DataPlane(), Access(), 1000, pages={"nothing": nothing})
        async with lab() as served:
            served.server._port.handle = app.handle
            client = await served.connect()
            await client.send(get("/nothing") + get("/v2/health/live"))
            assert [(await client.answer())[0] for _ in range(2)] == [500, 200]

    with caplog.at_level(logging.ERROR, "whet.server.http"):
        uvloop.run(scenario())
    assert "ended without an answer" in caplog.text


# A stop.


def test_a_stop_answers_what_runs_and_tells_the_rest(
    run: Run, certificates: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_times(monkeypatch)

    async def scenario() -> None:
        async with lab(certificates) as served:
            running, idle, half, whole = [await served.connect() for _ in range(4)]
            await whole.send(post(b"abc", path="/w")[:-1])
            await half.send(post(b"abc")[:-1])
            await running.send(get("/later") + get("/behind") * 3)
            await served.until(lambda: len(served.connections) == 4)
            await served.came.wait()
            stop = asyncio.create_task(served.server.stop(30))
            assert await idle.rest() == b""
            await whole.send(b"c")
            assert (await whole.answer())[1]["connection"] == "close"
            served.go.set()
            status, headers, content = await running.answer()
            assert (status, headers["connection"], content) == (200, "close", b"/later")
            assert await running.rest() == b""
            served.server.end_all()
            assert await half.statuses() == [503]
            await stop
            assert served.paths == ["/later", "/w"]

    run(scenario())


def test_who_runs_too_long_is_told(run: Run) -> None:
    async def scenario() -> None:
        async with lab() as served:
            client = await served.connect()
            await client.send(get("/infer") + get("/infer"))
            await served.came.wait()
            served.server.end_all()
            assert await client.statuses() == [503]
            assert served.cancelled == 1

    run(scenario())
