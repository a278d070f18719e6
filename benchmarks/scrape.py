"""What a scrape of /metrics costs by the number of models, beside prometheus_client writing the same samples.

usage: python benchmarks/scrape.py
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from whet.server.data_plane import DataPlane
from whet.server.metrics.collect import Metrics
from whet.server.stats import ModelStats

ROUNDS = 20


def best_ms(call: Callable[[], object]) -> float:
    """The least time of some calls."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3


def model(name: str, rng: random.Random) -> Any:
    """A model without a session that has answered 300 requests."""
    stats = ModelStats(closed={"full": 200, "delay": 100})
    for _ in range(300):
        stats.request_us.observe(rng.expovariate(1e-3))
    return SimpleNamespace(
        config=SimpleNamespace(name=name), version="1", stats=stats, session=None, load_s=0.5, pending=0, in_flight=0,
        scheduler=SimpleNamespace(running=0),
    )  # fmt: skip


async def measure(count: int) -> None:
    """Print one line of the table."""
    rng, plane = random.Random(0), DataPlane()
    for index in range(count):
        plane.publish(model(f"model-{index}", rng))
    metrics = Metrics(plane)
    _, content = await metrics.scrape()
    models = [m for versions in plane.models.values() for m in versions.values()]
    own = best_ms(lambda: metrics.render("", models))

    class Collector:
        def collect(self) -> Iterator[Any]:
            return iter(families)

    families = list(text_string_to_metric_families(content.decode()))
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector())
    library = best_ms(lambda: prometheus_client.generate_latest(registry))
    print(f"{count:6} {len(content):9,} {own:12.2f} {library:22.2f}")


if __name__ == "__main__":
    print("models     bytes  on loop, ms  prometheus_client, ms")
    for number in (1, 10, 50):
        asyncio.run(measure(number))
