"""Models that come and go leave no memory behind: short versions of `soak_cycles.py` and `cycles.py`."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from tests.server.cycles import run
from tests.server.soak_cycles import cycles, growth_mb, no_probe
from whet.server.model import ServedModel
from whet.session.inference_session import InferenceSession

COUNT = 80
WEIGHTS_MB = 8
POOLED = 10
"""Freed models' worth of memory that the process may keep: 9 were seen, and then no more."""


def alive(kind: type) -> int:
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


def test_cycles_of_loads_failures_and_unloads_keep_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.server.repository.loader.probe", no_probe)
    before = alive(ServedModel), alive(InferenceSession)
    found = asyncio.run(cycles(tmp_path, COUNT, WEIGHTS_MB))
    assert (alive(ServedModel), alive(InferenceSession)) == before
    # Memory without an object: one model in eight that stayed would show.
    assert growth_mb(found) < POOLED * WEIGHTS_MB


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_a_server_keeps_nothing_of_models_that_came_and_went() -> None:
    """The short version of `cycles.py`: each cycle loads two models of 8 MB."""
    held = run(6, WEIGHTS_MB)
    grown = held[-1].memory_mb - held[1].memory_mb
    assert grown < 3 * WEIGHTS_MB, held
    assert held[-1].files <= held[1].files + 2, held
    assert held[-1].children <= 1, held
