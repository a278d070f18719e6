"""Sequences: order, slots, controls, state, and what is refused; with a real model, in process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.sequence_models import save_running_sum, sequence_config
from whet.errors import InvalidArgument, NoSuchFile
from whet.server.datatypes import BY_NAME
from whet.server.errors import DeadlineExceeded, ShuttingDown
from whet.server.model import ServedModel
from whet.server.model_config import ControlInput, ModelConfig, SequenceBatching
from whet.server.repository.complete import complete
from whet.server.repository.config_file import parse_config, to_model_config
from whet.server.request import Array, InferRequest, InputTensor
from whet.server.scheduling.sequence import SequenceScheduler
from whet.session.inference_session import InferenceSession


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> InferenceSession:
    path = tmp_path_factory.mktemp("sequence") / "sum.onnx"
    save_running_sum(path)
    return InferenceSession(str(path))


@pytest.fixture(scope="module")
def unbatched(tmp_path_factory: pytest.TempPathFactory) -> InferenceSession:
    path = tmp_path_factory.mktemp("sequence") / "sum.onnx"
    save_running_sum(path, None)
    return InferenceSession(str(path))


def config_of(session: InferenceSession, text: str, folder: Path = Path()) -> ModelConfig:
    config = to_model_config(parse_config(text, "config.pbtxt"), "sum", folder, "config.pbtxt")
    return complete(config, "sum", session.get_inputs(), session.get_outputs(), 32)


def changed(config: ModelConfig, **changes: Any) -> ModelConfig:
    assert config.sequence_batching is not None
    sequence: SequenceBatching = replace(config.sequence_batching, **changes)
    return replace(config, sequence_batching=sequence)


def request(
    x: Array, sequence: int | str, start: bool = False, end: bool = False, deadline_ns: int = 0
) -> InferRequest:  # fmt: skip
    return InferRequest(
        "sum", [InputTensor("x", BY_NAME["FP32"], x)], sequence_id=sequence, sequence_start=start, sequence_end=end,
        deadline_ns=deadline_ns,
    )  # fmt: skip


def serve(
    config: ModelConfig, session: InferenceSession, use: Callable[[ServedModel], Coroutine[Any, Any, None]]
) -> None:
    async def go() -> None:
        model = ServedModel(config, "1", session)
        try:
            await use(model)
        finally:
            await model.close()

    asyncio.run(go())


async def ask(model: ServedModel, x: Array, sequence: int | str, start: bool = False, end: bool = False) -> list[Array]:
    response = await model.infer(request(x, sequence, start, end))
    return [o.array for o in response.outputs]


def values(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("strategy", ["direct { }", "oldest { max_candidate_sequences: 4 }"])
def test_sequences_side_by_side_keep_their_own_sums_and_are_batched(batched: InferenceSession, strategy: str) -> None:
    async def use(model: ServedModel) -> None:
        async def sequence(number: int) -> None:
            steps = values(number, 12, 1, 2)
            total = np.zeros((1, 2), np.float32)
            for index, x in enumerate(steps):
                first, last = index == 0, index == len(steps) - 1
                y, flags, found = await ask(model, x, number, first, last)
                total = total + x
                np.testing.assert_array_equal(y, total)
                assert flags.tolist() == [[100.0 * first + 10.0 * last + 1]]
                assert found.tolist() == [[number]]

        # More sequences than slots: some wait for others to end.
        await asyncio.gather(*(sequence(1000 + n) for n in range(11)))
        assert model.stats.success.count == 11 * 12 == model.stats.inference_count
        assert max(model.stats.batches) > 1
        assert max(model.stats.batches) <= 4
        assert model.describe()["sequences"] == 0
        assert model.describe()["free_slots"] == 4

    serve(config_of(batched, sequence_config(4, strategy=strategy)), batched, use)


def test_requests_of_one_sequence_may_be_sent_without_waiting(batched: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        steps = values(1, 20, 1, 2)
        answers = await asyncio.gather(*(ask(model, x, 7, i == 0, i == 19) for i, x in enumerate(steps)))
        total = np.zeros((1, 2), np.float32)
        for x, (y, *_) in zip(steps, answers, strict=True):
            total = total + x
            np.testing.assert_array_equal(y, total)

    serve(config_of(batched, sequence_config()), batched, use)


def test_a_model_without_batches(unbatched: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        x = values(2, 2)
        assert (await ask(model, x, 1, start=True))[0].tolist() == x.tolist()
        # One slot: another sequence waits until the first has ended.
        other = asyncio.create_task(ask(model, x, 2, True, True))
        y, flags, _ = await ask(model, x, 1, end=True)
        assert y.tolist() == (x + x).tolist()
        assert flags.tolist() == [11.0]
        assert (await other)[1].tolist() == [111.0]

    serve(config_of(unbatched, sequence_config(0)), unbatched, use)


def test_a_sequence_keeps_its_slot(batched: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        scheduler = model.scheduler
        assert isinstance(scheduler, SequenceScheduler)
        x = values(3, 1, 2)
        for number in (11, 12):
            await ask(model, x, number, start=True)
        slots = [scheduler.slot(11), scheduler.slot(12)]
        assert slots == [0, 1]
        await ask(model, x, 12)
        await ask(model, x, 11)
        assert [scheduler.slot(11), scheduler.slot(12)] == slots
        waiting = asyncio.create_task(ask(model, x, 13, start=True))
        await asyncio.sleep(0)
        assert scheduler.slot(13) is None
        await ask(model, x, 12, end=True)
        await waiting
        assert scheduler.slot(13) == 1
        assert scheduler.slot(12) is None

    serve(config_of(batched, sequence_config(2)), batched, use)


def test_what_is_no_right_request_of_a_sequence_is_refused(batched: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        x = values(4, 1, 2)
        with pytest.raises(InvalidArgument, match="requests of sequences only"):
            await ask(model, x, 0)
        with pytest.raises(InvalidArgument, match=r"no sequence of this id goes on.*found: 5"):
            await ask(model, x, 5)
        await ask(model, x, 5, start=True)
        with pytest.raises(InvalidArgument, match=r"a sequence of this id goes on.*found: 5"):
            await ask(model, x, 5, start=True)
        with pytest.raises(InvalidArgument, match="one row; found: 2"):
            await ask(model, values(4, 2, 2), 5)
        with pytest.raises(InvalidArgument, match=r"cannot take this sequence id.*found: name; expected: INT64"):
            await ask(model, x, "name", start=True)
        with pytest.raises(InvalidArgument, match="cannot take this sequence id"):
            await ask(model, x, 1 << 63, start=True)
        # None of that has changed the state.
        assert (await ask(model, x, 5, end=True))[0].tolist() == (x + x).tolist()
        with pytest.raises(InvalidArgument, match="no sequence of this id"):
            await ask(model, x, 5, end=True)
        assert model.stats.failures == {"OTHER": 7}

    serve(config_of(batched, sequence_config()), batched, use)


def test_an_idle_sequence_makes_room(batched: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        x = values(5, 1, 2)
        await ask(model, x, 1, start=True)
        # The only slot becomes free when the first sequence has been idle for its time.
        async with asyncio.timeout(10):
            await ask(model, x, 2, start=True, end=True)
        with pytest.raises(InvalidArgument, match=r"idle for more than 0\.05 s"):
            await ask(model, x, 1)

    serve(config_of(batched, sequence_config(1, idle=50_000)), batched, use)


def test_a_request_that_is_too_late_or_cancelled_leaves_the_state(batched: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        x = values(6, 1, 2)
        await ask(model, x, 1, start=True)
        blocked = asyncio.create_task(model.infer(request(x, 2, True)))
        late = request(x, 2, deadline_ns=model.stats.success.ns or 1)
        with pytest.raises(DeadlineExceeded):
            await model.infer(late)
        await asyncio.sleep(0)
        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
        with pytest.raises(InvalidArgument, match="no sequence of this id"):
            await ask(model, x, 2)
        assert (await ask(model, x, 1, end=True))[0].tolist() == (x + x).tolist()
        assert model.in_flight == 0

    serve(config_of(batched, sequence_config(1)), batched, use)


def test_what_waits_behind_a_first_request_that_is_cancelled_fails(batched: InferenceSession) -> None:
    async def use(model: ServedModel) -> None:
        x = values(7, 1, 2)
        await ask(model, x, 1, start=True)
        first = asyncio.create_task(model.infer(request(x, 2, True)))
        second = asyncio.create_task(model.infer(request(x, 2)))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(InvalidArgument, match="the first request of the sequence failed"):
            await second
        assert model.describe()["sequences_waiting"] == 0
        await ask(model, x, 1, end=True)

    serve(config_of(batched, sequence_config(1)), batched, use)


def test_draining_answers_what_was_taken(batched: InferenceSession) -> None:
    async def go() -> None:
        model = ServedModel(config_of(batched, sequence_config(4)), "1", batched)
        x = values(8, 1, 2)
        tasks = [asyncio.create_task(model.infer(request(x, 1, n == 0))) for n in range(10)]
        await asyncio.sleep(0)
        await model.close()
        answers = [t.result().outputs[0].array for t in tasks]
        np.testing.assert_allclose(answers[-1], 10 * x, rtol=1e-5)
        with pytest.raises(ShuttingDown):
            await model.infer(request(x, 1))

    asyncio.run(go())


def test_a_first_state_from_a_file(batched: InferenceSession, tmp_path: Path) -> None:
    folder = tmp_path / "initial_state"
    folder.mkdir()
    first = np.array([3.0, -4.0], np.float32)
    (folder / "first").write_bytes(first.tobytes())
    initial = 'initial_state { name: "first" data_type: TYPE_FP32 dims: [ 2 ] data_file: "first" }'
    config = config_of(batched, sequence_config(initial=initial), tmp_path)

    async def use(model: ServedModel) -> None:
        x = values(9, 1, 2)
        for number in (1, 2):
            assert (await ask(model, x, number, True))[0].tolist() == (first + x).tolist()
            assert (await ask(model, x, number, end=True))[0].tolist() == (first + x + x).tolist()

    serve(config, batched, use)
    (folder / "first").write_bytes(b"123")
    with pytest.raises(InvalidArgument, match="found: 3 bytes; expected: 8 bytes"):
        serve(config, batched, use)
    (folder / "first").unlink()
    with pytest.raises(NoSuchFile, match="the first state cannot be read"):
        serve(config, batched, use)


def test_a_configuration_that_does_not_fit_the_model_is_refused(batched: InferenceSession) -> None:
    config = config_of(batched, sequence_config())
    assert config.sequence_batching is not None
    state = config.sequence_batching.states[0]

    async def use(model: ServedModel) -> None:
        raise AssertionError("the model must not be served")

    for changes, message in (
        ({"states": (replace(state, input="total_inn"),)}, "has no such input.*total_inn.*'total_in'"),
        ({"states": (replace(state, output="no"),)}, "has no such output"),
        ({"states": (replace(state, datatype=BY_NAME["FP64"]),)}, "found: TYPE_FP64; expected: TYPE_FP32"),
        ({"controls": (ControlInput("x", "START", BY_NAME["FP32"]),)}, "one element for each row"),
        ({"controls": (ControlInput("start", "CORRID", BY_NAME["FP32"]),)}, "whole number or a string"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            serve(changed(config, **changes), batched, use)
