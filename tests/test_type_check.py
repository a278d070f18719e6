"""Operators with inputs of element types that their schemas do not allow are refused when the model is loaded."""

from __future__ import annotations

import pytest
from onnx import parser

import whet
from whet.errors import InvalidGraph

LEVELS = [whet.GraphOptimizationLevel.ORT_DISABLE_ALL, whet.GraphOptimizationLevel.ORT_ENABLE_ALL]


def load(body: str, level: whet.GraphOptimizationLevel) -> whet.InferenceSession:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> g {body}')
    options = whet.SessionOptions()
    options.graph_optimization_level = level
    return whet.InferenceSession(model.SerializeToString(), options, providers=["ReferenceExecutionProvider"])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("body", "node", "value", "found", "expected"),
    [
        ("(bool[2] x) => (bool[2] y) { y = Add(x, x) }", "Add", "x", "bool", "float"),
        ("(bool[2,2] x, float[1] i) => (bool[1,2] y) { y = Gather(x, i) }", "Gather", "i", "float32", "int32 or int64"),
        ("(int64[2] x) => (int64[2] y) { y = Sin(x) }", "Sin", "x", "int64", "float"),
        (
            "(float[2] x, float c) => (float[2] y) "
            "{ y = If (c) <then_branch = a () => (float[2] s) { s = Identity(x) },"
            " else_branch = b () => (float[2] t) { t = Identity(x) }> }",
            "If", "c", "float32", "bool",
        ),
    ],
)  # fmt: skip
def test_wrong_types_are_refused(
    level: whet.GraphOptimizationLevel, body: str, node: str, value: str, found: str, expected: str
) -> None:
    with pytest.raises(InvalidGraph, match="wrong element type") as caught:
        load(body, level)
    assert node in str(caught.value.node)
    assert (caught.value.value, caught.value.found) == (value, found)
    assert expected in str(caught.value.expected)


@pytest.mark.parametrize("level", LEVELS)
def test_a_wrong_type_inside_a_body_is_refused(level: whet.GraphOptimizationLevel) -> None:
    body = (
        "(int64[2] x, bool c) => (int64[2] y) "
        "{ y = If (c) <then_branch = a () => (int64[2] s) { s = Tanh(x) },"
        " else_branch = b () => (int64[2] t) { t = Identity(x) }> }"
    )
    with pytest.raises(InvalidGraph, match="wrong element type"):
        load(body, level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["float", "double", "float16", "bfloat16", "int64", "uint8"])
def test_right_types_load(level: whet.GraphOptimizationLevel, kind: str) -> None:
    load(f"({kind}[2] x) => ({kind}[2] y) {{ s = Add(x, x)  y = Mul(s, x) }}", level)
