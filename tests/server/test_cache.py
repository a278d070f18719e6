"""The response cache: what is the same question, what is kept, and what is counted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper as oh

from tests.server.sequence_models import floats, save
from whet.server.auto_config import model_config
from whet.server.datatypes import BY_NAME
from whet.server.errors import Unsupported
from whet.server.model import ServedModel
from whet.server.model_config import ModelConfig, SequenceBatching
from whet.server.request import Array, InferRequest, InputTensor, RequestedOutput
from whet.server.scheduling import cache
from whet.server.scheduling.cache import ENTRY_BYTES, ResponseCache, request_key
from whet.server.scheduling.choose import Shared
from whet.session.inference_session import InferenceSession


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> InferenceSession:
    path = tmp_path_factory.mktemp("cache") / "both.onnx"
    nodes = [oh.make_node("Add", ["a", "b"], ["sum"]), oh.make_node("Sub", ["a", "b"], ["difference"])]
    save(path, nodes, [floats("a", "n", 4), floats("b", "n", 4)], [floats("sum", "n", 4), floats("difference", "n", 4)])
    return InferenceSession(str(path))


def config_of(session: InferenceSession, cached: bool = True) -> ModelConfig:
    return replace(model_config("both", session.get_inputs(), session.get_outputs()), response_cache=cached)


def request(a: Array, b: Array, outputs: tuple[str, ...] = (), swap: bool = False, **more: Any) -> InferRequest:
    inputs = [InputTensor("a", BY_NAME["FP32"], a), InputTensor("b", BY_NAME["FP32"], b)]
    return InferRequest(
        "both", inputs[::-1] if swap else inputs, outputs=tuple(map(RequestedOutput, outputs)), **more
    )  # fmt: skip


def values(seed: int, count: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def serve(
    config: ModelConfig, session: InferenceSession, shared: Shared,
    use: Callable[[ServedModel], Coroutine[Any, Any, None]],
) -> None:  # fmt: skip
    async def go() -> None:
        model = ServedModel(config, "1", session, shared)
        await use(model)
        await model.close()

    asyncio.run(go())


def test_the_second_answer_is_the_first_and_runs_nothing(session: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        a, b = values(1), values(2)
        first = await model.infer(request(a, b, id="one"))
        again = await model.infer(request(a.copy(), b.copy(), id="two", swap=True, parameters={"x": 1}, priority=3))
        assert (first.from_cache, again.from_cache) == (False, True)
        assert again.id == "two"
        for one, other in zip(first.outputs, again.outputs, strict=True):
            assert one.name == other.name
            np.testing.assert_array_equal(one.array, other.array)
        np.testing.assert_array_equal(again.outputs[0].array, a + b)
        stats = model.stats
        assert (stats.cache_hit.count, stats.cache_miss.count) == (1, 1)
        assert (stats.success.count, stats.inference_count, stats.execution_count) == (2, 1, 1)

    serve(config_of(session), session, Shared(cache=ResponseCache(1 << 20)), use)


def test_whatever_differs_is_another_question(session: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        a, b = values(1, 2), values(2, 2)
        asked = [
            request(a, b), request(b, a), request(a[:1], b[:1]), request(a + 1, b), request(a, b, ("sum",)),
            request(a, b, ("difference", "sum")), request(-0.0 * a, b), request(0.0 * a, b),
        ]  # fmt: skip
        for _ in range(2):
            for index, one in enumerate(asked):
                response = await model.infer(one)
                x, y = (t.array for t in one.inputs)
                known = {"sum": x + y, "difference": x - y}
                names = [o.name for o in one.outputs] or ["sum", "difference"]
                assert [o.name for o in response.outputs] == names, index
                for output in response.outputs:
                    np.testing.assert_array_equal(output.array, known[output.name])
        assert (model.stats.cache_miss.count, model.stats.cache_hit.count) == (len(asked), len(asked))

    serve(config_of(session), session, Shared(cache=ResponseCache(1 << 20)), use)


def test_strings_are_told_apart_by_their_borders() -> None:
    def key(*texts: bytes) -> bytes:
        array = np.empty(2, object)
        array[:] = texts
        return request_key(b"", InferRequest("m", [InputTensor("t", BY_NAME["BYTES"], array)]), ("y",))

    assert key(b"ab", b"c") != key(b"a", b"bc")
    assert key(b"ab", b"c") == key(b"ab", b"c")


def test_shapes_are_told_apart_where_bytes_are_equal() -> None:
    def key(*shape: int) -> bytes:
        array = np.arange(8, dtype=np.float32).reshape(shape)
        return request_key(b"", InferRequest("m", [InputTensor("t", BY_NAME["FP32"], array)]), ("y",))

    assert len({key(8), key(2, 4), key(4, 2), key(1, 8), key(8, 1)}) == 5


def test_a_model_loaded_anew_finds_nothing_of_the_old_one(session: InferenceSession) -> None:
    shared = Shared(cache=ResponseCache(1 << 20))
    hits: list[int] = []

    async def use(model: ServedModel) -> None:
        await model.infer(request(values(1), values(2)))
        hits.append(model.stats.cache_hit.count)

    serve(config_of(session), session, shared, use)
    serve(config_of(session), session, shared, use)
    assert hits == [0, 0]


@pytest.mark.parametrize("cached", [False, True])
def test_it_is_off_without_a_cache_or_without_the_models_wish(session: InferenceSession, cached: bool) -> None:
    async def use(model: ServedModel) -> None:
        for _ in range(2):
            assert not (await model.infer(request(values(1), values(2)))).from_cache
        assert model.stats.cache_miss.count == 0
        assert model.stats.execution_count == 2

    serve(config_of(session, cached), session, Shared(cache=None if cached else ResponseCache(1 << 20)), use)


def test_the_least_recently_used_leave_first_and_bytes_are_counted() -> None:
    entry = ENTRY_BYTES + 400
    cache = ResponseCache(3 * entry)
    for name in (b"a", b"b", b"c"):
        cache.put(name, [np.full(100, name[0], np.float32)])
    assert cache.get(b"a") is not None
    cache.put(b"d", [np.zeros(100, np.float32)])
    assert [cache.get(n) is not None for n in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert (len(cache), cache.used_bytes, cache.evicted) == (3, 3 * entry, 1)
    cache.put(b"large", [np.zeros(10_000, np.float32)])
    assert cache.get(b"large") is None
    assert cache.used_bytes == 3 * entry
    cache.put(b"a", [np.zeros(50, np.float32)])
    assert cache.used_bytes == 3 * entry - 200


def test_what_is_kept_is_no_view_and_cannot_be_changed() -> None:
    batch = np.arange(1000, dtype=np.float32).reshape(100, 10)
    cache = ResponseCache(10_000)
    cache.put(b"k", [batch[3:4]])
    batch[:] = -1
    found = cache.get(b"k")
    assert found is not None
    assert found[0].base is None
    np.testing.assert_array_equal(found[0], np.arange(30, 40, dtype=np.float32)[None])
    with pytest.raises(ValueError, match="read-only"):
        found[0][0, 0] = 1


def test_requests_of_many_clients_at_once(session: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        random = np.random.default_rng(5)
        questions = [(values(n), values(100 + n)) for n in range(10)]

        async def client() -> None:
            for number in random.integers(0, 10, 30):
                a, b = questions[number]
                response = await model.infer(request(a, b))
                np.testing.assert_array_equal(response.outputs[0].array, a + b)

        await asyncio.gather(*(client() for _ in range(8)))
        assert model.stats.cache_hit.count + model.stats.cache_miss.count == 240
        assert model.stats.cache_hit.count >= 150

    serve(config_of(session), session, Shared(cache=ResponseCache(1 << 20)), use)


def test_large_inputs_are_digested_beside_the_loop(session: InferenceSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on meanwhile; a model that is taken out in that time still answers; a client may leave."""
    monkeypatch.setattr(cache, "LARGE_BYTES", 16)
    entered, go_on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []

    def slowly(generation: bytes, asked: InferRequest, names: Sequence[str]) -> bytes:
        threads.append(threading.current_thread())
        entered.set()
        assert go_on.wait(20)
        return request_key(generation, asked, names)

    monkeypatch.setattr(cache, "request_key", slowly)

    async def go() -> None:
        model = ServedModel(config_of(session), "1", session, Shared(cache=ResponseCache(1 << 20)))
        a, b = values(1), values(2)
        answer = asyncio.ensure_future(model.infer(request(a, b)))
        leaves = asyncio.ensure_future(model.infer(request(b, a)))
        while not entered.is_set():
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(model.close())
        leaves.cancel()
        await asyncio.sleep(0.02)
        assert not closing.done()
        go_on.set()
        np.testing.assert_array_equal((await answer).outputs[0].array, a + b)
        with pytest.raises(asyncio.CancelledError):
            await leaves
        await closing
        assert model.stats.failures == {"CANCELED": 1}
        assert threading.main_thread() not in threads

    asyncio.run(go())


def test_sequences_have_none(session: InferenceSession, tmp_path: Path) -> None:
    config = replace(config_of(session), sequence_batching=SequenceBatching())

    async def use(model: ServedModel) -> None:
        raise AssertionError("the model must not be served")

    with pytest.raises(Unsupported, match="response_cache"):
        serve(config, session, Shared(cache=ResponseCache(1000)), use)
