"""Options and configuration keys: defaults as ONNX Runtime's, kinds checked, unknown ones refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import whet
from tests.session_models import ADD, model, session
from whet.errors import InvalidArgument, NoSuchFile, NotImplemented, ResourceExhausted
from whet.session.config_keys import INERT_RUN_KEYS, INERT_SESSION_KEYS, RUN_KEYS, SESSION_KEYS

ONE = {"x": np.ones((1, 3), np.float32), "y": np.ones((1, 3), np.float32)}


def plain(value: Any) -> Any:
    return value.name if hasattr(value, "name") else value


@pytest.mark.parametrize("cls", ["SessionOptions", "RunOptions"])
def test_every_option_of_onnxruntime_is_there_with_its_default(cls: str) -> None:
    theirs, ours = getattr(onnxruntime, cls)(), getattr(whet, cls)()
    names = [n for n in dir(theirs) if not n.startswith("_") and not callable(getattr(theirs, n))]
    assert len(names) > 4
    for name in names:
        if name != "profile_file_prefix":
            assert plain(getattr(ours, name)) == plain(getattr(theirs, name)), name
    own = {n for n in dir(ours) if not n.startswith("_") and not callable(getattr(ours, n))}
    assert set(names) <= own


@pytest.mark.parametrize("name", ["GraphOptimizationLevel", "ExecutionMode", "ExecutionOrder"])
def test_enumerations_are_those_of_onnxruntime(name: str) -> None:
    theirs = {n: int(m.value) for n, m in getattr(onnxruntime, name).__members__.items()}
    assert {n: int(m) for n, m in getattr(whet, name).__members__.items()} == theirs


@pytest.mark.parametrize("cls", ["InferenceSession", "IOBinding", "OrtValue"])
def test_methods_that_programs_call_are_there(cls: str) -> None:
    # What only devices, captured graphs and tuning results of other hardware need is left out.
    absent = {
        "get_input_epdevices", "get_tuning_results", "release_captured_graph", "set_ep_dynamic_options",
        "set_tuning_results",
    }  # fmt: skip
    theirs = {n for n in dir(getattr(onnxruntime, cls)) if not n.startswith("_")}
    assert theirs - set(dir(getattr(whet, cls))) <= absent


def test_an_unknown_option_names_the_near_one() -> None:
    with pytest.raises(AttributeError, match="Did you mean 'intra_op_num_threads'"):
        whet.SessionOptions().intra_op_num_thread = 3
    with pytest.raises(AttributeError, match="Did you mean 'terminate'"):
        whet.RunOptions().terminat = True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("intra_op_num_threads", "4"),
        ("intra_op_num_threads", 1.5),
        ("enable_profiling", "yes"),
        ("enable_profiling", 2),
        ("graph_optimization_level", 7),
        ("graph_optimization_level", "all"),
        ("execution_mode", 2),
        ("optimized_model_filepath", 3),
        ("logid", None),
    ],
)
def test_an_option_of_the_wrong_kind(name: str, value: object) -> None:
    with pytest.raises(InvalidArgument) as caught:
        setattr(whet.SessionOptions(), name, value)
    assert caught.value.value == name
    assert caught.value.found == repr(value)


def test_numbers_and_paths_are_taken_for_options(tmp_path: Path) -> None:
    options = whet.SessionOptions()
    options.graph_optimization_level = 99  # type: ignore[assignment]
    assert options.graph_optimization_level is whet.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_profiling = np.bool_(True)  # type: ignore[assignment]
    assert options.enable_profiling is True
    options.intra_op_num_threads = np.int64(2)  # type: ignore[assignment]
    assert options.intra_op_num_threads == 2
    options.optimized_model_filepath = tmp_path / "a.onnx"  # type: ignore[assignment]
    assert options.optimized_model_filepath == str(tmp_path / "a.onnx")


def test_a_session_keeps_the_options_that_it_was_made_with() -> None:
    options = whet.SessionOptions()
    options.add_session_config_entry("goal", "throughput")
    made = session(ADD, options)
    options.add_session_config_entry("goal", "latency")
    options.intra_op_num_threads = 7
    assert made.get_session_options().get_session_config_entry("goal") == "throughput"
    assert made.get_session_options().intra_op_num_threads == 0
    made.get_session_options().intra_op_num_threads = 3
    assert made.get_session_options().intra_op_num_threads == 0


def test_unknown_keys_are_refused() -> None:
    options, run_options = whet.SessionOptions(), whet.RunOptions()
    with pytest.raises(InvalidArgument, match=r"Did you mean 'session.disable_cpu_ep_fallback'"):
        options.add_session_config_entry("session.disable_cpu_fallback", "1")
    with pytest.raises(InvalidArgument, match="Did you mean 'deadline_ms'"):
        run_options.add_run_config_entry("deadline", "1")
    for key in ("tuned", "precision", "verify"):
        with pytest.raises(InvalidArgument, match="unknown session configuration key"):
            options.add_session_config_entry(key, "1")
    with pytest.raises(RuntimeError, match="has not been set"):
        options.get_session_config_entry("goal")
    with pytest.raises(RuntimeError, match="has not been set"):
        run_options.get_run_config_entry("deadline_ms")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("goal", "speed"),
        ("session.disable_cpu_ep_fallback", "yes"),
        ("session.load_model_format", "ORT"),
        ("optimization.constant_folding_max_output_size_in_bytes", "big"),
        ("optimization.constant_folding_max_output_size_in_bytes", "-1"),
        ("limits.tensor_bytes", "1e9"),
        ("limits.fold_seconds", "nan"),
        ("limits.nodes", ""),
        ("goal", 3),
    ],
)
def test_a_value_that_a_key_does_not_take(key: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        whet.SessionOptions().add_session_config_entry(key, value)
    assert caught.value.value == key


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon", ""])
def test_a_deadline_is_a_duration(value: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        whet.RunOptions().add_run_config_entry("deadline_ms", value)
    assert (caught.value.value, caught.value.found) == ("deadline_ms", value)


def test_keys_of_onnxruntime_are_accepted() -> None:
    options, run_options = whet.SessionOptions(), whet.RunOptions()
    for key in INERT_SESSION_KEYS - {"session.load_model_format", "session.save_model_format"}:
        options.add_session_config_entry(key, "0")
    for key in INERT_RUN_KEYS:
        run_options.add_run_config_entry(key, "0")
    run_options.logid, run_options.log_severity_level = "r", 3
    session(ADD, options).run(None, ONE, run_options)
    assert not INERT_SESSION_KEYS & set(SESSION_KEYS)
    assert not INERT_RUN_KEYS & set(RUN_KEYS)


def test_inert_options_exist() -> None:
    assert set(whet.SessionOptions.INERT) < set(whet.SessionOptions._fields)
    assert set(whet.RunOptions.INERT) < set(whet.RunOptions._fields)


BIG = "g (int64[N] shape) => (float[A] y) { y = ConstantOfShape(shape) }"


def test_limits_are_keys() -> None:
    feed = {"shape": np.array([1 << 18])}
    assert session(BIG).run(None, feed)[0].shape == (1 << 18,)
    options = whet.SessionOptions()
    options.add_session_config_entry("limits.tensor_bytes", "1000")
    with pytest.raises(ResourceExhausted, match="tensor_bytes"):
        session(BIG, options).run(None, feed)
    options = whet.SessionOptions()
    options.add_session_config_entry("limits.nodes", "1")
    with pytest.raises(ResourceExhausted, match=r"Limits\.nodes"):
        session("g (float x) => (float y) { a = Neg(x) y = Exp(a) }", options)


FOLDS = """g (float[N] x) => (float[N] y) <int64[1] shape = {64}> {
    big = ConstantOfShape<value = float[1] {1.0}>(shape) total = ReduceSum<keepdims = 0>(big) y = Add(x, total)
}"""


def test_folding_can_be_bounded() -> None:
    def operators(bound: str | None) -> list[str]:
        options = whet.SessionOptions()
        if bound is not None:
            options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", bound)
        return [n.op_type for n in session(FOLDS, options).optimized_model.graph]

    assert operators(None) == ["Add"]
    assert "ConstantOfShape" in operators("100")


def test_passes_can_be_left_out() -> None:
    def operators(**arguments: Any) -> list[str]:
        graph = model("g (float[N] x) => (float[N] y) { a = Identity(x) b = Sigmoid(a) y = Mul(a, b) }")
        made = whet.InferenceSession(graph, **arguments)
        feed = {"x": np.array([-1, 2], np.float32)}
        np.testing.assert_allclose(made.run(None, feed)[0], feed["x"] / (1 + np.exp(-feed["x"])), rtol=1e-6)
        return [n.op_type for n in made.optimized_model.graph]

    assert operators() == ["Swish"]
    every = whet.InferenceSession(model(ADD)).pass_report
    name = next(r.name for r in every.records if "swish" in r.name.lower() or "silu" in r.name.lower())
    assert operators(disabled_optimizers=[name]) == ["Sigmoid", "Mul"]
    options = whet.SessionOptions()
    options.add_session_config_entry("optimization.disable_specified_optimizers", name)
    assert operators(sess_options=options) == ["Sigmoid", "Mul"]
    with pytest.raises(InvalidArgument, match="no pass has this name"):
        operators(disabled_optimizers=["Nonsense"])


def test_no_fallback_to_the_reference_provider() -> None:
    options = whet.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(NotImplemented, match="disable_cpu_ep_fallback") as caught:
        session("g (float[1, 3] x) => (float[1, 3] z) { z = RandomUniformLike(x) }", options)
    assert caught.value.node == "RandomUniformLike(-> z)"
    made = whet.InferenceSession(model(ADD), options, providers=["onnxruntime"])
    np.testing.assert_array_equal(made.run(None, ONE)[0], np.full((1, 3), 2, np.float32))
    assert whet.InferenceSession(model(ADD), options, providers=["ReferenceExecutionProvider"]).run(None, ONE)


@pytest.mark.parametrize("key", [None, "weights.bin"])
def test_the_optimized_model_is_saved(tmp_path: Path, key: str | None) -> None:
    weights = ", ".join(str(i % 7) for i in range(300))
    small = ", ".join("1" for _ in range(3))
    graph = f"""g (float[N, 100] x) => (float[N, 3] y) <float[100, 3] w = {{{weights}}}, float[3] b = {{{small}}}> {{
        a = Identity(x) m = MatMul(a, w) y = Add(m, b)
    }}"""
    path = tmp_path / "optimized.onnx"
    options = whet.SessionOptions()
    options.optimized_model_filepath = str(path)
    if key is not None:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", key)
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "100")
    made = session(graph, options)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["optimized.onnx", *([key] if key else [])])
    proto = onnx.load(path, load_external_data=False)
    assert "Identity" not in [n.op_type for n in proto.graph.node]
    outside = {t.name for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
    assert len(outside) == (1 if key else 0)
    x = np.random.default_rng(3).random((4, 100), dtype=np.float32)
    theirs = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(made.run(None, {"x": x})[0], theirs, rtol=1e-5)


def test_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    options = whet.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "no" / "such" / "folder.onnx")
    with pytest.raises(NoSuchFile):
        session(ADD, options)
    options.optimized_model_filepath = str(tmp_path / "a.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "../out.bin")
    with pytest.raises(InvalidArgument, match="beside the model"):
        session(ADD, options)
    assert list(tmp_path.iterdir()) == []
