"""onnx's own conformance suite on the reference provider, unoptimized and with every pass, against a list of passes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from tests.backend_cases import Case, load_cases, mismatch
from whet.errors import WhetError
from whet.formats.onnx import load_model
from whet.passes.pipeline import optimize
from whet.providers.base import Accept, CompileEnv, Level, RunState, Subgraph
from whet.providers.reference import ReferenceExecutionProvider
from whet.providers.reference.executable import ReferenceExecutable, unwrap, wrap

CHUNKS = 8
LEVELS: tuple[Level, ...] = ("disabled", "all")
LIST = Path(__file__).with_name("backend_pass_list.txt")

RANDOM_CASES = frozenset(
    {
        "test_bernoulli",
        "test_bernoulli_double",
        "test_bernoulli_double_expanded",
        "test_bernoulli_expanded",
        "test_bernoulli_seed",
        "test_bernoulli_seed_expanded",
    }
)
"""Cases whose expected numbers are one draw of another generator; they are checked by distribution."""


@cache
def all_cases() -> tuple[Case, ...]:
    return tuple(load_cases())


@cache
def listed() -> frozenset[str]:
    lines = LIST.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def compiled(case: Case, level: Level) -> tuple[ReferenceExecutable, list[object], list[object]]:
    model = load_model(case.model)
    if level != "disabled":
        optimize(model, level)
    graph = model.graph
    provider = ReferenceExecutionProvider()
    for node in graph:
        claim = provider.claim(node, graph)
        assert isinstance(claim, Accept), f"{node.label}: {claim.reason}"
    executable = provider.compile(Subgraph(graph, model, tuple(graph)), CompileEnv(level=level))
    return executable, [v.type for v in graph.inputs], list(graph.outputs)


def failure(case: Case, level: Level) -> str | None:
    """Why the case does not pass; None where it does."""
    try:
        executable, types, _ = compiled(case, level)
        for inputs, expected in case.data:
            values = [wrap(value, type_) for value, type_ in zip(inputs, types, strict=True)]
            found = [unwrap(value) for value in executable.run(values, RunState())]
            reason = mismatch(found, expected, case.rtol, case.atol)
            if reason:
                return reason
    except (WhetError, AssertionError) as error:
        return f"{type(error).__name__}: {error}"
    return None


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_listed_cases_pass(chunk: int, level: Level) -> None:
    regressions, unlisted = [], []
    for case in all_cases()[chunk::CHUNKS]:
        if case.name in RANDOM_CASES:
            continue
        reason = failure(case, level)
        if reason is not None and case.name in listed():
            regressions.append(f"{case.name}: {reason}")
        elif reason is None and case.name not in listed():
            unlisted.append(case.name)
    assert not regressions, "listed cases fail at level " + level + ":\n" + "\n".join(regressions)
    assert not unlisted, f"these cases pass; add them to {LIST.name}:\n" + "\n".join(unlisted)


def test_the_list_names_cases_that_exist() -> None:
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names)) == 2024
    assert set(names) >= RANDOM_CASES
    assert not listed() - set(names)
    assert not listed() & RANDOM_CASES


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", sorted(RANDOM_CASES))
def test_random_cases_have_the_right_distribution(name: str, level: Level) -> None:
    case = next(case for case in all_cases() if case.name == name)
    executable, types, _ = compiled(case, level)
    (inputs, expected), runs = case.data[0], 2000
    values = [wrap(value, type_) for value, type_ in zip(inputs, types, strict=True)]
    total = np.zeros(inputs[0].shape)
    for seed in range(runs):
        (found,) = (unwrap(value) for value in executable.run(values, RunState(seed=seed)))
        assert found.dtype == expected[0].dtype
        assert set(np.unique(found)) <= {0, 1}
        total += found
    if "seed" in name:
        # A node with a seed of its own draws the same numbers in every run.
        assert set(np.unique(total)) <= {0, runs}
        return
    p = inputs[0].astype(np.float64)
    if "expanded" in name:
        p = 1 - p  # the standard's function body compares the random number and the input the wrong way round
    spread = np.sqrt(p * (1 - p) / runs)
    assert (np.abs(total / runs - p) <= 5 * spread + 1e-12).all()
