"""Element type and rank of a value as far as the loader needs them, before any shape inference has run.

Types that the file states are believed only where nothing can be derived; derived facts come from schemas (element
types) and from the table below (ranks).
"""

from __future__ import annotations

from collections.abc import Callable

from whet import dtypes
from whet.dtypes import DType
from whet.formats.onnx.schemas import newest
from whet.graph import Node, TensorData, TensorType, Value

_DEPTH = 400
"""How far back a chain of nodes is followed; beyond, the fact counts as unknown."""

_ONNX_NAMES: dict[str, DType] = {f"tensor({d.ort_name})": d for d in dtypes.ALL}


def dtype_of(value: Value | None) -> DType | None:
    """The element type of a tensor, or None where it cannot be told."""
    for _ in range(_DEPTH):
        if value is None:
            return None
        if isinstance(value.type, TensorType) and value.type.dtype is not None:
            return value.type.dtype
        node = value.producer
        schema = newest(node.domain, node.op_type) if node is not None else None
        if node is None or schema is None:
            return None
        stated = node.attributes.get("to" if node.op_type == "Cast" else "dtype")
        if isinstance(stated, int):
            return dtypes.BY_CODE.get(stated)
        if node.op_type == "ConstantOfShape":
            fill = node.attributes.get("value")
            return fill.dtype if isinstance(fill, TensorData) else dtypes.FLOAT32
        variable = schema.output_types[min(value.output_index, len(schema.output_types) - 1)]
        if variable in _ONNX_NAMES:
            return _ONNX_NAMES[variable]
        allowed = schema.constraints.get(variable, frozenset())
        if len(allowed) == 1:
            return _ONNX_NAMES.get(next(iter(allowed)))
        value = next((v for v, t in zip(node.inputs, schema.input_types, strict=False) if t == variable and v), None)
    return None


def rank_of(value: Value | None, depth: int = 60) -> int | None:
    """The number of dimensions of a tensor, or None where it cannot be told."""
    if value is None:
        return None
    if value.data is not None:
        return len(value.data.shape)
    node = value.producer
    if node is not None and depth and not node.domain:
        rule = RANKS.get(node.op_type)
        found = rule(node, depth - 1) if rule is not None else None
        if found is not None:
            return found
    return len(value.shape) if value.shape is not None else None


Rule = Callable[[Node, int], int | None]


def _same(node: Node, depth: int) -> int | None:
    return rank_of(node.input(0), depth)


def _broadcast(node: Node, depth: int) -> int | None:
    ranks = [rank_of(v, depth) for v in node.inputs]
    known = [r for r in ranks if r is not None]
    return max(known) if known and len(known) == len(ranks) else None


def _two(node: Node, depth: int) -> int | None:
    return 2


def _matmul(node: Node, depth: int) -> int | None:
    a, b = rank_of(node.input(0), depth), rank_of(node.input(1), depth)
    if a is None or b is None:
        return None
    return max(a, b) if min(a, b) > 1 else a + b - 2 if max(a, b) == 1 else max(a, b) - 1


def _elements_of_input_1(node: Node, depth: int) -> int | None:
    shape = node.input(1)
    return shape.data.size if shape is not None and shape.data is not None else None


def _axis_count(node: Node) -> int | None:
    axes = node.input(1)
    if axes is not None:
        return axes.data.size if axes.data is not None else None
    attribute = node.attributes.get("axes")
    return len(attribute) if isinstance(attribute, tuple) else None


def _squeeze(node: Node, depth: int) -> int | None:
    rank, count = rank_of(node.input(0), depth), _axis_count(node)
    return None if rank is None or count is None else rank - count


def _unsqueeze(node: Node, depth: int) -> int | None:
    rank, count = rank_of(node.input(0), depth), _axis_count(node)
    return None if rank is None or count is None else rank + count


def _gather(node: Node, depth: int) -> int | None:
    data, indices = rank_of(node.input(0), depth), rank_of(node.input(1), depth)
    return None if data is None or indices is None else data + indices - 1


def _reduce(node: Node, depth: int) -> int | None:
    rank = rank_of(node.input(0), depth)
    if rank is None or node.int_attr("keepdims", 1):
        return rank
    if node.op_type.startswith("Arg"):
        return rank - 1
    count = _axis_count(node)
    return rank - count if count else None


_SAME = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "BatchNormalization", "Cast", "CastLike",
    "Ceil", "Celu", "Clip", "Concat", "Conv", "ConvInteger", "ConvTranspose", "Cos", "Cosh", "CumSum", "DepthToSpace",
    "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp", "Floor", "GatherElements", "Gelu", "GlobalAveragePool",
    "GlobalLpPool", "GlobalMaxPool", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity",
    "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax",
    "LpNormalization", "LpPool", "MaxPool", "MeanVarianceNormalization", "Mish", "Neg", "Not", "PRelu", "Pad",
    "QLinearConv", "QuantizeLinear", "RMSNormalization", "Reciprocal", "Relu", "Resize", "Round", "Scatter",
    "ScatterElements", "ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Slice", "Softmax", "Softplus",
    "Softsign", "SpaceToDepth", "Split", "Sqrt", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose",
    "Trilu", "Upsample",
)  # fmt: skip
_BROADCAST = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater", "GreaterOrEqual",
    "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCE = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

RANKS: dict[str, Rule] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(_REDUCE, _reduce),
    "Flatten": _two,
    "Gather": _gather,
    "Gemm": _two,
    "MatMul": _matmul,
    "Reshape": _elements_of_input_1,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}
