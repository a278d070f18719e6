"""What to send, how fast, and for how long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from whet.errors import InvalidArgument

Protocol = Literal["http", "grpc"]
Arrivals = Literal["poisson", "constant"]


@dataclass(frozen=True)
class Target:
    """Where requests go, and in which form: JSON numbers or raw tensors (always raw over gRPC)."""

    host: str
    port: int
    protocol: Protocol = "http"
    binary: bool = False


@dataclass(frozen=True)
class ModelLoad:
    """One model of the mix. `weight` is its share of requests, relative to the others'."""

    name: str
    weight: float = 1.0
    batch: int = 1
    inputs: str = "random"  # random, zeros, or the path of a .npz or .npy file
    shapes: Mapping[str, tuple[int, ...]] | None = None
    variants: int = 4  # different requests that take turns, where the inputs are random
    seed: int = 0


@dataclass(frozen=True)
class Pace:
    """How requests follow each other.

    Closed loop (`rate` is None): each of `connections` sends its next request when the last one is answered. Open
    loop: `rate` requests a second start at times that do not depend on answers; latency counts from the intended
    start, so a request that waits for a free connection is as slow as its caller would see it.
    """

    connections: int = 1
    rate: float | None = None
    arrivals: Arrivals = "poisson"


@dataclass(frozen=True)
class Windows:
    """Measurement: after `warm_up_s`, windows of `window_s` until the last `needed` agree within `stability`.

    `stability` is the largest spread of throughput and of mean latency, (max - min) / mean. After `most` windows the
    last ones are reported as they are, marked unstable.
    """

    warm_up_s: float = 1.0
    window_s: float = 2.0
    needed: int = 3
    most: int = 10
    stability: float = 0.1


@dataclass(frozen=True)
class Plan:
    """One measurement."""

    target: Target
    pace: Pace
    windows: Windows
    timeout_s: float = 10.0
    processes: int = 1
    seed: int = 0

    def check(self) -> None:
        """Raise InvalidArgument for a setting that makes no sense."""
        positive = {
            "connections": self.pace.connections,
            "rate": 1 if self.pace.rate is None else self.pace.rate,
            "window": self.windows.window_s,
            "number of windows": self.windows.needed,
            "stability": self.windows.stability,
            "timeout": self.timeout_s,
            "number of processes": self.processes,
        }
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise InvalidArgument(f"the {name} is out of range", found=value, expected="more than 0")
        if self.windows.most < self.windows.needed:
            raise InvalidArgument(
                "fewer windows are allowed than must agree", found=self.windows.most, expected=self.windows.needed
            )
        if self.processes > self.pace.connections:
            raise InvalidArgument(
                "each process needs a connection of its own",
                found=f"{self.processes} processes, {self.pace.connections} connections",
                expected="at least as many connections as processes",
            )


def parse_address(text: str, default_port: int) -> tuple[str, int]:
    """Host and port of `HOST`, `HOST:PORT`, `[IPV6]:PORT` or `http://HOST:PORT/`. Raises InvalidArgument."""
    rest = text.removeprefix("http://").removeprefix("grpc://").rstrip("/")
    host, port = rest, str(default_port)
    if rest.startswith("["):
        host, _, tail = rest[1:].partition("]")
        port = tail[1:] if tail.startswith(":") else port
    elif rest.count(":") == 1:
        host, _, port = rest.partition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidArgument("this is no address of a server", found=text, expected="HOST:PORT")
    return host, int(port)
