"""The fuzzer of generated kernels: a short run over every family, and proof that it sees what it looks for."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

import whet.kernels
from tests.kernel_fuzz import emulated
from tests.kernel_fuzz.call import Call, Family
from tests.kernel_fuzz.case import Case, Result, run_planned, targets
from tests.kernel_fuzz.draw import Draw
from tests.kernel_fuzz.families import FAMILIES
from tests.kernel_fuzz.host import Host
from tests.kernel_fuzz.operands import given, made
from tests.kernel_fuzz.runner import Worker, fuzz
from whet.codegen.target import Target
from whet.dtypes import FLOAT32
from whet.kernels.base import Frame, KernelSpec

SEEDS = 4 * len(FAMILIES)


def test_every_family() -> None:
    results = list(fuzz(0, SEEDS, 40, jobs=2))
    assert [failure for r in results for failure in r.failures] == []
    assert {r.family for r in results} == {f.name for f in FAMILIES}
    assert {r.target for r in results} == set(targets())
    assert len({r.symbol for r in results}) > SEEDS * 0.8
    assert all(r.calls for r in results)


def test_the_table_has_every_kernel() -> None:
    """A new kernel needs a line in `tests/kernel_fuzz/families.py`."""
    kernels = set()
    for module in pkgutil.iter_modules(whet.kernels.__path__, "whet.kernels."):
        for found in vars(importlib.import_module(module.name)).values():
            own = inspect.isclass(found) and found.__module__ == module.name and "emit" in vars(found)
            if own and found is not KernelSpec and list(inspect.signature(found.emit).parameters) == ["self", "frame"]:
                kernels.add(found)
    host = targets()["host"]
    drawn = {type(Case(0, f, "host", f.spec(Draw(1), host)).spec) for f in FAMILIES}
    assert drawn == kernels


Fault = Literal["none", "reads behind", "reads before", "writes behind", "writes between", "writes input", "scratch",
                "poison", "pieces", "skips", "wrong", "status"]  # fmt: skip


@dataclass(frozen=True)
class Doubling:
    """out[i * stride] = 2 * x[i], with one fault."""

    fault: Fault

    def emit(self, frame: Frame) -> None:
        k = frame.k
        x, out = frame.address("x", FLOAT32), frame.address("out", FLOAT32)
        count, stride = k.index(frame.number("n")), frame.number("stride")
        room = frame.scratch(FLOAT32, 16)
        if self.fault in ("reads behind", "reads before"):
            # Kept, so that the compiler does not leave the load out.
            room.store(x.load(count if self.fault == "reads behind" else -1), 0)
        if self.fault == "writes behind":
            out.store(1.0, (count - 1) * stride + 1)
        if self.fault == "writes between":
            out.store(1.0, (count - 1) * stride - 1)
        if self.fault == "writes input":
            x.store(1.0, 0)
        if self.fault == "status":
            frame.fail_if(count > 0, 1, 0)
        with frame.tiles() as i:
            value = x.load(i) * (2.5 if self.fault == "wrong" else 2.0)
            if self.fault == "scratch":
                value = value + room.load(3) * 0.0
            if self.fault == "poison":
                value = value + out.load(i * stride) * 1e-30
            if self.fault == "pieces":
                with k.when(i == frame.begin):
                    out.store(value + 1.0, i * stride)
                with k.otherwise():
                    out.store(value, i * stride)
            elif self.fault == "skips":
                with k.when(i != count - 1):
                    out.store(value, i * stride)
            else:
                out.store(value, i * stride)


def doubling_call(draw: Draw, spec: Any, target: Target) -> Call:
    count = draw.integer(2, 9)
    x = draw.values(FLOAT32, (count,))
    expected = x.astype(np.float64) * 2
    # Rounding is no excuse here; "pieces" is left to the comparison of bits.
    operand = made(FLOAT32, (count,), (3,), None if spec.fault == "pieces" else expected)
    return Call({"x": given(FLOAT32, x), "out": operand, "n": count, "stride": 3}, count)


DOUBLING = Family("doubling", lambda draw, target: Doubling("none"), doubling_call)


def outcome(fault: Fault, target: str) -> Result:
    return run_planned(Host(), Case(7, DOUBLING, target, Doubling(fault)), 200, lambda number, variant: None)


@pytest.mark.parametrize("fault", ["writes between", "scratch", "poison", "pieces", "skips", "wrong", "status"])
@pytest.mark.parametrize("target", ["host", "neon"])
def test_faults_are_seen(fault: Fault, target: str) -> None:
    if target not in targets():
        pytest.skip("needs qemu-aarch64 and aarch64 binutils")
    assert not outcome("none", target).failures
    assert outcome(fault, target).failures


@pytest.mark.skipif(not emulated.available(), reason="needs qemu-aarch64 and aarch64 binutils")
@pytest.mark.parametrize("fault", ["reads behind", "reads before", "writes behind", "writes input"])
def test_faults_end_the_emulated_program(fault: Fault) -> None:
    (failure,) = outcome(fault, "neon").failures
    assert "killed by SIGSEGV" in failure
    assert "replay" in failure


@pytest.mark.parametrize("fault", ["reads behind", "reads before", "writes behind", "writes input"])
def test_faults_end_this_machines_process(fault: Fault) -> None:
    program = f"from tests.test_kernel_fuzz import outcome; outcome({fault!r}, 'host')"
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGSEGV


def test_a_worker_that_is_killed_is_reported_and_started_again() -> None:
    worker = Worker(0, 1, 8, 40, None)
    results, done = worker.read()
    worker.process.send_signal(signal.SIGSEGV)
    while not done:
        more, done = worker.read()
        results += more
    failures = [(r.seed, f) for r in results for f in r.failures]
    assert len(failures) == 1
    seed, text = failures[0]
    assert "killed by SIGSEGV" in text
    assert f"--seed {seed} --only-call" in text
    assert sorted(r.seed for r in results) == list(range(8))
