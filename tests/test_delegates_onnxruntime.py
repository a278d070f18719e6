"""The onnxruntime delegate: its answers against the reference and against ONNX Runtime itself, and its errors."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest

import whet
from tests.random_graphs.generator import generate
from whet.errors import EPFail, InvalidArgument, RuntimeException, Terminated
from whet.formats.onnx import from_text, to_proto
from whet.passes.pipeline import optimize
from whet.providers.base import Accept, Refuse
from whet.providers.delegates.onnxruntime import OnnxRuntimeDelegate, installed_providers

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>\n'


def model_bytes(text: str) -> bytes:
    return to_proto(from_text(HEADER + text)).SerializeToString()


def session(text: str, providers: Any = ("onnxruntime",), level: int = 99) -> whet.InferenceSession:
    options = whet.SessionOptions()
    options.graph_optimization_level = whet.GraphOptimizationLevel(level)
    options.intra_op_num_threads = 1
    return whet.InferenceSession(model_bytes(text), options, providers=list(providers))


def claims(text: str) -> dict[str, object]:
    model = from_text(HEADER + text)
    optimize(model, "disabled")
    delegate = OnnxRuntimeDelegate()
    return {node.outputs[0].name: delegate.claim(node, model.graph) for node in model.graph}


MIXED_TYPES = """g (float[n,4] x, string[m] s, int64[1] k) => (float[n,8] y, string[m] t, seq(float[n,4]) q, float[n,4] z) {
    w = Constant<value_float=2.0>()
    a = Mul(x, w)
    y = Concat<axis=1>(x, a)
    t = Identity(s)
    e = SequenceEmpty()
    e1 = SequenceInsert(e, x)
    q = SequenceInsert(e1, a)
    c = ReduceSum<keepdims=0>(x)
    zero = Constant<value_float=0.0>()
    b = Greater(c, zero)
    z = If(b) <then_branch = p () => (float[n,4] u) { u = Add(a, x) }, else_branch = f () => (float[n,4] v) { v = Sub(a, x) }>
}"""  # noqa: E501


@pytest.mark.parametrize("level", [0, 99])
def test_strings_sequences_and_control_flow_agree_with_the_reference(level: int) -> None:
    delegated = session(MIXED_TYPES, level=level)
    assert delegated.placement.by_provider.keys() == {"onnxruntime"}
    reference = session(MIXED_TYPES, ["ReferenceExecutionProvider"], level)
    rng = np.random.default_rng(1)
    for n in (3, 1, 0):
        for shift in (2, -2):
            feed = {
                "x": (rng.standard_normal((n, 4)) + shift).astype(np.float32),
                "s": np.array(["a", "é", ""], object),
                "k": np.array([1]),
            }
            y, t, q, z = delegated.run(None, feed)
            y_, t_, q_, z_ = reference.run(None, feed)
            np.testing.assert_allclose(y, y_, rtol=1e-6)
            np.testing.assert_allclose(z, z_, rtol=1e-6)
            assert t.tolist() == t_.tolist() == ["a", "é", ""]
            assert [a.shape for a in q] == [(n, 4), (n, 4)]
            for a, b in zip(q, q_, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("seed", range(1000, 1030))
@pytest.mark.parametrize("level", [0, 99])
def test_random_graphs_agree_with_plain_onnxruntime(seed: int, level: int) -> None:
    case = generate(seed)
    content = case.model.SerializeToString()
    plain, optimized = (
        _plain(content, level)
        for level in (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
        )
    )
    options = whet.SessionOptions()
    options.graph_optimization_level = whet.GraphOptimizationLevel(level)
    options.intra_op_num_threads = 1
    delegated = whet.InferenceSession(content, options, providers=["onnxruntime"])
    for feed in case.feeds:
        rows = zip(delegated.run(None, feed), plain.run(None, feed), optimized.run(None, feed), strict=True)
        for found, wanted, theirs in rows:
            assert found.dtype == wanted.dtype
            assert found.shape == wanted.shape
            if wanted.dtype.kind != "f":
                np.testing.assert_array_equal(found, wanted)
                continue
            finite = wanted[np.isfinite(wanted)]
            atol = 1e-4 * max(float(np.abs(finite).max()) if finite.size else 1.0, 1e-3)
            if level and finite.size:
                # Where ONNX Runtime's own optimizer moves a quantized model's answers, ours may move as far.
                atol += 2 * float(np.abs(theirs[np.isfinite(wanted)] - finite).max())
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=atol)


def _plain(content: bytes, level: Any) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = level
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(content, settings)


def test_every_weight_reaches_the_session_in_place() -> None:
    """Weights past the detaching size, read by several nodes, in a branch, and as packed 4-bit elements."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 64)).astype(np.float32)
    text = """g (float[n,64] x, bool c) => (float[n,64] y, float[64,64] d) {
        a = MatMul(x, w)
        y = If(c) <then_branch = p () => (float[n,64] u) { u = MatMul(a, w) }, else_branch = f () => (float[n,64] v) { v = Identity(a) }>
        s = Constant<value_float=0.5>()
        d = DequantizeLinear(i4, s)
    }"""  # noqa: E501
    import onnx
    from onnx import helper, numpy_helper, parser

    proto = parser.parse_model(HEADER + text)
    codes = rng.integers(-8, 8, (64, 64)).astype(ml_dtypes.int4)
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    packed = helper.make_tensor("i4", onnx.TensorProto.INT4, (64, 64), codes.astype(np.int8).ravel())
    proto.graph.initializer.append(packed)
    made = whet.InferenceSession(proto.SerializeToString(), providers=["onnxruntime"])
    assert made.placement.by_provider.keys() == {"onnxruntime"}
    x = rng.standard_normal((2, 64)).astype(np.float32)
    for condition, expected in ((True, x @ w @ w), (False, x @ w)):
        y, d = made.run(None, {"x": x, "c": np.array(condition)})
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(d, codes.astype(np.float32) * 0.5)


def test_elements_that_numpy_lacks_go_in_and_out() -> None:
    made = session("g (bfloat16[n] x) => (bfloat16[n] y, float[n] f) { y = Identity(x) f = Cast<to=1>(x) }")
    assert made.placement.by_provider == {"onnxruntime": 2}
    x = np.array([1.5, -2, np.inf], ml_dtypes.bfloat16)
    y, f = made.run(None, {"x": x})
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(y.view(np.uint16), x.view(np.uint16))
    np.testing.assert_array_equal(f, x.astype(np.float32))
    made = session("g (int4[n] x) => (float[n] y) { s = Constant<value_float=1.0>() y = DequantizeLinear(x, s) }")
    codes = np.array([-8, 7, 3], ml_dtypes.int4)
    assert made.placement.by_provider == {"onnxruntime": 1}
    np.testing.assert_array_equal(made.run(None, {"x": codes})[0], [-8, 7, 3])


def test_outputs_never_alias_inputs_or_later_results() -> None:
    made = session(
        "g (float[n] x) => (float[n] y, float[3] c) <float[3] k = {1, 2, 3}> { y = Identity(x) c = Neg(k) }", level=0
    )
    x = np.ones(3, np.float32)
    y, c = made.run(None, {"x": x})
    y[:], c[:] = 7, 7
    np.testing.assert_array_equal(x, 1)
    y2, c2 = made.run(None, {"x": x})
    np.testing.assert_array_equal(y2, 1)
    np.testing.assert_array_equal(c2, [-1, -2, -3])


def test_unknown_operators_go_elsewhere_with_onnxruntimes_reason() -> None:
    found = claims("g (float[n] x) => (complex64[n] z, float[n] y) { y = Neg(x) z = Cast<to=14>(x) }")
    assert found["y"] == Accept()
    assert isinstance(found["z"], Refuse)
    assert "complex64" in found["z"].reason


def test_division_that_would_end_the_process_is_refused() -> None:
    found = claims(
        """g (int64[n] x, int64[n] d, float[n] f) => (int64[n] a, int64[n] b, int64[n] c, float[n] e, int64[1] h) {
        two = Constant<value_ints=[2]>()
        minus = Constant<value_ints=[-1]>()
        a = Div(x, d)
        b = Div(x, minus)
        c = Mod(x, two)
        e = Div(f, f)
        s = Shape(x)
        h = Div(s, two)
    }"""
    )
    assert {name for name, claim in found.items() if isinstance(claim, Refuse)} == {"a", "b"}
    text = "g (int64[n] x, int64[n] d) => (int64[n] y) { y = Div(x, d) }"
    feed = {"x": np.array([-(2**63), 7]), "d": np.array([-1, 2])}
    made = session(text)
    assert made.placement.by_provider == {"ReferenceExecutionProvider": 1}
    assert made.run(None, feed)[0][1] == 3


def test_the_answer_for_one_node_serves_its_likes_and_no_others() -> None:
    model = from_text(
        HEADER
        + """g (float[n] x, float[n] y) => (float[n] a, float[n] b, float[n] c, float[n] d) {
        a = LeakyRelu<alpha=0.1>(x)
        b = LeakyRelu<alpha=0.1>(y)
        c = LeakyRelu<alpha=0.2>(x)
        d = Neg(x)
    }"""
    )
    optimize(model, "disabled")
    delegate = OnnxRuntimeDelegate()
    assert all(delegate.claim(n, model.graph) == Accept() for n in model.graph)
    assert len(delegate._verdicts) == 3


def test_a_run_time_failure_names_the_node() -> None:
    made = session("g (float[n] x, int64[m] i) => (float[m] y) { y = Gather(x, i) }", level=0)
    with pytest.raises(RuntimeException, match="Gather"):
        made.run(None, {"x": np.ones(3, np.float32), "i": np.array([5])})


LOOP = """g (int64 n, float[64,64] x) => (float[64,64] y) {
    t = Constant<value_int=1>()
    c = Cast<to=9>(t)
    y = Loop(n, c, x) <body = b (int64 i, bool c0, float[64,64] a) => (bool c1, float[64,64] d) {
        c1 = Identity(c0)
        d = MatMul(a, a)
    }>
}"""


def test_terminate_and_deadline_stop_a_run_and_leave_the_session_usable() -> None:
    made = session(LOOP, level=0)
    assert made.placement.by_provider.keys() == {"onnxruntime"}
    endless = {"n": np.array(2**60), "x": np.zeros((64, 64), np.float32)}
    options = whet.RunOptions()
    timer = threading.Timer(0.1, lambda: setattr(options, "terminate", True))
    timer.start()
    with pytest.raises(Terminated):
        made.run(None, endless, options)
    options = whet.RunOptions()
    options.add_run_config_entry("deadline_ms", "100")
    with pytest.raises(Terminated):
        made.run(None, endless, options)
    (y,) = made.run(None, {**endless, "n": np.array(3)})
    np.testing.assert_array_equal(y, 0)


def test_concurrent_runs_do_not_mix() -> None:
    made = session("g (float[n,32] x) => (float[n,32] y) { a = Exp(x) b = Neg(a) y = Add(a, b) z = Softmax(x) }")

    def work(seed: int) -> bool:
        x = np.random.default_rng(seed).standard_normal((seed + 1, 32)).astype(np.float32)
        (y,) = session_y.run(None, {"x": x})
        return bool(np.allclose(y, x * 3 + 1, rtol=1e-6))

    session_y = session("""g (float[n,32] x) => (float[n,32] y) {
        three = Constant<value_float=3.0>()
        one = Constant<value_float=1.0>()
        a = Mul(x, three)
        y = Add(a, one)
    }""")
    assert made.placement.by_provider.keys() == {"onnxruntime"}
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, [i % 16 for i in range(200)]))


def test_options_are_checked_and_reach_onnxruntime() -> None:
    with pytest.raises(InvalidArgument, match="Did you mean 'intra_op_num_threads'"):
        OnnxRuntimeDelegate({"intra_op_num_thread": "2"})
    with pytest.raises(InvalidArgument, match="number of threads"):
        OnnxRuntimeDelegate({"intra_op_num_threads": "many"})
    with pytest.raises(InvalidArgument, match=r"session\.set_denormal_as_zero"):
        OnnxRuntimeDelegate({"session.set_denormal_as_zer": "1"})
    given = {"intra_op_num_threads": "1", "session.set_denormal_as_zero": "1"}
    made = session("g (float[n] x) => (float[n] y) { y = Neg(x) }", [("onnxruntime", given)])
    assert made.get_provider_options()["onnxruntime"] == given


def test_a_provider_that_this_onnxruntime_lacks_is_an_error() -> None:
    assert "CPUExecutionProvider" in installed_providers()
    with pytest.raises(EPFail, match="pip install onnxruntime-gpu"):
        session("g (float[n] x) => (float[n] y) { y = Neg(x) }", ["CUDAExecutionProvider"])
    with pytest.raises(EPFail, match="no such provider"):
        OnnxRuntimeDelegate(provider="CUDAExecutionProvider")


def test_another_provider_must_run_the_node_itself() -> None:
    """The Azure provider is in every build and has no kernel for Neg: a CPU fallback must not count as a claim."""
    if "AzureExecutionProvider" not in installed_providers():
        pytest.skip("this onnxruntime has no second provider")
    model = from_text(HEADER + "g (float[n] x) => (float[n] y) { y = Neg(x) }")
    optimize(model, "disabled")
    delegate = OnnxRuntimeDelegate(provider="AzureExecutionProvider")
    assert delegate.name == "AzureExecutionProvider"
    (node,) = model.graph
    assert isinstance(delegate.claim(node, model.graph), Refuse)


def test_a_missing_custom_operator_library_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="nowhere"):
        OnnxRuntimeDelegate(custom_op_libraries=["nowhere.so"])


def test_profiling_has_the_part() -> None:
    from whet.formats.onnx import load_model  # noqa: F401  (the public loader, as a user imports it)
    from whet.providers.base import RunState
    from whet.runtime.values import Tensor

    made = session("g (float[n] x) => (float[n] y) { y = Neg(x) }")
    state = RunState(events=[])
    made._main.compiled.executor.run([Tensor.from_numpy(np.ones(2, np.float32))], state)
    assert [e.provider for e in state.events or ()] == ["onnxruntime"]


def test_the_watching_thread_costs_short_runs_nothing_and_survives_a_fork() -> None:
    """A child of a process that has already run a delegate can still stop its own runs."""
    code = f"""
import os, sys, numpy as np, whet
from whet.formats.onnx import from_text, to_proto
text = {HEADER + LOOP!r}
options = whet.SessionOptions()
options.intra_op_num_threads = 1
made = whet.InferenceSession(to_proto(from_text(text)).SerializeToString(), options, providers=["onnxruntime"])
made.run(None, {{"n": np.array(1), "x": np.zeros((64, 64), np.float32)}})
child = os.fork()
if child == 0:
    run_options = whet.RunOptions()
    run_options.add_run_config_entry("deadline_ms", "50")
    try:
        made.run(None, {{"n": np.array(2**60), "x": np.zeros((64, 64), np.float32)}}, run_options)
    except whet.errors.Terminated:
        os._exit(7)
    os._exit(1)
_, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""
    if not hasattr(__import__("os"), "fork"):
        pytest.skip("no fork on this system")
    started = time.monotonic()
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=60, check=False).returncode == 7
    assert time.monotonic() - started < 60
