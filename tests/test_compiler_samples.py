"""Which graphs compute the samples of a batch apart, and runs of batches a sample at a time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import whet
from tests.session_models import Array, model, session
from whet.errors import InvalidArgument, ResourceExhausted, Terminated
from whet.providers.cpu import batches as batches_module
from whet.providers.cpu.batches import Batch
from whet.providers.cpu.executable import CpuExecutable
from whet.providers.cpu.specialization import Specialization
from whet.runtime.cores import core_budget

APART: dict[str, str] = {
    "pointwise": "(float[N, 4, 6] x) => (float[N, 4, 6] y) <float[6] b = {1, 2, 3, 4, 5, 6}> "
    "{ s = Sigmoid(x) a = Add(b, s) y = Mul(a, x) }",
    "two batches": "(float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { y = Sub(x, z) }",
    "shared by all": "(float[N, 4] x, float[1, 4] z, float[4] w) => (float[N, 4] y) { a = Div(x, z) y = Add(a, w) }",
    "convolution": "(float[N, 2, 6, 6] x, float[3, 2, 3, 3] w) => (float[N, 3, 1, 1] y) "
    "{ c = Conv <pads = [1, 1, 1, 1]> (x, w) r = Relu(c) y = GlobalAveragePool(r) }",
    "pool": "(float[N, 2, 6, 6] x) => (float[N, 18] y) { p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) "
    "y = Flatten(p) }",
    "product": "(float[N, 4, 6] x, float[6, 4] w) => (float[N, 4, 4] y) "
    "{ a = MatMul(x, w) t = Transpose <perm = [0, 2, 1]> (a) y = MatMul(a, t) }",
    "product from the left": "(float[N, 4, 6] x, float[3, 4] w) => (float[N, 3, 6] y) { y = MatMul(w, x) }",
    "gemm": "(float[N, 4] x, float[6, 4] w, float[6] b) => (float[N, 6] y) { y = Gemm <transB = 1> (x, w, b) }",
    "softmax": "(float[N, 4] x) => (float[N, 4] y) { y = Softmax(x) }",
    "mean": "(float[N, 4, 6] x) => (float[N, 6] y) <int64[1] axes = {1}> { y = ReduceMean <keepdims = 0> (x, axes) }",
    "extreme": "(float[N, 4, 6] x) => (int64[N, 4] y) { y = ArgMax <axis = 2, keepdims = 0> (x) }",
    "norm": "(float[N, 4, 6] x, float[6] s) => (float[N, 4, 6] y) { y = LayerNormalization(x, s) }",
    "reshape": "(float[N, 4, 6] x) => (float[N, 3, 8] y) <int64[3] shape = {0, 3, 8}> { y = Reshape(x, shape) }",
    "reshape by shape": "(float[N, 4, 6] x) => (float[N, 24] y) <int64[1] zero = {0}, int64[1] rest = {24}> "
    "{ s = Shape(x) n = Gather(s, zero) shape = Concat <axis = 0> (n, rest) y = Reshape(x, shape) }",
    "concat": "(float[N, 4] x, float[N, 3] z) => (float[N, 7] y) { y = Concat <axis = -1> (x, z) }",
    "split": "(float[N, 4] x) => (float[N, 2] y, float[N, 2] z) { y, z = Split <axis = 1, num_outputs = 2> (x) }",
    "slice": "(float[N, 4] x) => (float[N, 2] y) <int64[1] b = {1}, int64[1] e = {3}, int64[1] a = {1}> "
    "{ y = Slice(x, b, e, a) }",
    "gather": "(float[N, 4] x) => (float[N, 3] y) <int64[3] i = {3, 0, 1}> { y = Gather <axis = 1> (x, i) }",
    "lookup": "(int64[N, 2] x, float[5, 3] t) => (float[N, 2, 3] y) { y = Gather(t, x) }",
    "squeeze": "(float[N, 1, 4] x) => (float[N, 4, 1] y) <int64[1] one = {1}, int64[1] last = {2}> "
    "{ s = Squeeze(x, one) y = Unsqueeze(s, last) }",
    "pad": "(float[N, 4] x) => (float[N, 7] y) <int64[4] p = {0, 1, 0, 2}> { y = Pad(x, p) }",
    "resize": "(float[N, 1, 4, 4] x) => (float[N, 1, 8, 8] y) <float[4] f = {1, 1, 2, 2}> { y = Resize(x, , f) }",
    "token": "(float[N, 4, 6] x, float[1, 1, 6] t) => (float[N, 5, 6] y) <int64[1] z = {0}, int64[2] r = {1, 6}> "
    "{ s = Shape(x) n = Gather(s, z) e = Concat <axis = 0> (n, r) c = Expand(t, e) y = Concat <axis = 1> (c, x) }",
    "attention": "(float[N, 2, 4, 6] x, float[N, 1, 4, 4] m) => (float[N, 2, 4, 6] y) { y = Attention(x, x, x, m) }",
}  # fmt: skip

TOGETHER: dict[str, str] = {
    "mean of all": "(float[N, 4] x) => (float[1, 4] y) <int64[1] axes = {0}> { y = ReduceMean(x, axes) }",
    "less the mean": "(float[N, 4] x) => (float[N, 4] y) <int64[1] a = {0}> { m = ReduceMean(x, a) y = Sub(x, m) }",
    "softmax over them": "(float[N, 4] x) => (float[N, 4] y) { y = Softmax <axis = 0> (x) }",
    "running sums": "(float[N, 4] x) => (float[N, 4] y) <int64 axis = {0}> { y = CumSum(x, axis) }",
    "turned": "(float[N, 4] x) => (float[4, N] y) { y = Transpose(x) }",
    "product over them": "(float[N, 4] x) => (float[4, 4] y) { t = Transpose(x) y = MatMul(t, x) }",
    "product among them": "(float[N, 4] x) => (float[N, N] y) { t = Transpose(x) y = MatMul(x, t) }",
    "gemm across": "(float[N, 4] x, float[N, 3] z) => (float[4, 3] y) { y = Gemm <transA = 1> (x, z) }",
    "pooled positions": "(float[N, 1, 4, 4] x) => (float[N, 1, 2, 2] y, int64[N, 1, 2, 2] z) "
    "{ y, z = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) }",
    "doubled": "(float[N, 4] x) => (float[M, 4] y) { y = Concat <axis = 0> (x, x) }",
    "turned round": "(float[N, 4] x) => (float[M, 4] y) <int64[1] b = {-1}, int64[1] e = {-9223372036854775807}, "
    "int64[1] a = {0}, int64[1] s = {-1}> { y = Slice(x, b, e, a, s) }",
    "by how many": "(float[N, 4] x) => (float[N, 4] y) <int64[1] z = {0}> "
    "{ s = Shape(x) n = Gather(s, z) f = Cast <to = 1> (n) y = Div(x, f) }",
    "numbered": "(float[N, 4] x) => (float[N, 4] y) <int64 z = {0}, int64 d = {1}, int64[1] a = {1}> "
    "{ s = Shape(x) n = Gather(s, z) r = Range(z, n, d) f = Cast <to = 1> (r) u = Unsqueeze(f, a) y = Add(x, u) }",
    "first for all": "(float[N, 4] x) => (float[N, 4] y) <int64 z = {0}> { f = Gather(x, z) y = Add(x, f) }",
    "one of all": "(float[N, 4] x) => (float[N, 4] y, float[1, 1] z) <int64[2] a = {0, 1}> "
    "{ y = Relu(x) z = ReduceMax(x, a) }",
    "merged": "(float[N, 4] x) => (float[2, M] y) <int64[2] s = {2, -1}> { y = Reshape(x, s) }",
    "a scale for each": "(float[N, 4] x, float[M, 4] s) => (float[N, 4] y) { y = LayerNormalization(x, s) }",
    "turned over": "(float[N, N] x) => (float[N, N] y) { y = Transpose(x) }",
    "padded in front": "(float[N, 4] x) => (float[M, 4] y) <int64[4] p = {1, 0, -1, 0}> { y = Pad(x, p) }",
}  # fmt: skip


def specialization(made: whet.InferenceSession) -> Specialization:
    (step,) = made._main.compiled.executor._steps
    assert isinstance(step.executable, CpuExecutable)
    (found,) = step.executable.programs()
    return found


def all_batches(made: whet.InferenceSession) -> list[Batch]:
    found = specialization(made).batches
    assert found is not None
    return found.all()


def feeds(made: whet.InferenceSession, samples: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for entry in made.get_inputs():
        shape = [d if isinstance(d, int) else samples for d in entry.shape]
        if entry.type == "tensor(int64)":
            found[entry.name] = rng.integers(0, 5, shape)
        else:
            found[entry.name] = rng.standard_normal(shape, dtype=np.float32)
    return found


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch that may be run a sample at a time is."""
    monkeypatch.setattr(batches_module, "_pays", lambda blueprint, slots, symbol: True)
    monkeypatch.setattr(batches_module, "core_budget", lambda: 2)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("name", APART)
def test_samples_that_are_computed_apart(name: str) -> None:
    data = model(f"g {APART[name]}", '<ir_version: 10, opset_import: ["": 23]>')
    made = whet.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert specialization(made).form.batch == 0
    given = feeds(made, 5)
    expected = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, given)
    for samples in (5, 1, 4):
        some = {n: a[:samples] if "N" in _dims(made, n) else a for n, a in given.items()}
        for found, whole in zip(made.run(None, some), expected, strict=True):
            assert found.dtype == whole.dtype
            np.testing.assert_allclose(found, whole[:samples], rtol=1e-5, atol=1e-6)
    assert all_batches(made)


def _dims(made: whet.InferenceSession, name: str) -> list[Any]:
    return next(list(e.shape) for e in made.get_inputs() if e.name == name)


@pytest.mark.parametrize("name", TOGETHER)
def test_samples_that_depend_on_each_other(name: str) -> None:
    data = model(f"g {TOGETHER[name]}", '<ir_version: 10, opset_import: ["": 23]>')
    made = whet.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert specialization(made).form.batch is None


IMAGES = """g (float[N, 8, H, 40] x, float[32, 8, 3, 3] w, float[32, 1, 3, 3] d, float[8, 32, 1, 1] p)
    => (float[N, 8, H, 40] y, float[N, 32] m) <float[1] half = {0.5}> {
    a = Conv <pads = [1, 1, 1, 1]> (x, w)
    b = Relu(a)
    c = Conv <pads = [1, 1, 1, 1], group = 32> (b, d)
    s = Sigmoid(c)
    e = Conv(s, p)
    y = Mul(e, half)
    g = GlobalAveragePool(b)
    m = Flatten(g)
}"""
"""Values of several caches' size a sample, with weights that are few."""


def images(threads: int) -> whet.InferenceSession:
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    return session(IMAGES, options)


def image_feeds(samples: int, height: int = 48) -> dict[str, Array]:
    rng = np.random.default_rng(samples)
    shapes = {"x": (samples, 8, height, 40), "w": (32, 8, 3, 3), "d": (32, 1, 3, 3), "p": (8, 32, 1, 1)}
    return {n: rng.standard_normal(s, dtype=np.float32) for n, s in shapes.items()}


def one_by_one(made: whet.InferenceSession, given: dict[str, Array]) -> list[Array]:
    samples = len(given["x"])
    rows = [made.run(None, {**given, "x": given["x"][i : i + 1]}) for i in range(samples)]
    return [np.concatenate([row[i] for row in rows]) for i in range(2)]


@pytest.mark.usefixtures("always")
def test_batches_give_the_bits_of_single_samples_with_any_number_of_threads() -> None:
    least = max(2, core_budget())
    sessions = {threads: images(threads) for threads in (1, 2, 3, 8)}
    for samples, height in ((least, 48), (least + 1, 48), (2 * least + 3, 17), (least + 2, 48)):
        given = image_feeds(samples, height)
        expected = one_by_one(sessions[2], given)
        for made in sessions.values():
            for found, single in zip(made.run(None, given), expected, strict=True):
                np.testing.assert_array_equal(found, single)


def test_where_values_outweigh_weights_it_is_done_unasked() -> None:
    least = max(2, core_budget())
    made = images(2)
    made.run(None, image_feeds(least - 1, 480))
    made.run(None, image_feeds(least, 3))  # what one sample needs fits a cache
    assert not all_batches(made)
    made.run(None, image_feeds(least, 480))
    (batch,) = all_batches(made)
    assert made.memory.arena >= batch.arena_bytes > 0

    wide = session("g (float[N, 64] x, float[64, 64] w) => (float[N, 64] y) { a = MatMul(x, w) y = Relu(a) }")
    wide.run(None, feeds(wide, 4096))
    assert not all_batches(wide)


@pytest.mark.usefixtures("always")
def test_batches_from_many_threads_at_once() -> None:
    made = images(2)
    given = [image_feeds(max(2, core_budget()) + i % 3) for i in range(24)]
    expected = [one_by_one(made, g) for g in given]
    with ThreadPoolExecutor(6) as pool:
        for found, single in zip(pool.map(lambda g: made.run(None, g), given), expected, strict=True):
            for a, b in zip(found, single, strict=True):
                np.testing.assert_array_equal(a, b)


LOOKUP = """g (int64[N, 3] i, float[N, 40000] x, float[7, 5] t) => (float[N, 3, 5] y, float[N, 40000] z) {
    y = Gather(t, i)
    a = Sin(x)
    b = Cos(a)
    z = Sin(b)
}"""


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("bad", range(7))
def test_a_sample_that_fails_names_its_node(bad: int) -> None:
    options = whet.SessionOptions()
    options.intra_op_num_threads = 2
    made = session(LOOKUP, options)
    given = feeds(made, 7)
    wrong = {**given, "i": given["i"].copy()}
    wrong["i"][bad, 2] = 9
    for _ in range(20):
        with pytest.raises(
            InvalidArgument, match=rf"an index lies outside its axis.*Gather.*position 2 of sample {bad}"
        ):
            made.run(None, wrong)
        found = made.run(None, given)
        np.testing.assert_array_equal(found[0], given["t"][given["i"]])


@pytest.mark.usefixtures("always")
def test_deadlines_and_terminate_stop_batches() -> None:
    samples = 40
    made = images(2)
    given = image_feeds(samples, 400)
    made.run(None, given)
    options = whet.RunOptions()
    options.add_run_config_entry("deadline_ms", "3")
    begun = time.perf_counter()
    with pytest.raises(Terminated):
        made.run(None, given, options)
    assert time.perf_counter() - begun < 2.0
    options = whet.RunOptions()
    threading.Timer(0.01, lambda: setattr(options, "terminate", True)).start()
    with pytest.raises(Terminated):
        _run_on(made, given, options)
    for found, single in zip(made.run(None, given), one_by_one(made, given), strict=True):
        np.testing.assert_array_equal(found, single)


def _run_on(made: whet.InferenceSession, given: dict[str, Array], options: whet.RunOptions) -> None:
    for _ in range(10_000):
        made.run(None, given, options)


@pytest.mark.usefixtures("always")
def test_profiles_count_every_sample() -> None:
    samples = 2 * max(2, core_budget()) + 1
    made = images(2)
    single = made.profile(image_feeds(1))
    whole = made.profile(image_feeds(samples))
    assert [(e.name, e.op, samples * e.args["flops"]) for e in single] == [
        (e.name, e.op, e.args["flops"]) for e in whole
    ]


@pytest.mark.usefixtures("always")
def test_shapes_and_limits_are_checked_for_the_whole_batch() -> None:
    made = session("g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { y = Sub(x, z) }")
    with pytest.raises(InvalidArgument, match="N"):
        made.run(None, {"x": np.zeros((5, 4), np.float32), "z": np.zeros((4, 4), np.float32)})
    options = whet.SessionOptions()
    options.add_session_config_entry("limits.tensor_bytes", "1000000")
    made = session(
        "g (float[N, 4, 1] x) => (float[N, 4, 1000] y) <int64[3] s = {1, 1, 1000}> { y = Expand(x, s) }", options
    )
    assert made.run(None, {"x": np.ones((62, 4, 1), np.float32)})[0].sum() == 248_000
    with pytest.raises(ResourceExhausted, match="1008000 bytes"):
        made.run(None, {"x": np.ones((63, 4, 1), np.float32)})


@pytest.mark.usefixtures("always")
def test_values_of_other_providers_may_have_another_number_of_samples() -> None:
    # How many values are different only a run tells; the types say M of both.
    graph = """g (int64[N] x, float[M, 40000] b) => (float[M, 40000] y) <int64[1] a = {1}> {
        u, p, q, r = Unique <sorted = 1> (x)
        f = Cast <to = 1> (u)
        c = Unsqueeze(f, a)
        y = Add(c, b)
    }"""
    made = session(graph)
    assert "ReferenceExecutionProvider" in made.placement.by_provider
    b = np.random.default_rng(0).standard_normal((6, 40000), dtype=np.float32)
    x = np.array([5, 3, 3, 5, 1, 0, 2, 9])
    np.testing.assert_array_equal(made.run(None, {"x": x, "b": b})[0], np.unique(x)[:, None].astype(np.float32) + b)
    for rows in (2, 5):
        with pytest.raises(InvalidArgument):
            made.run(None, {"x": x, "b": b[:rows]})


@pytest.mark.usefixtures("always")
def test_an_engine_runs_batches_alike(tmp_path: Path) -> None:
    made = images(2)
    path = tmp_path / "images.whet"
    made.save_engine(path)
    loaded = whet.InferenceSession(str(path))
    assert specialization(loaded).form.batch == specialization(made).form.batch
    given = image_feeds(2 * core_budget() + 1)
    for a, b in zip(loaded.run(None, given), made.run(None, given), strict=True):
        np.testing.assert_array_equal(a, b)
