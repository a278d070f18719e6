"""Requests over raw sockets, for what no client would send."""

from __future__ import annotations

import json
import socket
from typing import Any

INFER = "/v2/models/scale/infer"


def ask(port: int, method: str, path: str, body: bytes = b"", *headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request over a connection of its own: status, headers, body."""
    lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers]
    if not any(h.lower().startswith("host:") for h in headers):
        lines.insert(1, "Host: 127.0.0.1")
    if body and not any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers):
        lines.append(f"Content-Length: {len(body)}")
    return parsed(exchange(port, "\r\n".join(lines).encode() + b"\r\n\r\n" + body))


def exchange(port: int, content: bytes, end: bool = False) -> bytes:
    """What comes back until the server closes the connection. `end`: tell it that nothing more will be sent."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(content)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer."""
    head, _, content = answer.partition(b"\r\n\r\n")
    status, *rest = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.lower().split(": ", 1) for line in rest), content


def infer_body(**changes: Any) -> bytes:
    """A request to the model `scale`."""
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [0, 1, 2, -3], **changes}
    return json.dumps({"inputs": [tensor]}).encode()
