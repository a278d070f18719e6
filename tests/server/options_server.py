"""A gRPC server with any `ServerOptions`, in a process of its own and without HTTP.

usage: python -m tests.server.options_server OPTIONS_AS_JSON
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from tests.server.running import START_S, RunningServer, free_port
from whet.server.options import ServerOptions
from whet.server.protocol.messages import message
from whet.server.serve import serve

READY = "/inference.GRPCInferenceService/ServerReady"

LOADABLE: Mapping[str, Any] = {"control_mode": "explicit", "load_models": ["*"]}
"""Options of a server that serves everything from the start, and loads and unloads what it is asked to."""

PATHS = ("repository", "tls_certificate", "tls_key", "tls_client_ca")


class OptionsServer(RunningServer):
    """Use as RunningServer; keyword arguments are fields of ServerOptions. `admin=True` gives it an admin gRPC port."""

    def __init__(self, repository: Path, admin: bool = False, **options: Any) -> None:
        super().__init__(repository)
        self._options = options
        if admin:
            options["admin_grpc_port"] = free_port()

    @property
    def repository(self) -> Path:
        return self._repository

    @property
    def admin_grpc(self) -> str:
        return f"127.0.0.1:{self._options['admin_grpc_port']}"

    def __enter__(self) -> OptionsServer:
        document = {
            "repository": str(self._repository),
            "http_port": None,
            "grpc_port": self.grpc_port,
            "metrics_port": None,
            **self._options,
        }
        with open(self._log, "wb") as out:
            command = [sys.executable, "-m", "tests.server.options_server", json.dumps(document, default=str)]
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        if self._wait:
            try:
                self.wait_until_ready()
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise
        return self

    def wait_until_ready(self) -> None:
        """Return when the gRPC server says that it is ready, without TLS; fail with its log when it ends before."""
        assert self.process is not None
        answer = message("inference.ServerReadyResponse")
        end = time.monotonic() + START_S
        with grpc.insecure_channel(self.grpc, [("grpc.max_reconnect_backoff_ms", 100)]) as channel:
            ready = channel.unary_unary(READY, response_deserializer=answer.FromString)
            while time.monotonic() < end:
                assert self.process.poll() is None, self.log
                try:
                    if ready(b"", timeout=5).ready:
                        return
                except grpc.RpcError as error:
                    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                        raise
                time.sleep(0.05)
        raise AssertionError(f"not ready after {START_S} s:\n{self.log}")


if __name__ == "__main__":
    import uvloop

    given = {k: Path(v) if k in PATHS else v for k, v in json.loads(sys.argv[1]).items()}
    given["load_models"] = tuple(given.get("load_models", ()))
    serving = serve(ServerOptions(**given))
    if sys.platform == "win32":
        asyncio.run(serving)
    else:
        uvloop.run(serving)
