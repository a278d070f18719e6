"""A model is parsed and compiled in a child process before the server touches it.

Whatever a file does to the process that reads it (a crash, all of the memory, an endless loop) happens to the child.
What the child compiled lies in the object cache, so that the server itself loads in a fraction of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path

from whet import errors
from whet.errors import Fail, WhetError

PROBE_S = 600.0
"""How long a model may take to load before it is given up."""
IDLE_S = 10.0
"""How long the process that forks children waits for the next model before it ends: it holds memory."""
MOST_LINE = 16 << 20
"""Bytes of an answer's line."""


class Prober:
    """Tries models in child processes, of one helper process that is started when it is needed (see `nursery`).

    Lives on the event loop.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()
        self._helper: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._asked: dict[int, asyncio.subprocess.Process] = {}
        """Which helper has each question."""
        self._idle: asyncio.TimerHandle | None = None

    async def run(self, arguments: list[str], limit_s: float) -> tuple[int, bytes]:
        """Exit status (below 0: minus the signal) and output of a child that does `main(arguments)`.

        Raises TimeoutError when it is not done in time, and has been stopped.
        """
        if hasattr(os, "fork"):
            # A helper that was killed (the system was short of memory, say) takes its children along.
            with contextlib.suppress(ConnectionError):
                return await self._forked(arguments, limit_s)
        return await _fresh(arguments, limit_s)

    async def close(self) -> None:
        """End the helper, and with it every child."""
        if self._idle is not None:
            self._idle.cancel()
        self._end()
        if self._reading is not None:
            await self._reading

    def _end(self) -> None:
        if self._helper is not None and self._helper.stdin is not None:
            self._helper.stdin.close()
            if sys.platform == "linux":  # where children die with it; elsewhere it ends them first
                with contextlib.suppress(ProcessLookupError):
                    self._helper.kill()

    async def _forked(self, arguments: list[str], limit_s: float) -> tuple[int, bytes]:
        number = next(self._numbers)
        if self._idle is not None:
            self._idle.cancel()
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await self._ask({"id": number, "arguments": arguments})
            return await asyncio.wait_for(answer, limit_s)
        finally:
            if not answer.done() or answer.cancelled():
                with contextlib.suppress(ConnectionError):
                    await self._ask({"stop": number})
            self._waiting.pop(number, None)
            self._asked.pop(number, None)
            if not self._waiting:
                self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._end)

    async def _ask(self, request: dict[str, object]) -> None:
        async with self._starting:
            helper = self._helper
            if helper is None or helper.stdin is None or helper.stdin.is_closing():
                helper = self._helper = await _start(["--fork"], stdin=asyncio.subprocess.PIPE)
                self._reading = asyncio.create_task(self._read(helper))
        assert helper.stdin is not None
        if "id" in request:
            self._asked[int(str(request["id"]))] = helper
        helper.stdin.write(json.dumps(request).encode() + b"\n")
        await helper.stdin.drain()

    async def _read(self, helper: asyncio.subprocess.Process) -> None:
        """Hand out a helper's answers until it ends."""
        assert helper.stdout is not None
        assert helper.stdin is not None
        with contextlib.suppress(ValueError):  # an answer that is too long: the helper is of no use any more
            async for line in helper.stdout:
                answer = json.loads(line)
                waiting = self._waiting.get(answer["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result((answer["status"], answer["out"].encode()))
        helper.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            helper.kill()
        await helper.wait()
        if self._helper is helper:
            self._helper = None
        # There may be a new helper already, which knows nothing of these.
        for number, waiting in self._waiting.items():
            if self._asked.get(number) is helper and not waiting.done():
                waiting.set_exception(ConnectionError("the helper has ended"))


async def probe(
    prober: Prober, file: Path, providers: tuple[str, ...], threads: int, goal: str = "latency",
    limit_s: float = PROBE_S,
) -> None:  # fmt: skip
    """Return when a child process has loaded the model. Raises what it raised, or Fail for how it ended."""
    try:
        status, out = await prober.run([str(file), ",".join(providers), str(threads), goal], limit_s)
    except TimeoutError as error:
        raise Fail("the model takes too long to load", file=str(file), found=f"more than {limit_s:.0f} s") from error
    if status == 0:
        return
    if status < 0:
        name = signal.Signals(-status).name
        raise Fail("the model ended the process that tried to load it", file=str(file), found=name)
    raise _error_of(status, out, file)


async def _start(arguments: list[str], stdin: int) -> asyncio.subprocess.Process:
    # A session of its own: a Ctrl-C is for the server, which answers what it accepted first.
    return await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "whet.server.repository.probe", *arguments, stdin=stdin,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, limit=MOST_LINE, start_new_session=True,
    )  # fmt: skip


async def _fresh(arguments: list[str], limit_s: float) -> tuple[int, bytes]:
    """The same with an interpreter of its own."""
    child = await _start(arguments, asyncio.subprocess.DEVNULL)
    try:
        out, _ = await asyncio.wait_for(child.communicate(), limit_s)
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    assert child.returncode is not None
    return child.returncode, out


def _error_of(status: int, out: bytes, file: Path) -> WhetError:
    try:
        document = json.loads(out)
        kind, message = document["type"], document["message"]
    except (ValueError, KeyError, TypeError):
        said = out[-300:].decode(errors="replace") or f"exit status {status}"
        return Fail("the process that tried to load the model failed", file=str(file), found=said)
    found = getattr(errors, kind, Fail)
    if not (isinstance(found, type) and issubclass(found, WhetError)):
        found = Fail
    return found(message)


def main(arguments: list[str]) -> int:
    """What the child does: load the model, and say on standard output why that failed."""
    from whet.session.inference_session import InferenceSession
    from whet.session.options import SessionOptions

    file, providers, threads, goal = arguments
    options = SessionOptions()
    try:
        options.intra_op_num_threads = int(threads)
        options.add_session_config_entry("goal", goal)
        InferenceSession(file, options, providers=[p for p in providers.split(",") if p] or None)
    except WhetError as error:
        print(json.dumps({"type": type(error).__name__, "message": str(error)}))
        return 1
    except MemoryError:
        print(json.dumps({"type": "ResourceExhausted", "message": f"no memory left while loading {file}"}))
        return 1
    except Exception as error:
        failed = Fail("the model cannot be loaded", file=file, found=f"{type(error).__name__}: {error}")
        print(json.dumps({"type": "Fail", "message": str(failed)}))
        return 1
    return 0


def _prepare() -> None:
    """What every child would do first, once for all of them. No thread is started by any of it."""
    import whet.session.inference_session
    from whet.compiler.link import generator_digest
    from whet.runtime.executor import executor

    assert whet.session.inference_session
    generator_digest()
    executor()


if __name__ == "__main__":
    if sys.argv[1:] == ["--fork"]:
        from whet.server.repository.nursery import nurse

        _prepare()
        nurse(main, 0, os.dup(1))
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
