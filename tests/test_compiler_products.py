"""Matrix products of batches that lie in memory in other orders than their result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import whet

CPU = "CPUExecutionProvider"

BATCHES = (
    # shape of A, order of its dimensions in memory, shape of B, order of its dimensions in memory
    ((4, 3, 2, 5, 6), (2, 1, 0, 3, 4), (4, 3, 2, 6, 17), (0, 1, 2, 3, 4)),
    ((4, 3, 2, 5, 6), (0, 1, 2, 3, 4), (4, 3, 2, 6, 17), (2, 0, 1, 4, 3)),
    ((2, 1, 3, 5, 6), (0, 1, 2, 3, 4), (1, 4, 3, 6, 7), (0, 1, 2, 3, 4)),
    ((2, 1, 3, 1, 5, 6), (0, 1, 2, 3, 4, 5), (4, 1, 7, 6, 7), (0, 1, 2, 3, 4)),
    ((2, 1, 3, 1, 5, 6), (3, 2, 1, 0, 5, 4), (1, 4, 1, 7, 6, 7), (5, 4, 3, 2, 1, 0)),
    ((6,), (0,), (2, 3, 2, 6, 9), (2, 0, 1, 3, 4)),
)


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_batches(batch: Any, residual: bool, free: bool) -> None:
    shapes, orders = batch[::2], batch[1::2]
    rng = np.random.default_rng(5)
    nodes, feeds, declared = [], {}, []
    operands = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in zip("ab", shapes, strict=True)}
    expected = np.matmul(operands["a"].astype(np.float64), operands["b"].astype(np.float64))
    for name, order in zip("ab", orders, strict=True):
        nodes.append(helper.make_node("Transpose", [f"{name}_given"], [name], perm=list(np.argsort(order))))
        feeds[f"{name}_given"] = np.ascontiguousarray(operands[name].transpose(order))
    nodes.append(helper.make_node("MatMul", ["a", "b"], ["y"]))
    if residual:
        added = rng.standard_normal(expected.shape).astype(np.float32)
        order = tuple(reversed(range(expected.ndim)))
        feeds["c_given"] = np.ascontiguousarray(added.transpose(order))
        nodes.append(helper.make_node("Transpose", ["c_given"], ["c"], perm=order))
        nodes.append(helper.make_node("Add", ["y", "c"], ["z"]))
        expected = expected + added
    for name, array in feeds.items():
        shape = [f"{name}{i}" for i in range(array.ndim)] if free and name != "b_given" else array.shape
        declared.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    result = helper.make_tensor_value_info("z" if residual else "y", TensorProto.FLOAT, None)
    model = helper.make_model(
        helper.make_graph(nodes, "batches", declared, [result]),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    session = whet.InferenceSession(model.SerializeToString(), providers=[CPU])
    assert set(session.placement.by_provider) == {CPU}
    (found,) = session.run(None, feeds)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
