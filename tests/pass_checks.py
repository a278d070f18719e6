"""Builds small models, runs passes over them and compares the answers in ONNX Runtime before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, parser

from whet.formats.onnx import load_model, to_proto
from whet.graph import Model
from whet.passes.base import Pass, PassDriver, Repeat
from whet.passes.basic.dead_code import DeadCode
from whet.passes.basic.propagate import ShapePropagation


def build(inputs: str, outputs: str, body: str, *, opset: int = 21, **constants: Any) -> onnx.ModelProto:
    """A model from onnx's textual syntax; `constants` become initializers."""
    text = (
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'
        f"g ({inputs}) => ({outputs}) {{\n{body}\n}}"
    )
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return proto


def load(proto: onnx.ModelProto) -> Model:
    return load_model(proto.SerializeToString())


def run_passes(proto: onnx.ModelProto, *passes: Pass | Repeat) -> Model:
    """The loaded model after inference, `passes` (each patch checked) and removal of dead code."""
    model = load(proto)
    PassDriver(model, check_each_patch=True).run((ShapePropagation(), *passes, DeadCode(), ShapePropagation()))
    return model


def ops(model: Model) -> dict[str, int]:
    """How often each operator stands in the main graph."""
    return dict(Counter(node.op for node in model.graph))


def answers(proto: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
    """What ONNX Runtime, its own optimizations off, makes of `feeds`."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(None, dict(feeds))
    return found


def assert_same(
    proto: onnx.ModelProto, model: Model, feeds: Mapping[str, Any], rtol: float = 0.0, atol: float = 0.0
) -> None:
    """The model before and after gives the same answers, to the bit unless tolerances say otherwise."""
    before = answers(proto, feeds)
    after = answers(to_proto(model), feeds)
    for b, a in zip(before, after, strict=True):
        assert b.dtype == a.dtype
        assert b.shape == a.shape
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def random_array(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> Any:
    """Normal numbers, a few of them exact zeros."""
    generator = np.random.default_rng(seed)
    array = generator.normal(size=shape)
    array[generator.random(shape) < 0.1] = 0.0
    return array.astype(dtype)
