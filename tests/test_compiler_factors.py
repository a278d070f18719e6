"""Squeeze-and-excite: factors of channels that a 1x1 convolution multiplies into its weights, beside float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from tests.codegen_tools import TARGETS, aligned
from tests.kernel_tools import Run, run_kernels
from whet.codegen.target import Target
from whet.dtypes import FLOAT32, FLOAT64
from whet.kernels.scale_panels import ScalePanels
from whet.providers.base import RunState
from whet.runtime.values import Tensor

Array = np.ndarray[Any, np.dtype[Any]]
ELEMENTS = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE}


def gated(
    shape: tuple[int, ...], outputs: int, *, kind: type = np.float32, turned: bool = False, behind: str = "",
    reads: int = 1, symbolic: bool = False, attributes: dict[str, Any] | None = None, kernel: int = 1,
    shared: bool = False,
) -> tuple[bytes, dict[str, Array]]:  # fmt: skip
    """y = Conv(x * s, w, b) with s [images or 1, channels, 1, ..], and feeds."""
    rng = np.random.default_rng(len(shape) + outputs)
    rank = len(shape) - 2
    data = {
        "x": rng.standard_normal(shape), "s": rng.standard_normal((1 if shared else shape[0], shape[1], *(1,) * rank)),
        "r": rng.standard_normal((shape[0], outputs, *shape[2:])),
    }  # fmt: skip
    feeds = {name: array.astype(kind) for name, array in data.items() if name != "r" or behind == "Add"}
    w = rng.standard_normal((outputs, shape[1], *(kernel,) * rank)).astype(kind)
    b = rng.standard_normal(outputs).astype(kind)
    nodes = [
        helper.make_node("Mul", ["s", "x"] if turned else ["x", "s"], ["g"]),
        helper.make_node("Conv", ["g", "w", "b"], ["c"], **(attributes or {})),
        helper.make_node(behind or "Identity", ["c", "r"] if behind == "Add" else ["c"], ["y"]),
        *(helper.make_node("Abs", ["g"], [f"other{i}"]) for i in range(1, reads)),
    ]
    kind_of = ELEMENTS[kind]

    def extents(array: Array) -> list[int | str]:
        dims: list[int | str] = list(array.shape)
        if symbolic:
            dims[0] = "images" if dims[0] == shape[0] and not (shared and array is feeds["s"]) else dims[0]
            dims[2:] = [f"d{i}" if n != 1 else 1 for i, n in enumerate(array.shape[2:])]
        return dims

    given = [helper.make_tensor_value_info(n, kind_of, extents(a)) for n, a in feeds.items()]
    wanted = ["y", *(f"other{i}" for i in range(1, reads))]
    graph = helper.make_graph(
        nodes, "gated", given, [helper.make_tensor_value_info(n, kind_of, None) for n in wanted],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized, feeds


def exact(model: bytes, feeds: dict[str, Array]) -> Array:
    """The result in float64, by the reference provider on a model of that type."""
    proto = onnx.load_model_from_string(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    session = whet.InferenceSession(proto.SerializeToString(), providers=["ReferenceExecutionProvider"])
    result: Array = session.run(["y"], {n: a.astype(np.float64) for n, a in feeds.items()})[0]
    return result


def run(
    model: bytes, feeds: dict[str, Array], threads: int = 2, tactic: str | None = None
) -> tuple[Array, bool]:  # fmt: skip
    """The result, and whether the factors went into the weights."""
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    if tactic is not None:
        options.add_session_config_entry("cpu.tactic.conv", tactic)
    session = whet.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert set(session.placement.by_provider) == {"CPUExecutionProvider"}
    result: Array = session.run(["y"], feeds)[0]
    (partition,) = session._main.compiled.executor._steps
    given = [Tensor.from_numpy(feeds[session.get_inputs()[i].name]) for i in partition.inputs]
    events: list[Any] = []
    partition.executable.run(given, RunState(events=events))
    return result, "scale weights" in {event.args["tactic"] for event in events}


CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "one image": ((1, 24, 13, 11), 17, {}),
    "images": ((3, 24, 13, 11), 17, {}),
    "factors shared by images": ((3, 7, 9, 9), 8, {"shared": True}),
    "factors first": ((2, 5, 8, 9), 6, {"turned": True}),
    "line": ((2, 20, 100), 9, {}),
    "volume": ((2, 6, 4, 5, 6), 16, {}),
    "float64": ((2, 20, 9, 9), 5, {"kind": np.float64}),
    "activation behind": ((2, 33, 12, 12), 32, {"behind": "Relu"}),
    "sum behind": ((2, 33, 12, 12), 33, {"behind": "Add"}),
    "one channel": ((2, 1, 12, 12), 3, {}),
    "dilations": ((1, 8, 12, 12), 3, {"attributes": {"dilations": [2, 2]}}),
    "same": ((1, 8, 12, 12), 3, {"attributes": {"auto_pad": "SAME_UPPER"}}),
}


@pytest.mark.parametrize(("name", "symbolic"), list(itertools.product(CASES, (False, True))))
def test_factors_become_factors_of_the_weights(name: str, symbolic: bool) -> None:
    shape, outputs, how = CASES[name]
    model, feeds = gated(shape, outputs, symbolic=symbolic, **how)
    want = exact(model, feeds)
    found, scaled = run(model, feeds)
    assert scaled
    assert np.abs(found - want).max() <= (1e-6 if found.dtype == np.float32 else 1e-14) * np.abs(want).max()
    for threads in (1, 4):
        again, _ = run(model, feeds, threads)
        np.testing.assert_array_equal(found, again)


OTHERS: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "few pixels": ((1, 24, 4, 4), 17, {}),
    "strides": ((1, 8, 12, 12), 3, {"attributes": {"strides": [2, 2]}}),
    "pads": ((1, 8, 12, 12), 3, {"attributes": {"pads": [1, 0, 0, 0]}}),
    "a window": ((1, 8, 12, 12), 3, {"kernel": 3}),
    "another reader": ((1, 8, 12, 12), 3, {"reads": 2}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_keeps_its_product(name: str) -> None:
    shape, outputs, how = OTHERS[name]
    model, feeds = gated(shape, outputs, **how)
    found, scaled = run(model, feeds)
    assert not scaled
    want = exact(model, feeds) if found.ndim == len(shape) else found
    assert np.abs(found - want).max() <= 2e-6 * np.abs(want).max()


def test_other_tactics_keep_the_product() -> None:
    model, feeds = gated((2, 8, 12, 12), 9)
    want = exact(model, feeds)
    for tactic in ("direct", "im2col"):
        found, scaled = run(model, feeds, tactic=tactic)
        assert not scaled
        assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max()
    assert run(model, feeds, tactic="pointwise")[1]


@pytest.mark.parametrize("target", TARGETS)
def test_scaled_panels(target: Target) -> None:
    rng = np.random.default_rng(3)
    runs, checks = [], []
    for dtype, nv, k, matrices in itertools.product((FLOAT32, FLOAT64), (1, 3), (0, 1, 4, 7), (1, 3)):
        for fixed in (None, k):
            spec = ScalePanels(nv, fixed, dtype)
            packed = aligned(rng.standard_normal((2, k, spec.width(target))).astype(dtype.numpy))
            factors = rng.standard_normal((matrices, k + 2)).astype(dtype.numpy)
            scaled = aligned(np.full((matrices, *packed.shape), np.nan, dtype.numpy))
            words: dict[str, Any] = {"packed": packed, "factors": factors, "scaled": scaled, "panels": 2}
            words |= {"factors_i": k + 2} | ({} if fixed is not None else {"k": k})
            runs.append(Run(spec, words, spec.tiles(target, 2 * spec.width(target), matrices), calls=2))
            checks.append((scaled, packed * factors[:, None, :k, None]))
    assert not any(run_kernels(target, runs))
    for found, want in checks:
        np.testing.assert_array_equal(found, want)
