"""The Chrome trace recorder keeps a bounded number of events and says how many came later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from whet.profiling import trace


def test_a_full_trace_counts_what_it_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MAX_EVENTS", 3)
    recorder = trace.TraceRecorder(1000)
    for start in range(5):
        recorder.session_event("model_run", 1000 + 2000 * start, 500)
    recorder.write(tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())
    assert [e["name"] for e in events] == ["model_run"] * 3 + ["2 later events not kept"]
    assert [e["ts"] for e in events] == [0.0, 2.0, 4.0, 4.0]
    assert all(e["dur"] >= 0 for e in events)
