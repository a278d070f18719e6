"""Inference for operators of the `ai.onnx.ml` domain that `onnx` itself knows too little about."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import FLOAT32, FLOAT64, INT64, STRING
from whet.graph import Node, TensorType, Type
from whet.graph.dims import Dim
from whet.ops.common import dtype_of, required, shape_of


def linear_regressor(node: Node) -> Sequence[Type | None]:
    """A column for each target."""
    source = required(node, 0)
    x = shape_of(source)
    rows: Dim = x[0] if x is not None and len(x) == 2 else None
    return (TensorType(dtype_of(source), (rows, node.int_attr("targets", 1))),)


def linear_classifier(node: Node) -> Sequence[Type | None]:
    """Labels, and a column of scores for each class."""
    source = required(node, 0)
    x = shape_of(source)
    rows: Dim = x[0] if x is not None and len(x) == 2 else None
    classes: Dim = None
    coefficients = node.attributes.get("coefficients")
    columns = x[1] if x is not None and len(x) == 2 else None
    if isinstance(coefficients, tuple) and isinstance(columns, int) and columns:
        classes = len(coefficients) // columns
    named = node.attributes.get("classlabels_ints") or node.attributes.get("classlabels_strings")
    if classes == 1 and isinstance(named, tuple) and len(named) == 2:
        classes = 2
    label = STRING if node.attributes.get("classlabels_strings") else INT64
    scores = FLOAT64 if dtype_of(source) is FLOAT64 and classes != 2 else FLOAT32
    return (TensorType(label, (rows,)), TensorType(scores, (rows, classes)))


def feature_extractor(node: Node) -> Sequence[Type | None]:
    """The chosen columns."""
    source = required(node, 0)
    x, indices = shape_of(source), shape_of(node.input(1))
    if not x or indices is None:
        return (TensorType(dtype_of(source)),)
    count: Dim = 1
    for extent in indices:
        count = None if count is None or extent is None else count * extent
    before = x[:-1] if len(x) > 1 else (1,)
    return (TensorType(dtype_of(source), (*before, count)),)
