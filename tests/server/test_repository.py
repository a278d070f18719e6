"""Loading, swapping, withdrawing: what the index says and which model answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.repository_models import BROKEN, ENSEMBLE, ask, rows, running, scale_bytes, states, write_model
from whet.errors import InvalidArgument, NoSuchFile, WhetError
from whet.server.errors import ModelNotFound, ModelUnavailable, ShuttingDown
from whet.server.repository.manager import Repository
from whet.server.repository.warmup import warm_up


def test_a_broken_model_leaves_the_others_alone_and_repair_makes_it_serve(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "good.onnx").write_bytes(scale_bytes(3))
        (tmp_path / "bad.onnx").write_bytes(BROKEN)
        async with running(tmp_path, strict_readiness=True) as (plane, repository):
            errors = await repository.start()
            assert [type(e).__name__ for e in errors] == ["InvalidProtobuf"]
            assert states(repository) == {"bad:1": "UNAVAILABLE", "good:1": "READY"}
            assert states(repository, ready=True) == {"good:1": "READY"}
            assert "bad.onnx" in repository.index()[0]["reason"]
            assert not plane.ready
            assert repository.unserved == ["bad"]
            with pytest.raises(ModelUnavailable, match=r"UNAVAILABLE.*bad\.onnx"):
                await ask(plane, "bad", rows())
            x = rows()
            assert np.array_equal(await ask(plane, "good", x), x * np.float32(3))
            (tmp_path / "bad.onnx").write_bytes(scale_bytes(5))
            await repository.load("bad")
            assert np.array_equal(await ask(plane, "bad", x), x * np.float32(5))
            assert plane.ready

    asyncio.run(scenario())


def test_a_reload_that_fails_keeps_what_was_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2))
        async with running(tmp_path) as (plane, repository):
            await repository.start()
            x = rows()
            write_model(tmp_path / "m", BROKEN)
            with pytest.raises(WhetError):
                await repository.load("m")
            assert np.array_equal(await ask(plane, "m", x), x * np.float32(2))
            assert states(repository) == {"m:1": "READY"}
            assert "the last load failed" in repository.index()[0]["reason"]
            (tmp_path / "m" / "config.pbtxt").write_text("max_batch_size: -3")
            with pytest.raises(InvalidArgument, match="max_batch_size is negative"):
                await repository.load("m")
            assert np.array_equal(await ask(plane, "m", x), x * np.float32(2))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("", ["3"]),
        ("version_policy { latest { num_versions: 2 } }", ["2", "3"]),
        ("version_policy { specific { versions: [1, 3] } }", ["1", "3"]),
        ("version_policy: { all { } }", ["1", "2", "3"]),
    ],
)
def test_version_policy(tmp_path: Path, policy: str, served: list[str]) -> None:
    async def scenario() -> None:
        for version in (1, 2, 3):
            write_model(tmp_path / "m", scale_bytes(version), version, policy)
        async with running(tmp_path) as (plane, repository):
            assert await repository.start() == []
            assert list(plane.models["m"]) == served
            x = rows()
            for version in served:
                assert np.array_equal(await ask(plane, "m", x, version), x * np.float32(version))
            assert np.array_equal(await ask(plane, "m", x), x * np.float32(served[-1]))

    asyncio.run(scenario())


def test_a_policy_that_names_a_missing_version(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(1), 1, "version_policy { specific { versions: [7] } }")
        async with running(tmp_path) as (_, repository):
            (error,) = await repository.start()
            assert "version_policy names a version that is not there" in str(error)
            assert error.found == 7

    asyncio.run(scenario())


def test_one_broken_version_of_several(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(1), 1, "version_policy { all { } }")
        write_model(tmp_path / "m", BROKEN, 2)
        async with running(tmp_path) as (plane, repository):
            assert len(await repository.start()) == 1
            assert states(repository) == {"m:1": "READY", "m:2": "UNAVAILABLE"}
            x = rows()
            assert np.array_equal(await ask(plane, "m", x), x)

    asyncio.run(scenario())


def test_explicit_mode_and_overrides(tmp_path: Path) -> None:
    async def scenario() -> None:
        for name, factor in (("a", 2), ("b", 3), ("c", 4)):
            write_model(tmp_path / name, scale_bytes(factor))
        write_model(tmp_path / "a", scale_bytes(20), 2)
        async with running(tmp_path, control_mode="explicit", load_models=("b",)) as (plane, repository):
            await repository.start()
            assert states(repository) == {"a:": "UNAVAILABLE", "b:1": "READY", "c:": "UNAVAILABLE"}
            await repository.load("a", '{"version_policy": {"specific": {"versions": [1]}}, "max_batch_size": 16}')
            x = rows()
            assert np.array_equal(await ask(plane, "a", x), x * np.float32(2))
            assert plane.model("a").config.max_batch_rows == 16
            with pytest.raises(InvalidArgument, match="does not parse"):
                await repository.load("a", '{"max_batch_sise": 16}')
            await repository.unload("a")
            assert states(repository)["a:1"] == "UNAVAILABLE"
            with pytest.raises(ModelUnavailable, match="unloaded"):
                await ask(plane, "a", x)
            with pytest.raises(ModelNotFound, match="no such model"):
                await repository.load("../b")
            with pytest.raises(ModelNotFound):
                await repository.unload("nothing")
            assert repository._locks == {}

    asyncio.run(scenario())


def test_ensembles_follow_their_models(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "a", scale_bytes(2))
        write_model(tmp_path / "b", scale_bytes(5))
        (tmp_path / "e").mkdir()
        (tmp_path / "e" / "config.pbtxt").write_text(ENSEMBLE)
        async with running(tmp_path, control_mode="explicit") as (plane, repository):
            await repository.start()
            await repository.load("e")
            assert states(repository) == {"a:1": "READY", "b:1": "READY", "e:1": "READY"}
            x = rows()
            assert np.array_equal(await ask(plane, "e", x, name="in"), x * np.float32(10))
            await repository.unload("b")
            assert states(repository) == {"a:1": "READY", "b:1": "UNAVAILABLE", "e:1": "UNAVAILABLE"}
            with pytest.raises(ModelUnavailable, match="'b'"):
                await ask(plane, "e", x, name="in")
            await repository.load("b")
            assert np.array_equal(await ask(plane, "e", x, name="in"), x * np.float32(10))
            # One that does not fit any more takes the ensemble out; it comes back with one that does.
            write_model(tmp_path / "b", scale_bytes(7, width=3))
            await repository.load("b")
            assert states(repository)["e:1"] == "UNAVAILABLE"
            write_model(tmp_path / "b", scale_bytes(7))
            await repository.load("b")
            assert np.array_equal(await ask(plane, "e", x, name="in"), x * np.float32(14))
            # `a` came along with the ensemble and leaves with it; `b` was asked for by its own name.
            await repository.unload("e", dependents=True)
            assert states(repository) == {"a:1": "UNAVAILABLE", "b:1": "READY", "e:1": "UNAVAILABLE"}

    asyncio.run(scenario())


def test_loads_and_unloads_of_one_model_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2))
        async with running(tmp_path) as (plane, repository):
            await repository.start()
            x = rows()
            stop = False
            answers = 0
            refused: list[object] = []

            async def keep_asking() -> None:
                nonlocal answers
                while not stop:
                    try:
                        assert np.array_equal(await ask(plane, "m", x), x * np.float32(2))
                        answers += 1
                    except (ModelUnavailable, ShuttingDown):
                        refused.append(plane.models.get("m"))
                    await asyncio.sleep(0.001)

            asking = asyncio.create_task(keep_asking())
            calls = [repository.load("m"), repository.unload("m"), repository.load("m"), repository.load("m")]
            await asyncio.gather(*calls)
            # A caller that goes away does not leave the model half loaded.
            leaving = asyncio.create_task(repository.load("m"))
            await asyncio.sleep(0.002)
            assert leaving.cancel(), "the load was over before its caller went away"
            with pytest.raises(asyncio.CancelledError):
                await leaving
            await repository.load("m")
            stop = True
            await asking
            assert answers > 10
            assert refused == [None] * len(refused), "a model that serves refused a request"
            assert states(repository) == {"m:1": "READY"}

    asyncio.run(scenario())


def test_polling_follows_the_disk(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2))
        write_model(tmp_path / "gone", scale_bytes(2))
        async with running(tmp_path, poll_s=0.02) as (plane, repository):
            await repository.start()
            x = rows()
            model = plane.model("m")
            await repository.poll()
            assert plane.model("m") is model, "nothing changed, and it was loaded again"
            # A new version whose file is only half there: the old one goes on.
            whole = scale_bytes(9)
            (tmp_path / "m" / "2").mkdir()
            (tmp_path / "m" / "2" / "model.onnx").write_bytes(whole[: len(whole) // 2])
            await repository.poll()
            assert np.array_equal(await ask(plane, "m", x), x * np.float32(2))
            assert states(repository)["m:2"] == "UNAVAILABLE"
            write_model(tmp_path / "m", whole, 2)
            (tmp_path / "gone").rename(tmp_path / "renamed")
            await repository.poll()
            assert np.array_equal(await ask(plane, "m", x), x * np.float32(9))
            assert np.array_equal(await ask(plane, "renamed", x), x * np.float32(2))
            assert states(repository) == {"m:1": "UNAVAILABLE", "m:2": "READY", "renamed:1": "READY"}
            with pytest.raises(ModelNotFound):
                await ask(plane, "gone", x)
            # The repository is away for a while: what is served goes on.
            tmp_path.rename(tmp_path.parent / "away")
            with pytest.raises(NoSuchFile):
                await repository.poll()
            assert np.array_equal(await ask(plane, "m", x), x * np.float32(9))
            (tmp_path.parent / "away").rename(tmp_path)

    asyncio.run(scenario())


def test_a_file_that_is_being_written_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with running(tmp_path, poll_s=0.02) as (plane, repository):
            await repository.start()
            (tmp_path / "m.onnx").write_bytes(scale_bytes(2)[:20])
            looks = 0
            honest = Repository.scan

            def scan_and_write(self: Repository) -> Any:
                nonlocal looks
                looks += 1
                if looks == 2:
                    (tmp_path / "m.onnx").write_bytes(scale_bytes(2))
                return honest(self)

            monkeypatch.setattr(Repository, "scan", scan_and_write)
            await repository.poll()
            assert states(repository) == {"m:": "UNAVAILABLE"}, "it was loaded while it was being written"
            await repository.poll()
            assert states(repository) == {"m:1": "READY"}
            assert "m" in plane.models

    asyncio.run(scenario())


WARMUP = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [4] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [4] }]
model_warmup [{ name: "w" batch_size: 3 count: 2 inputs { key: "x" value {
  data_type: TYPE_FP32 dims: [4] %s } } }]
"""


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("zero_data: true", None),
        ("random_data: true", None),
        ('input_data_file: "one_row"', None),
        ('input_data_file: "all_rows"', None),
        ('input_data_file: "short"', "does not hold the input's elements"),
        ('input_data_file: "missing"', "the data cannot be read"),
        ('input_data_file: "../x"', "without folders"),
    ],
)
def test_warm_up(tmp_path: Path, source: str, error: str | None) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2), 1, WARMUP % source)
        (tmp_path / "m" / "warmup").mkdir()
        for name, size in (("one_row", 16), ("all_rows", 48), ("short", 15)):
            (tmp_path / "m" / "warmup" / name).write_bytes(bytes(size))
        async with running(tmp_path) as (plane, repository):
            errors = await repository.start()
            if error is None:
                assert errors == []
                assert plane.model("m").stats.inference_count == 0, "a warm-up is no inference"
            else:
                assert error in str(errors[0])
                assert states(repository) == {"m:1": "UNAVAILABLE"}

    asyncio.run(scenario())


def test_shapes_seen_are_run_again_before_a_reload_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2, width="k"))
        async with running(tmp_path) as (plane, repository):
            await repository.start()
            for width in (5, 9):
                await ask(plane, "m", rows(3, width))
            warmed: list[set[tuple[int, ...]]] = []

            def watch(session: Any, config: Any, folder: Path, seen: Any, *rest: Any) -> int:
                warmed.append({shapes[0][1] for shapes in seen})
                return warm_up(session, config, folder, seen, *rest)

            monkeypatch.setattr("whet.server.repository.loader.warm_up", watch)
            await repository.load("m")
            await repository.unload("m")
            await repository.load("m")
            assert warmed == [{(3, 5), (3, 9)}] * 2
            # A model that takes other inputs now is not run with them.
            write_model(tmp_path / "m", scale_bytes(2, width=7))
            await repository.load("m")
            assert np.array_equal(await ask(plane, "m", x := rows(1, 7)), x * np.float32(2))

    asyncio.run(scenario())
