"""Runs on the event loop: only for a client that is the only one, and only of models whose time follows from shapes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import onnx
import pytest
from onnx import TensorProto
from onnx import helper as oh

uvloop = pytest.importorskip("uvloop")

from tests.server.grpc_models import make_repository  # noqa: E402
from tests.server.http_lab import Client, Lab, lab, post  # noqa: E402
from tests.server.http_requests import infer_body  # noqa: E402
from whet import InferenceSession  # noqa: E402
from whet.server.access import Access  # noqa: E402
from whet.server.auto_config import model_config  # noqa: E402
from whet.server.data_plane import DataPlane  # noqa: E402
from whet.server.http.app import HttpApp  # noqa: E402
from whet.server.model import ServedModel  # noqa: E402
from whet.server.request import InferRequest  # noqa: E402
from whet.server.scheduling import instances, solo  # noqa: E402
from whet.server.scheduling.solo import AWAKE_NS, KNOWN, SHAPES, SHORT_NS, STREAK, Alertness, ShortRuns, Solo  # noqa: E402
from whet.server.scheduling.steady import why_unsteady  # noqa: E402

# The rules.


def streak(of: Solo, source: int | None, count: int) -> list[bool]:
    return [of.asked(source) for _ in range(count)]


def test_a_client_is_alone_after_a_streak() -> None:
    found = streak(Solo(), 7, STREAK + 3)
    assert found == [False] * (STREAK + 1) + [True] * 2


def test_one_request_of_another_ends_it() -> None:
    rule = Solo()
    for other in (8, None):
        assert streak(rule, 7, STREAK + 2)[-1]
        assert not rule.asked(other)
        assert not any(streak(rule, 7, STREAK + 1))


def test_clients_that_take_turns_are_never_alone() -> None:
    rule = Solo()
    assert not any(rule.asked(n % 2) for n in range(10 * STREAK))
    assert not any(streak(rule, None, 10 * STREAK))


def test_nobody_is_alone_while_threads_answer() -> None:
    rule = Solo()
    streak(rule, 7, STREAK + 1)
    rule.in_flight += 1
    assert not rule.asked(7)
    rule.in_flight -= 1
    assert rule.asked(7)


def test_shapes_are_known_after_some_short_runs_and_until_a_long_one() -> None:
    runs = ShortRuns()
    for _ in range(KNOWN):
        assert not runs.knows("a")
        runs.observe("a", SHORT_NS)
    assert runs.knows("a")
    assert not runs.knows("b")
    runs.observe("a", SHORT_NS + 1)
    assert not runs.knows("a")
    for n in range(10 * SHAPES):
        runs.observe(n, 1)
    assert len(runs._runs) <= SHAPES


# Models.

F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741
X, K1, K4 = ("x", F, ["n", 4]), ("k", I, [1]), ("k", I, [4])
SCALAR, IMAGE = ("k", I, []), ("x", F, ["n", 3, 8, 8])

Model = tuple[Sequence[onnx.NodeProto], Sequence[tuple[str, int, Sequence[int | str | None]]]]


def node(kind: str, *inputs: str, out: str = "y", **attributes: object) -> onnx.NodeProto:
    return oh.make_node(kind, list(inputs), [out], **attributes)


def branch(kind: str) -> onnx.GraphProto:
    out = f"{kind}_y"
    return oh.make_graph([oh.make_node(kind, ["x"], [out])], kind, [], [oh.make_empty_tensor_value_info(out)])


STEADY: dict[str, Model] = {
    "arithmetic": ([node("Mul", "x", "x", out="t"), node("Add", "t", "x")], [X]),
    "no names of extents": ([node("Softmax", "x")], [("x", F, [None, 4])]),
    "a shape of its own": (
        [node("Shape", "x", out="s"), node("ConstantOfShape", "s", out="c"), node("Add", "x", "c")], [X],
    ),
    "a shape without names": (
        [node("Shape", "x", out="s"), node("ConstantOfShape", "s", out="c"), node("Add", "x", "c")],
        [("x", F, [None, None])],
    ),
    "a shape computed": (
        [node("Shape", "x", out="s", start=0, end=1), node("Concat", "s", "two", "two", out="t", axis=0),
         node("Reshape", "x", "t", out="r"), node("Relu", "r")], [X],
    ),
    "indices": ([node("Gather", "table", "k")], [("k", I, ["n", 9])]),
    "a mask": ([node("Cast", "k", out="f", to=F), node("Mul", "f", "x")], [X, ("k", I, ["n", 1])]),
    "sizes in the model": ([node("Tile", "x", "twos")], [X]),
    "a resize by constants": ([node("Resize", "x", "", "", "sizes")], [("x", F, [1, 3, 8, 8])]),
}  # fmt: skip

UNSTEADY: dict[str, Model] = {
    "Expand": ([node("Expand", "x", "k")], [("x", F, [1]), K1]),
    "Tile": ([node("Tile", "x", "k")], [("x", F, [1]), K1]),
    "Range": ([node("Range", "zero", "k", "one", out="t"), node("ReduceSum", "t")], [SCALAR]),
    "ConstantOfShape": ([node("ConstantOfShape", "k", out="t"), node("ReduceSum", "t")], [K1]),
    "a size that is computed": (
        [node("Mul", "k", "k", out="k2"), node("ConstantOfShape", "k2", out="t"), node("ReduceSum", "t")], [K1],
    ),
    "Resize": ([node("Resize", "x", "", "", "k")], [IMAGE, K4]),
    "Pad": ([node("Pad", "x", "k")], [X, K4]),
    "Reshape": ([node("Reshape", "x", "k")], [("x", F, ["n"]), ("k", I, [2])]),
    "OneHot": ([node("OneHot", "k", "d", "values")], [("k", I, ["n"]), ("d", I, [1])]),
    "NonZero": ([node("NonZero", "x")], [X]),
    "Compress": ([node("Cast", "x", out="b", to=TensorProto.BOOL), node("Compress", "x", "b")], [("x", F, ["n"])]),
    "Unique": ([node("Unique", "x")], [("x", F, ["n"])]),
    "NonMaxSuppression": (
        [node("NonMaxSuppression", "boxes", "scores")], [("boxes", F, [1, "n", 4]), ("scores", F, [1, 1, "n"])],
    ),
    "RoiAlign": (
        [node("RoiAlign", "x", "rois", "k")], [("x", F, [1, 3, 8, 8]), ("rois", F, ["r", 4]), ("k", I, ["r"])],
    ),
    "If": (
        [node("If", "c", then_branch=branch("Neg"), else_branch=branch("Exp"))], [X, ("c", TensorProto.BOOL, [])],
    ),
    "texts": ([node("Identity", "t")], [("t", TensorProto.STRING, ["n"])]),
}  # fmt: skip


def session_of(model: Model) -> InferenceSession:
    nodes, inputs = model
    given = [oh.make_tensor_value_info(name, kind, list(shape)) for name, kind, shape in inputs]
    constants = [
        oh.make_tensor("zero", I, [], [0]), oh.make_tensor("one", I, [], [1]), oh.make_tensor("two", I, [1], [2]),
        oh.make_tensor("twos", I, [2], [2, 2]), oh.make_tensor("sizes", I, [4], [1, 3, 4, 4]),
        oh.make_tensor("values", F, [2], [0, 1]), oh.make_tensor("table", F, [4, 4], [0.5] * 16),
    ]  # fmt: skip
    read = {name for n in nodes for name in n.input}
    graph = oh.make_graph(
        list(nodes), "g", given, [oh.make_empty_tensor_value_info("y")], [c for c in constants if c.name in read]
    )
    made = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)])
    made.ir_version = 10
    return InferenceSession(onnx.shape_inference.infer_shapes(made).SerializeToString())


@pytest.mark.parametrize("name", STEADY)
def test_models_whose_time_follows_from_shapes(name: str) -> None:
    assert why_unsteady(session_of(STEADY[name]).optimized_model.graph) is None


@pytest.mark.parametrize("name", UNSTEADY)
def test_models_whose_time_follows_from_elements(name: str) -> None:
    assert why_unsteady(session_of(UNSTEADY[name]).optimized_model.graph) is not None


# Served.


@contextlib.asynccontextmanager
async def served(*sessions: tuple[str, InferenceSession]) -> AsyncIterator[tuple[Lab, DataPlane]]:
    plane = DataPlane()
    for name, session in sessions:
        plane.publish(ServedModel(model_config(name, session.get_inputs(), session.get_outputs()), "1", session))
    app = HttpApp(plane, Access(), 1 << 20)
    async with lab() as made:
        made.server._port.handle = app.handle
        yield made, plane
    for name, _ in sessions:
        await plane.model(name).close()


Scale = tuple[tuple[str, InferenceSession], tuple[str, InferenceSession]]


@pytest.fixture
def scale(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Scale:
    """Two models. Nothing is tiny, and everything short, on any machine: what is left are the rules."""
    monkeypatch.setattr(instances, "INLINE_US", 0.0)
    monkeypatch.setattr(solo, "SHORT_NS", 1 << 60)
    folder = make_repository(tmp_path_factory.mktemp("solo") / "models", ("scale", "slow"))
    scaled, slow = (InferenceSession(folder / f"{name}.onnx") for name in ("scale", "slow"))
    return ("scale", scaled), ("slow", slow)


def at_once(plane: DataPlane, name: str) -> int:
    return plane.model(name).stats.closed.get("at once", 0)


async def infer(client: Client, name: str = "scale", body: bytes = b"") -> None:
    await client.send(post(body or infer_body(), path=f"/v2/models/{name}/infer"))
    status, _, content = await client.answer()
    assert status == 200, content
    assert body or b"[1.0,3.0,5.0,-5.0]" in content


def test_a_single_client_is_answered_on_the_loop(scale: Scale) -> None:
    async def scenario() -> None:
        async with served(*scale) as (made, plane):
            client = await made.connect()
            for _ in range(STREAK + 11):
                await infer(client)
            assert at_once(plane, "scale") == 10
            other = await made.connect()
            await infer(other)
            await infer(client)
            assert at_once(plane, "scale") == 10

    uvloop.run(scenario())


def test_two_clients_are_not_taken_for_one(scale: Scale) -> None:
    async def scenario() -> None:
        async with served(*scale) as (made, plane):
            clients = [await made.connect() for _ in range(2)]
            for _ in range(2 * STREAK):
                for client in clients:
                    await infer(client)
            assert at_once(plane, "scale") == 0
            # Nor are connections of which each has one request.
            for _ in range(STREAK + 10):
                client = await made.connect()
                await infer(client)
                client.close()
            assert at_once(plane, "scale") == 0

    uvloop.run(scenario())


def test_new_shapes_are_run_by_a_thread_first(scale: Scale) -> None:
    async def scenario() -> None:
        async with served(*scale) as (made, plane):
            client = await made.connect()
            for _ in range(STREAK + 2):
                await infer(client)
            before = at_once(plane, "scale")
            assert before > 0
            for n in range(KNOWN + 3):
                await infer(client, body=infer_body(shape=[2, 4], data=[0] * 8))
                assert at_once(plane, "scale") == before + max(0, n + 1 - KNOWN)

    uvloop.run(scenario())


def test_a_loop_is_never_run_on_the_loop(scale: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "INLINE_US", 1e9)  # however tiny its runs are

    async def scenario() -> None:
        async with served(*scale) as (made, plane):
            client, other = await made.connect(), await made.connect()
            body = infer_body(name="steps", shape=[1], datatype="INT64", data=[1])
            for _ in range(STREAK + 10):
                await infer(client, "slow", body)
            assert at_once(plane, "slow") == 0
            # So one that never ends holds nobody up.
            forever = infer_body(name="steps", shape=[1], datatype="INT64", data=[1 << 40])
            await client.send(post(forever, path="/v2/models/slow/infer"))
            await made.until(lambda: plane.solo.in_flight == 1)
            for _ in range(STREAK + 3):
                await infer(other)
            client.close()
            await made.until(lambda: plane.solo.in_flight == 0)

    uvloop.run(scenario())


def test_who_is_cancelled_is_not_in_flight(scale: Scale) -> None:
    async def scenario() -> None:
        async with served(*scale) as (made, plane):
            forever = infer_body(name="steps", shape=[1], datatype="INT64", data=[1 << 40])
            for behind in (b"", post(infer_body(), path="/v2/models/scale/infer")):
                client = await made.connect()
                await client.send(post(forever, path="/v2/models/slow/infer") + behind)
                await made.until(lambda: plane.solo.in_flight == 1)
                client.close()
                await made.until(lambda: plane.solo.in_flight == 0)
            client = await made.connect()
            await client.send(post(infer_body(name="X"), path="/v2/models/scale/infer"))
            assert (await client.answer())[0] == 400
            assert plane.solo.in_flight == 0
            for _ in range(STREAK + 5):
                await infer(client)
            assert at_once(plane, "scale") > 0

    uvloop.run(scenario())


def test_a_connection_that_is_gone_is_not_kept(scale: Scale) -> None:
    async def scenario() -> None:
        async with served(*scale) as (made, plane):
            client = await made.connect()
            await infer(client)
            serial = made.connections[0].serial
            assert plane.solo._source == serial
            client.close()
            await made.until(lambda: not made.connections)
            again = await made.connect()
            await infer(again)
            assert plane.solo._source == made.connections[0].serial != serial

    uvloop.run(scenario())


def test_time_goes_on_while_one_client_sends_ahead(scale: Scale) -> None:
    async def scenario() -> None:
        async with served(*scale) as (made, plane):
            client = await made.connect()
            request = post(infer_body(), path="/v2/models/scale/infer")
            await client.send(request * 1300)
            for _ in range(1300):  # some are counted together, some are not yet
                assert (await client.answer())[0] == 200
            assert plane.model("scale").stats.success.count == 1300
            await asyncio.sleep(0)

    uvloop.run(scenario())


def test_a_loop_stays_awake_for_a_moment_and_no_longer() -> None:
    async def scenario() -> None:
        asleep = Alertness(cores=1)
        asleep.stay()
        assert not asleep._is_awake
        alertness = Alertness(cores=2)
        for _ in range(2):
            began = time.monotonic_ns()
            alertness.stay()
            alertness.stay()
            turns = 0
            while alertness._is_awake:
                await asyncio.sleep(0)
                turns += 1
            assert time.monotonic_ns() - began >= AWAKE_NS
            assert turns > 1
        # Nothing is left that would wake it again.
        handles: Any = asyncio.get_running_loop()
        assert not handles._ready

    asyncio.run(scenario())


def test_the_loop_stays_awake_for_the_only_client() -> None:
    class Model:
        def infer_at_once(self, request: InferRequest, alone: bool) -> object:
            return "answer" if request.inputs else None

    plane = DataPlane()
    stays: list[int] = []

    class Noted(Alertness):
        def stay(self) -> None:
            stays.append(1)

    plane.alertness = Noted()
    plane._newest["m"] = Model()  # type: ignore[assignment]
    some: Any = [None]
    for _ in range(STREAK + 1):
        assert plane.infer_at_once(InferRequest("m", some, source=1)) == "answer"
    assert stays == []
    plane.infer_at_once(InferRequest("m", some, source=1))
    assert stays == [1]
    plane.infer_at_once(InferRequest("m", [], source=1))
    plane.infer_at_once(InferRequest("m", some, source=2))
    assert stays == [1]
