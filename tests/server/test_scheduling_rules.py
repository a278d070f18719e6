"""The batcher's rules, on fake instances and in made-up time: what runs together, when, and why."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.server.virtual_time import US, Bench, VirtualLoop, rows, run
from whet.errors import RuntimeException
from whet.server.errors import DeadlineExceeded, PayloadTooLarge, QueueFull, ShuttingDown
from whet.server.model_config import DynamicBatching, QueuePolicy, RateLimit
from whet.server.scheduling.batcher import REASONS
from whet.server.scheduling.rate_limit import RateLimiter

NOW = DynamicBatching(max_queue_delay_us=0)


def at(loop: VirtualLoop, start: float) -> float:
    """Microseconds since `start`."""
    return round((loop.now - start) / US, 3)


def test_requests_that_wait_for_an_instance_run_together_each_with_its_own_rows() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, NOW)
        given = [rows(n, seed=n) for n in (1, 2, 3, 1)]
        works = [bench.ask(x) for x in given]
        for x, work in zip(given, works, strict=True):
            np.testing.assert_array_equal((await work.answer)[0], 2 * x)
        assert bench.batches == [(1, "instance free"), (6, "instance free")]
        assert works[3].batch_rows == 6

    run(go)


def test_a_batch_counts_rows_and_is_full_when_no_other_request_fits() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, NOW, max_rows=8)
        works = [bench.ask(rows(n, seed=n)) for n in (1, 3, 3, 3, 8)]
        await asyncio.gather(*(w.answer for w in works))
        assert bench.batches == [(1, "instance free"), (6, "full"), (3, "full"), (8, "full")]

    run(go)


def test_only_equal_shapes_share_a_batch_and_order_within_a_shape_is_kept() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, NOW)
        first = bench.ask(rows(1))
        works = [bench.ask(rows(1, width, seed)) for seed, width in enumerate((2, 3, 2, 3))]
        await asyncio.gather(first.answer, *(w.answer for w in works))
        assert bench.batches == [(1, "instance free"), (2, "shape"), (2, "instance free")]
        assert [w.batch_closed for w in works] == ["shape", "instance free", "shape", "instance free"]

    run(go)


def test_the_delay_is_that_of_the_oldest_request() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, DynamicBatching(max_queue_delay_us=500))
        start = loop.now
        first = bench.ask(rows(1))
        await asyncio.sleep(400 * US)
        second = bench.ask(rows(2))
        await first.answer
        await second.answer
        assert [round((r.began - start) / US) for r in bench.instances.runs] == [500]
        assert bench.batches == [(3, "delay")]

    run(go)


def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, DynamicBatching(max_queue_delay_us=500), max_rows=4)
        start = loop.now
        works = [bench.ask(rows(2)), bench.ask(rows(2))]
        await asyncio.gather(*(w.answer for w in works))
        assert at(loop, start) == 1000
        assert bench.batches == [(4, "full")]

    run(go)


def test_preferred_sizes_go_at_once_and_the_rest_when_its_delay_is_over() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, DynamicBatching(preferred_rows=(2, 4), max_queue_delay_us=5000), max_rows=8)
        works = [bench.ask(rows(1, seed=n)) for n in range(2)]
        assert bench.instances.free == 0  # two rows are a preferred size
        works += [bench.ask(rows(1, seed=n)) for n in range(5)]
        await asyncio.gather(*(w.answer for w in works))
        assert bench.batches == [(2, "preferred"), (4, "preferred"), (1, "delay")]

    run(go)


def test_a_request_that_would_be_too_late_ends_the_wait() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, DynamicBatching(max_queue_delay_us=5000))
        work = bench.ask(rows(1), deadline_us=3000)
        await work.answer
        assert bench.batches == [(1, "deadline")]

    run(go)


def test_higher_levels_go_first_and_a_priority_that_is_no_level_means_the_default() -> None:
    async def go(loop: VirtualLoop) -> None:
        batching = DynamicBatching(max_queue_delay_us=0, priority_levels=3, default_priority_level=2)
        bench = Bench(loop, batching, max_rows=1)
        order: list[str] = []
        busy = bench.ask(rows(1))
        for name, priority in (("low", 3), ("default", 0), ("beyond", 9), ("high", 1)):
            work = bench.ask(rows(1), priority=priority)
            work.answer.add_done_callback(lambda _, n=name: order.append(n))
        await busy.answer
        await bench.batcher.drain()
        await asyncio.sleep(0)
        assert order == ["high", "default", "beyond", "low"]

    run(go)


def test_each_level_has_its_own_queue_limit() -> None:
    async def go(loop: VirtualLoop) -> None:
        batching = DynamicBatching(
            max_queue_delay_us=0, priority_levels=2, default_priority_level=2,
            default_queue_policy=QueuePolicy(max_size=2), priority_queue_policy={1: QueuePolicy(max_size=1)},
        )  # fmt: skip
        bench = Bench(loop, batching, max_rows=1)
        bench.ask(rows(1))  # runs
        bench.ask(rows(1), priority=1)
        with pytest.raises(QueueFull, match=r"level 1.*found: 1 requests"):
            bench.ask(rows(1), priority=1)
        bench.ask(rows(1))
        cancelled = bench.ask(rows(1))
        with pytest.raises(QueueFull, match="level 2"):
            bench.ask(rows(1))
        bench.batcher.cancel(cancelled)
        bench.ask(rows(1))  # who left makes room
        assert bench.batcher.pending == 3
        await bench.batcher.drain()
        assert len(bench.batches) == 4

    run(go)


def test_a_default_timeout_refuses_and_a_sooner_deadline_of_the_request_holds() -> None:
    async def go(loop: VirtualLoop) -> None:
        policy = QueuePolicy(default_timeout_us=700)
        bench = Bench(loop, DynamicBatching(max_queue_delay_us=0, default_queue_policy=policy), max_rows=1)
        start = loop.now
        works = [bench.ask(rows(1), deadline_us=d) for d in (0, 0, 300, 5000)]
        ended: list[float] = []
        for work in works:
            work.answer.add_done_callback(lambda _: ended.append(at(loop, start)))
        results = await asyncio.gather(*(w.answer for w in works), return_exceptions=True)
        assert [type(r) for r in results] == [DeadlineExceeded] * 4
        assert "while it ran" in str(results[0])
        assert "while it waited" in str(results[1])
        assert ended == [300, 700, 700, 700]

    run(go)


def test_a_level_that_delays_serves_late_requests_behind_the_others() -> None:
    async def go(loop: VirtualLoop) -> None:
        policy = QueuePolicy(default_timeout_us=1500, delay_expired=True)
        bench = Bench(loop, DynamicBatching(max_queue_delay_us=0, default_queue_policy=policy), max_rows=1)
        order: list[str] = []

        def ask(name: str) -> None:
            bench.ask(rows(1)).answer.add_done_callback(lambda _: order.append(name))

        ask("runs")
        ask("second")
        ask("late")
        await asyncio.sleep(1600 * US)  # "second" runs
        ask("young")
        await bench.batcher.drain()
        await asyncio.sleep(0)
        assert order == ["runs", "second", "young", "late"]

    run(go)


def test_a_run_stops_when_its_last_request_is_over_and_not_before() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, NOW, seconds=lambda n: 10_000 * US)
        start = loop.now
        busy = bench.ask(rows(1), deadline_us=1000)
        first, second = bench.ask(rows(1), deadline_us=4000), bench.ask(rows(1), deadline_us=6000)
        with pytest.raises(DeadlineExceeded):
            await busy.answer
        assert bench.instances.runs[0].stop is not None
        assert bench.instances.runs[0].stop.terminated
        with pytest.raises(DeadlineExceeded):
            await first.answer
        stop = bench.instances.runs[1].stop
        assert stop is not None
        assert not stop.terminated
        with pytest.raises(DeadlineExceeded):
            await second.answer
        assert stop.terminated
        assert at(loop, start) == 6000
        # The instance is free again long before the run would have ended.
        again = bench.ask(rows(1))
        await again.answer
        assert at(loop, start) == 16_000

    run(go)


def test_cancelled_requests_do_not_run() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, NOW)
        busy = bench.ask(rows(1))
        waiting = [bench.ask(rows(1, seed=n)) for n in range(3)]
        bench.batcher.cancel(waiting[1])
        await busy.answer
        await waiting[0].answer
        await waiting[2].answer
        assert waiting[1].answer.cancelled()
        assert bench.batches == [(1, "instance free"), (2, "instance free")]

    run(go)


def test_order_is_preserved_over_instances_of_different_speed() -> None:
    async def go(loop: VirtualLoop) -> None:
        batching = DynamicBatching(max_queue_delay_us=0, preserve_ordering=True)
        bench = Bench(loop, batching, max_rows=3, instances=2, seconds=lambda n: (3000 if n == 3 else 500) * US)
        order: list[int] = []
        works = []
        for index, count in enumerate((3, 1, 1, 3, 2)):
            works.append(bench.ask(rows(count, seed=index)))
            works[-1].answer.add_done_callback(lambda _, i=index: order.append(i))
        await asyncio.gather(*(w.answer for w in works))
        assert order == [0, 1, 2, 3, 4]
        # And shapes do not overtake each other.
        order.clear()
        works = []
        for index, width in enumerate((2, 3, 2, 3)):
            works.append(bench.ask(rows(1, width, seed=index)))
            works[-1].answer.add_done_callback(lambda _, i=index: order.append(i))
        await asyncio.gather(*(w.answer for w in works))
        assert order == [0, 1, 2, 3]
        assert [w.batch_rows for w in works] == [1, 1, 1, 1]

    run(go)


def test_of_a_batch_that_fails_only_the_request_at_fault_fails() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, NOW)
        busy = bench.ask(rows(1))
        good, bad, other = rows(2, seed=1), rows(1, seed=2), rows(1, seed=3)
        bad[0, 0] = -13
        works = [bench.ask(x) for x in (good, bad, other)]
        await busy.answer
        np.testing.assert_array_equal((await works[0].answer)[0], 2 * good)
        with pytest.raises(RuntimeException, match="unlucky"):
            await works[1].answer
        np.testing.assert_array_equal((await works[2].answer)[0], 2 * other)
        assert bench.batches == [(1, "instance free"), (2, "failed together"), (1, "failed together")]
        assert bench.batcher.running == bench.batcher.pending == 0

    run(go)


def test_requests_that_ask_for_different_outputs_share_a_run() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, NOW)
        busy = bench.ask(rows(1))
        a, b, c = rows(1, seed=1), rows(2, seed=2), rows(1, seed=3)
        works = [bench.ask(a, ("z",)), bench.ask(b, ("y",)), bench.ask(c, ("y", "z"))]
        await busy.answer
        (z,) = await works[0].answer
        (y,) = await works[1].answer
        both = await works[2].answer
        np.testing.assert_array_equal(z, a.sum(1))
        np.testing.assert_array_equal(y, 2 * b)
        np.testing.assert_array_equal(both[0], 2 * c)
        np.testing.assert_array_equal(both[1], c.sum(1))
        assert bench.batches[1] == (4, "instance free")

    run(go)


def test_too_many_rows_and_a_model_that_drains_are_refused() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, DynamicBatching(max_queue_delay_us=60_000_000), max_rows=4)
        with pytest.raises(PayloadTooLarge, match="found: 5; expected: 4"):
            bench.ask(rows(5))
        work = bench.ask(rows(1))
        start = loop.now
        await bench.batcher.drain()  # does not wait for the delay
        assert at(loop, start) == 1000
        assert work.answer.done()
        assert bench.batches == [(1, "draining")]
        with pytest.raises(ShuttingDown):
            bench.ask(rows(1))

    run(go)


def test_without_batching_every_request_runs_alone() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, None, max_rows=0, instances=2)
        works = [bench.ask(rows(1, seed=n)) for n in range(4)]
        start = loop.now
        await asyncio.gather(*(w.answer for w in works))
        assert bench.batches == [(1, "alone")] * 4
        assert at(loop, start) == 2000

    run(go)


def test_models_that_share_a_resource_take_turns_by_their_priority() -> None:
    async def go(loop: VirtualLoop) -> None:
        limiter = RateLimiter({"memory": 2})
        often = Bench(loop, None, 0, 4, ticket=limiter.ticket(RateLimit({"memory": 2}, 1), "often"))
        seldom = Bench(loop, None, 0, 4, ticket=limiter.ticket(RateLimit({"memory": 1}, 2), "seldom"))
        order: list[tuple[float, str]] = []
        start = loop.now
        for name, bench in (("often", often), ("seldom", seldom)):
            for seed in range(8):
                work = bench.ask(rows(1, seed=seed))
                work.answer.add_done_callback(lambda _, n=name: order.append((at(loop, start), n)))
        await often.batcher.drain()
        await seldom.batcher.drain()
        await asyncio.sleep(0)
        assert len(order) == 16
        # Never more than two units at one time: one of "often", or two of "seldom".
        for moment in {t for t, _ in order}:
            names = [n for t, n in order if t == moment]
            assert names in (["often"], ["seldom"], ["seldom", "seldom"])
        first = [n for _, n in order[:9]]
        assert first.count("often") >= 5, first
        assert first.count("seldom") >= 2, first
        assert limiter.available("memory") == 2

    run(go)


def test_a_model_that_waits_for_a_resource_in_vain_holds_up_nobody() -> None:
    async def go(loop: VirtualLoop) -> None:
        limiter = RateLimiter()
        a = Bench(loop, None, 0, 2, ticket=limiter.ticket(RateLimit({"disk": 1}), "a"))
        b = Bench(loop, None, 0, 2, ticket=limiter.ticket(RateLimit({"disk": 1}), "b"))
        runs = a.ask(rows(1))
        gone = b.ask(rows(1))
        more = a.ask(rows(1))
        b.batcher.cancel(gone)
        await asyncio.gather(runs.answer, more.answer)
        await (b.ask(rows(1))).answer
        assert limiter.available("disk") == 1

    run(go)


def test_every_reason_is_explained() -> None:
    assert all(text for text in REASONS.values())
