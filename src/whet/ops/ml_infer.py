"""Inference for operators of the `ai.onnx.ml` domain that `onnx` itself knows too little about."""

from __future__ import annotations

from collections.abc import Sequence

from whet.dtypes import FLOAT32, FLOAT64, INT64, STRING
from whet.graph import Node, TensorType, Type
from whet.graph.dims import Dim
from whet.ops.common import dtype_of, required, shape_of


def same_floats(node: Node) -> Sequence[Type | None]:
    """The operand's shape; its type where that is float32, else unknown: what is written and what is done differ."""
    source = required(node, 0)
    return (TensorType(FLOAT32 if dtype_of(source) is FLOAT32 else None, shape_of(source)),)


def linear_regressor(node: Node) -> Sequence[Type | None]:
    """A column for each target."""
    source = required(node, 0)
    x = shape_of(source)
    rows: Dim = x[0] if x is not None and len(x) == 2 else None
    dtype = FLOAT32 if dtype_of(source) is FLOAT32 else None
    return (TensorType(dtype, (rows, node.int_attr("targets", 1))),)


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
    return (TensorType(label, (rows,)), TensorType(FLOAT32, (rows, classes)))


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


def _rows(node: Node) -> Dim:
    """How many samples there are; a vector is one."""
    x = shape_of(required(node, 0))
    return None if x is None or len(x) not in (1, 2) else x[0] if len(x) == 2 else 1


def tree_regressor(node: Node) -> Sequence[Type | None]:
    """TreeEnsembleRegressor and TreeEnsemble: a column for each target."""
    given = dtype_of(node.input(0))
    dtype = given if node.op_type == "TreeEnsemble" else None if given is None or given is FLOAT64 else FLOAT32
    return (TensorType(dtype, (_rows(node), node.int_attr("n_targets", 1))),)


def tree_classifier(node: Node) -> Sequence[Type | None]:
    """Labels, and the scores of all classes."""
    texts = node.attributes.get("classlabels_strings")
    labels = node.attributes.get("classlabels_int64s") or texts
    ids = set(node.ints_attr("class_ids"))
    count = len(labels) if isinstance(labels, tuple) else 0
    columns: Dim = max(count, 1 + max(ids, default=0))
    if len(ids) == 1 and count <= 2:
        columns = 1 if node.str_attr("post_transform", "NONE") == "PROBIT" else 2
    rows = _rows(node)
    return (TensorType(STRING if texts else INT64, (rows,)), TensorType(FLOAT32, (rows, columns)))
