"""Random valid graphs: every level agrees with unoptimized ONNX Runtime and float64; old failures stay fixed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.random_graphs.check import ALL_STAGES, OracleError, check, compare, ort_outputs
from tests.random_graphs.generator import generate
from tests.random_graphs.shrink import FIXTURES, read_fixture, shrink

GRAPHS = 300
CHUNK = 20


@pytest.mark.parametrize("first", range(0, GRAPHS, CHUNK))
def test_levels_agree(first: int) -> None:
    failed, refused = [], 0
    for seed in range(first, first + CHUNK):
        case = generate(seed)
        stages = ALL_STAGES if seed % 5 == 0 else tuple(stage for stage in ALL_STAGES if stage != "saved")
        try:
            failures = check(case.model, case.feeds, inexact=case.inexact, stages=stages)
        except OracleError:
            refused += 1
            continue
        failed += [f"seed {seed}: {failure.stage} {failure.output} {failure.message}" for failure in failures]
    assert not failed, "\n".join(failed[:10])
    assert refused <= 1, "ONNX Runtime refuses the generator's models"


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.onnx")), ids=lambda path: path.stem)
def test_old_failures_stay_fixed(path) -> None:
    fixture = read_fixture(path)
    failures = check(fixture.model, fixture.feeds)
    assert not failures, "\n".join(f"{f.stage} {f.output}: {f.message}" for f in failures)


@pytest.mark.parametrize("seed", range(1000, 1040))
def test_generated_models_are_valid_and_replay(seed: int) -> None:
    case, again = generate(seed), generate(seed)
    onnx.checker.check_model(case.model, full_check=True)
    assert case.model.SerializeToString(deterministic=True) == again.model.SerializeToString(deterministic=True)
    assert len(case.model.graph.node) + sum(len(function.node) for function in case.model.functions) >= 10
    for outputs in ort_outputs(case.model.SerializeToString(), case.feeds):
        for output in outputs:
            assert output.dtype.kind != "f" or np.isfinite(output).all()


def test_the_comparison_can_fail() -> None:
    expected = np.linspace(-1, 1, 100, dtype=np.float32)
    assert compare(expected.copy(), expected) is None
    assert compare(expected + np.float32(1e-4), expected) is None
    assert "error" in str(compare(expected + np.float32(3e-4), expected))
    assert "shape" in str(compare(expected[:50], expected))
    assert "dtype" in str(compare(expected.astype(np.float64), expected))
    assert "integers" in str(compare(np.arange(3), np.arange(3)[::-1]))
    assert "finite" in str(compare(np.full(3, np.nan), np.zeros(3)))


def test_shrinking_finds_the_node() -> None:
    """A model in which one operator is 'wrong' shrinks to that operator."""
    operator = "Softmax"
    case = next(case for case in map(generate, range(100)) if any(n.op_type == operator for n in case.model.graph.node))

    def fails(model: onnx.ModelProto, feeds) -> bool:
        ort_outputs(model.SerializeToString(), feeds)
        return any(node.op_type == operator for node in model.graph.node)

    small = shrink(case.model, case.feeds, fails)
    assert [node.op_type for node in small.model.graph.node] == [operator]
