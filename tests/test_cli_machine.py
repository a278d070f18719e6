"""`whet info --machine`."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from whet.cli import machine
from whet.cli.app import app
from whet.codegen.target import host_target
from whet.errors import NotImplemented
from whet.profiling.peak import Peak
from whet.runtime.cores import CoreBudget, Quota


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["info", "--machine", *arguments], catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> CoreBudget:
    found = CoreBudget(16, (0, 1, 2, 3, 8, 10, 11), 4, Quota(2.5, "/sys/fs/cgroup/cpu.max"))
    monkeypatch.setattr(machine, "describe_cores", lambda: found)
    return found


def test_it_says_what_was_chosen_and_why(limited: CoreBudget) -> None:
    text = " ".join(call().split())
    target = host_target()
    for part in (
        target.cpu,
        f"{target.vector_bits} bits, {target.vector_registers} registers",
        f"L1 {target.l1_bytes // 1024} KiB",
        "4, 7 hardware threads on 4 cores",
        "CPUs 0-3,8,10-11 of 16",
        "2.5 cores (/sys/fs/cgroup/cpu.max)",
        "3: the cgroup's quota of 2.5 cores",
        "beyond 3 threads",
        "--measure adds",
    ):
        assert part in text


def test_json(limited: CoreBudget) -> None:
    document: Any = json.loads(call("--json"))
    assert document["cores"]["threads"] == 3
    assert document["cores"]["quota"] == {"cores": 2.5, "source": "/sys/fs/cgroup/cpu.max"}
    assert document["cores"]["allowed"] == [0, 1, 2, 3, 8, 10, 11]
    assert document["target"]["vector_bits"] == host_target().vector_bits
    assert document["peak"] is None
    assert document["problem"] is None


def test_measured_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "machine_peak", lambda: Peak(2, 1 << 20, 100.0, 199.0, 90.0, 180.0, 30.0, 55.0))
    text = " ".join(call("--measure").split())
    assert "peak, one thread 100 GFLOP/s float32, 90 GB/s from L2, 30 GB/s from memory" in text
    assert "peak, 2 threads 199 GFLOP/s" in text


def test_a_machine_without_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Any:
        raise NotImplemented("no compiled code for this architecture", found="vax")

    monkeypatch.setattr(machine, "host_target", none)
    assert "none: no compiled code for this architecture" in " ".join(call("--measure").split())


def test_measure_alone_is_refused() -> None:
    result = CliRunner().invoke(app, ["info", "--measure"])
    assert result.exit_code != 0
    assert "--machine" in result.output
