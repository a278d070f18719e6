"""What Python's HTTP servers can do at most: each answers inference-like requests with what they held, as JSON.

usage: http_servers.py [--python PYTHON] [--seconds 4] [--rounds 5] [--output FILE.json]
       http_servers.py --serve whet --port 8000

The application reads the body, parses it with orjson and writes the document again: what no server of the protocol can
go below. `whet` is Whet's own connections with such an application in place of the protocol. Needs wrk. PYTHON is an
interpreter with the servers (whet[server], granian, uvicorn, aiohttp, hypercorn); those that it lacks are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

SERVERS = ("whet", "granian", "granian-asgi", "uvicorn", "uvicorn-h11", "aiohttp", "hypercorn")
PACKAGES = ("whet", "granian", "uvicorn", "httptools", "h11", "aiohttp", "hypercorn", "uvloop", "orjson")
CONNECTIONS = (1, 32, 128)
METADATA = {"name": "identity", "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [-1, 16]}]}


def answer(body: bytes) -> bytes:
    """What every server answers."""
    import orjson

    return orjson.dumps(orjson.loads(body) if body else METADATA)


async def asgi(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """The application for ASGI servers."""
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})
            if event == "lifespan.shutdown":
                return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    content = answer(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class Rsgi:
    """The application for granian's own interface."""

    async def __rsgi__(self, scope: Any, protocol: Any) -> None:
        content = answer(await protocol())
        protocol.response_bytes(200, [("content-type", "application/json")], content)


async def serve_whet(port: int, name: str) -> None:
    from whet.server.http.exchange import ONLY_JSON, Exchange
    from whet.server.http.server import HttpServer

    def handle(exchange: Exchange) -> None:
        exchange.respond(200, ONLY_JSON, answer(bytes(exchange.body)))

    await HttpServer(handle, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def serve_granian(port: int, name: str) -> None:
    from granian.constants import HTTPModes, Interfaces
    from granian.server.embed import Server

    app, interface = (asgi, Interfaces.ASGI) if name == "granian-asgi" else (Rsgi(), Interfaces.RSGI)
    await Server(
        app, "127.0.0.1", port, interface=interface, http=HTTPModes.http1, websockets=False, log_enabled=False,
        backlog=4096, backpressure=4096,
    ).serve()  # fmt: skip


async def serve_uvicorn(port: int, name: str) -> None:
    import uvicorn

    config = uvicorn.Config(
        asgi, "127.0.0.1", port, http="h11" if name == "uvicorn-h11" else "httptools", access_log=False,
        log_level="warning", lifespan="off",
    )  # fmt: skip
    await uvicorn.Server(config).serve()


async def serve_aiohttp(port: int, name: str) -> None:
    from aiohttp import web

    async def handle(request: web.BaseRequest) -> web.Response:
        return web.Response(body=answer(await request.read()), content_type="application/json")

    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


async def serve_hypercorn(port: int, name: str) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = None
    await serve(asgi, config, shutdown_trigger=asyncio.Event().wait)  # type: ignore[arg-type]


SERVE: dict[str, Callable[[int, str], Any]] = {
    "whet": serve_whet,
    "granian": serve_granian,
    "granian-asgi": serve_granian,
    "uvicorn": serve_uvicorn,
    "uvicorn-h11": serve_uvicorn,
    "aiohttp": serve_aiohttp,
    "hypercorn": serve_hypercorn,
}


def versions(python: str) -> dict[str, str]:
    """The versions of what an interpreter has of PACKAGES."""
    program = f"""import importlib.metadata as m, json
found = {{}}
for name in {PACKAGES!r}:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps(found))"""
    found: dict[str, str] = json.loads(subprocess.run([python, "-c", program], check=True, capture_output=True).stdout)
    return found


def load(port: int, connections: int, seconds: float, script: Path) -> dict[str, float]:
    """One run of wrk."""
    url = f"http://127.0.0.1:{port}/v2/models/identity/infer"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}", "--latency", "-s", str(script), url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(text)
    rate, late = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
    assert rate is not None
    assert late is not None
    return {"requests_per_s": float(rate[1]), "p99_ms": float(late[1]) * {"us": 1e-3, "ms": 1, "s": 1e3}[late[2]]}


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def compare(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Interleaved rounds over all servers that start."""
    values = [round(0.1 * i - 0.7, 3) for i in range(16)]
    body = json.dumps({"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 16], "data": values}]})
    script = scratch / "post.lua"
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = [[{body}]]\nwrk.headers["Content-Type"] = "application/json"\n',
        encoding="utf-8",
    )
    found = versions(arguments.python)
    needs = {"granian-asgi": "granian", "uvicorn-h11": "uvicorn"}
    processes: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
    try:
        for name in (s for s in SERVERS if needs.get(s, s) in found):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            command = [arguments.python, __file__, "--serve", name, "--port", str(port)]
            processes[name] = (subprocess.Popen(command), port)
        for name, (process, port) in processes.items():
            wait_until_up(name, process, port)
        results: dict[str, dict[int, list[dict[str, float]]]] = {n: {c: [] for c in CONNECTIONS} for n in processes}
        for connections in CONNECTIONS:
            for _ in range(arguments.rounds):
                for name, (_, port) in processes.items():
                    results[name][connections].append(load(port, connections, arguments.seconds, script))
    finally:
        for process, _ in processes.values():
            process.kill()
            process.wait()
    table = []
    for name, by_connections in results.items():
        for connections, rounds in by_connections.items():
            row = {"server": name, "connections": connections} | {
                key: round(median([r[key] for r in rounds]), 3) for key in ("requests_per_s", "p99_ms")
            }
            table.append({**row, "rounds": rounds})
            print(f"{name:14} {connections:4d} connections {row['requests_per_s']:10,.0f} requests/s", end="")
            print(f"   p99 {row['p99_ms']:8.2f} ms")
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    return {"machine": machine, "versions": found, "rounds": arguments.rounds, "results": table}


def wait_until_up(name: str, process: subprocess.Popen[bytes], port: int) -> None:
    """Return when the server answers."""
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as found:
                found.read()
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"{name} did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", choices=SERVERS)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    if arguments.serve:
        import uvloop

        uvloop.run(SERVE[arguments.serve](arguments.port, arguments.serve))
        return
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed")
    with tempfile.TemporaryDirectory() as folder:
        report = compare(arguments, Path(folder))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
