"""Random arrivals, sizes, shapes, cancellations and deadlines: each request is answered once, with its own rows."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.server.virtual_time import US, Bench, VirtualLoop, run
from whet.errors import RuntimeException
from whet.server.errors import DeadlineExceeded, QueueFull
from whet.server.model_config import DynamicBatching, QueuePolicy, RateLimit
from whet.server.scheduling.batcher import REASONS
from whet.server.scheduling.rate_limit import RateLimiter
from whet.server.scheduling.work import Work

REQUESTS = 150


def random_batching(random: np.random.Generator) -> DynamicBatching | None:
    if random.random() < 0.1:
        return None
    levels = int(random.choice([0, 0, 3]))

    def policy() -> QueuePolicy:
        return QueuePolicy(
            max_size=int(random.choice([0, 0, 5, 20])), default_timeout_us=int(random.choice([0, 0, 3000])),
            delay_expired=bool(random.random() < 0.5),
        )  # fmt: skip

    delay = random.choice([-1, 0, 500, 5000])
    return DynamicBatching(
        preferred_rows=tuple(sorted({int(n) for n in random.integers(1, 9, random.integers(0, 3))})),
        max_queue_delay_us=None if delay < 0 else int(delay), preserve_ordering=bool(random.random() < 0.3),
        priority_levels=levels, default_priority_level=2 if levels else 0, default_queue_policy=policy(),
        priority_queue_policy={1: policy()} if levels else {},
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(60))
def test_each_request_is_answered_once_with_its_own_rows(seed: int) -> None:
    random = np.random.default_rng(seed)

    async def go(loop: VirtualLoop) -> None:
        batching = random_batching(random)
        fixed, each = random.uniform(100, 3000), random.uniform(10, 1000)
        limited = RateLimiter({"r": 2}) if random.random() < 0.3 else None
        bench = Bench(
            loop, batching, 8, int(random.integers(1, 4)), lambda n: float(fixed + each * n) * US,
            ticket=limited.ticket(RateLimit({"r": 1}), "model") if limited else None,
        )  # fmt: skip
        answered: list[int] = []
        submitted: list[tuple[np.ndarray[Any, Any], Work, int]] = []
        refused = 0
        for index in range(REQUESTS):
            count, width = int(random.integers(1, 9)), int(random.choice([2, 2, 3]))
            x = random.standard_normal((count, width)).astype(np.float32)
            if random.random() < 0.05:
                x[0, 0] = -13
            names = [("y",), ("z",), ("z", "y")][int(random.integers(3))]
            deadline = float(random.choice([0, 0, 2000, 20_000]))
            try:
                work = bench.ask(x, names, deadline, int(random.integers(0, 4)))
            except QueueFull:
                refused += 1
                continue
            work.answer.add_done_callback(lambda _, i=index: answered.append(i))  # type: ignore[misc]
            submitted.append((x, work, index))
            if random.random() < 0.1:
                loop.call_later(float(random.exponential(3000)) * US, bench.batcher.cancel, work)
            if random.random() < 0.7:
                await asyncio.sleep(float(random.exponential(800)) * US)
        await bench.batcher.drain()
        await asyncio.sleep(0)
        assert len(answered) == len(set(answered)) == len(submitted) == REQUESTS - refused
        for x, work, _ in submitted:
            if work.answer.cancelled():
                continue
            error = work.answer.exception()
            if error is not None:
                assert isinstance(error, DeadlineExceeded) or (x[0, 0] == -13 and isinstance(error, RuntimeException))
                continue
            assert x[0, 0] != -13
            known = {"y": 2 * x, "z": x.reshape(len(x), -1).sum(1)}
            for name, output in zip(work.output_names, work.answer.result(), strict=True):
                np.testing.assert_allclose(output, known[name], rtol=1e-6)
            assert work.batch_closed in REASONS
        assert max(r.rows for r in bench.instances.runs) <= 8
        assert bench.batcher.pending == bench.batcher.running == 0
        assert bench.instances.free == bench.instances.count
        assert limited is None or limited.available("r") == 2
        if batching is not None and batching.preserve_ordering and not batching.priority_levels:
            done = [w for _, w, i in sorted(submitted, key=lambda s: answered.index(s[2])) if _succeeded(w)]
            if not any(p.delay_expired for p in (batching.default_queue_policy,)):
                queued = [w.times.queued_ns for w in done]
                assert queued == sorted(queued)

    run(go)


def _succeeded(work: Work) -> bool:
    return not work.answer.cancelled() and work.answer.exception() is None
