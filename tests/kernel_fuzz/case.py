"""One seed: a kernel of some family for some target, and many calls of it."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.kernel_tools import _SIGNATURE as SIGNATURE
from whet.codegen.jit import Library
from whet.codegen.module import compile_source
from whet.codegen.target import AVX2, AVX512, NEON, Target, host_target
from whet.kernels.base import KernelSpec, build

from . import emulated
from .call import Call, Family, Operand
from .draw import Draw
from .families import BY_NAME, FAMILIES
from .host import Host
from .layers import Grown
from .layout import Mismatch
from .memory import NoRoom

MOST_FAILURES = 3
"""Failures of one kernel that are reported; it gets no more calls then."""


@functools.cache
def targets() -> dict[str, Target]:
    """By name, those that can run here."""
    host = host_target()
    found = {"host": host, **{n: t for n, t in (("avx512", AVX512), ("avx2", AVX2)) if t.runs_on(host)}}
    if host.architecture != "aarch64" and emulated.available():
        found["neon"] = NEON
    return found


_TARGET_WEIGHTS = {"host": 7, "avx512": 3, "avx2": 6, "neon": 4}
_EMULATED_SHARE = 0.5
"""Calls of an emulated kernel, of those that others get: they take longer."""


@dataclass
class Result:
    """What became of a seed. `calls` are entries of the kernel, each with an argument block of its own."""

    seed: int
    family: str
    target: str
    symbol: str = ""
    calls: int = 0
    seconds: float = 0.0
    compile_seconds: float = 0.0
    oversized: int = 0
    """Calls that were left out, as their operands are larger than the memory for them."""
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A seed's kernel."""

    seed: int
    family: Family
    target_name: str
    plan: Any

    @property
    def target(self) -> Target:
        return targets()[self.target_name]

    @property
    def spec(self) -> KernelSpec:
        kernel: KernelSpec = self.plan.kernel if isinstance(self.plan, Grown) else self.plan
        return kernel

    def draw(self, number: int) -> Draw:
        """The randomness of a call."""
        return Draw(self.seed, number)

    def call(self, draw: Draw) -> Call:
        return self.family.call(draw, self.plan, self.target)

    def describe(self, number: int) -> str:
        """The kernel and one of its calls, for a report."""
        call = self.call(self.draw(number))
        words = {
            n: f"{w.role} {w.dtype} {w.window.extents} strides {w.window.strides}" if isinstance(w, Operand) else w
            for n, w in call.words.items()
        }
        lines = [f"  {name} = {value}" for name, value in words.items()]
        head = f"{self.family.name} for {self.target_name}: {self.spec}\n  call {number}, {call.tiles} tiles"
        replay = f"  replay: python -m tests.kernel_fuzz --seed {self.seed} --only-call {number}"
        return "\n".join([head, *lines, replay])


def make_case(seed: int) -> Case:
    """The case of a seed. Every fourth seed takes the families in turn."""
    draw = Draw(seed, -1)
    if seed % 4 == 0:
        family = FAMILIES[seed // 4 % len(FAMILIES)]
    else:
        family = draw.random.choices(FAMILIES, [f.weight for f in FAMILIES])[0]
    names = list(targets())
    target = draw.random.choices(names, [_TARGET_WEIGHTS[n] for n in names])[0]
    return Case(seed, family, target, family.spec(draw, targets()[target]))


def run_case(host: Host, seed: int, entries: int, note: Callable[[int, int], None], only: int | None = None) -> Result:
    """Make calls of a seed's kernel until there were `entries` entries; or only the call of number `only`.

    `note` is told the number of each call and variant before it runs.
    """
    return run_planned(host, make_case(seed), entries, note, only)


def run_planned(
    host: Host, case: Case, entries: int, note: Callable[[int, int], None], only: int | None = None
) -> Result:
    """`run_case` for a case that is there."""
    result = Result(case.seed, case.family.name, case.target_name)
    start = time.perf_counter()
    try:
        code = build(case.spec, case.target)
    except Exception:
        result.failures.append(f"{traceback.format_exc()}\n{case.describe(0)}")
        return result
    result.symbol = code.symbol
    if case.target_name == "neon":
        wanted = max(int(entries * _EMULATED_SHARE / case.family.cost), 1)
        emulated.run(case, code, wanted, result, note, only)
        result.seconds = time.perf_counter() - start
        return result
    library = Library(compile_source(code.source), code.source.target)
    kernel = library.kernel(code.symbol, SIGNATURE)
    result.compile_seconds = time.perf_counter() - start
    wanted = max(int(entries / case.family.cost), 1)
    number = 0 if only is None else only
    while result.calls < wanted:
        draw = case.draw(number)
        try:
            call = case.call(draw)
            result.calls += host.check(draw, code, kernel, call, lambda v, n=number: note(n, v))
        except NoRoom:
            result.oversized += 1
        except Mismatch as problem:
            result.failures.append(f"{problem}\n{case.describe(number)}")
        except Exception:
            # Not the kernel's fault, but a generator's.
            result.failures.append(f"{traceback.format_exc()}\n{case.family.name} {case.spec}, call {number}")
        number += 1
        if only is not None or len(result.failures) >= MOST_FAILURES or result.oversized > wanted:
            break
    result.seconds = time.perf_counter() - start
    return result


__all__ = ["BY_NAME", "Case", "Result", "make_case", "run_case", "targets"]
