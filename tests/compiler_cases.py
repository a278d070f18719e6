"""Single nodes compiled on the CPU provider and compared with the reference provider or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import whet

Array = np.ndarray[Any, Any]
CPU = "CPUExecutionProvider"
REFERENCE = "ReferenceExecutionProvider"
DOMAINS = {"": 22, "com.microsoft": 1, "ai.onnx.ml": 5}


def node_model(
    op: str, inputs: Sequence[Array | None], outputs: Sequence[int], attributes: Mapping[str, Any] | None = None, *,
    domain: str = "", constants: Sequence[int] = (), symbolic: bool = False, opset: int | None = None,
) -> bytes:  # fmt: skip
    """A model of one node. `outputs` are ONNX element types (0: left out); `constants` are inputs that are
    initializers; with `symbolic` every extent of the others is free."""
    names = [f"i{i}" if array is not None else "" for i, array in enumerate(inputs)]
    results = [f"o{i}" if kind else "" for i, kind in enumerate(outputs)]
    node = helper.make_node(op, names, results, domain=domain, **(attributes or {}))
    given, initializers = [], []
    for i, array in enumerate(inputs):
        if array is None:
            continue
        if i in constants:
            initializers.append(numpy_helper.from_array(array, names[i]))
            continue
        shape = [f"d{i}_{axis}" for axis in range(array.ndim)] if symbolic else list(array.shape)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        given.append(helper.make_tensor_value_info(names[i], kind, shape))
    wanted = [helper.make_tensor_value_info(n, kind, None) for n, kind in zip(results, outputs, strict=True) if kind]
    graph = helper.make_graph([node], "one", given, wanted, initializers)
    versions = {**DOMAINS, "": opset or DOMAINS[""]}
    opsets = [helper.make_opsetid(name, version) for name, version in versions.items()]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def feeds(model: bytes, inputs: Sequence[Array | None]) -> dict[str, Array]:
    """The arrays of a model's inputs by name."""
    names = {value.name for value in onnx.load_model_from_string(model).graph.input}
    return {f"i{i}": array for i, array in enumerate(inputs) if array is not None and f"i{i}" in names}


def run(model: bytes, given: Mapping[str, Array], provider: str = CPU, *, plain: bool = False) -> list[Any]:
    """The outputs; every node must have run on `provider`. `plain`: no graph passes."""
    options = whet.SessionOptions()
    if plain:
        options.graph_optimization_level = whet.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = whet.InferenceSession(model, options, providers=[provider])
    placement = session.placement
    assert set(placement.by_provider) <= {provider}, placement.refusal_counts()
    return list(session.run(None, dict(given)))


def refusals(model: bytes) -> list[str]:
    """The reasons for which the CPU provider leaves nodes to the reference provider."""
    session = whet.InferenceSession(model, providers=[CPU])
    return [str(reason) for reason in session.placement.refusal_counts()]


def check(model: bytes, given: Mapping[str, Array], tolerance: float = 2e-5) -> list[Any]:
    """Run compiled and on the reference provider; the results must agree: exactly for integers and text."""
    expected = run(model, given, REFERENCE, plain=True)
    found = run(model, given, plain=True)
    compare(found, expected, tolerance)
    return found


def compare(found: Sequence[Any], expected: Sequence[Any], tolerance: float) -> None:
    """Assert that results agree in type, shape and value."""
    assert len(found) == len(expected)
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.dtype == theirs.dtype, (index, ours.dtype, theirs.dtype)
        assert ours.shape == theirs.shape, (index, ours.shape, theirs.shape)
        if ours.dtype.kind in "fV":
            a, b = ours.astype(np.float64), theirs.astype(np.float64)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=f"output {index}")
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=f"output {index}")


FLOAT, FLOAT16, BFLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
UINT8, INT8, UINT16, INT16 = TensorProto.UINT8, TensorProto.INT8, TensorProto.UINT16, TensorProto.INT16
INT32, INT64, UINT32, UINT64 = TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64
