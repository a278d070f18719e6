"""A model is parsed and compiled in a child process before the server touches it.

Whatever a file does to the process that reads it (a crash, all of the memory, an endless loop) happens to the child.
What the child compiled lies in the object cache, so that the server itself loads in a fraction of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from pathlib import Path

from whet import errors
from whet.errors import Fail, WhetError

PROBE_S = 600.0
"""How long a model may take to load before it is given up."""


async def probe(
    file: Path, providers: tuple[str, ...], threads: int, goal: str = "latency", limit_s: float = PROBE_S
) -> None:
    """Return when a child process has loaded the model. Raises what it raised, or Fail for how it ended."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "whet.server.repository.probe", str(file), ",".join(providers), str(threads), goal,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(child.communicate(), limit_s)
    except TimeoutError as error:
        raise Fail("the model takes too long to load", file=str(file), found=f"more than {limit_s:.0f} s") from error
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == 0:
        return
    if child.returncode is not None and child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise Fail("the model ended the process that tried to load it", file=str(file), found=name)
    raise _error_of(out, file)


def _error_of(out: bytes, file: Path) -> WhetError:
    try:
        document = json.loads(out)
        kind, message = document["type"], document["message"]
    except (ValueError, KeyError, TypeError):
        return Fail(
            "the process that tried to load the model failed", file=str(file), found=out[-300:].decode(errors="replace")
        )
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
    options.intra_op_num_threads = int(threads)
    options.add_session_config_entry("goal", goal)
    try:
        InferenceSession(file, options, providers=[p for p in providers.split(",") if p] or None)
    except WhetError as error:
        print(json.dumps({"type": type(error).__name__, "message": str(error)}))
        return 1
    except MemoryError:
        print(json.dumps({"type": "ResourceExhausted", "message": f"no memory left while loading {file}"}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
