"""What the attention fusion must leave alone, and why it says so."""

from __future__ import annotations

import numpy as np
import onnx

from tests.pass_checks import build, load, ops, random_array
from tests.test_passes_attention import PARTS, QKV, RESULT, B, D, H, S, T, check, fused, parts, qkv_feed
from whet.passes.pipeline import optimize


def refused(proto: onnx.ModelProto, reason: str) -> None:
    model, reasons = fused(proto)
    assert "Attention" not in ops(model)
    assert any(reason in r for r in reasons), reasons


def test_probabilities_that_are_read_elsewhere() -> None:
    proto = parts("m = Mul(s, c)", result=f"{RESULT}, float[{B},{H},{S},{T}] p", c=np.float32(0.3))
    refused(proto, "is an output of the graph")


def test_scores_that_are_read_elsewhere() -> None:
    proto = parts("m = Mul(s, c)\nz = Relu(s)", result=f"{RESULT}, float[{B},{H},{S},{T}] z", c=np.float32(0.3))
    refused(proto, "is also read elsewhere")


def test_fill_that_does_not_absorb() -> None:
    """-10000 in place of a score is not -10000 added to it: a fully masked row shows the difference."""
    refused(parts("m = Where(a, s, f)", f"bool[{B},1,{S},{T}] a", f=np.float32(-1e4)), "masked scores become -10000")


def test_mask_with_one_column() -> None:
    """Attention would take it for a mask of one key and remove all others."""
    refused(parts("m = Add(s, a)", f"float[{B},1,{S},1] a"), "one column a key")


def test_mask_that_enlarges_the_scores() -> None:
    body = PARTS.format(scores="m = Add(s, a)")
    inputs = f"float[1,{H},{S},{D}] q, float[1,{H},{T},{D}] k, float[1,{H},{T},{D}] v, float[{B},1,{S},{T}] a"
    refused(build(inputs, RESULT, body), "scores' shape")


def test_mask_of_unknown_extent() -> None:
    refused(parts("m = Add(s, a)", "float[b,1,x,t] a"), "one column a key")


def test_mask_whose_other_extents_are_unknown() -> None:
    """What was added without changing the scores' shape can be added by the operator as well."""
    proto = parts("m = Add(s, a)", f"float[b,1,x,{T}] a")
    check(proto, {**qkv_feed(), "a": random_array((B, 1, 1, T))}, left=set())


def test_scale_that_is_not_positive() -> None:
    refused(parts("m = Mul(s, c)", c=np.float32(-0.3)), "is not positive")


def test_scale_for_each_key_is_no_scale() -> None:
    model, _ = fused(parts("m = Mul(s, c)", c=random_array((T,))))
    assert "Attention" not in ops(model)


def test_softmax_over_queries() -> None:
    body = PARTS.format(scores="m = Identity(s)").replace("axis=-1", "axis=-2")
    model, _ = fused(build(QKV, RESULT, body))
    assert "Attention" not in ops(model)


def test_keys_of_one_batch_for_all() -> None:
    inputs = f"float[{B},{H},{S},{D}] q, float[1,{H},{T},{D}] k, float[1,{H},{T},{D}] v"
    refused(build(inputs, RESULT, PARTS.format(scores="m = Identity(s)")), "the query's batch")


def test_keys_and_values_with_different_heads() -> None:
    inputs = f"float[{B},{H},{S},{D}] q, float[{B},1,{T},{D}] k, float[{B},{H},{T},{D}] v"
    refused(build(inputs, RESULT, PARTS.format(scores="m = Identity(s)")), "the same heads")


def test_one_key_head_for_all_is_grouped() -> None:
    inputs = f"float[{B},{H},{S},{D}] q, float[{B},1,{T},{D}] k, float[{B},1,{T},{D}] v"
    check(build(inputs, RESULT, PARTS.format(scores="m = Identity(s)")), qkv_feed(heads=1), left=set())


def test_scores_capped_after_the_mask() -> None:
    scores = "t = Add(s, a)\nu = Tanh(t)\nm = Mul(u, c)"
    refused(parts(scores, f"float[{S},{T}] a", c=np.float32(3.0)), "before they are capped")


def test_dropout_in_training_mode() -> None:
    body = PARTS.format(scores="m = Identity(s)").replace(
        "y = MatMul(p, v)", "r = Dropout(p, h, yes)\ny = MatMul(r, v)"
    )
    model, _ = fused(build(QKV, RESULT, body, h=np.float32(0.5), yes=np.bool_(True)))
    assert "Attention" not in ops(model)


def test_a_quantized_score_is_kept() -> None:
    """A score that Q/DQ nodes round is not the attention's own."""
    scores = "u = QuantizeLinear(s, step, zero)\nw = DequantizeLinear(u, step, zero)\nm = Mul(w, c)"
    proto = parts(scores, c=np.float32(0.3), step=np.float32(0.1), zero=np.int8(0))
    model = load(proto)
    optimize(model, "extended")
    assert "Attention" not in ops(model)
