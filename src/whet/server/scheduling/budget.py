"""How many threads a model's runs get: all runs of a model together stay within the server's budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whet.runtime.cores import core_budget
from whet.server.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class RunBudget:
    """Threads of one run, and what a run is set up for: the shortest time, or many runs beside each other."""

    threads: int
    goal: Literal["latency", "throughput"]


def run_budget(config: ModelConfig | None, server_threads: int = 0) -> RunBudget:
    """The budget of a run: instances x threads are at most `server_threads` (0: what the process may use), or each
    instance has one thread where there are more instances than that. A model's own thread count may only be less."""
    total = server_threads or core_budget()
    instances = config.instances if config else 1
    threads = max(1, total // instances)
    if config is not None and config.threads:
        threads = min(threads, config.threads)
    return RunBudget(threads, "throughput" if instances > 1 else "latency")
