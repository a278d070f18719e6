"""What the batcher learns from measured run times: when to wait, and which sizes to run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from tests.server.virtual_time import US, Bench, VirtualLoop, rows, run
from whet.server.model_config import DynamicBatching, ModelConfig
from whet.server.scheduling.budget import run_budget
from whet.server.scheduling.run_times import AGAIN, RunTimes

LEARNED = DynamicBatching(max_queue_delay_us=None)


def flat(count: int) -> float:
    """A model that takes as long for many rows as for one."""
    return 4000 * US


def linear(count: int) -> float:
    """A model that gains nothing from batches."""
    return 1000 * US * count


def closed_loop(batching: DynamicBatching, clients: int, seconds: Callable[[int], float], count: int = 100) -> Bench:
    """So many clients that ask again 20 us after each answer."""

    async def client(bench: Bench, index: int) -> None:
        for _ in range(count):
            await bench.ask(rows(1, seed=index)).answer
            await asyncio.sleep((20 + 7 * index) * US)

    async def go(loop: VirtualLoop) -> Bench:
        bench = Bench(loop, batching, seconds=seconds)
        await asyncio.gather(*(client(bench, n) for n in range(clients)))
        return bench

    result: Bench = run(go)
    return result


@pytest.mark.parametrize("seconds", [flat, linear])
def test_one_client_never_waits(seconds: Callable[[int], float]) -> None:
    bench = closed_loop(LEARNED, 1, seconds)
    assert set(bench.batches) == {(1, "instance free")}
    assert bench.loop.now == pytest.approx(1.0 + 100 * (seconds(1) + 20 * US), rel=1e-6)


def test_many_clients_of_a_model_that_gains_wait_for_each_other() -> None:
    waits = closed_loop(LEARNED, 8, flat)
    does_not = closed_loop(DynamicBatching(max_queue_delay_us=0), 8, flat)
    assert waits.loop.now - 1 < 0.8 * (does_not.loop.now - 1)
    assert {"learned delay", "full"} & {closed for _, closed in waits.batches[-10:]}


def test_many_clients_of_a_model_that_gains_nothing_do_not_wait() -> None:
    bench = closed_loop(LEARNED, 8, linear)
    assert "learned delay" not in {closed for _, closed in bench.batches}


def test_rare_arrivals_do_not_wait() -> None:
    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, LEARNED, seconds=flat)
        random = np.random.default_rng(3)
        works = []
        for _ in range(200):
            works.append(bench.ask(rows(1)))
            await asyncio.sleep(float(random.exponential(20_000 * US)))
        await asyncio.gather(*(w.answer for w in works))
        assert "learned delay" not in {closed for _, closed in bench.batches}

    run(go)


def test_the_first_run_of_a_size_is_no_measure_of_it() -> None:
    times = RunTimes()
    times.observe(4, 900_000)
    assert times.predicted(4) is None
    times.observe(4, 100_000)
    assert times.predicted(4) == 100_000
    times.observe(4, 200_000)
    assert times.predicted(4) == pytest.approx(120_000)
    times.observe(8, 1)
    times.observe(8, 320_000)
    assert times.predicted(6) == pytest.approx(220_000)
    assert times.predicted(2) == pytest.approx(120_000)
    assert times.predicted(16) == pytest.approx(640_000)


def measured(**sizes: float) -> RunTimes:
    """Times of sizes (r4=100: four rows take 100 us)."""
    times = RunTimes()
    for name, us in sizes.items():
        for _ in range(2):
            times.observe(int(name[1:]), int(us * 1000))
    return times


def test_a_size_that_runs_badly_is_split() -> None:
    times = measured(r2=200, r4=400, r6=900, r8=800)
    assert times.fewer(6) in (2, 4)
    assert times.fewer(8) == 8
    assert times.fewer(4) == 4


def test_rows_run_one_by_one_where_batches_make_them_slower() -> None:
    times = measured(r1=2000, r7=21000, r8=24000)
    assert times.fewer(8) == 1
    assert times.fewer(7) == 1
    # Handing over between runs costs more than batches of a tiny model lose.
    assert measured(r1=20, r8=190).fewer(8) == 8


def test_an_avoided_size_is_measured_again() -> None:
    times = measured(r1=2000, r8=24000)
    sizes = [times.fewer(8) for _ in range(2 * AGAIN)]
    assert sizes.count(8) == 2
    assert sizes.count(1) == 2 * AGAIN - 2
    for _ in range(40):
        times.observe(8, 8_000_000)
    assert times.fewer(8) == 8


def test_new_sizes_are_tried_until_their_first_runs_have_had_their_part_of_the_time() -> None:
    times = measured(r4=400, r8=800)
    assert times.fewer(6) == 6  # first runs have cost nothing so far
    dear = RunTimes()
    for size in (4, 8):
        dear.observe(size, 50_000_000)
        dear.observe(size, 1_000_000)
    assert dear.fewer(6) == 4
    assert dear.fewer(3) == 3  # nothing known lies near
    for _ in range(3000):
        dear.observe(8, 1_000_000)
    assert dear.fewer(6) == 6


def test_a_batcher_leaves_rows_for_the_next_run_where_that_is_faster() -> None:
    async def go(loop: VirtualLoop) -> None:
        slow = {5: 9000}
        bench = Bench(loop, DynamicBatching(max_queue_delay_us=0), seconds=lambda n: slow.get(n, 500 + 100 * n) * US)
        for count in (1, 4, 5) * 3:
            await bench.ask(rows(count)).answer
        busy = bench.ask(rows(1))
        works = [bench.ask(rows(1, seed=n)) for n in range(5)]
        await asyncio.gather(busy.answer, *(w.answer for w in works))
        sizes = [(w.batch_rows, w.batch_closed) for w in works]
        assert (
            sizes == [(4, "better size")] * 4 + [(1, "instance free")]
            or sizes == [(1, "better size")] + [(4, "instance free")] * 4
        )

    run(go)


def test_a_wait_is_at_most_a_quarter_of_the_run() -> None:
    now = 10**9
    late = measured(r1=4000, r8=4000, r32=400_000)  # long windows are counted for the sake of 32 rows
    for _ in range(40):
        late.decided(now)
        late.arrived(7, now + 2_000_000)
        now += 10**8
    late.decided(now)
    assert late.wait_ns(1, 0, 8) == 0  # they come too late for one row
    soon = measured(r1=4000, r8=4000)
    for _ in range(40):
        soon.decided(now)
        soon.arrived(7, now + 150_000)
        now += 10**8
    soon.decided(now)
    assert soon.wait_ns(1, 0, 8) == 200_000
    assert soon.wait_ns(8, 7, 8) == 0  # all that were expected have come


def model(instances: int, threads: int = 0) -> ModelConfig:
    return ModelConfig("m", (), (), instances=instances, threads=threads)


@pytest.mark.parametrize(
    ("instances", "own", "server", "threads", "goal"),
    [
        (1, 0, 8, 8, "latency"),
        (2, 0, 8, 4, "throughput"),
        (3, 0, 8, 2, "throughput"),
        (16, 0, 8, 1, "throughput"),
        (2, 1, 8, 1, "throughput"),
        (2, 7, 8, 4, "throughput"),
        (1, 3, 8, 3, "latency"),
    ],
)
def test_all_runs_of_a_model_stay_within_the_budget(
    instances: int, own: int, server: int, threads: int, goal: str
) -> None:
    budget = run_budget(model(instances, own), server)
    assert (budget.threads, budget.goal) == (threads, goal)
