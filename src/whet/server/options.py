"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whet.server.model_config import DEFAULT_MAX_BATCH_ROWS

ControlMode = Literal["none", "poll", "explicit"]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`repository`: a model, a folder of models, or folders as Triton has them. A port of None is not opened.

    `control_mode`: `none` loads everything at start, `poll` follows changes on disk, `explicit` loads what
    `load_models` names and what is asked for. `admin_port` opens the administrative calls there, for who has
    `admin_token`, and `admin_grpc_port` those of gRPC; `admin_on_main_port` opens them to everyone who reaches the main
    ports. `drain_s`: how long a stop waits for accepted requests.

    The server is ready when what it loads at start is loaded or has failed. `strict_readiness`: and only while every
    model that should be served is. `exit_on_error`: a model that cannot be served at start ends the server.
    """

    repository: Path
    host: str = "127.0.0.1"
    http_port: int | None = 8000
    grpc_port: int | None = 8001
    metrics_port: int | None = 8002
    admin_port: int | None = None
    admin_grpc_port: int | None = None
    admin_token: str | None = None
    admin_on_main_port: bool = False
    control_mode: ControlMode = "none"
    load_models: tuple[str, ...] = ()
    poll_s: float = 15.0
    strict_readiness: bool = False
    exit_on_error: bool = False
    max_batch_rows: int = DEFAULT_MAX_BATCH_ROWS
    threads: int = 0
    body_bytes: int = 64 << 20
    body_s: float = 30.0
    drain_s: float = 30.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    cache_bytes: int = 0
    log_format: Literal["text", "json"] = "text"
    log_verbose: int = 0
    trace_endpoint: str | None = None
    trace_rate: int = 1000
