"""A server in a process of its own, for tests that speak to it as a client does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_S = 120.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RunningServer:
    """`whet serve` on loopback. Use as a context manager; leaving it stops the server and checks its exit status."""

    def __init__(self, repository: Path, *arguments: str, log: Path | None = None, ready: bool = True) -> None:
        self.http_port = free_port()
        self.grpc_port = free_port()
        self.metrics_port = free_port()
        self._arguments = arguments
        self._repository = repository
        self._log = log or repository.parent / f"server-{self.http_port}.log"
        self._wait = ready
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.http_port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def log(self) -> str:
        """What the server has written."""
        return self._log.read_text()

    def __enter__(self) -> RunningServer:
        command = [sys.executable, "-m", "whet.cli", "serve", str(self._repository)]
        command += ["--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        command += ["--metrics-port", str(self.metrics_port)]
        if "--strict-readiness" not in self._arguments:
            # Some models of the tests are broken: ready means here that the start is over.
            command.append("--no-strict-readiness")
        command += self._arguments
        with open(self._log, "wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=dict(os.environ))
        if self._wait:
            try:
                self.wait_until_ready()
            except BaseException:
                self.process.kill()
                self.process.wait()
                raise
        return self

    def wait_until_ready(self) -> None:
        """Return when the server says that it is ready; fail with its log when it ends before."""
        assert self.process is not None
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log
            try:
                with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.05)
        raise AssertionError(f"not ready after {START_S} s:\n{self.log}")

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None and self.stop() != 0:
            raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log}")
