"""Small models for the tests of bad input, and the assertion that loading refuses one."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import InvalidGraph, WhetError
from whet.formats.onnx import load_model

F = TensorProto.FLOAT


def info(name: str, shape: list[Any] | None = None, code: int = F) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, code, [2, 3] if shape is None else shape)


def model(
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto] | None = None,
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    opset: int = 21,
    ir: int = 10,
    **more: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x")] if inputs is None else inputs,
        [info("y")] if outputs is None else outputs,
        initializers or [],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir, **more)


def relu() -> onnx.ModelProto:
    return model([helper.make_node("Relu", ["x"], ["y"], name="only")])


def refused(
    proto: onnx.ModelProto | bytes, *parts: str, kind: type[WhetError] = InvalidGraph, limits: Limits = DEFAULT_LIMITS
) -> WhetError:
    """Loading raises `kind`, and the message holds all of `parts`."""
    data = proto if isinstance(proto, bytes) else proto.SerializeToString()
    with pytest.raises(kind) as caught:
        load_model(data, limits)
    assert type(caught.value) is kind
    for part in parts:
        assert part in str(caught.value), f"{part!r} not in {caught.value}"
    assert len(str(caught.value)) < 4000
    return caught.value
