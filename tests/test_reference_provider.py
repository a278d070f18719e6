"""The reference provider: control flow, float64, random operators, aliasing, threads, custom operators, options."""

from __future__ import annotations

import math
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from whet.errors import InvalidArgument, NotImplemented, RuntimeException
from whet.formats.onnx import from_text
from whet.graph import Graph, Node, Value
from whet.ops.custom import CustomOp
from whet.providers.base import Accept, CompileEnv, Refuse, RunState, Subgraph
from whet.providers.reference import ReferenceExecutionProvider
from whet.providers.reference.executable import unwrap, wrap

HEADER = '<ir_version: 10, opset_import: ["" : 21, "com.example" : 1]>\n'


def build(text: str, compute: str = "model", custom: tuple[CustomOp, ...] = ()) -> Any:
    model = from_text(HEADER + text)
    provider = ReferenceExecutionProvider({"compute_dtype": compute}, custom)
    return provider.compile(Subgraph(model.graph, model, tuple(model.graph)), CompileEnv())


def run(executable: Any, *inputs: Any, state: RunState | None = None) -> list[Any]:
    values = [wrap(x, None) for x in inputs]
    return [unwrap(v) for v in executable.run(values, state or RunState())]


NESTED = """
main (float[n] x, int64 trips) => (float[n] total, float[k, n] each) {
  going = Constant<value = bool {1}>()
  zero = Constant<value = float {0}>()
  total, each = Loop(trips, going, x) <body = again (int64 i, bool c, float[n] s)
      => (bool c2, float[n] s2, float[n] t) {
    c2 = Identity(c)
    sum = ReduceSum<keepdims = 0>(s)
    big = Greater(sum, zero)
    s2 = If(big) <then_branch = shrink () => (float[n] a) { a = Sub(s, x) }, else_branch = grow () => (float[n] b) {
      y = Add(s, x)
      b = Add(y, x)
    }>
    t = Add(s2, x)
  }>
}
"""


def test_control_flow_reads_values_of_every_enclosing_graph() -> None:
    executable = build(NESTED)
    x = np.array([1.0, -3.0, 2.5], np.float32)
    total, rows = x.copy(), []
    for _ in range(5):
        total = total - x if total.sum() > 0 else total + x + x
        rows.append(total + x)
    found = run(executable, x, np.array(5))
    np.testing.assert_array_equal(found[0], total)
    np.testing.assert_array_equal(found[1], np.stack(rows))


def test_loop_without_iterations_gives_an_empty_scan_output_of_the_declared_type() -> None:
    found = run(build(NESTED), np.ones(3, np.float32), np.array(0))
    np.testing.assert_array_equal(found[0], np.ones(3, np.float32))
    assert found[1].shape[0] == 0
    assert found[1].dtype == np.float32


SCAN = """
main (float[2] s, float[a, b] x) => (float[2] last, float[c, d] y) {
  last, y = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1], scan_output_axes = [1],
                 scan_output_directions = [1],
                 body = step (float[2] t, float[2] v) => (float[2] t2, float[2] w) {
    t2 = Add(t, v)
    w = Mul(t2, v)
  }>(s, x)
}
"""


def test_scan_along_other_axes_and_backward() -> None:
    s, x = np.array([1.0, 2.0], np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    state, columns = s, []
    for column in range(2, -1, -1):
        state = state + x[:, column]
        columns.append(state * x[:, column])
    last, y = run(build(SCAN), s, x)
    np.testing.assert_array_equal(last, state)
    np.testing.assert_array_equal(y, np.stack(columns[::-1], axis=1))


def test_results_never_share_memory_with_inputs_constants_or_each_other() -> None:
    executable = build("""
    main (float[4] x) => (float[4] a, float[4] b, float[2, 2] c, float[4] k, float[1] v) {
      a = Identity(x)
      b = Identity(x)
      shape = Constant<value = int64[2] {2, 2}>()
      r = Neg(x)
      c = Reshape(r, shape)
      const = Constant<value = float[4] {1, 2, 3, 4}>()
      k = Identity(const)
      one = Constant<value = int64[1] {1}>()
      two = Constant<value = int64[1] {2}>()
      v = Slice(r, one, two)
    }""")
    x = np.arange(4, dtype=np.float32)
    first = run(executable, x)
    for i, array in enumerate(first):
        assert array.flags.writeable
        assert array.flags.c_contiguous
        assert not np.shares_memory(array, x)
        assert not any(np.shares_memory(array, other) for other in first[:i])
        array[...] = 99
    np.testing.assert_array_equal(x, np.arange(4))
    second = run(executable, x)
    np.testing.assert_array_equal(second[0], x)
    np.testing.assert_array_equal(second[3], [1, 2, 3, 4])


WIDE = """
main (float16[n] x, bfloat16[n] z) => (float[n] y, float16[n] h, int64[n] i, float[n] r, float[m] w, bfloat16[n] q) {
  up = Cast<to = 1>(x)
  third = Constant<value = float {0.3333333432674407958984375}>()
  y = Mul(up, third)
  h = Cast<to = 10>(y)
  single = Constant<value = float {100}>()
  hundred = Cast<to = 10>(single)
  scaled = Mul(h, hundred)
  i = Cast<to = 7>(scaled)
  shape = Shape(x)
  ones = ConstantOfShape<value = float[1] {1}>(shape)
  e = Exp(ones)
  r = Mul(e, y)
  size = Constant<value = int64 {5}>()
  w = HannWindow<output_datatype = 1>(size)
  back = CastLike(y, z)
  q = Add(back, z)
}
"""


def test_float64_widens_everything() -> None:
    x = np.array([1.0, -2.0, 0.1], np.float16)
    z = np.array([0.5, 0.25, 3.0], ml_dtypes.bfloat16)
    y, h, i, r, w, q = run(build(WIDE, "float64"), x, z)
    assert {v.dtype for v in (y, h, r, w, q)} == {np.dtype(np.float64)}
    assert i.dtype == np.int64
    third = float(np.float32(1 / 3))
    exact = x.astype(np.float64) * third
    np.testing.assert_allclose(y, exact, rtol=1e-15)
    np.testing.assert_allclose(h, exact, rtol=1e-15)
    np.testing.assert_array_equal(i, np.trunc(exact * 100))
    np.testing.assert_allclose(r, math.e * exact, rtol=1e-15)
    np.testing.assert_allclose(w, 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(5) / 5), atol=1e-7)
    np.testing.assert_allclose(q, exact + z.astype(np.float64), rtol=1e-15)
    narrow = run(build(WIDE), x, z)
    assert [v.dtype for v in narrow[:4]] == [np.float32, np.float16, np.int64, np.float32]


def test_float64_reaches_into_subgraphs() -> None:
    x = np.array([1.0, -3.0, 2.5], np.float32)
    total, rows = run(build(NESTED, "float64"), x, np.array(3))
    assert total.dtype == rows.dtype == np.float64
    assert run(build(NESTED, "float64"), x, np.array(0))[1].dtype == np.float64


def test_bits_are_reinterpreted_in_the_models_own_type() -> None:
    text = "main (float[2] x) => (int32[2] y, float[2] z) { y = BitCast<to = 6>(x) z = BitCast<to = 1>(y) }"
    model = from_text(HEADER.replace("21", "26") + text)
    x = np.array([1.5, -2.0], np.float32)
    provider = ReferenceExecutionProvider({"compute_dtype": "float64"})
    y, z = run(provider.compile(Subgraph(model.graph, model), CompileEnv()), x)
    np.testing.assert_array_equal(y, x.view(np.int32))
    np.testing.assert_array_equal(z, x.astype(np.float64))
    assert z.dtype == np.float64


RANDOM = """
main () => (float[1000] a, float[1000] b, float[1000] c) {
  a = RandomNormal<shape = [1000], mean = 3.0, scale = 2.0>()
  b = RandomUniform<shape = [1000], low = -1.0, high = 3.0>()
  c = RandomNormal<shape = [1000], seed = 7.0>()
}
"""


def test_random_operators_depend_on_seed_and_node_alone() -> None:
    executable = build(RANDOM)
    first, again = run(executable, state=RunState(seed=5)), run(executable, state=RunState(seed=5))
    other, free = run(executable, state=RunState(seed=6)), run(executable)
    for x, y in zip(first, again, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(first[0], other[0])
    assert not np.array_equal(first[0], free[0])
    np.testing.assert_array_equal(first[2], free[2])
    assert abs(first[0].mean() - 3) < 0.4
    assert abs(first[0].std() - 2) < 0.3
    assert first[1].min() >= -1
    assert first[1].max() < 3
    assert abs(first[1].mean() - 1) < 0.2


def test_a_random_node_in_a_loop_draws_anew_in_each_iteration() -> None:
    executable = build("""
    main (int64 n) => (float[k, 3] y) {
      going = Constant<value = bool {1}>()
      y = Loop(n, going) <body = again (int64 i, bool c) => (bool c2, float[3] r) {
        c2 = Identity(c)
        r = RandomNormal<shape = [3], seed = 1.0>()
      }>
    }""")
    first = run(executable, np.array(4))[0]
    assert len(np.unique(first)) == 12
    np.testing.assert_array_equal(first, run(executable, np.array(4))[0])


def test_multinomial_follows_the_probabilities() -> None:
    executable = build("main (float[2, 3] x) => (int32[2, s] y) { y = Multinomial<sample_size = 20000>(x) }")
    p = np.array([[0.2, 0.5, 0.3], [0.0, 0.9, 0.1]])
    with np.errstate(divide="ignore"):
        (y,) = run(executable, np.log(p).astype(np.float32), state=RunState(seed=1))
    assert y.dtype == np.int32
    for row in range(2):
        np.testing.assert_allclose(np.bincount(y[row], minlength=3) / 20000, p[row], atol=0.02)


def test_many_threads_share_one_executable() -> None:
    executable = build(NESTED)
    inputs = [np.array([i, 1.0, -i], np.float32) for i in range(8)]
    expected = [run(executable, x, np.array(20)) for x in inputs]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            found = run(executable, inputs[number], np.array(20))
            if not all(np.array_equal(f, e) for f, e in zip(found, expected[number], strict=True)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_profile_events_name_nodes_in_order() -> None:
    state = RunState(events=[])
    run(build("main (float[2] x) => (float[2] y) { [first] a = Neg(x) [second] y = Exp(a) }"), np.ones(2, np.float32),
        state=state)  # fmt: skip
    assert state.events is not None
    assert [(e.op, e.provider) for e in state.events] == [
        ("Neg", "ReferenceExecutionProvider"),
        ("Exp", "ReferenceExecutionProvider"),
    ]
    assert state.events[0].start_ns + state.events[0].duration_ns <= state.events[1].start_ns


def doubled(inputs: Any, attributes: Any, count: int) -> Any:
    return [inputs[0] * attributes.get("factor", 2)]


CUSTOM = "main (float[2] x) => (float[2] y) { y = com.example.Scale<factor = 3>(x) }"


def test_custom_operators_in_python() -> None:
    executable = build(CUSTOM, custom=(CustomOp("com.example", "Scale", doubled),))
    np.testing.assert_array_equal(run(executable, np.array([1, 2], np.float32))[0], [3, 6])

    def failing(inputs: Any, attributes: Any, count: int) -> Any:
        raise KeyError("missing thing")

    broken = build(CUSTOM, custom=(CustomOp("com.example", "Scale", failing),))
    with pytest.raises(RuntimeException, match="missing thing"):
        run(broken, np.ones(2, np.float32))


def test_what_has_no_kernel_is_refused_with_a_reason() -> None:
    model = from_text(HEADER + CUSTOM)
    provider = ReferenceExecutionProvider()
    (node,) = model.graph
    claim = provider.claim(node, model.graph)
    assert isinstance(claim, Refuse)
    assert "com.example" in claim.reason
    with pytest.raises(NotImplemented, match=r"com\.example"):
        provider.compile(Subgraph(model.graph, model, (node,)), CompileEnv())
    inside = Node("If", [Value("c")], ["y"], {"then_branch": model.graph, "else_branch": Graph("none")})
    claim = provider.claim(inside, Graph())
    assert isinstance(claim, Refuse)
    assert "Scale" in claim.reason
    accepting = ReferenceExecutionProvider(custom_ops=(CustomOp("com.example", "Scale", doubled),))
    assert isinstance(accepting.claim(node, model.graph), Accept)


def test_options_are_checked() -> None:
    assert ReferenceExecutionProvider().options() == {"compute_dtype": "model"}
    with pytest.raises(InvalidArgument, match="Did you mean 'compute_dtype'"):
        ReferenceExecutionProvider({"compute_type": "float64"})
    with pytest.raises(InvalidArgument, match="Did you mean 'float64'"):
        ReferenceExecutionProvider({"compute_dtype": "float46"})
