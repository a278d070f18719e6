"""Ensembles: models in a row and side by side, in process; what is refused when one is loaded; errors, time, copies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx import helper as oh

from tests.server.sequence_models import floats, save
from whet.errors import InvalidArgument
from whet.server.auto_config import model_config
from whet.server.data_plane import DataPlane
from whet.server.datatypes import BY_NAME
from whet.server.errors import DeadlineExceeded, ModelUnavailable, ShuttingDown
from whet.server.model import ServedModel
from whet.server.model_config import EnsembleStep, ModelConfig, TensorConfig
from whet.server.request import Array, InferRequest, InferResponse, InputTensor, RequestedOutput
from whet.server.scheduling.batcher import REASONS
from whet.server.scheduling.ensemble import EnsembleScheduler
from whet.session.inference_session import InferenceSession

FP32 = BY_NAME["FP32"]


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, InferenceSession]:
    """double: y = 2x; add: c = a + b; square: y = x * x. Rows of three."""
    folder = tmp_path_factory.mktemp("ensemble")
    two = [oh.make_tensor("two", TensorProto.FLOAT, [], [2.0])]
    x, y = floats("x", "n", 3), floats("y", "n", 3)
    save(folder / "double.onnx", [oh.make_node("Mul", ["x", "two"], ["y"])], [x], [y], two)
    save(folder / "square.onnx", [oh.make_node("Mul", ["x", "x"], ["y"])], [x], [y])
    save(
        folder / "add.onnx", [oh.make_node("Add", ["a", "b"], ["c"])], [floats("a", "n", 3), floats("b", "n", 3)],
        [floats("c", "n", 3)],
    )  # fmt: skip
    return {n: InferenceSession(str(folder / f"{n}.onnx")) for n in ("double", "add", "square")}


def tensor(name: str, dims: tuple[int, ...] = (3,), kind: str = "FP32") -> TensorConfig:
    return TensorConfig(name, BY_NAME[kind], dims)


def ensemble(*steps: tuple[str, dict[str, str], dict[str, str]], out: str = "out", **changes: Any) -> ModelConfig:
    config = ModelConfig(
        "pipeline", (tensor("in"),), (tensor(out),), max_batch_rows=8, platform="ensemble", backend="",
        ensemble=tuple(EnsembleStep(model, "", given, made) for model, given, made in steps),
    )  # fmt: skip
    return replace(config, **changes)


DIAMOND = ensemble(
    ("add", {"a": "twice", "b": "squared"}, {"c": "out"}),
    ("double", {"x": "in"}, {"y": "twice"}),
    ("square", {"x": "in"}, {"y": "squared"}),
)
"""out = 2 in + in², with the last step listed first."""

CHAIN = ensemble(
    ("double", {"x": "in"}, {"y": "a"}), ("square", {"x": "a"}, {"y": "b"}), ("double", {"x": "b"}, {"y": "out"})
)


async def members(sessions: dict[str, InferenceSession]) -> DataPlane:
    plane = DataPlane()
    for name, session in sessions.items():
        plane.publish(ServedModel(model_config(name, session.get_inputs(), session.get_outputs()), "1", session))
    return plane


def serve(
    config: ModelConfig, sessions: dict[str, InferenceSession],
    use: Callable[[ServedModel, DataPlane], Coroutine[Any, Any, None]],
) -> None:  # fmt: skip
    async def go() -> None:
        plane = await members(sessions)
        plane.publish(ServedModel(config, "1", None, None, plane.model))
        await use(plane.model("pipeline"), plane)
        for versions in list(plane.models.values()):
            for model in list(versions.values()):
                await model.close()

    asyncio.run(go())


async def nothing(model: ServedModel, plane: DataPlane) -> None:
    pass


def request(x: Array, **more: Any) -> InferRequest:
    return InferRequest("pipeline", [InputTensor("in", FP32, x)], received_ns=time.monotonic_ns(), **more)


def values(seed: int, count: int = 2) -> Array:
    return np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)


def test_steps_that_do_not_wait_for_each_other_run_in_any_order(sessions: dict[str, InferenceSession]) -> None:
    async def use(model: ServedModel, plane: DataPlane) -> None:
        given = [values(seed, 1 + seed % 3) for seed in range(40)]
        answers = await asyncio.gather(*(plane.infer(request(x)) for x in given))
        for x, answer in zip(given, answers, strict=True):
            np.testing.assert_allclose(answer.outputs[0].array, 2 * x + x * x, rtol=1e-6)
        # The ensemble and each of its models count every request.
        for name in ("pipeline", "double", "add", "square"):
            stats = plane.model(name).stats
            assert stats.success.count == 40
            assert stats.inference_count == sum(len(x) for x in given)
        assert plane.model("pipeline").stats.closed == {"ensemble": 40}
        assert all(answer.batch_closed in REASONS for answer in answers)
        assert model.in_flight == model.running == 0

    serve(DIAMOND, sessions, use)


def test_a_chain_is_seen_as_one(sessions: dict[str, InferenceSession]) -> None:
    async def use(model: ServedModel, plane: DataPlane) -> None:
        assert isinstance(model.scheduler, EnsembleScheduler)
        assert model.scheduler.plan.is_chain
        x = values(1)
        answer = await plane.infer(request(x))
        np.testing.assert_allclose(answer.outputs[0].array, 2 * (2 * x) ** 2, rtol=1e-6)

    serve(CHAIN, sessions, use)


def test_several_outputs_and_the_ones_asked_for(sessions: dict[str, InferenceSession]) -> None:
    config = replace(DIAMOND, outputs=(tensor("out"), tensor("squared")))

    async def use(model: ServedModel, plane: DataPlane) -> None:
        x = values(2)
        answer = await plane.infer(request(x, outputs=(RequestedOutput("squared"), RequestedOutput("out"))))
        assert [o.name for o in answer.outputs] == ["squared", "out"]
        np.testing.assert_allclose(answer.outputs[0].array, x * x, rtol=1e-6)
        np.testing.assert_allclose(answer.outputs[1].array, 2 * x + x * x, rtol=1e-6)

    serve(config, sessions, use)


class Recorder:
    """A member that keeps what it was given and answers what it is told to."""

    def __init__(
        self, config: ModelConfig, answer: Callable[[InferRequest], Coroutine[Any, Any, InferResponse]]
    ) -> None:
        self.config = config
        self.requests: list[InferRequest] = []
        self._answer = answer

    async def infer(self, request: InferRequest) -> InferResponse:
        self.requests.append(request)
        return await self._answer(request)


def test_tensors_are_handed_on_without_copies_and_a_request_takes_its_fields_along(
    sessions: dict[str, InferenceSession],
) -> None:
    async def go() -> None:
        plane = await members(sessions)
        made: list[Array] = []

        def member(name: str) -> Recorder:
            served = plane.model(name)

            async def answer(request: InferRequest) -> InferResponse:
                response = await served.infer(request)
                made.append(response.outputs[0].array)
                return response

            return Recorder(served.config, answer)

        recorders = {name: member(name) for name in ("double", "square")}
        model = ServedModel(CHAIN, "1", None, None, lambda name, version: recorders[name])
        x = values(3)
        end = time.monotonic_ns() + 10**10
        await model.infer(request(x, deadline_ns=end, priority=2, parameters={"custom": 7}, id="abc"))
        first, last = recorders["double"].requests
        (middle,) = recorders["square"].requests
        assert np.shares_memory(first.inputs[0].array, x)
        assert middle.inputs[0].array is made[0]
        assert last.inputs[0].array is made[1]
        for inner in (first, middle, last):
            assert (inner.deadline_ns, inner.priority, inner.parameters, inner.id) == (end, 2, {"custom": 7}, "abc")

    asyncio.run(go())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ensemble(("dobule", {"x": "in"}, {"y": "out"})), r"step 1 \('dobule'\): the model does not serve.*'double'"),
        (ensemble(("double", {"z": "in"}, {"y": "out"})), r"step 1 \('double'\): .*no such input.*value: z"),
        (ensemble(("double", {"x": "in"}, {"w": "out"})), "no such output; value: w"),
        (ensemble(("add", {"a": "in"}, {"c": "out"})), "nothing goes into an input; value: b"),
        (ensemble(("double", {"x": "inn"}, {"y": "out"})), "nothing gives this tensor; value: inn.*'in'"),
        (ensemble(("double", {"x": "in"}, {"y": "other"})), "no step gives this output; value: out"),
        (ensemble(("double", {"x": "in"}, {"y": "in"})), "has a source already.*an input of the ensemble"),
        (
            ensemble(("double", {"x": "in"}, {"y": "out"}), ("square", {"x": "in"}, {"y": "out"})),
            r"step 2 \('square'\): the tensor has a source already; value: out; found: .*step 1",
        ),
        (
            ensemble(
                ("add", {"a": "in", "b": "back"}, {"c": "out"}), ("double", {"x": "out"}, {"y": "back"})
            ),
            r"in a circle; found: 1 \('add'\), 2 \('double'\)",
        ),
        (ensemble(("pipeline", {"in": "in"}, {"out": "out"})), "the ensemble holds itself"),
        (
            ensemble(("double", {"x": "in"}, {"y": "out"}), inputs=(tensor("in", (4,)),)),
            r"step 1 .*shape does not fit; value: x; found: \[-1, 4\] from the ensemble's input; expected: \[-1, 3\]",
        ),
        (
            ensemble(("double", {"x": "in"}, {"y": "out"}), inputs=(tensor("in", kind="INT64"),)),
            "type does not fit; value: x; found: INT64 from the ensemble's input; expected: FP32",
        ),
        (
            ensemble(("double", {"x": "in"}, {"y": "out"}), outputs=(tensor("out", kind="FP64"),)),
            r"found: FP32 from output 'y' of 'double'; expected: FP64",
        ),
        (ensemble(("double", {"x": "in"}, {"y": "out"}), max_batch_rows=64), "smaller batches than the ensemble"),
        (ensemble(("double", {"x": "in"}, {"y": "out"}), outputs=()), "does not list its inputs and outputs"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_at_load(
    sessions: dict[str, InferenceSession], config: ModelConfig, message: str
) -> None:
    with pytest.raises((InvalidArgument, ModelUnavailable), match=message):
        serve(config, sessions, nothing)


def test_a_step_that_fails_is_named_and_those_beside_it_are_cancelled(sessions: dict[str, InferenceSession]) -> None:
    async def go() -> None:
        plane = await members(sessions)
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def hang(request: InferRequest) -> InferResponse:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            raise AssertionError

        async def fail(request: InferRequest) -> InferResponse:
            await started.wait()
            raise InvalidArgument("no luck", value="x", found=1)

        others = {"double": Recorder(plane.model("double").config, hang)}
        others["square"] = Recorder(plane.model("square").config, fail)
        model = ServedModel(DIAMOND, "1", None, None, lambda n, v: others.get(n) or plane.model(n, v))
        with pytest.raises(InvalidArgument, match=r"step 3 \('square'\): no luck; value: x; found: 1") as caught:
            await model.infer(request(values(4)))
        assert caught.value.problem == "ensemble 'pipeline', step 3 ('square'): no luck"
        assert cancelled.is_set()
        assert model.stats.failures == {"OTHER": 1}
        assert plane.model("add").stats.success.count == 0

    asyncio.run(go())


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_time_and_cancellation_reach_the_steps(sessions: dict[str, InferenceSession], how: str) -> None:
    async def go() -> None:
        plane = await members(sessions)
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def hang(request: InferRequest) -> InferResponse:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
            raise AssertionError

        other = Recorder(plane.model("square").config, hang)
        model = ServedModel(CHAIN, "1", None, None, lambda n, v: other if n == "square" else plane.model(n, v))
        end = time.monotonic_ns() + 50_000_000 if how == "deadline" else 0
        task = asyncio.create_task(model.infer(request(values(5), deadline_ns=end)))
        await started.wait()
        if how == "cancel":
            task.cancel()
        with pytest.raises(asyncio.CancelledError if how == "cancel" else DeadlineExceeded):
            await task
        await asyncio.wait_for(cancelled.wait(), 5)
        await model.close()
        assert model.stats.failures == {"CANCELED" if how == "cancel" else "REJECTED": 1}

    asyncio.run(go())


def test_draining_waits_for_requests_that_run(sessions: dict[str, InferenceSession]) -> None:
    async def use(model: ServedModel, plane: DataPlane) -> None:
        x = values(6)
        tasks = [asyncio.create_task(model.infer(request(x))) for _ in range(5)]
        await asyncio.sleep(0)
        await model.close()
        for task in tasks:
            np.testing.assert_allclose((await task).outputs[0].array, 2 * x + x * x, rtol=1e-6)
        with pytest.raises(ShuttingDown):
            await model.infer(request(x))

    serve(DIAMOND, sessions, use)


def test_a_model_that_was_unloaded_is_named(sessions: dict[str, InferenceSession]) -> None:
    async def use(model: ServedModel, plane: DataPlane) -> None:
        gone = plane.withdraw("square", "1")
        assert gone is not None
        await gone.close()
        with pytest.raises(ModelUnavailable, match=r"step 2 \('square'\): the model does not serve"):
            await plane.infer(request(values(7)))

    serve(CHAIN, sessions, use)


def test_an_ensemble_in_an_ensemble(sessions: dict[str, InferenceSession]) -> None:
    async def use(model: ServedModel, plane: DataPlane) -> None:
        outer = replace(ensemble(("pipeline", {"in": "in"}, {"out": "mid"}), ("double", {"x": "mid"}, {"y": "out"})),
                        name="outer")  # fmt: skip
        plane.publish(ServedModel(outer, "1", None, None, plane.model))
        x = values(8)
        answer = await plane.infer(replace(request(x), model="outer"))
        np.testing.assert_allclose(answer.outputs[0].array, 4 * (2 * x) ** 2, rtol=1e-6)
        # Loaded anew, the inner one may not hold the outer one.
        circle = ensemble(("outer", {"in": "in"}, {"out": "out"}))
        with pytest.raises(InvalidArgument, match="holds itself, through this model"):
            ServedModel(circle, "2", None, None, plane.model)

    serve(CHAIN, sessions, use)
