"""Thirty seconds of the two fuzzers: every mutant ends in a typed error or a run, none in a crash or a hang."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz import model_bytes, model_graphs
from tests.fuzz.watchdog import BAD, fuzz

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the memory limit of the children needs POSIX")


@pytest.mark.parametrize("kind", ["bytes", "graphs"])
def test_mutants_are_refused_or_run(kind: str) -> None:
    outcomes = list(fuzz((kind,), 0, seconds=15.0))
    bad = [f"seed {o.seed} {o.status}: {o.detail[-1500:]}" for o in outcomes if o.status in BAD]
    assert not bad, "\n".join(bad[:5])
    # A fuzzer whose mutants all die in the parser, or all run, tests nothing.
    statuses = {outcome.status for outcome in outcomes}
    assert {"refused", "ran"} <= statuses, statuses


@pytest.mark.parametrize("mutate", [model_bytes.mutate, model_graphs.mutate])
def test_seeds_replay(mutate) -> None:
    assert [mutate(seed) for seed in range(20)] == [mutate(seed) for seed in range(20)]
    assert len({mutate(seed) for seed in range(20)}) == 20
