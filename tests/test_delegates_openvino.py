"""The openvino delegate: right answers against ONNX Runtime and closed forms, and refusals where OpenVINO is not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest

import whet
from tests.random_graphs.generator import generate
from whet.errors import EPFail, InvalidArgument
from whet.formats.onnx import from_text, to_proto
from whet.passes.pipeline import optimize
from whet.providers.base import Accept, CompileEnv, Refuse, RunState, Subgraph
from whet.providers.delegates.openvino import PINNED, OpenVINODelegate
from whet.runtime.cancel import CancelToken
from whet.runtime.values import Tensor

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def session(text: str, providers: Any = ("openvino",)) -> whet.InferenceSession:
    options = whet.SessionOptions()
    options.intra_op_num_threads = 1
    return whet.InferenceSession(
        to_proto(from_text(HEADER + text)).SerializeToString(), options, providers=list(providers)
    )


def refusals(text: str) -> dict[str, str]:
    """Why the delegate refuses each refused node, by the node's first output."""
    model = from_text(HEADER + text)
    optimize(model, "disabled")
    delegate = OpenVINODelegate()
    claims = {node.outputs[0].name: delegate.claim(node, model.graph) for node in model.graph}
    return {name: claim.reason for name, claim in claims.items() if isinstance(claim, Refuse)}


MLP = """g (float[n,16] x) => (float[n,4] y, float[n,8] h) <float[16,8] w, float[8,4] v> {
    a = MatMul(x, w)
    h = Relu(a)
    b = MatMul(h, v)
    y = Softmax(b)
}"""


def mlp() -> tuple[bytes, np.ndarray, np.ndarray]:
    from onnx import numpy_helper, parser

    proto = parser.parse_model(HEADER + MLP.replace(" <float[16,8] w, float[8,4] v>", ""))
    rng = np.random.default_rng(3)
    w, v = rng.standard_normal((16, 8)).astype(np.float32), rng.standard_normal((8, 4)).astype(np.float32)
    proto.graph.initializer.extend([numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")])
    return proto.SerializeToString(), w, v


def mlp_answer(x: np.ndarray, w: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    h = np.maximum(x.astype(np.float64) @ w, 0)
    e = np.exp(h @ v - (h @ v).max(1, keepdims=True))
    return e / e.sum(1, keepdims=True), h


def test_a_network_runs_whole_at_every_batch_and_from_many_threads() -> None:
    content, w, v = mlp()
    options = whet.SessionOptions()
    options.intra_op_num_threads = 1
    made = whet.InferenceSession(content, options, providers=["openvino"])
    assert made.placement.by_provider.keys() == {"openvino"}
    assert len(made.placement.partitions) == 1

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal((1 + seed % 5, 16)).astype(np.float32)
        x.flags.writeable = bool(seed % 2)
        y, h = made.run(None, {"x": x})
        y_, h_ = mlp_answer(x, w, v)
        np.testing.assert_allclose(y, y_, atol=1e-5)
        np.testing.assert_allclose(h, h_, atol=1e-4)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(60)))


def test_large_parts_go_through_mapped_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.providers.delegates.openvino.EMBEDDED_BYTES", 0)
    content, w, v = mlp()
    made = whet.InferenceSession(content, providers=["openvino"])
    x = np.ones((2, 16), np.float32)
    np.testing.assert_allclose(made.run(None, {"x": x})[0], mlp_answer(x, w, v)[0], atol=1e-5)


def test_results_belong_to_the_caller() -> None:
    """A later run through the same infer request must not change what an earlier one returned."""
    made = session("g (float[n] x) => (float[n] y) { y = Neg(x) }")
    first = made.run(None, {"x": np.ones(4, np.float32)})[0]
    made.run(None, {"x": np.full(4, 5, np.float32)})
    np.testing.assert_array_equal(first, -1)


def test_float32_is_kept_where_the_processor_has_bfloat16() -> None:
    """1 + 2**-12 is no bfloat16: a product computed in that type would lose it."""
    made = session("g (float[1,64] x, float[64,64] w) => (float[1,64] y) { y = MatMul(x, w) }")
    x = np.full((1, 64), 1 + 2.0**-12, np.float32)
    (y,) = made.run(None, {"x": x, "w": np.eye(64, dtype=np.float32)})
    np.testing.assert_array_equal(y, x)
    assert made.get_provider_options()["openvino"]["INFERENCE_PRECISION_HINT"] == "f32"


@pytest.mark.parametrize("seed", range(2000, 2020))
def test_random_graphs_agree_with_plain_onnxruntime(seed: int) -> None:
    case = generate(seed)
    content = case.model.SerializeToString()
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = 1
    plain = onnxruntime.InferenceSession(content, settings)
    options = whet.SessionOptions()
    options.intra_op_num_threads = 1
    delegated = whet.InferenceSession(content, options, providers=["openvino"])
    for feed in case.feeds:
        for found, wanted in zip(delegated.run(None, feed), plain.run(None, feed), strict=True):
            assert found.dtype == wanted.dtype
            assert found.shape == wanted.shape
            if wanted.dtype.kind != "f":
                np.testing.assert_array_equal(found, wanted)
                continue
            finite = wanted[np.isfinite(wanted)]
            extent = float(np.abs(finite).max()) if finite.size else 1.0
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * max(extent, 1e-3))


INTEGERS = """g (int64[n] x, int8[n] b, int32[n] i, double[n] d, string[n] s, float[n,m] f) =>
    (int64[n] a, int8[n] c, int32[n] e, double[n] h, string[n] t, float[k,m] p, int64[2] q, int32[n] r) {
    a = Add(x, x)
    c = Add(b, b)
    e = Div(i, i)
    h = Exp(d)
    t = Identity(s)
    p = Gather(f, x)
    q = Shape(f)
    r = Add(i, i)
}"""


def test_arithmetic_that_openvino_narrows_is_refused() -> None:
    found = refusals(INTEGERS)
    assert found.keys() == {"a", "c", "e", "h", "t"}
    assert "32 bits" in found["a"]
    assert "saturates" in found["c"]
    assert "float32" in found["e"]
    assert "float64" in found["h"]
    assert "string" in found["t"]


def test_refused_nodes_still_give_right_answers() -> None:
    """The values that show the difference: past 32 bits, past 8 bits, past float32's 24 bits."""
    made = session(
        """g (int64[n] x, int8[n] b, int32[n] i, int32[n] j) => (int64[n] a, int8[n] c, int32[n] e, float[n] f) {
        a = Add(x, x)
        c = Add(b, b)
        e = Div(i, j)
        f = Cast<to=1>(x)
    }"""
    )
    feed = {
        "x": np.array([1 << 40, -3]), "b": np.array([100, -100], np.int8),
        "i": np.array([16777219, -7], np.int32), "j": np.array([2, 2], np.int32),
    }  # fmt: skip
    a, c, e, f = made.run(None, feed)
    assert a.tolist() == [1 << 41, -6]
    assert c.tolist() == [-56, 56]
    assert e.tolist() == [8388609, -3]
    assert f.tolist() == [2.0**40, -3]


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("y = ReduceMax(x)", "lowest float"),
        ("y = Tile(x, s)", "repeats"),
        ("y = Resize<antialias=1>(x, , , s)", "antialias"),
        ("y = MaxPool<kernel_shape=[2,2], ceil_mode=1>(x)", "ceil_mode"),
    ],
)
def test_operators_with_other_answers_are_refused(node: str, reason: str) -> None:
    text = f"g (float[1,1,8,8] x, int64[4] s) => (float y) {{ {node} }}"
    assert reason in refusals(text)["y"]


def test_control_flow_and_sequences_stay_out() -> None:
    found = refusals(
        """g (bool c, float[n] x) => (float[n] y, seq(float[n]) q) {
        y = If(c) <then_branch = t () => (float[n] u) { u = Neg(x) }, else_branch = e () => (float[n] v) { v = Abs(x) }>
        q = SequenceConstruct(x)
    }"""
    )
    assert "control flow" in found["y"]
    assert "dense" in found["q"]


def test_properties_are_checked_by_name_and_value() -> None:
    with pytest.raises(InvalidArgument, match="Did you mean 'NUM_STREAMS'"):
        OpenVINODelegate({"NUM_STREAM": "1"})
    with pytest.raises(InvalidArgument, match="only be read"):
        OpenVINODelegate({"FULL_DEVICE_NAME": "x"})
    with pytest.raises(InvalidArgument, match="PERFORMANCE_HINT=FASTEST"):
        OpenVINODelegate({"PERFORMANCE_HINT": "FASTEST"})
    with pytest.raises(EPFail, match="no such device"):
        OpenVINODelegate({"device": "ABACUS"})
    made = OpenVINODelegate({"NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"})
    assert made.options() == {"device": "CPU", **PINNED, "NUM_STREAMS": "1"}


def test_a_cancelled_run_raises_and_the_next_one_works() -> None:
    from whet.errors import Terminated

    model = from_text(HEADER + "g (float[n] x) => (float[n] y) { y = Neg(x) }")
    optimize(model, "disabled")
    delegate = OpenVINODelegate()
    assert all(delegate.claim(node, model.graph) == Accept() for node in model.graph)
    part = delegate.compile(Subgraph(model.graph, model, tuple(model.graph)), CompileEnv(intra_op_threads=1))
    x = Tensor.from_numpy(np.ones(3, np.float32))
    state = RunState(cancel=CancelToken())
    assert state.cancel is not None
    state.cancel.set()
    with pytest.raises(Terminated):
        part.run([x], state)
    (y,) = part.run([x], RunState())
    assert isinstance(y, Tensor)
    np.testing.assert_array_equal(y.numpy(), -1)
