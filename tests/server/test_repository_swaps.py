"""What serves while a load is under way, what serves after one that failed, and what readiness says of either."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.grpc_models import make_repository
from tests.server.repository_models import BROKEN, ask, rows, running, scale_bytes, states, write_model
from tests.server.running import RunningServer, free_port
from whet.errors import WhetError
from whet.server.errors import LoadNotAllowed, ModelUnavailable, ShuttingDown, grpc_code, http_status
from whet.server.repository.warmup import warm_up

ALL = "version_policy { all { } }"


def test_one_broken_version_of_several_rolls_all_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        for version in (1, 2, 3):
            write_model(tmp_path / "m", scale_bytes(version), version, ALL)
        async with running(tmp_path) as (plane, repository):
            assert await repository.start() == []
            before = dict(plane.models["m"])
            for version, content in ((1, scale_bytes(10)), (2, BROKEN), (3, scale_bytes(30)), (4, scale_bytes(40))):
                write_model(tmp_path / "m", content, version)
            with pytest.raises(WhetError, match=r"2/model\.onnx"):
                await repository.load("m")
            assert dict(plane.models["m"]) == before, "a version was swapped although another one is broken"
            x = rows()
            for version in (1, 2, 3):
                assert np.array_equal(await ask(plane, "m", x, str(version)), x * np.float32(version))
            assert states(repository) == {"m:1": "READY", "m:2": "READY", "m:3": "READY", "m:4": "UNAVAILABLE"}
            reasons = {row["version"]: row["reason"] for row in repository.index()}
            assert all("the last load failed, the one before serves" in reasons[v] for v in "123")
            assert "2/model.onnx" in reasons["2"]
            assert "version 2 cannot be loaded" in reasons["1"]
            write_model(tmp_path / "m", scale_bytes(20), 2)
            await repository.load("m")
            for version in (1, 2, 3, 4):
                assert np.array_equal(await ask(plane, "m", x, str(version)), x * np.float32(10 * version))
            assert set(states(repository).values()) == {"READY"}
            assert {row["reason"] for row in repository.index()} == {""}

    asyncio.run(scenario())


class Gate:
    """Holds loads back in their warm-up, until it opens or they are to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()
        self.fails = False

        def wait(*arguments: Any) -> int:
            self.reached.set()
            assert self.opened.wait(60)
            if self.fails:
                raise ValueError("the warm-up went wrong")
            return warm_up(*arguments)

        monkeypatch.setattr("whet.server.repository.loader.warm_up", wait)


@pytest.mark.parametrize("fails", [False, True])
def test_the_old_version_serves_while_the_new_one_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2))
        async with running(tmp_path) as (plane, repository):
            await repository.start()
            gate = Gate(monkeypatch)
            gate.fails = fails
            found: list[float] = []

            async def traffic() -> None:
                while True:
                    x = rows()
                    y = await ask(plane, "m", x)
                    factor = float(y[0, 0] / x[0, 0])
                    assert np.allclose(y, x * np.float32(factor))
                    found.append(round(factor))
                    await asyncio.sleep(0)

            asking = [asyncio.create_task(traffic()) for _ in range(4)]
            write_model(tmp_path / "m", scale_bytes(9))
            loading = asyncio.create_task(repository.load("m"))
            assert await asyncio.to_thread(gate.reached.wait, 60)
            found.clear()
            while len(found) < 100:
                await asyncio.sleep(0.001)
            assert set(found) == {2}
            assert states(repository) == {"m:1": "READY"}
            assert plane.ready
            gate.opened.set()
            if fails:
                with pytest.raises(WhetError, match="the warm-up went wrong"):
                    await loading
            else:
                await loading
            found.clear()
            while len(found) < 100:
                await asyncio.sleep(0.001)
            # Those that were under way at the swap got the old one's answers.
            assert set(found[8:]) == ({2} if fails else {9})
            assert not any(task.done() for task in asking), "a request failed"
            for task in asking:
                task.cancel()

    asyncio.run(scenario())


def test_load_and_unload_by_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2))
        async with running(tmp_path, control_mode="explicit", load_models=("*",)) as (plane, repository):
            await repository.start()
            await repository.unload("m")
            with pytest.raises(ModelUnavailable, match="unloaded"):
                await ask(plane, "m", rows())
            assert plane.ready, "what was unloaded by request is not missing"
            write_model(tmp_path / "m", scale_bytes(3))
            write_model(tmp_path / "new", scale_bytes(4))
            assert "new" not in plane.models, "nobody asked for it"
            for name, factor in (("m", 3), ("new", 4)):
                await repository.load(name)
                x = rows()
                assert np.array_equal(await ask(plane, name, x), x * np.float32(factor))

    asyncio.run(scenario())


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_other_modes_than_explicit_refuse_load_and_unload(tmp_path: Path, mode: str) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2))
        async with running(tmp_path, control_mode=mode, poll_s=3600) as (plane, repository):
            await repository.start()
            model = plane.model("m")
            for name in ("m", "nothing"):
                for call in (repository.load, repository.unload):
                    with pytest.raises(LoadNotAllowed, match="explicit model load / unload is not allowed") as caught:
                        await call(name)
                    assert caught.value.found == mode
                    assert "--control-mode explicit" in str(caught.value)
                    assert (http_status(caught.value), grpc_code(caught.value)) == (503, "UNAVAILABLE")
            assert plane.model("m") is model

    asyncio.run(scenario())


def test_both_protocols_say_how_models_are_loaded(tmp_path: Path) -> None:
    triton = pytest.importorskip("tritonclient.grpc")
    utils = pytest.importorskip("tritonclient.utils")
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "good.onnx").write_bytes(scale_bytes(2))
    with RunningServer(folder, "--admin-on-main-port") as server, triton.InferenceServerClient(server.grpc) as client:
        for name, call in (("load", client.load_model), ("unload", client.unload_model)):
            request = urllib.request.Request(f"http://{server.http}/v2/repository/models/good/{name}", b"{}")
            with pytest.raises(urllib.error.HTTPError) as answer:
                urllib.request.urlopen(request, timeout=30)
            assert answer.value.code == 503
            assert "--control-mode explicit" in json.loads(answer.value.read())["error"]
            with pytest.raises(utils.InferenceServerException, match="--control-mode explicit") as caught:
                call("good")
            assert caught.value.status() == "StatusCode.UNAVAILABLE"
        assert client.is_model_ready("good")


@pytest.mark.parametrize("where", ["warm_up", "probe"])
def test_a_load_that_a_stop_ends_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Whether it is in a thread or in a child process; the call that nobody waits for any more says nothing."""
    begun, release = threading.Event(), threading.Event()

    def hold(*_: Any) -> None:
        begun.set()
        assert release.wait(60)

    async def hold_here(*_: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2))
        async with running(tmp_path) as (plane, repository):
            await repository.start()
            write_model(tmp_path / "m", scale_bytes(9))
            write_model(tmp_path / "new", scale_bytes(9))
            monkeypatch.setattr(f"whet.server.repository.loader.{where}", hold if where == "warm_up" else hold_here)
            try:
                loads = [asyncio.create_task(repository.load(name)) for name in ("m", "new", "m")]
                left = asyncio.create_task(repository.load("new"))
                assert await asyncio.to_thread(begun.wait, 60)
                left.cancel()
                await repository.stop_loading()
                # What holds the loads has not let them go.
                for ended in await asyncio.gather(*loads, return_exceptions=True):
                    assert isinstance(ended, ShuttingDown)
                    assert (http_status(ended), grpc_code(ended)) == (503, "UNAVAILABLE")
                with pytest.raises(asyncio.CancelledError):
                    await left
                for call in (repository.load, repository.unload):
                    with pytest.raises(ShuttingDown):
                        await call("m")
                x = rows()
                assert np.array_equal(await ask(plane, "m", x), x * np.float32(2)), "what serves goes on"
                assert "LOADING" not in states(repository).values()
            finally:
                release.set()

    asyncio.run(scenario())


ENDLESS = """
model_warmup [{ name: "w" inputs { key: "steps" value {
  data_type: TYPE_INT64 dims: [1] input_data_file: "steps" } } }]
"""


def test_a_warm_up_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread would keep the process from ending."""
    begun = threading.Event()

    def watch(*arguments: Any) -> int:
        begun.set()
        return warm_up(*arguments)

    async def scenario() -> None:
        content = (make_repository(tmp_path / "models", ("slow",)) / "slow.onnx").read_bytes()
        write_model(tmp_path / "held" / "slow", content, config=ENDLESS)
        (tmp_path / "held" / "slow" / "warmup").mkdir()
        (tmp_path / "held" / "slow" / "warmup" / "steps").write_bytes(np.int64(10**15).tobytes())
        async with running(tmp_path / "held", load_models=(), control_mode="explicit") as (_, repository):
            monkeypatch.setattr("whet.server.repository.loader.warm_up", watch)
            loading = asyncio.create_task(repository.load("slow"))
            assert await asyncio.to_thread(begun.wait, 60)
            await repository.stop_loading()
            with pytest.raises(ShuttingDown):
                await loading
            await asyncio.wait_for(asyncio.to_thread(repository._loader._threads.shutdown, wait=True), 60)

    asyncio.run(scenario())


def test_an_unload_that_a_stop_ends_still_answers_what_was_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        write_model(tmp_path / "m", scale_bytes(2))
        async with running(tmp_path) as (plane, repository):
            await repository.start()
            drained = asyncio.Event()
            model = plane.model("m")
            honest = model.scheduler.drain

            async def slow() -> None:
                await drained.wait()
                await honest()

            monkeypatch.setattr(model.scheduler, "drain", slow)
            try:
                unloading = asyncio.create_task(repository.unload("m"))
                while "m" in plane.models:
                    await asyncio.sleep(0.001)
                closing = asyncio.create_task(repository.close())
                with pytest.raises(ShuttingDown):
                    await unloading
                assert model.session is not None
                assert not closing.done(), "the model was left before its requests were answered"
            finally:
                drained.set()
            await closing
            assert model.session is None

    asyncio.run(scenario())


def test_what_strict_readiness_counts(tmp_path: Path) -> None:
    async def scenario() -> None:
        (tmp_path / "good.onnx").write_bytes(scale_bytes(2))
        (tmp_path / "bad.onnx").write_bytes(BROKEN)
        async with running(tmp_path) as (plane, repository):
            assert len(await repository.start()) == 1
            assert not plane.ready, "strict is what is usual"
            await repository.unload("bad")
            assert plane.ready, "a model that somebody took out is not missing"
            (tmp_path / "later.onnx").write_bytes(BROKEN)
            for name in ("later", "good"):
                (tmp_path / f"{name}.onnx").write_bytes(BROKEN)
                with pytest.raises(WhetError):
                    await repository.load(name)
                assert plane.ready, "a load that failed took the others' traffic away"
        async with running(tmp_path, strict_readiness=False) as (plane, repository):
            assert len(await repository.start()) == 3
            assert plane.ready
        async with running(tmp_path, control_mode="explicit", load_models=("none",)) as (plane, repository):
            assert "no such model" in str((await repository.start())[0])
            assert not plane.ready, "a model that is to be loaded and is not there"

    asyncio.run(scenario())


def status_of(server: RunningServer, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{server.http}{path}", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_strict_server_is_alive_and_answers_before_it_is_ready(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "good.onnx").write_bytes(scale_bytes(2))
    (folder / "bad.onnx").write_bytes(BROKEN)
    arguments = ("--strict-readiness", "--control-mode", "poll", "--poll-s", "0.2")
    with RunningServer(folder, *arguments, ready=False) as server:
        wait_for_log(server, "ready")
        assert status_of(server, "/v2/health/live") == 200
        assert status_of(server, "/v2/health/ready") in (400, 503)
        assert status_of(server, "/v2/models/good/ready") == 200
        assert status_of(server, "/v2/models/bad/ready") in (400, 503)
        (folder / ".bad").write_bytes(scale_bytes(3))
        (folder / ".bad").rename(folder / "bad.onnx")
        server.wait_until_ready()
        assert status_of(server, "/v2/models/bad/ready") == 200


def wait_for_log(server: RunningServer, word: str) -> None:
    assert server.process is not None
    wait = threading.Event()
    for _ in range(1200):
        if word in server.log:
            return
        assert server.process.poll() is None, server.log
        wait.wait(0.1)
    raise AssertionError(server.log)


@pytest.mark.parametrize("broken", [True, False])
def test_exit_on_error(tmp_path: Path, broken: bool) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "good.onnx").write_bytes(scale_bytes(2))
    if not broken:
        with RunningServer(folder, "--exit-on-error") as server:
            assert status_of(server, "/v2/models/good/ready") == 200
        return
    (folder / "bad.onnx").write_bytes(BROKEN)
    ports = [f"--{name}-port={free_port()}" for name in ("http", "grpc", "metrics")]
    command = [sys.executable, "-m", "whet.cli", "serve", str(folder), "--exit-on-error", *ports]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1, ended.stderr
    assert "bad.onnx" in ended.stderr
    assert "not an ONNX model" in ended.stderr
    assert "Traceback" not in ended.stderr
