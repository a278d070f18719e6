"""Load, answer, fail, unload, over and over: the memory of the process stays where it is.

python -m tests.server.soak_cycles 1000
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np

from tests.server.repository_models import BROKEN, ask, rows, running, scale_bytes
from whet.errors import WhetError

WARM = 0.2
"""Part of the cycles after which memory is looked at first: pools and caches are filled by then."""


def resident_mb() -> float:
    """Memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


async def no_probe(*_: object) -> None:
    """The child process: its memory is not this one's, and it takes most of a cycle's time."""


async def cycles(folder: Path, count: int, weights_mb: int = 4) -> list[float]:
    """The memory after each cycle. Each model holds weights of `weights_mb`, so that one that stays shows."""
    padding = np.random.default_rng(0).standard_normal(weights_mb << 18).astype(np.float32)
    found = []
    async with running(folder, control_mode="explicit") as (plane, repository):
        await repository.start()
        for cycle in range(count):
            factor = float(cycle % 7 + 1)
            (folder / "m.onnx").write_bytes(scale_bytes(factor, weights=padding))
            await repository.load("m")
            x = rows(cycle % 3 + 1)
            assert np.array_equal(await ask(plane, "m", x), x * np.float32(factor))
            (folder / "m.onnx").write_bytes(BROKEN)
            try:
                await repository.load("m")
            except WhetError:
                pass
            else:
                raise AssertionError("a broken model was loaded")
            with contextlib.suppress(WhetError):
                await repository.load(f"missing-{cycle}")
            assert np.array_equal(await ask(plane, "m", x), x * np.float32(factor))
            if cycle % 2:
                await repository.unload("m")
            found.append(resident_mb())
    return found


def growth_mb(found: list[float]) -> float:
    """How much the last cycles hold more than those after the first."""
    warm = int(len(found) * WARM)
    part = max(len(found) // 10, 1)
    return float(np.median(found[-part:]) - np.median(found[warm : warm + part]))


def main(count: int, probe: bool) -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if probe:
            found = asyncio.run(cycles(Path(folder), count))
        else:
            with mock.patch("whet.server.repository.loader.probe", no_probe):
                found = asyncio.run(cycles(Path(folder), count))
    for at in range(0, count, max(count // 10, 1)):
        print(f"cycle {at + 1:5d}: {found[at]:7.1f} MB")
    grown = growth_mb(found)
    print(f"{count} cycles in {time.monotonic() - began:.0f} s: grown by {grown:.1f} MB")
    return 0 if grown < 8 else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000, "--probe" in sys.argv))
