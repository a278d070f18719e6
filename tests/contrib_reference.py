"""One node of the `com.microsoft` family run by ONNX Runtime's CPU kernel and by Whet's evaluation kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from whet.ops.contrib.table import CONTRIB_KERNELS

Array = np.ndarray


def run_onnxruntime(
    op_type: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    outputs: Sequence[int],
    *,
    domain: str = "com.microsoft",
    opset: int = 17,
    constants: Sequence[int] = (),
) -> list[Array]:
    """The outputs of one node in ONNX Runtime; `outputs` are the ONNX types, 0 for one left out."""
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    results = ["" if kind == 0 else f"y{i}" for i, kind in enumerate(outputs)]
    node = helper.make_node(op_type, names, results, domain=domain, **attributes)
    feeds = {names[i]: array for i, array in enumerate(inputs) if array is not None and i not in constants}
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info(r, kind, None) for r, kind in zip(results, outputs, strict=True) if kind],
        [onnx.numpy_helper.from_array(np.asarray(inputs[i]), names[i]) for i in constants if inputs[i] is not None],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(result) for result in session.run(None, feeds)]


def run_whet(
    op_type: str, inputs: Sequence[Array | None], attributes: Mapping[str, Any], output_count: int = 1
) -> list[Array | None]:
    """The outputs of Whet's kernel; the inputs must stay as they are."""
    before = [None if array is None else array.copy() for array in inputs]
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in attributes.items()}
    results = list(CONTRIB_KERNELS[op_type](inputs, arguments, output_count))
    for kept, array in zip(before, inputs, strict=True):
        if array is not None:
            np.testing.assert_array_equal(kept, array, err_msg="the kernel changed its input")
    return results


def assert_close(actual: Array | None, expected: Array, *, rtol: float, atol: float, what: str) -> None:
    """Same type, same shape, |actual - expected| <= atol + rtol |expected|."""
    assert actual is not None, what
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype} instead of {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape} instead of {expected.shape}"
    if expected.dtype.kind in "iub":
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=what)


def assert_same_as_onnxruntime(
    op_type: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any],
    outputs: Sequence[int] = (TensorProto.FLOAT,),
    *,
    rtol: float = 2e-5,
    atol: float = 2e-5,
    **model: Any,
) -> list[Array | None]:
    """Run both, compare every output that is asked for, and return Whet's."""
    expected = run_onnxruntime(op_type, inputs, attributes, outputs, **model)
    actual = run_whet(op_type, inputs, attributes, len(outputs))
    wanted = [i for i, kind in enumerate(outputs) if kind]
    for position, reference in zip(wanted, expected, strict=True):
        assert_close(actual[position], reference, rtol=rtol, atol=atol, what=f"{op_type} output {position}")
    return actual
