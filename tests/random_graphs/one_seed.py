"""One seed of a long run: check it, shrink what fails. Not in `__main__`, so that child processes can import it."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from .check import ALL_STAGES, CPU_STAGES, Feed, OracleError, check
from .generator import generate
from .shrink import Shrunk, shrink, write_fixture


def run_seed(seed: int, share: int, write: Path | None, cpu: bool = False) -> tuple[int, str, list[str]]:
    """Checks one seed: (seed, "ok" | "refused" | "failed", lines to print).

    Level `all` (on the reference provider the same passes as `extended`) and the saved model: every `share`-th seed.
    With `cpu` the CPU provider's stages instead of the levels.
    """
    stages = [stage for stage in ALL_STAGES if stage not in ("saved", "all") or seed % share == 0]
    if cpu:
        stages = ["float64", *CPU_STAGES]
    case = generate(seed)
    try:
        failures = check(case.model, case.feeds, inexact=case.inexact, stages=stages)
    except OracleError as error:
        return seed, "refused", [f"ONNX Runtime: {error}"[:200]]
    except Exception:
        return seed, "failed", [traceback.format_exc()]
    if not failures:
        return seed, "ok", []
    lines = [f"{f.stage} {f.output}: {f.message}"[:400] for f in failures[:4]]
    if write is not None:
        first = failures[0]

        def fails(model: ModelProto, feeds: Sequence[Feed]) -> bool:
            return any(f.kind == first.kind for f in check(model, feeds, inexact=case.inexact, stages=stages))

        stages = [first.stage] if first.stage in ("float64", "saved") else ["float64", first.stage]
        small = shrink(case.model, case.feeds, fails)
        path = write_fixture(f"seed_{seed}", small, write)
        lines.append(f"{_operators(small)} in {path.name}")
    return seed, "failed", lines


def _operators(small: Shrunk) -> str:
    return " ".join(node.op_type for node in small.model.graph.node)


def work(arguments: tuple[int, int, Path | None, bool]) -> tuple[int, str, list[str]]:
    """`run_seed` in a child process, collecting garbage now and then only: the collector takes a sixth of the time."""
    gc.disable()
    if arguments[0] % 64 == 0:
        gc.collect()
    return run_seed(*arguments)
