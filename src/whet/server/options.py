"""What a server is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from whet.errors import InvalidArgument
from whet.server.model_config import DEFAULT_MAX_BATCH_ROWS
from whet.server.repository.layout import is_name

ControlMode = Literal["none", "poll", "explicit"]


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """`repository`: a model, a folder of models, or folders as Triton has them. `model_name`: what its only model is
    called, whatever its file, folder or configuration say; several are refused. A port of None is not opened.

    `control_mode`: `none` loads everything at start, `poll` follows changes on disk, `explicit` loads what
    `load_models` names and what is asked for. `admin_port` opens the administrative calls there, for who has
    `admin_token`, and `admin_grpc_port` those of gRPC; `admin_on_main_port` opens them to everyone who reaches the main
    ports. `allowed_hosts`: names by which browsers may call the server, beside its own. `drain_s`: how long a stop
    waits for accepted requests. `drain_delay_s`: and before that, how long it goes on as ever but is not ready.
    `rate_limit`: runs wait for the resources that configurations name, of which there are `rate_limit_resources`
    (NAME:COUNT each), of others the most that one run needs; `off` starts every run at once.

    Load and unload by request are refused unless the mode is `explicit`, as with Triton; and who may call them at all
    is said by the options above.

    The server is ready when its start is over, and with `strict_readiness` once every model that the start had to serve
    is served: a new version of a deployment whose models do not load must not replace one whose models do. Later loads
    never take readiness away (Triton's do). `exit_on_error`: a model that cannot be served at start ends the server.
    """

    repository: Path
    model_name: str | None = None
    host: str = "127.0.0.1"
    http_port: int | None = 8000
    grpc_port: int | None = 8001
    metrics_port: int | None = 8002
    admin_port: int | None = None
    admin_grpc_port: int | None = None
    admin_token: str | None = None
    admin_on_main_port: bool = False
    allowed_hosts: tuple[str, ...] = ()
    control_mode: ControlMode = "none"
    load_models: tuple[str, ...] = ()
    poll_s: float = 15.0
    strict_readiness: bool = True
    exit_on_error: bool = False
    max_batch_rows: int = DEFAULT_MAX_BATCH_ROWS
    threads: int = 0
    body_bytes: int = 64 << 20
    body_s: float = 30.0
    drain_s: float = 30.0
    drain_delay_s: float = 0.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    cache_bytes: int = 0
    rate_limit: Literal["execution_count", "off"] = "execution_count"
    rate_limit_resources: tuple[str, ...] = ()
    log_format: Literal["text", "json"] = "text"
    log_verbose: int = 0
    trace_endpoint: str | None = None
    trace_rate: int = 1000

    def check(self) -> None:
        """Raise InvalidArgument for options that contradict each other."""
        ports: dict[int, str] = {}
        for name in ("http_port", "grpc_port", "metrics_port", "admin_port", "admin_grpc_port"):
            port, flag = getattr(self, name), _flag(name)
            # 0 lets the system choose.
            if port and port in ports:
                raise InvalidArgument("one port for two uses", value=f"{ports[port]}, {flag}", found=port)
            if port:
                ports[port] = flag
            if name.startswith("admin_") and port is not None and not self.admin_token:
                raise InvalidArgument(
                    "an admin port needs a token", value=flag, hint="Give --admin-token, or WHET_ADMIN_TOKEN."
                )
        if self.model_name is not None and not is_name(self.model_name):
            raise InvalidArgument(
                "a model cannot be called so", value="--model-name", found=self.model_name,
                expected="a name without slashes that does not begin with a dot",
            )  # fmt: skip
        if self.load_models and self.control_mode != "explicit":
            raise InvalidArgument(
                "models are named for a server that loads all of them", value="--load-model", found=self.control_mode,
                hint="Give --control-mode explicit.",
            )  # fmt: skip
        if self.rate_limit_resources and self.rate_limit == "off":
            raise InvalidArgument(
                "resources are given, and nothing is limited", value="--rate-limit-resource",
                hint="Leave --rate-limit off out.",
            )  # fmt: skip


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
