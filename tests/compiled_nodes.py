"""Models of a few nodes, run as compiled code and on the reference provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, helper, numpy_helper

import whet
from whet.codegen.target import host_target
from whet.compiler.compile import lower_graph
from whet.compiler.lowering import LowerEnv, Lowering
from whet.compiler.specialize import Specializer
from whet.config import DEFAULT_LIMITS
from whet.formats.onnx import load_model
from whet.passes.pipeline import optimize

Array = np.ndarray[Any, np.dtype[Any]]

TOLERANCE = {"float64": 1e-12, "float32": 3e-6, "float16": 2e-3, "bfloat16": 2e-2}
"""Relative to the largest magnitude of the result, by element type; integers and bools are compared exactly."""

FLOATS = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


def single_node(
    op: str,
    inputs: Mapping[str, Array | None],
    *,
    outputs: int = 1,
    wanted: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
    constant: Sequence[str] = (),
    symbolic: bool = False,
    behind: Sequence[tuple[str, Sequence[str]]] = (),
    domain: str = "",
    **attributes: Any,
) -> tuple[bytes, dict[str, Array]]:
    """A model of one node with its feeds.

    The first input comes in the memory order `order` (a Transpose stands before the node). Inputs named in `constant`
    are initializers. With `symbolic` the first input's extents are free. `behind` are pointwise nodes (operator, its
    operands) behind the first output: the operand "y" is what comes before. `wanted` outputs are asked for.
    """
    names = [name if array is not None else "" for name, array in inputs.items()]
    given = {name: array for name, array in inputs.items() if array is not None}
    first = names[0]
    nodes, feeds, initializers, declared = [], {}, [], []
    for name, array in given.items():
        if name in constant:
            initializers.append(numpy_helper.from_array(array, name))
            continue
        shown = array
        if name == first and order is not None:
            shown = np.ascontiguousarray(array.transpose(order))
            nodes.append(helper.make_node("Transpose", [f"{name}_given"], [name], perm=list(np.argsort(order))))
            name = f"{name}_given"
        dims = [f"d{i}" for i in range(shown.ndim)] if symbolic and array is given[first] else list(shown.shape)
        declared.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(shown.dtype), dims))
        feeds[name] = shown
    results = [f"out{i}" for i in range(outputs)]
    nodes.append(helper.make_node(op, names, list(results), domain=domain, **attributes))
    for i, (pointwise, operands) in enumerate(behind):
        nodes.append(helper.make_node(pointwise, [results[0] if o == "y" else o for o in operands], [f"behind{i}"]))
        results[0] = f"behind{i}"
    shown_results = [helper.make_empty_tensor_value_info(results[i]) for i in (wanted or range(outputs))]
    graph = helper.make_graph(nodes, "graph", declared, shown_results, initializers)
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model: ModelProto = helper.make_model(graph, opset_imports=imports, ir_version=11)
    return model.SerializeToString(), feeds


def compiled(model: bytes, threads: int = 0) -> whet.InferenceSession:
    """A session all of whose nodes are compiled."""
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    session = whet.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    refused = [n for n in session.placement.nodes if n.provider != "CPUExecutionProvider"]
    assert not refused, refused
    return session


def check(model: bytes, feeds: Mapping[str, Array], tolerance: float | None = None) -> list[Array]:
    """Run compiled code and compare with the reference provider; the compiled results."""
    found = compiled(model).run(None, dict(feeds))
    expected = whet.InferenceSession(model, providers=["ReferenceExecutionProvider"]).run(None, dict(feeds))
    for a, b in zip(found, expected, strict=True):
        close(a, b, tolerance)
    return list(found)


def close(found: Array, expected: Array, tolerance: float | None = None) -> None:
    """Assert that two arrays agree: floats up to the tolerance of their type, the rest exactly."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert found.dtype == expected.dtype, (found.dtype, expected.dtype)
    if found.dtype.name not in TOLERANCE:
        np.testing.assert_array_equal(found, expected)
        return
    a, b = found.astype(np.float64), expected.astype(np.float64)
    finite = b[np.isfinite(b)]
    scale = max(1.0, float(np.abs(finite).max())) if finite.size else 1.0
    relative = TOLERANCE[found.dtype.name] if tolerance is None else tolerance
    np.testing.assert_allclose(a, b, rtol=0, atol=relative * scale, equal_nan=True)


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> Array:
    """Random numbers: normal floats, small integers, bools."""
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(kind)
    if kind.kind in "iu":
        return rng.integers(0 if kind.kind == "u" else -9, 10, shape).astype(kind)
    return rng.standard_normal(shape).astype(kind)


def lowered(model: bytes) -> Lowering:
    """The rows that the compiler makes of a model for this machine, its extents as they are declared."""
    loaded = load_model(model)
    optimize(loaded, "all")
    specialized = Specializer(loaded, DEFAULT_LIMITS).specialize({})
    return lower_graph(specialized, LowerEnv(host_target()))


def steps(model: bytes) -> list[str]:
    """What the compiler makes of a model: the tactic of every step."""
    return [step.tactic for step in lowered(model).steps]
