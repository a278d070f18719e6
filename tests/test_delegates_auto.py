"""providers="auto": the fastest right candidate is kept, and every candidate is accounted for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import whet
from whet.errors import EPFail
from whet.formats.onnx import from_text, to_proto
from whet.session import auto
from whet.session.auto import TOLERANCE, AutoReport, _error

HEADER = '<ir_version: 10, opset_import: ["" : 21, "own" : 1]>\n'


def model_bytes(text: str) -> bytes:
    return to_proto(from_text(HEADER + text)).SerializeToString()


def session(text: str, options: whet.SessionOptions | None = None) -> whet.InferenceSession:
    options = options or whet.SessionOptions()
    options.intra_op_num_threads = 1
    return whet.InferenceSession(model_bytes(text), options, providers="auto")


def test_every_installed_candidate_is_measured_and_the_fastest_right_one_kept() -> None:
    made = session("g (float[batch,64] x) => (float[batch,64] y) { a = Softmax(x) y = Exp(a) }")
    report: AutoReport = made.auto_report
    assert [row.name for row in report.rows] == ["CPUExecutionProvider", "onnxruntime", "openvino"]
    assert [row.verdict for row in report.rows].count("chosen") == 1
    assert report.compared_with == "ReferenceExecutionProvider"
    right = [row for row in report.rows if row.verdict in ("chosen", "right")]
    assert report.chosen == min(right, key=lambda row: row.median_ms or np.inf).name
    for row in right:
        assert row.median_ms is not None
        assert row.max_error is not None
        assert row.max_error <= 1e-4
    assert made.get_providers()[0] == report.chosen
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(made.run(None, {"x": x})[0], np.exp(e / e.sum(1, keepdims=True)), rtol=1e-5)


def test_overrides_of_free_dimensions_are_respected() -> None:
    options = whet.SessionOptions()
    options.add_free_dimension_override_by_name("batch", 5)
    made = session("g (float[batch,4] x) => (float[batch,4] y) { y = Neg(x) }", options)
    assert made.get_inputs()[0].shape == [5, 4]


def test_a_wrong_candidate_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that is fastest, and wrong by more than the tolerance, is listed as wrong and passed over."""
    measure = auto._measure

    def one_is_wrong(name: str, made: Any, feed: Any) -> Any:
        found = measure(name, made, feed)
        if name == "openvino":
            found.outputs = [o + 1e-3 * np.ptp(o) for o in found.outputs]
            found.median_ms = 0.0
        return found

    monkeypatch.setattr(auto, "_measure", one_is_wrong)
    report = session("g (float[8,64] x) => (float[8,64] y) { y = Exp(x) }").auto_report
    row = report.rows[2]
    assert (row.name, row.verdict) == ("openvino", "wrong")
    assert row.max_error == pytest.approx(1e-3, rel=1e-3)
    assert "differ" in (row.error or "")
    assert report.chosen != "openvino"


def test_a_candidate_that_fails_is_listed_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = auto._measure

    def one_fails(name: str, made: Any, feed: Any) -> Any:
        if name == "onnxruntime":
            raise EPFail("it broke")
        return measure(name, made, feed)

    monkeypatch.setattr(auto, "_measure", one_fails)
    report = session("g (float[8,64] x) => (float[8,64] y) { y = Exp(x) }").auto_report
    assert (report.rows[1].verdict, report.rows[1].error, report.rows[1].median_ms) == ("failed", "it broke", None)


def test_without_a_right_candidate_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str, made: Any, feed: Any) -> Any:
        raise EPFail(f"{name} broke")

    monkeypatch.setattr(auto, "_measure", fails)
    with pytest.raises(EPFail, match="onnxruntime: onnxruntime broke; openvino: openvino broke"):
        session("g (float[8] x) => (float[8] y) { y = Exp(x) }")


def test_a_slow_reference_leaves_the_candidates_to_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "REFERENCE_SECONDS", 0.0)
    report = session("g (float[8,64] x) => (float[8,64] y) { a = Exp(x) y = Neg(a) }").auto_report
    assert report.compared_with == "each other: the reference takes too long"
    assert report.chosen in ("CPUExecutionProvider", "onnxruntime", "openvino")


def test_models_that_need_more_than_one_sample_get_them() -> None:
    """A reflecting Pad fails on one sample; the sizes are raised until the reference runs the model."""
    made = session(
        'g (float[b,n] x) => (float[b,m] y) { p = Constant<value_ints=[0,3,0,3]>() y = Pad<mode="reflect">(x, p) }'
    )
    assert made.auto_report.compared_with == "ReferenceExecutionProvider"
    assert made.auto_report.chosen in ("CPUExecutionProvider", "onnxruntime", "openvino")


def test_a_model_that_no_random_input_fits_is_an_error() -> None:
    with pytest.raises(EPFail, match="no random inputs"):
        session(
            session(
                """g (float[n] x, float[m] z) => (float[k] y) {
            a = Concat<axis=0>(x, z)
            s = Constant<value_ints=[7]>()
            y = Reshape(a, s)
        }"""
            )
        )


def test_random_models_are_not_compared() -> None:
    report = session("g (float[8,64] x) => (float[8,64] y) { y = RandomUniformLike(x) }").auto_report
    assert report.compared_with == "nothing: the model draws random numbers"
    assert all(row.max_error is None for row in report.rows)


@pytest.mark.parametrize(
    ("found", "expected", "error"),
    [
        ([np.array([1.0, 2.0])], [np.array([1.0, 2.0])], 0.0),
        ([np.array([1.0, 2.5])], [np.array([1.0, 2.0])], 0.5),
        ([np.array([np.nan, np.inf])], [np.array([np.nan, np.inf])], 0.0),
        ([np.array([np.nan, 1.0])], [np.array([1.0, 1.0])], np.inf),
        ([np.array([1, 2])], [np.array([1, 3])], np.inf),
        ([np.array([1.0])], [np.array([[1.0]])], np.inf),
        ([np.array([1.0], np.float32)], [np.array([1.0])], np.inf),
        ([np.array(["a"], object)], [np.array(["b"], object)], np.inf),
        ([[np.array([2.0])]], [[np.array([1.0])]], 1.0),
        ([{1: 2.0}], [{1: 2.0}], 0.0),
        ([{1: 2.0}], [{2: 2.0}], np.inf),
        ([None], [np.array([1.0])], np.inf),
        ([np.array([1e-9])], [np.array([0.0])], np.inf),
    ],
)
def test_the_error_measure(found: Any, expected: Any, error: float) -> None:
    assert _error(found, expected) == pytest.approx(error)


def test_the_error_is_measured_against_the_range_not_the_magnitude() -> None:
    expected = np.array([1000.0, 1000.1], np.float32)
    assert _error(expected + np.float32(0.05), expected) > TOLERANCE
    assert _error(np.array([1.0, 1.0 + 2.4e-7], np.float32), np.ones(2, np.float32)) <= TOLERANCE
    assert _error(np.array([1.0, 1.0 + 1e-4], np.float32), np.ones(2, np.float32)) > TOLERANCE
