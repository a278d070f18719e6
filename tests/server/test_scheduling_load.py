"""Scheduling under load: levels that others crowd out, delays that follow the load, and runs that are ended."""

from __future__ import annotations

import asyncio
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.server.virtual_time import US, Bench, VirtualLoop, rows, run
from whet.server.errors import DeadlineExceeded
from whet.server.model_config import DynamicBatching, QueuePolicy

if TYPE_CHECKING:
    from tests.server.options_server import OptionsServer

LEARNED = DynamicBatching(max_queue_delay_us=None)


def two_levels(load: float, low_timeout_us: int = 0) -> tuple[list[float], list[str]]:
    """High requests come at `load` times what one instance can run, low ones now and then.

    Returns how long each low one took (us), and how each ended.
    """
    policy = QueuePolicy(default_timeout_us=low_timeout_us)
    batching = DynamicBatching(
        max_queue_delay_us=0, priority_levels=2, default_priority_level=2, priority_queue_policy={2: policy}
    )
    took: list[float] = []
    ends: list[str] = []

    async def low(bench: Bench, loop: VirtualLoop) -> None:
        began = loop.now
        try:
            await bench.ask(rows(1), priority=2).answer
            ends.append("answered")
        except DeadlineExceeded:
            ends.append("too late")
        took.append(round((loop.now - began) / US, 3))

    async def go(loop: VirtualLoop) -> None:
        # A run takes 1 ms, and takes one request.
        bench = Bench(loop, batching, max_rows=1)
        tasks = []
        works = []
        for turn in range(600):
            works.append(bench.ask(rows(1), priority=1))
            if turn % 40 == 0:
                tasks.append(asyncio.ensure_future(low(bench, loop)))
            await asyncio.sleep(1000 * US / load)
        await asyncio.gather(*tasks, *(w.answer for w in works))

    run(go)
    return took, ends


def test_a_low_level_is_served_as_long_as_there_is_room() -> None:
    took, ends = two_levels(0.8)
    assert ends == ["answered"] * 15
    # The high level leaves every fifth millisecond.
    assert max(took) <= 7000


def test_a_low_level_that_is_crowded_out_ends_when_its_policy_says() -> None:
    took, ends = two_levels(1.3, low_timeout_us=20_000)
    assert "too late" in ends
    assert all(t == pytest.approx(20_000, abs=0.01) for t, end in zip(took, ends, strict=True) if end == "too late")
    assert max(took) <= 21_000


def test_requests_of_a_low_level_ride_along_where_batches_have_room() -> None:
    async def go(loop: VirtualLoop) -> None:
        batching = DynamicBatching(max_queue_delay_us=0, priority_levels=2, default_priority_level=2)
        bench = Bench(loop, batching, max_rows=4)
        busy = bench.ask(rows(1))
        low = [bench.ask(rows(1, seed=n), priority=2) for n in range(3)]
        high = [bench.ask(rows(1, seed=n), priority=1) for n in range(3)]
        await asyncio.gather(busy.answer, *(w.answer for w in low + high))
        assert bench.batches == [(1, "instance free"), (4, "full"), (2, "instance free")]
        assert [w.batch_rows for w in high] == [4, 4, 4]
        assert [w.batch_rows for w in low] == [4, 2, 2]

    run(go)


def test_the_learned_delay_follows_the_load() -> None:
    """Many clients, then one: a few requests later that one waits no longer; and many again wait for each other."""
    seconds = 4000 * US

    async def client(bench: Bench, index: int, count: int) -> None:
        for _ in range(count):
            await bench.ask(rows(1, seed=index)).answer
            await asyncio.sleep((20 + 7 * index) * US)

    async def go(loop: VirtualLoop) -> None:
        bench = Bench(loop, LEARNED, seconds=lambda _: seconds)
        for _ in range(2):
            await asyncio.gather(*(client(bench, n, 100) for n in range(8)))
            crowded = [c for _, c in bench.batches[-20:]]
            assert {"learned delay", "full"} & set(crowded), crowded
            at = len(bench.batches)
            began = loop.now
            await client(bench, 0, 200)
            alone = [c for _, c in bench.batches[at:]]
            assert alone.count("learned delay") <= 40
            assert set(alone[60:]) == {"instance free"}
            # Over all 200, what was waited is less than a twentieth of the time.
            assert loop.now - began <= 1.05 * 200 * (seconds + 20 * US)

    run(go)


def message_of(x: Any, model: str, name: str, kind: str, **fields: Any) -> Any:
    from whet.server.protocol.messages import message

    request = message("inference.ModelInferRequest")(model_name=model, raw_input_contents=[x.tobytes()], **fields)
    request.inputs.add(name=name, datatype=kind, shape=x.shape)
    return request


def test_runs_end_with_their_requests_under_load(grpc_server: OptionsServer) -> None:
    """Good requests go on while runs are cancelled and pass their time; each gets its own answer."""
    grpc = pytest.importorskip("grpc")
    from whet.server.protocol.messages import message

    request, response = message("inference.ModelInferRequest"), message("inference.ModelInferResponse")
    path = "/inference.GRPCInferenceService/ModelInfer"
    endless = np.int64([1 << 40])

    def good(seed: int) -> int:
        rng = np.random.default_rng(seed)
        with grpc.insecure_channel(grpc_server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = channel.unary_unary(path, request.SerializeToString, response.FromString)
            for _ in range(60):
                x = rng.standard_normal((int(rng.integers(1, 5)), 4), np.float32)
                answer = infer(message_of(x, "scale", "x", "FP32"), timeout=30)
                np.testing.assert_array_equal(
                    np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(x.shape), 2 * x + 1
                )
        return 60

    def bad(seed: int) -> list[str]:
        codes = []
        with grpc.insecure_channel(grpc_server.grpc, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            infer = channel.unary_unary(path, request.SerializeToString, response.FromString)
            for turn in range(6):
                asked = message_of(endless, "slow", "steps", "INT64")
                if (seed + turn) % 3 == 0:
                    asked.parameters["timeout"].int64_param = 30_000
                    call = infer.future(asked, timeout=30)
                elif (seed + turn) % 3 == 1:
                    call = infer.future(asked, timeout=0.03)
                else:
                    call = infer.future(asked, timeout=30)
                    # Answered only when the server has taken what came before it.
                    channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=30)
                    call.cancel()
                codes.append(call.code().name)
        return codes

    with ThreadPoolExecutor(8) as pool:
        goods = [pool.submit(good, n) for n in range(4)]
        bads = [pool.submit(bad, n) for n in range(4)]
        assert sum(g.result() for g in goods) == 240
        codes = [c for b in bads for c in b.result()]
    assert codes.count("DEADLINE_EXCEEDED") == 16, codes
    assert codes.count("CANCELLED") == 8, codes
    with grpc.insecure_channel(grpc_server.grpc) as channel:
        infer = channel.unary_unary(path, request.SerializeToString, response.FromString)
        answer = infer(message_of(np.int64([9]), "slow", "steps", "INT64"), timeout=20)
    assert answer.raw_output_contents[0] == struct.pack("<q", 9)
