"""Random valid graphs on the CPU provider: ONNX Runtime's answers and float64's, unoptimized and with every pass."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import whet
from tests.random_graphs.check import CPU_STAGES, LEVELS, OracleError, check
from tests.random_graphs.generator import generate
from tests.random_graphs.shrink import FIXTURES, read_fixture

GRAPHS = 200
CHUNK = 25
FIRST = 5000
"""Not the seeds that the levels are tested with."""


@pytest.mark.parametrize("first", range(FIRST, FIRST + GRAPHS, CHUNK))
def test_compiled_graphs_agree(first: int) -> None:
    failed, refused = [], 0
    for seed in range(first, first + CHUNK):
        case = generate(seed)
        try:
            failures = check(case.model, case.feeds, inexact=case.inexact, stages=("float64", *CPU_STAGES))
        except OracleError:
            refused += 1
            continue
        failed += [f"seed {seed}: {failure.stage} {failure.output} {failure.message}" for failure in failures]
    assert not failed, "\n".join(failed[:10])
    assert refused <= 1, "ONNX Runtime refuses the generator's models"


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.onnx")), ids=lambda path: path.stem)
def test_old_failures_stay_fixed(path: Path) -> None:
    fixture = read_fixture(path)
    failures = check(fixture.model, fixture.feeds, stages=("float64", *CPU_STAGES))
    assert not failures, "\n".join(f"{f.stage} {f.output}: {f.message}" for f in failures)


def test_most_nodes_are_compiled() -> None:
    """The random graphs test the compiler and not the reference provider behind it."""
    counts: Counter[str] = Counter()
    for seed in range(FIRST, FIRST + CHUNK):
        options = whet.SessionOptions()
        options.graph_optimization_level = LEVELS["all"]
        model = generate(seed).model.SerializeToString()
        session = whet.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        counts.update(session.placement.by_provider)
    assert counts["CPUExecutionProvider"] >= 0.75 * counts.total(), counts
