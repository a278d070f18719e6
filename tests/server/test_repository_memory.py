"""The short version of `soak_cycles.py`."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

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
