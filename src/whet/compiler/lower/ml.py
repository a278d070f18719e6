"""Linear models and preparation of features (ai.onnx.ml), of operators that there are already."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet.compiler.fuse import Group
from whet.compiler.lower.copy import dense
from whet.compiler.lower.demand import dense_result, need
from whet.compiler.lower.gather import lower_gather
from whet.compiler.lower.matmul import lower_gemm
from whet.compiler.lower.pointwise import emit_tape, lower_group, single, tensor_refusal
from whet.compiler.lower.reduce import Reduction, lower_arg, reduce_view
from whet.compiler.lower.rule import Lower, Rule
from whet.compiler.lower.softmax import lower_softmax
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tape import TapeBuilder
from whet.compiler.views import View, product
from whet.dtypes import BOOL, FLOAT32, FLOAT64, INT32, INT64, DType
from whet.graph import Attribute, Node, TensorData, TensorType, Value
from whet.graph.dims import Known, ceil_div
from whet.kernels.gather import Gather
from whet.kernels.reduce import ReduceKind

_FLOATS = (FLOAT32, FLOAT64)
_BLOCK = 4096


def _floats(node: Node, name: str) -> tuple[float, ...]:
    value = node.attributes.get(name)
    return tuple(float(v) for v in value if isinstance(v, (int, float))) if isinstance(value, tuple) else ()


def _constant(ctx: Lowering, numbers: Sequence[float], dtype: DType) -> View:
    return ctx.constant(TensorData.from_array(np.asarray(numbers, dtype.numpy)))


def _matrix_refusal(node: Node, types: Sequence[DType], rank: int | None = 2) -> str | None:
    """Why the first operand is no matrix of these types, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    x = need(node, 0)
    if dtype_of(x) not in types:
        return f"no {node.op_type} of {dtype_of(x)}"
    if rank is not None and len(x.shape or ()) != rank:
        return f"its operand has not {rank} dimensions"
    return None


# Numbers column by column


def scaler_refusal(node: Node) -> str | None:
    """Why Scaler cannot be lowered, or None."""
    reason = _matrix_refusal(node, (FLOAT32,), None)
    if reason is not None:
        return reason
    columns = (need(node, 0).shape or (None,))[-1]
    for name in ("offset", "scale"):
        count = len(_floats(node, name))
        if count == 0 or count not in (1, columns):
            return f"its {name} is not known to fit the columns"
    return None


def lower_scaler(ctx: Lowering, node: Node, group: Group | None) -> None:
    """(x - offset) * scale in float64, as its attributes are."""
    x = ctx.view(need(node, 0))
    tape = TapeBuilder([x.element, FLOAT64, FLOAT64])
    centred = tape.add("sub", FLOAT64, tape.cast(0, FLOAT64), 1)
    result = tape.cast(tape.add("mul", FLOAT64, centred, 2), x.element)
    parts = [_constant(ctx, _floats(node, name), FLOAT64) for name in ("offset", "scale")]
    emit_tape(ctx, tape.tape(result), [x, *parts], node.output)


def imputer_refusal(node: Node) -> str | None:
    """Why Imputer cannot be lowered, or None."""
    reason = _matrix_refusal(node, (*_FLOATS, INT64))
    if reason is not None:
        return reason
    x = need(node, 0)
    name = "imputed_value_int64s" if dtype_of(x) is INT64 else "imputed_value_floats"
    columns, count = (x.shape or (None, None))[1], len(_floats(node, name))
    if count == 0 or count not in (1, columns) or (dtype_of(x) is INT64 and _floats(node, "imputed_value_floats")):
        return "its values are not known to fit the columns"
    return None


def lower_imputer(ctx: Lowering, node: Node, group: Group | None) -> None:
    """One value of each column stands for another one (NaN: for what is not a number)."""
    x = ctx.view(need(node, 0))
    element = x.element
    if element is INT64:
        values, replaced = node.ints_attr("imputed_value_int64s"), node.int_attr("replaced_value_int64", 0)
        view, number = _constant(ctx, values, INT64), float(replaced)
    else:
        view = _constant(ctx, _floats(node, "imputed_value_floats"), element)
        number = node.float_attr("replaced_value_float", 0.0)
    tape = TapeBuilder([element, element])
    if number != number:
        missing = tape.add("is_nan", BOOL, 0)
    else:
        missing = tape.add("equal", BOOL, 0, tape.constant(int(number) if element is INT64 else number, element))
    emit_tape(ctx, tape.tape(tape.add("where", element, missing, 1, 0)), [x, view], node.output)


_NORMS: dict[str, ReduceKind] = {"MAX": "max", "L1": "l1", "L2": "l2"}


def normalizer_refusal(node: Node) -> str | None:
    """Why Normalizer cannot be lowered, or None."""
    reason = _matrix_refusal(node, (FLOAT32,))
    if reason is None and node.str_attr("norm", "MAX") not in _NORMS:
        reason = "its norm is unknown"
    return reason


def lower_normalizer(ctx: Lowering, node: Node, group: Group | None) -> None:
    """Rows divided by their norms, which count as 1e-30 at least."""
    x, kind = ctx.view(need(node, 0)), _NORMS[node.str_attr("norm", "MAX")]
    before = TapeBuilder([FLOAT32])
    size = before.tape(before.add("abs", FLOAT32, 0)) if kind == "max" else None
    after = TapeBuilder([FLOAT32])
    least = after.tape(after.add("max", FLOAT32, 0, after.constant(1e-30, FLOAT32)))
    norm = reduce_view(ctx, x, [1], Reduction(kind, size, least), FLOAT32)
    tape = TapeBuilder([FLOAT32, FLOAT32])
    emit_tape(ctx, tape.tape(tape.add("div", FLOAT32, 0, 1)), [x, norm], node.output)


def extractor_refusal(node: Node) -> str | None:
    """Why ArrayFeatureExtractor cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is None and dtype_of(need(node, 1)) not in (INT32, INT64):
        reason = f"its indices have element type {dtype_of(need(node, 1))}"
    return reason or (None if need(node, 0).shape else "its data is a scalar")


def lower_extractor(ctx: Lowering, node: Node, group: Group | None) -> None:
    """Columns by their numbers."""
    data, indices = dense(ctx, ctx.view(need(node, 0))), dense(ctx, ctx.view(need(node, 1)))
    outer, extent = product(data.shape[:-1]), data.shape[-1]
    with dense_result(ctx, node.output) as out:
        words: dict[str, Word] = {
            "data": address(data), "indices": address(indices), "out": address(out), "outer": outer, "axis": extent,
            "count": indices.size, "block": _BLOCK,
        }  # fmt: skip
        spec = Gather(data.element.bits // 8, indices.element, 1)
        ctx.emit(spec, words, outer * indices.size * ceil_div(1, _BLOCK), [data, indices], [out])


# Linear models


def _inner(
    ctx: Lowering, lower: Lower | None, op: str, inputs: Sequence[Value], dtype: DType, shape: Sequence[Known],
    **attributes: Attribute,
) -> Value:  # fmt: skip
    """The result of an operator that stands for a part of the node; `lower` is None for a pointwise one."""
    outer = ctx.node
    result = Value("", TensorType(dtype, tuple(shape)))
    node = Node(op, inputs, [result], attributes)
    if lower is None:
        lower_group(ctx, single(node))
    else:
        lower(ctx, node, None)
    ctx.node = outer
    node.detach()
    return result


def _coefficients(node: Node) -> int | None:
    """How many rows the coefficients have, each as long as the operand's rows."""
    columns, count = (need(node, 0).shape or (None, None))[1], len(_floats(node, "coefficients"))
    if not isinstance(columns, int) or columns == 0 or count == 0 or count % columns:
        return None
    return count // columns


def _scores(ctx: Lowering, node: Node) -> Value:
    x = need(node, 0)
    dtype = dtype_of(x)
    rows, columns = shape_of(x)
    assert isinstance(columns, int)
    matrix = np.asarray(_floats(node, "coefficients"), dtype.numpy).reshape(-1, columns)
    inputs = [x, Value.constant("coefficients", matrix)]
    intercepts = _floats(node, "intercepts")
    if intercepts:
        inputs.append(Value.constant("intercepts", np.asarray(intercepts, dtype.numpy)))
    return _inner(ctx, _gemm, "Gemm", inputs, dtype, (rows, len(matrix)), transB=1)


def _gemm(ctx: Lowering, node: Node, group: Group | None) -> None:
    lower_gemm(ctx, node, group)


def _linear_refusal(node: Node, types: Sequence[DType]) -> str | None:
    reason = _matrix_refusal(node, types)
    if reason is not None:
        return reason
    rows = _coefficients(node)
    if rows is None:
        return "its coefficients are not known to fit the columns"
    return None if len(_floats(node, "intercepts")) in (1, rows) else "its intercepts do not fit"


def regressor_refusal(node: Node) -> str | None:
    """Why LinearRegressor cannot be lowered, or None."""
    reason = _linear_refusal(node, (FLOAT32,))
    if reason is None and node.str_attr("post_transform", "NONE") != "NONE":
        reason = f"no transform {node.str_attr('post_transform', 'NONE')}"
    if reason is None and _coefficients(node) != node.int_attr("targets", 1):
        reason = "its coefficients do not fit the targets"
    return reason


def lower_regressor(ctx: Lowering, node: Node, group: Group | None) -> None:
    ctx.define(node.output, ctx.view(_scores(ctx, node)))


def classifier_refusal(node: Node) -> str | None:
    """Why LinearClassifier cannot be lowered, or None."""
    if node.attributes.get("classlabels_strings"):
        return "its labels are text"
    reason = _linear_refusal(node, (FLOAT32,))
    if reason is not None:
        return reason
    if node.str_attr("post_transform", "NONE") not in ("NONE", "LOGISTIC", "SOFTMAX"):
        return f"no transform {node.str_attr('post_transform', 'NONE')}"
    labels, rows = node.ints_attr("classlabels_ints"), _coefficients(node)
    classes = 2 if rows == 1 and len(labels) == 2 else rows
    if not labels or (classes != 1 and len(labels) != classes):
        return "its labels do not fit its coefficients"
    return None


def lower_classifier(ctx: Lowering, node: Node, group: Group | None) -> None:
    """Scores, transformed, and the label of the largest one."""
    labels = node.ints_attr("classlabels_ints")
    transform = node.str_attr("post_transform", "NONE")
    scores = _scores(ctx, node)
    rows, classes = shape_of(scores)
    if classes == 1 and len(labels) == 2:
        signs = Value.constant("signs", np.array([-1.0, 1.0], np.float32))
        scores, classes = _inner(ctx, None, "Mul", [scores, signs], FLOAT32, (rows, 2)), 2
    if transform == "LOGISTIC":
        scores = _inner(ctx, None, "Sigmoid", [scores], FLOAT32, (rows, classes))
    elif transform == "SOFTMAX":
        scores = _inner(ctx, lower_softmax, "Softmax", [scores], FLOAT32, (rows, classes), axis=1)
    if len(node.outputs) > 1:
        ctx.define(node.outputs[1], ctx.view(scores))
    if classes == 1:
        tape = TapeBuilder([FLOAT32])
        limit = tape.constant(0.0 if transform == "NONE" else 0.5, FLOAT32)
        is_it = tape.add("greater_or_equal", BOOL, 0, limit)
        chosen = tape.add("where", INT64, is_it, tape.constant(labels[0], INT64), tape.constant(0, INT64))
        emit_tape(ctx, tape.tape(chosen), [ctx.view(scores).drop(1)], node.output)
        return
    best = _inner(ctx, lower_arg, "ArgMax", [scores], INT64, (rows,), axis=1, keepdims=0)
    names = Value.constant("labels", np.array(labels, np.int64))
    found = _inner(ctx, lower_gather, "Gather", [names, best], INT64, (rows,), axis=0)
    ctx.define(node.output, ctx.view(found))


ML_RULES: dict[str, Rule] = {
    "ai.onnx.ml.Scaler": Rule(lower_scaler, scaler_refusal),
    "ai.onnx.ml.Imputer": Rule(lower_imputer, imputer_refusal),
    "ai.onnx.ml.Normalizer": Rule(lower_normalizer, normalizer_refusal),
    "ai.onnx.ml.ArrayFeatureExtractor": Rule(lower_extractor, extractor_refusal),
    "ai.onnx.ml.LinearRegressor": Rule(lower_regressor, regressor_refusal),
    "ai.onnx.ml.LinearClassifier": Rule(lower_classifier, classifier_refusal),
}
