"""Inference against every case of `onnx.backend.test`: what it claims of an output holds for the expected output."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.backend_cases import Case, load_cases
from whet import dtypes
from whet.formats.onnx import load_model
from whet.graph import Expr, Model, OptionalType, SequenceType, TensorType, Type
from whet.graph.dims import symbol
from whet.ops.infer import infer_graph
from whet.ops.infer_table import CONTROL, INFER


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [c for c in load_cases() if c.data and len(c.model) < 1_000_000]


def forget(model: Model) -> None:
    """Drop every declared type but those of the main graph's inputs."""
    for graph in model.graph.all_graphs():
        for node in graph:
            for value in node.outputs:
                value.type = None


def contradiction(claim: Type | None, found: Any, extents: dict[str, int]) -> str | None:
    """How a value contradicts what inference says of it, or None."""
    if claim is None or found is None:
        return None
    if isinstance(claim, OptionalType):
        return contradiction(claim.element, found, extents)
    if isinstance(claim, SequenceType):
        if not isinstance(found, list):
            return f"a sequence is claimed, found {type(found).__name__}"
        return next((c for item in found if (c := contradiction(claim.element, item, extents))), None)
    if not isinstance(claim, TensorType) or not isinstance(found, np.ndarray):
        return None
    dtype = dtypes.from_numpy(found.dtype)
    if claim.dtype is not None and claim.dtype is not dtype:
        return f"{claim.dtype} is claimed, found {dtype}"
    if claim.shape is None:
        return None
    if len(claim.shape) != found.ndim:
        return f"{claim} is claimed, found shape {found.shape}"
    for dim, extent in zip(claim.shape, found.shape, strict=True):
        known = dim.evaluate(extents) if isinstance(dim, Expr) and dim.names() <= extents.keys() else dim
        if isinstance(known, int) and known != extent:
            return f"{claim} is claimed, found shape {found.shape} for {extents}"
    return None


def test_static_shapes_hold(cases: list[Case]) -> None:
    wrong, whole, known = [], 0, 0
    for case in cases:
        model = load_model(case.model)
        forget(model)
        infer_graph(model.graph)
        for value, found in zip(model.graph.outputs, case.data[0][1], strict=False):
            problem = contradiction(value.type, found, {})
            if problem:
                wrong.append(f"{case.name}: {problem}")
            if isinstance(found, np.ndarray):
                whole += 1
                known += isinstance(value.type, TensorType) and value.type.shape is not None
    assert not wrong, f"{len(wrong)}: " + "\n".join(wrong[:20])
    assert whole > 1500
    assert known > 0.9 * whole, f"the rank of {known} of {whole} outputs is known"


def test_free_extents_hold(cases: list[Case]) -> None:
    """The same with a name for each extent of each input: expressions must give the extents that were found."""
    wrong, expressions = [], 0
    for case in cases:
        model = load_model(case.model)
        forget(model)
        extents: dict[str, int] = {}
        feeds = case.data[0][0]
        for i, (value, fed) in enumerate(zip(model.graph.inputs, feeds, strict=False)):
            if isinstance(value.type, TensorType) and isinstance(fed, np.ndarray):
                names = [f"n{i}_{axis}" for axis in range(fed.ndim)]
                extents |= dict(zip(names, fed.shape, strict=True))
                value.type = TensorType(value.type.dtype, tuple(symbol(n) for n in names))
        infer_graph(model.graph)
        for value, found in zip(model.graph.outputs, case.data[0][1], strict=False):
            problem = contradiction(value.type, found, extents)
            if problem:
                wrong.append(f"{case.name}: {problem}")
            if isinstance(value.type, TensorType):
                expressions += any(isinstance(d, Expr) for d in value.type.shape or ())
    assert not wrong, f"{len(wrong)}: " + "\n".join(wrong[:20])
    assert expressions > 900, f"{expressions} outputs have a free extent"


def test_the_comparison_can_fail() -> None:
    found = np.zeros((2, 3), np.float32)
    assert contradiction(TensorType(dtypes.FLOAT32, (2, 3)), found, {}) is None
    assert contradiction(TensorType(dtypes.FLOAT32, (2, None)), found, {}) is None
    assert contradiction(TensorType(dtypes.FLOAT64, (2, 3)), found, {})
    assert contradiction(TensorType(dtypes.FLOAT32, (2, 4)), found, {})
    assert contradiction(TensorType(dtypes.FLOAT32, (2,)), found, {})
    assert contradiction(TensorType(dtypes.FLOAT32, (symbol("a"), 3)), found, {"a": 3})
    assert contradiction(SequenceType(None), found, {})


def test_common_operators_do_not_need_onnx() -> None:
    assert len([op for op in INFER if "." not in op]) + len(CONTROL) >= 130
