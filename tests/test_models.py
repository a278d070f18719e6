"""Whole models at every level: ONNX Runtime's answers, the fusions that must be found, and what is saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import whet
from tests.shared_models import TRAINED, TRAINED_FEEDS, ZOO_FEEDS, fill, needs_trained, needs_zoo
from whet.verify.compare import compare_all

TOLERANCE = 1e-4
"""Of each output's own range."""

LEVELS = {
    "disabled": whet.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": whet.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": whet.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": whet.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

# What the passes must find, by operator of the optimized graph.
FUSIONS: dict[str, dict[str, int]] = {
    "bert_base": {"Attention": 12, "Gelu": 12, "LayerNormalization": 24, "EmbedLayerNormalization": 1},
    "efficientnet_b0": {"Swish": 49},
    "efficientnet_b4": {"Swish": 96},
    "gpt2": {"Attention": 12, "Gelu": 12, "LayerNormalization": 24, "EmbedLayerNormalization": 1},
    "minilm": {"Attention": 6, "Gelu": 6, "LayerNormalization": 12, "EmbedLayerNormalization": 1},
    "unet_half": {"Attention": 32, "Gelu": 16, "Swish": 47, "GroupNormalization": 61, "LayerNormalization": 48},
    "vit_base_patch16_224": {"Attention": 12, "Gelu": 12, "LayerNormalization": 25},
    "whisper_small_encoder": {"Attention": 12, "Gelu": 14, "LayerNormalization": 25},
}
GONE: dict[str, set[str]] = {
    "unet_half": {"Softmax", "InstanceNormalization", "Erf"},
    "bert_base": {"Softmax", "Erf"},
    "gpt2": {"Softmax", "Tanh"},
    "minilm": {"Softmax", "Erf"},
    "vit_base_patch16_224": {"Softmax", "Erf"},
    "whisper_small_encoder": {"Softmax", "Erf"},
    "face_rfb_320": {"BatchNormalization"},
}
"""Operators of which none may be left at level `extended`."""


def peer(path: Path, level: Any = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def check_model(name: str, path: Path, feed: dict[str, Any], folder: Path) -> None:
    theirs = peer(path)
    names = [o.name for o in theirs.get_outputs()]
    expected = theirs.run(None, feed)
    blank = {k: np.zeros_like(v) if v.dtype == np.float32 else v for k, v in feed.items()}
    if any(v.dtype == np.float32 for v in feed.values()):
        moved = compare_all(names, theirs.run(None, blank), expected)
        assert all(d.error > 0.05 for d in moved), f"the input does not move {moved}"
    for level, option in LEVELS.items():
        options = whet.SessionOptions()
        options.graph_optimization_level = option
        saved = folder / f"{name}.{level}.onnx"
        options.optimized_model_filepath = str(saved)
        ours = whet.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        apart = [d for d in compare_all(names, ours.run(None, feed), expected) if not d.within(TOLERANCE)]
        assert not apart, f"at level {level}: {apart}"
        if level in ("extended", "all"):
            operators = Counter(n.op_type for n in ours.optimized_model.graph.all_nodes())
            assert {op: operators[op] for op in FUSIONS.get(name, {})} == FUSIONS.get(name, {})
            assert not GONE.get(name, set()) & set(operators)
        del ours
        reloaded = peer(saved).run(None, feed)
        apart = [d for d in compare_all(names, reloaded, expected) if not d.within(TOLERANCE)]
        assert not apart, f"saved at level {level}, in ONNX Runtime: {apart}"
        saved.unlink()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder for models of hundreds of megabytes, emptied as soon as the test ends."""
    yield tmp_path
    for file in tmp_path.iterdir():
        file.unlink()


@needs_zoo
@pytest.mark.parametrize("name", sorted(ZOO_FEEDS))
def test_benchmark_networks(name: str, scratch: Path) -> None:
    check_model(name, fill(name, scratch), ZOO_FEEDS[name](), scratch)


@needs_trained
@pytest.mark.parametrize("name", sorted(TRAINED_FEEDS))
def test_trained_models(name: str, scratch: Path) -> None:
    check_model(name, TRAINED / f"{name}.onnx", TRAINED_FEEDS[name](), scratch)
