"""The short version of `soak.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("httptools")
pytest.importorskip("tritonclient.grpc")
pytest.importorskip("tritonclient.http")

from tests.server.soak import MODES, Run

SECONDS = 10.0
GROWTH_MB = 60.0
"""Pools and caches still fill in so short a run."""


@pytest.mark.parametrize("mode", MODES)
def test_mixed_load(tmp_path: Path, mode: str) -> None:
    run = Run(SECONDS, 1, tmp_path, mode, GROWTH_MB)
    run.run()
    assert run.problems == []
    counts = run.soak.book.counts
    # Every kind of client was at work.
    assert {who.rstrip("-12") for who, what in counts if what == "ok"} == {
        "http-json", "http-binary", "grpc-unary", "grpc-stream", "sequences", "swap-user", "onoff-user",
    }  # fmt: skip
    assert {"canceller", "gone", "too-late", "wrong-names", "malformed-http", "malformed-grpc"} <= {
        w for w, _ in counts
    }
