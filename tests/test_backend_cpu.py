"""onnx's own conformance suite on the CPU provider, and which cases the compiler takes whole."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.backend_cases import Case, load_cases, mismatch
from whet.errors import WhetError
from whet.providers.partition import Placement

CHUNKS = 8
LEVELS = {
    "disabled": whet.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "all": whet.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
CPU = "CPUExecutionProvider"
COMPILED = Path(__file__).with_name("backend_compiled_list.txt")
"""Cases of which no node is left to the reference provider at level `all`."""
PASSING = Path(__file__).with_name("backend_pass_list.txt")
COARSE = {"bf16": 2.0**-6, "fp16": 2.0**-9}
"""Relative tolerance of attention in 16-bit floats, by a part of the case's name: two steps of the type. The expected
numbers were rounded after every operation; here they are rounded once, and lie nearer to float64's."""


@cache
def all_cases() -> tuple[Case, ...]:
    return tuple(load_cases())


@cache
def listed(path: Path) -> frozenset[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def outcome(case: Case, level: str) -> tuple[str | None, Placement | None]:
    """Why the case does not pass (None where it does), and where its nodes were placed."""
    options = whet.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    placement = None
    try:
        session = whet.InferenceSession(case.model, options, providers=[CPU])
        placement = session.placement
        names = [given.name for given in session.get_inputs()]
        for inputs, expected in case.data:
            found = session.run(None, dict(zip(names, inputs, strict=False)))
            reason = mismatch([plain(value) for value in found], expected, tolerance(case), case.atol)
            if reason:
                return reason, placement
    except (WhetError, AssertionError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}", placement
    return None, placement


def tolerance(case: Case) -> float:
    """The case's relative tolerance."""
    kinds = COARSE if "attention" in case.name else {}
    return max([case.rtol, *(rtol for kind, rtol in kinds.items() if kind in case.name)])


def plain(value: Any) -> Any:
    """What a session returns as `mismatch` takes it: text in arrays of objects."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray) and value.dtype.kind in "US":
        return value.astype(np.object_)
    return value


def is_compiled(placement: Placement) -> bool:
    """Whether the compiler took every node."""
    return set(placement.by_provider) <= {CPU}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_cases_pass(chunk: int, level: str) -> None:
    wrong, no_longer, unlisted = [], [], []
    for case in all_cases()[chunk::CHUNKS]:
        if case.name not in listed(PASSING):
            continue
        reason, placement = outcome(case, level)
        if reason is not None or placement is None:
            wrong.append(f"{case.name}: {reason}")
        elif level == "all" and is_compiled(placement) and case.name not in listed(COMPILED):
            unlisted.append(case.name)
        elif level == "all" and not is_compiled(placement) and case.name in listed(COMPILED):
            no_longer.append(f"{case.name}: {placement.refusal_counts()}")
    assert not wrong, f"cases fail at level {level}:\n" + "\n".join(wrong)
    assert not no_longer, "listed cases are not compiled whole any more:\n" + "\n".join(no_longer)
    assert not unlisted, f"these cases are compiled whole; add them to {COMPILED.name}:\n" + "\n".join(unlisted)


def test_the_list_names_cases_that_exist() -> None:
    names = {case.name for case in all_cases()}
    assert listed(COMPILED) <= names & listed(PASSING)
