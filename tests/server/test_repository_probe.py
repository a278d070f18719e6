"""Models are tried in child processes: whatever ends such a process, the server learns how, and the next one works."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.repository_models import BROKEN, scale_bytes
from whet.errors import Fail, InvalidProtobuf, WhetError
from whet.server.repository import probe as module
from whet.server.repository.probe import Prober, probe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no helper without fork")

NURSE = """
import os, signal, sys, time
from whet.server.repository.nursery import nurse
def work(arguments):
    kind, *rest = arguments
    if kind == "say":
        print(*rest)
        return 0
    if kind == "much":
        print("x" * 300_000)
        return 3
    if kind == "raise":
        print("first")
        raise RuntimeError("an error")
    if kind == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == "pid":
        sys.stdout.write(str(os.getpid()))
        sys.stdout.flush()
        open(rest[0], "w").write(str(os.getpid()))
        time.sleep(600)
    if kind == "read":
        print(repr(sys.stdin.read()))
        return 0
    return 5
nurse(work, 0, os.dup(1))
"""


class Nurse:
    """The helper's loop with other work than models."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def ask(self, *requests: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"".join(json.dumps(r).encode() + b"\n" for r in requests))
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@pytest.fixture
def nurse() -> Iterator[Nurse]:
    made = Nurse()
    yield made
    assert made.process.stdin is not None
    assert made.process.stdout is not None
    made.process.stdin.close()
    assert made.process.wait(30) == 0
    made.process.stdout.close()


@pytest.mark.parametrize(
    ("arguments", "status", "out"),
    [
        (["say", "hello"], 0, "hello\n"),
        (["much"], 3, "x" * 300_000 + "\n"),
        (["raise"], 70, "first\nRuntimeError: an error"),
        (["die"], -signal.SIGSEGV, ""),
        (["read"], 0, "''\n"),
        (["other"], 5, ""),
    ],
)
def test_how_a_child_ended(nurse: Nurse, arguments: list[str], status: int, out: str) -> None:
    nurse.ask({"id": 7, "arguments": arguments})
    assert nurse.answer() == {"id": 7, "status": status, "out": out}


def written(path: Path) -> int:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.01)
    raise AssertionError("the child did not come so far")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    end = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not is_alive(pid)


def test_children_work_side_by_side_and_one_is_stopped(nurse: Nurse, tmp_path: Path) -> None:
    nurse.ask({"id": 1, "arguments": ["pid", str(tmp_path / "1")]}, {"id": 2, "arguments": ["say", "two"]})
    assert nurse.answer() == {"id": 2, "status": 0, "out": "two\n"}
    pid = written(tmp_path / "1")
    nurse.ask({"stop": 99}, {"stop": 1})
    assert nurse.answer() == {"id": 1, "status": -signal.SIGKILL, "out": str(pid)}
    assert gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("end", ["requests end", "killed"])
def test_children_end_with_their_parent(tmp_path: Path, end: str) -> None:
    made = Nurse()
    made.ask({"id": 1, "arguments": ["pid", str(tmp_path / "1")]})
    pid = written(tmp_path / "1")
    assert made.process.stdin is not None
    assert made.process.stdout is not None
    if end == "killed":
        made.process.kill()
    made.process.stdin.close()
    made.process.wait(30)
    assert gone(pid)
    made.process.stdout.close()


def run(scenario: Callable[[Prober], Awaitable[None]]) -> None:
    async def with_prober() -> None:
        prober = Prober()
        try:
            await scenario(prober)
        finally:
            await prober.close()

    asyncio.run(with_prober())


def test_models_good_and_bad_by_one_helper(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(scale_bytes(2))
    bad.write_bytes(BROKEN)

    async def scenario(prober: Prober) -> None:
        await probe(prober, good, (), 1)
        helper = prober._helper
        assert helper is not None
        found = await asyncio.gather(*(probe(prober, f, (), 1) for f in (bad, good, bad)), return_exceptions=True)
        assert [type(f) for f in found] == [InvalidProtobuf, type(None), InvalidProtobuf]
        assert "bad.onnx" in str(found[0])
        with pytest.raises(Fail, match="takes too long"):
            await probe(prober, good, (), 1, limit_s=0.001)
        with pytest.raises(WhetError, match="NothingExecutionProvider"):
            await probe(prober, good, ("NothingExecutionProvider",), 1)
        await probe(prober, good, (), 1)
        assert prober._helper is helper, "a new helper was started"

    run(scenario)


def test_a_helper_that_was_killed_costs_nobody_a_model(tmp_path: Path) -> None:
    good = tmp_path / "good.onnx"
    good.write_bytes(scale_bytes(2))

    async def scenario(prober: Prober) -> None:
        await probe(prober, good, (), 1)
        first = prober._helper
        assert first is not None
        waiting = [asyncio.create_task(probe(prober, good, (), 1)) for _ in range(2)]
        await asyncio.sleep(0)
        first.kill()
        await asyncio.gather(*waiting)
        await probe(prober, good, (), 1)
        assert prober._helper is not first

    run(scenario)


def test_an_idle_helper_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.05)
    good = tmp_path / "good.onnx"
    good.write_bytes(scale_bytes(2))

    async def scenario(prober: Prober) -> None:
        await probe(prober, good, (), 1)
        helper = prober._helper
        assert helper is not None
        await asyncio.wait_for(helper.wait(), 30)
        await probe(prober, good, (), 1)

    run(scenario)


@pytest.mark.parametrize("forks", [True, False])
def test_an_error_that_nobody_foresaw_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: bool) -> None:
    good = tmp_path / "good.onnx"
    good.write_bytes(scale_bytes(2))
    if not forks:
        monkeypatch.delattr(os, "fork")

    async def scenario(prober: Prober) -> None:
        threads: Any = "some"  # what the child takes for a number
        with pytest.raises(Fail, match=r"cannot be loaded; file: .*good\.onnx; found: ValueError: .*'some'"):
            await probe(prober, good, (), threads)
        await probe(prober, good, (), 1)

    run(scenario)


@pytest.mark.parametrize(("status", "out", "said"), [(70, b"KeyError: 'x'", "KeyError: 'x'"), (71, b"", "status 71")])
def test_a_child_that_says_nothing_of_a_model(status: int, out: bytes, said: str, tmp_path: Path) -> None:
    class Ends(Prober):
        async def run(self, arguments: list[str], limit_s: float) -> tuple[int, bytes]:
            return status, out

    with pytest.raises(Fail, match=f"tried to load the model failed; file: .*; found: .*{said}"):
        asyncio.run(probe(Ends(), tmp_path, (), 1))


def test_without_a_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(scale_bytes(2))
    bad.write_bytes(BROKEN)
    monkeypatch.delattr(os, "fork")

    async def scenario(prober: Prober) -> None:
        found = await asyncio.gather(*(probe(prober, f, (), 1) for f in (good, bad)), return_exceptions=True)
        assert [type(f) for f in found] == [type(None), InvalidProtobuf]
        assert prober._helper is None

    run(scenario)
