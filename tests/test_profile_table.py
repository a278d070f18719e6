"""The table of where time went: sums, shares, bounds against a peak that is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import whet
from tests.session_models import model
from whet.profiling.peak import Peak, machine_peak
from whet.profiling.table import COLUMNS, profile_rows, table_cells
from whet.providers.base import ProfileEvent

PEAK = Peak(2, 1_000_000, 100.0, 200.0, 80.0, 160.0, 10.0, 20.0)
MODEL = "g (float[64, 64] x) => (float[64, 64] y) { a = MatMul(x, x) b = Relu(a) y = Softmax(b) }"


def _event(op: str, ns: int, flops: int, nbytes: int, parallel: bool = False) -> ProfileEvent:
    arguments = {"tactic": "t", "flops": flops, "bytes": nbytes, "parallel": parallel}
    return ProfileEvent(f"node {op}", op, "CPUExecutionProvider", 0, ns, arguments)


def test_rows_are_sums_over_runs_with_rates_and_bounds() -> None:
    # One thread: 50 GFLOP/s of 100. 8 MB in 1 ms are 8 GB/s of 10 from memory. The same on two threads: of 20.
    events = [_event("MatMul", 2_000, 100_000, 1_000)] * 4
    events += [_event("Add", 1_000_000, 0, 8_000_000), _event("Mul", 1_000_000, 0, 8_000_000, parallel=True)]
    events += [ProfileEvent("other", "Foo", "ReferenceExecutionProvider", 0, 500, {})]
    rows = {row.operators: row for row in profile_rows(events, PEAK, runs=2)}
    total = 8_000 + 2_000_000 + 500
    matmul = rows["MatMul"]
    assert (matmul.calls, matmul.ms, matmul.bound) == (2.0, 0.004, "compute")
    assert matmul.share == pytest.approx(8_000 / total)
    assert (matmul.gflops, matmul.gbytes, matmul.peak) == (50.0, 0.5, 0.5)
    assert (rows["Add"].bound, rows["Add"].gbytes, rows["Add"].peak) == ("memory", 8.0, 0.8)
    assert rows["Mul"].peak == pytest.approx(0.4)
    assert (rows["Foo"].gflops, rows["Foo"].peak, rows["Foo"].bound) == (None, None, "")
    assert [row.ms for row in profile_rows(events, PEAK)] == sorted((r.ms * 2 for r in rows.values()), reverse=True)
    assert sum(row.share for row in rows.values()) == pytest.approx(1.0)


def test_steps_of_one_operator_may_have_rows_of_their_own() -> None:
    events = [_event("A", 10, 1, 1), _event("A", 20, 1, 1)]
    events[1] = ProfileEvent("second", "A", "CPUExecutionProvider", 0, 20, events[1].args)
    assert [row.name for row in profile_rows(events, PEAK, by="step")] == ["second", "node A"]
    assert [row.calls for row in profile_rows(events, PEAK)] == [2.0]


def test_the_table_fits_into_120_columns() -> None:
    row = profile_rows([_event("Conv+" * 40, 123_456_789_000, 10**15, 10**14)], PEAK, by="step")[0]
    cells = table_cells(row)
    assert len(cells) == len(COLUMNS)
    assert sum(max(len(cell), len(head)) + 2 for cell, head in zip(cells, COLUMNS, strict=True)) <= 118


def test_this_machine_s_peak_is_plausible() -> None:
    peak = machine_peak()
    assert peak.gflops_one > 1
    assert peak.gflops_all >= peak.gflops_one
    assert peak.l2_gbytes_one > 0.5
    assert peak.memory_gbytes_all > 0.1


def test_a_session_tells_the_steps_of_its_runs() -> None:
    session = whet.InferenceSession(model(MODEL))
    events = session.profile({"x": np.ones((64, 64), np.float32)}, runs=3)
    found = [(e.op, e.args["flops"]) for e in events]
    assert len(found) % 3 == 0
    assert found[: len(found) // 3] * 3 == found
    product = max((e for e in events if "MatMul" in e.op), key=lambda e: e.args["flops"])  # not the packing
    assert 2 * 64**3 <= product.args["flops"] <= 2.2 * 64**3
    assert 3 * 64 * 64 * 4 * 0.5 <= product.args["bytes"] <= 3 * 64 * 64 * 4 * 2
    assert all(e.duration_ns > 0 for e in events)


def test_the_command_prints_the_table_and_json(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model(MODEL))
    command = [sys.executable, "-m", "whet.cli", "bench", str(path), "-n", "3", "--profile", "operator"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env={"COLUMNS": "120"}).stdout
    assert "Where the time goes" in text
    assert max(map(len, text.splitlines())) <= 140
    document = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert {"operators", "tactic", "ms", "share", "gflops", "gbytes", "peak", "bound"} <= document["profile"][0].keys()
    assert document["machine_peak"]["gflops_one"] > 1
    failed = subprocess.run([*command[:-1], "nothing"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "takes 'operator' or 'step'" in failed.stderr
