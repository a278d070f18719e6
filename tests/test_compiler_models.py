"""Whole models as machine code: ONNX Runtime's answers at several extents, and no node left to the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whet
from tests.shared_models import TRAINED, TRAINED_FEEDS, ZOO_FEEDS, Feed, fill, needs_trained, needs_zoo
from tests.test_models import TOLERANCE, peer
from whet.verify.compare import compare_all

CPU = "CPUExecutionProvider"

COMPILED: dict[str, dict[str, int]] = {
    "bert_base": {"MatMul": 72, "Attention": 12, "Gelu": 12, "LayerNormalization": 24},
    "efficientnet_b0": {"Conv": 81, "Swish": 49, "ReduceMean": 16, "Gemm": 1},
    "efficientnet_b4": {"Conv": 160, "Swish": 96, "ReduceMean": 32, "Gemm": 1},
    "gpt2": {"Gemm": 48, "Attention": 12, "Gelu": 12, "LayerNormalization": 24, "Split": 12},
    "minilm": {"MatMul": 36, "Attention": 6, "Gelu": 6, "LayerNormalization": 12},
    "mobilenetv2_100": {"Conv": 52, "Clip": 35, "GlobalAveragePool": 1, "Gemm": 1},
    "resnet50": {"Conv": 53, "Relu": 49, "MaxPool": 1, "GlobalAveragePool": 1, "Gemm": 1},
    "unet_half": {"Conv": 98, "MatMul": 160, "Attention": 32, "GroupNormalization": 61, "LayerNormalization": 48},
    "vit_base_patch16_224": {"MatMul": 48, "Attention": 12, "Gelu": 12, "LayerNormalization": 25, "Conv": 1},
    "whisper_small_encoder": {"MatMul": 72, "Attention": 12, "Gelu": 14, "LayerNormalization": 25, "Conv": 2},
    "face_rfb_320": {"Conv": 52, "Relu": 37, "Concat": 5, "Softmax": 1},
    "magika_standard_v3_3": {"Gather": 1, "Conv": 1, "Gemm": 1, "GlobalMaxPool": 1, "Gelu": 1, "ReduceSum": 5},
}
"""How many nodes of the families that make up a model's time the compiler must run."""


def _rows(count: int) -> Callable[[Feed], Feed]:
    """The same feed for a batch of `count`, whose rows differ."""

    def make(feed: Feed) -> Feed:
        rows = {}
        for name, array in feed.items():
            joined = [np.roll(array, 7 * i, axis=-1) for i in range(count)]
            rows[name] = np.concatenate(joined) if array.ndim > 1 else array
        return rows

    return make


def _shorter(feed: Feed) -> Feed:
    """Two sequences of two thirds of the length."""
    return {name: _rows(2)({name: array[:, : array.shape[1] * 2 // 3]})[name] for name, array in feed.items()}


def _other_image(feed: Feed) -> Feed:
    return {**feed, "sample": np.ascontiguousarray(feed["sample"][:, :, 8:, :16])}


def _two_windows(feed: Feed) -> Feed:
    return {**feed, "input": np.repeat(feed["input"], 2, 0), "state": np.repeat(feed["state"], 2, 1)}


OTHER_EXTENTS: dict[str, Callable[[Feed], Feed]] = {
    "bert_base": _shorter,
    "efficientnet_b0": _rows(3),
    "efficientnet_b4": _rows(2),
    "minilm": _shorter,
    "mobilenetv2_100": _rows(3),
    "resnet50": _rows(2),
    "unet_half": _other_image,
    "vit_base_patch16_224": _rows(2),
    "silero_vad": _two_windows,
    "magika_standard_v3_3": lambda feed: {"bytes": feed["bytes"][:1]},
}
"""For models with free extents, another feed made of the first one."""


def check_model(name: str, path: Path, feed: dict[str, Any]) -> None:
    feeds = [feed, *([OTHER_EXTENTS[name](feed)] if name in OTHER_EXTENTS else [])]
    theirs = peer(path)
    names = [o.name for o in theirs.get_outputs()]
    expected = [theirs.run(None, each) for each in feeds]
    del theirs
    session = whet.InferenceSession(str(path), providers=[CPU])
    assert set(session.placement.by_provider) == {CPU}, session.placement.refusal_counts()
    operators = [node.op for node in session.placement.nodes]
    counted = {op: operators.count(op) for op in COMPILED.get(name, {})}
    assert counted == COMPILED.get(name, {})
    # Back and forth: the second run of an extent finds the plan and the context of its first one.
    for index in [*range(len(feeds)), 0]:
        found = session.run(None, feeds[index])
        apart = [d for d in compare_all(names, found, expected[index]) if not d.within(TOLERANCE)]
        assert not apart, f"with extents {[a.shape for a in feeds[index].values()]}: {apart}"


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder for models of hundreds of megabytes, emptied as soon as the test ends."""
    yield tmp_path
    for file in tmp_path.iterdir():
        file.unlink()


@needs_zoo
@pytest.mark.parametrize("name", sorted(ZOO_FEEDS))
def test_benchmark_networks(name: str, scratch: Path) -> None:
    check_model(name, fill(name, scratch), ZOO_FEEDS[name]())


@needs_trained
@pytest.mark.parametrize("name", sorted(TRAINED_FEEDS))
def test_trained_models(name: str) -> None:
    check_model(name, TRAINED / f"{name}.onnx", TRAINED_FEEDS[name]())
