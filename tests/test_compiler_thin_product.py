"""Products of a few rows with a matrix that only a run knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.compiled_nodes import FLOATS, check, random_array, single_node, steps


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_thin_products(rows: int) -> None:
    rng = np.random.default_rng(rows)
    for k, n in ((1, 1), (5, 7), (129, 65), (64, 96), (33, 1000)):
        for symbolic in (False, True):
            a, b = random_array(rng, (rows, k), np.float32), random_array(rng, (k, n), np.float32)
            model, feeds = single_node("MatMul", {"a": a, "b": b}, symbolic=symbolic, behind=[("Relu", ["y"])])
            check(model, feeds, 1e-5)
            assert symbolic or "pack" not in steps(model)
            c = random_array(rng, (n,), np.float32)
            check(*single_node("Gemm", {"a": a, "b": b, "c": c}, alpha=0.5), 1e-5)
            check(*single_node("Gemm", {"a": a.T.copy(), "b": b.T.copy()}, transA=1, transB=1), 1e-5)


@pytest.mark.parametrize("dtype", FLOATS)
def test_types(dtype: Any) -> None:
    rng = np.random.default_rng(9)
    check(*single_node("MatMul", {"a": random_array(rng, (3, 40), dtype), "b": random_array(rng, (40, 50), dtype)}))
