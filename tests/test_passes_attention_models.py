"""Attention, rotary and embedding fusions on exported models: counted, and compared before and after."""

from __future__ import annotations

import pathlib
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

from tests.pass_checks import answers
from whet.formats.onnx import load_model, to_proto
from whet.passes.export import lower_for_onnxruntime
from whet.passes.pipeline import optimize
from whet.verify.levels import compare_level

FOLDER = pathlib.Path(__file__).parent / "fixtures" / "attention"

COUNTS = {
    # attentions, rotary embeddings, embedding norms
    "bert": (1, 0, 1),
    "gpt2": (1, 0, 1),
    "gptj": (1, 2, 0),
    "llama": (1, 2, 0),
    "llama_past": (1, 2, 0),
    "neox": (1, 2, 0),
    "gemma2": (1, 2, 0),
    "t5": (1, 0, 0),
    "swin": (1, 0, 0),
    "cross": (1, 0, 0),
}

FILES = [f"{name}_{exporter}" for name in COUNTS for exporter in ("old", "new")]

FLAT = {"bert", "gpt2", "gptj", "llama", "gemma2", "t5", "swin"}
"""Models whose heads need no transpose around the attention."""


def feeds(proto: onnx.ModelProto, batch: int, rows: int) -> dict[str, Any]:
    """Random inputs; the extents of a cache (rank 4) and of the mask beside it follow from `rows`."""
    generator = np.random.default_rng(batch * 100 + rows)
    past = 5 if len(proto.graph.input) == 4 else 0
    found: dict[str, Any] = {}
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [d.dim_value for d in dims]
        if not shape[0]:
            shape[0] = batch
        if len(shape) == 2 and not shape[1]:
            shape[1] = rows + (past if value.name == "i1" else 0)
        if len(shape) == 4 and not shape[2]:
            shape[2] = past
        if value.type.tensor_type.elem_type != onnx.TensorProto.INT64:
            found[value.name] = generator.normal(size=shape).astype(np.float32)
        elif value.name == "i0":
            found[value.name] = generator.integers(1, 30, shape)
        else:
            found[value.name] = np.ones(shape, np.int64)
            found[value.name][-1, shape[1] // 2 + 1 :] = 0
    return found


@pytest.mark.parametrize("file", FILES)
def test_fusions_are_complete_and_exact(file: str) -> None:
    path = FOLDER / f"{file}.onnx"
    proto = onnx.load(path)
    model = load_model(path)
    report = optimize(model, "extended", check_each_patch=True)
    name = file.rpartition("_")[0]
    counts = Counter(node.op for node in model.graph)
    found = (counts["Attention"], counts["RotaryEmbedding"], counts["com.microsoft.EmbedLayerNormalization"])
    assert found == COUNTS[name], report.refusals
    assert counts["Softmax"] == 0
    attention = next(node for node in model.graph if node.op == "Attention")
    query = attention.inputs[0]
    assert query is not None
    assert query.shape is not None
    assert len(query.shape) == (3 if name in FLAT else 4)
    if name in ("llama", "gemma2"):
        assert (attention.int_attr("q_num_heads", 0), attention.int_attr("kv_num_heads", 0)) == (4, 2)
    if name == "llama_past":
        assert len(attention.inputs) == 6
        assert len(attention.outputs) == 3
        assert all(v in model.graph.outputs for v in attention.outputs[1:])
    assert attention.float_attr("softcap", 0.0) == (50.0 if name == "gemma2" else 0.0)
    lower_for_onnxruntime(model)
    saved = to_proto(model)
    for batch, rows in ((2, 6), (1, 3)):
        feed = feeds(proto, batch, rows)
        for before, after in zip(answers(proto, feed), answers(saved, feed), strict=True):
            np.testing.assert_allclose(after, before, rtol=0, atol=2e-6 * max(float(np.ptp(before)), 1e-3))
        for difference in compare_level(str(path), feed, "extended"):
            # Constants that the fusions multiply together were rounded to float32 by the exporter.
            assert difference.within(1e-7), difference


def test_the_cache_of_a_whole_decode_equals_one_pass() -> None:
    """Keys that the fused operator hands on are the ones that it takes again."""
    path = FOLDER / "llama_past_old.onnx"
    proto = onnx.load(path)
    model = load_model(path)
    optimize(model, "extended")
    lower_for_onnxruntime(model)
    saved = to_proto(model)
    ids = np.random.default_rng(0).integers(1, 30, (1, 8))
    empty = np.zeros((1, 2, 0, 4), np.float32)
    whole, *_ = answers(proto, {"i0": ids, "i1": np.ones((1, 8), np.int64), "i2": empty, "i3": empty})
    keys, values, rows = empty, empty, []
    for i in range(0, 8, 2):
        feed = {"i0": ids[:, i : i + 2], "i1": np.ones((1, i + 2), np.int64), "i2": keys, "i3": values}
        row, keys, values = answers(saved, feed)
        rows.append(row)
    np.testing.assert_allclose(np.concatenate(rows, 1), whole, rtol=0, atol=1e-5)
