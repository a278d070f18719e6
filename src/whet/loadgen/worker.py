"""One process of a load: reads its share from standard input, writes what each window saw to standard output.

Both ends are this package, and messages are pickles. A first, empty window says that the process is up. The parent
closes standard input to end it.
"""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
import time
from dataclasses import dataclass

from whet.loadgen.driver import Driver, Mix, Window
from whet.loadgen.plan import Plan


@dataclass(frozen=True)
class Share:
    """One process's part of a plan."""

    plan: Plan
    mix: Mix
    connections: int
    rate: float | None
    seed: int
    start_at: float  # of the monotonic clock, which all processes of a machine share


async def _work(share: Share, stop: asyncio.Event) -> None:
    await asyncio.sleep(max(0.0, share.start_at - time.monotonic()))
    driver = Driver(share.plan, share.mix, share.connections, share.rate, share.seed)
    driver.start()
    end = share.start_at + share.plan.windows.warm_up_s
    while True:
        try:
            await asyncio.wait_for(stop.wait(), max(0.0, end - time.monotonic()))
            break
        except TimeoutError:
            pass
        window = driver.cut()
        end += share.plan.windows.window_s
        try:
            _tell(window)
        except BrokenPipeError:
            break
    await driver.stop()


def _tell(window: Window) -> None:
    pickle.dump(window, sys.stdout.buffer)
    sys.stdout.buffer.flush()


async def _main() -> None:
    _tell(Window())  # up
    share = pickle.load(sys.stdin.buffer)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def watch() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch, daemon=True).start()
    await _work(share, stop)


def main() -> None:
    """Run on uvloop where it is installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(_main())
    else:
        uvloop.run(_main())


if __name__ == "__main__":
    main()
