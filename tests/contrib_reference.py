"""One node of the `com.microsoft` family run by ONNX Runtime's CPU kernel and by Whet's evaluation kernel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from whet.ops.contrib.table import CONTRIB_KERNELS

Array = np.ndarray
FLOAT, UINT8, INT8, INT32, INT64 = (
    TensorProto.FLOAT,
    TensorProto.UINT8,
    TensorProto.INT8,
    TensorProto.INT32,
    TensorProto.INT64,
)


class Draw:
    """Random inputs of one test case, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def f(self, *shape: int, scale: float = 1.0) -> Array:
        """Normal float32 numbers."""
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def positive(self, *shape: int, scale: float = 1.0) -> Array:
        """float32 numbers in [scale / 10, scale)."""
        return (self.random.uniform(0.1, 1.0, shape) * scale).astype(np.float32)

    def ints(self, low: int, high: int, *shape: int, dtype: Any = np.int32) -> Array:
        """Integers in [low, high)."""
        return self.random.integers(low, high, shape).astype(dtype)

    def bytes(self, dtype: Any, *shape: int) -> Array:
        """The whole range of an 8-bit type."""
        info = np.iinfo(dtype)
        return self.ints(info.min, info.max + 1, *shape, dtype=dtype)


@dataclass(frozen=True)
class Case:
    """One node: how to draw its inputs, its attributes, the ONNX types of its outputs (0: left out)."""

    op_type: str
    make: Callable[[Draw], list[Array | None]]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[int, ...] = (FLOAT,)
    note: str = ""
    tolerance: float = 2e-5
    model: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        return "-".join(part for part in (self.op_type, self.note, shown) if part).replace(" ", "")


def scalar(value: float, dtype: Any = np.float32) -> Array:
    """A tensor of rank 0."""
    return np.array(value, dtype=dtype)


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
    outputs: Sequence[int] = (FLOAT,),
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


def check(case: Case, seed: int) -> None:
    """Compare one case, drawn with `seed`, against ONNX Runtime."""
    assert_same_as_onnxruntime(
        case.op_type,
        case.make(Draw(seed)),
        case.attributes,
        case.outputs,
        rtol=case.tolerance,
        atol=case.tolerance,
        **case.model,
    )


def check_float64(case: Case) -> None:
    """float64 results agree with float32 to 1e-3 and are finer than float32 can hold: no step narrows."""
    inputs = case.make(Draw(3))
    wide = [a.astype(np.float64) if a is not None and a.dtype == np.float32 else a for a in inputs]
    narrow_results = run_whet(case.op_type, inputs, case.attributes, len(case.outputs))
    results = run_whet(case.op_type, wide, case.attributes, len(case.outputs))
    for result, narrow in zip(results, narrow_results, strict=True):
        assert result is not None
        assert narrow is not None
        if narrow.dtype == np.float32:
            assert result.dtype == np.float64
            shown = narrow > np.finfo(np.float32).min  # a masked score is the lowest number of its own type
            np.testing.assert_allclose(result[shown], narrow[shown], rtol=1e-3, atol=1e-3)
    # these only pick among their inputs; the comparison above is all there is
    picks = case.attributes.get("mode") == "nearest" or case.attributes.get("local_window_size") == 1
    if not picks:
        assert (results[0] != results[0].astype(np.float32)).any()


def check_float16(case: Case) -> None:
    """Half-width inputs are computed in float32 and rounded once: within 2**-10 of the float32 answer."""
    half = [a.astype(np.float16) if a is not None and a.dtype == np.float32 else a for a in case.make(Draw(13))]
    wide = [a.astype(np.float32) if a is not None and a.dtype == np.float16 else a for a in half]
    actual = run_whet(case.op_type, half, case.attributes)[0]
    expected = run_whet(case.op_type, wide, case.attributes)[0]
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual.astype(np.float32), expected, rtol=2e-3, atol=2e-3)
