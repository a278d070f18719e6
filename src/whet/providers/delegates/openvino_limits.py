"""Nodes that OpenVINO's CPU plugin takes and computes in other arithmetic than ONNX says."""

from __future__ import annotations

from whet import dtypes
from whet.dtypes import DType
from whet.graph import Node, TensorType, Value
from whet.providers.delegates.probe import tensor_types, values_of

_FLOATS: frozenset[DType] = frozenset({dtypes.FLOAT32, dtypes.FLOAT16})
_WIDE: frozenset[DType] = frozenset({dtypes.INT64, dtypes.UINT64, dtypes.UINT32})
_NARROW: frozenset[DType] = frozenset({dtypes.INT8, dtypes.UINT8, dtypes.INT16, dtypes.UINT16})
_TAKEN: frozenset[DType] = frozenset({*_FLOATS, dtypes.INT32, dtypes.INT64, dtypes.INT8, dtypes.UINT8, dtypes.BOOL})

# Inputs that hold indices, axes, sizes or shapes: in range of the tensor they address, so never past 32 bits.
_INDEX_INPUTS: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (0,), "Expand": (1,), "Gather": (1,), "GatherElements": (1,), "GatherND": (1,),
    "OneHot": (0, 1), "Pad": (1, 3), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,),
    "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,), "ReduceSum": (1,),
    "ReduceSumSquare": (1,), "Reshape": (1,), "Resize": (3,), "ScatterElements": (1,), "ScatterND": (1,),
    "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Unsqueeze": (1,),
    "NonMaxSuppression": (2,), "CumSum": (1,), "ReverseSequence": (1,), "Trilu": (1,),
}  # fmt: skip
_INDEX_OUTPUTS: dict[str, tuple[int, ...]] = {
    "ArgMax": (0,), "ArgMin": (0,), "MaxPool": (1,), "NonMaxSuppression": (0,), "NonZero": (0,), "Shape": (0,),
    "Size": (0,), "TopK": (1,),
}  # fmt: skip

# Operators that only move elements, or read them to choose: exact in any type that the elements fit.
_MOVEMENT: frozenset[str] = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
        "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip

# Operators whose 8-bit operands OpenVINO computes as ONNX defines them.
_NARROW_ARITHMETIC: frozenset[str] = frozenset({"Cast", "DequantizeLinear"})

_WRONG: dict[str, str] = {
    "Attention": "windows, fully masked rows and qk_matmul_output",
    "DFT": "axis and one-sided shapes",
    "DynamicQuantizeLinear": "rounding of the zero point",
    "NonMaxSuppression": "boxes at the threshold",
    "ReduceMax": "-inf and empty sets give the lowest float",
    "ReduceMin": "inf and empty sets give the highest float",
    "Bernoulli": "random numbers without a seed of the session",
    "Dropout": "training mode",
    "Multinomial": "random numbers without a seed of the session",
    "RandomNormal": "random numbers without a seed of the session",
    "RandomNormalLike": "random numbers without a seed of the session",
    "RandomUniform": "random numbers without a seed of the session",
    "RandomUniformLike": "random numbers without a seed of the session",
}


def limit(node: Node) -> str | None:
    """Why OpenVINO must not get this node, its subgraphs included, or None."""
    if any(True for _ in node.subgraphs()):
        # Bodies pass values between iterations, so no bound on their integers can be read from the graph.
        return "control flow is not given to OpenVINO"
    for value in values_of(node):
        for declared in tensor_types(value.type):
            if declared.sparse or not isinstance(value.type, TensorType):
                return "only dense tensors are given to OpenVINO"
            if declared.dtype not in _TAKEN:
                return f"OpenVINO does not compute in {declared.dtype}" if declared.dtype else None
            if declared.shape is None:
                return f"OpenVINO's CPU plugin needs the rank of {value.name!r}"
    return _operator_limit(node) or _integer_limit(node)


def _operator_limit(node: Node) -> str | None:
    """Operators that OpenVINO reads and then computes otherwise than the standard says."""
    if node.op in _WRONG:
        return f"OpenVINO's {node.op} differs from the standard: {_WRONG[node.op]}"
    if node.op == "Resize":
        return _resize_limit(node)
    if node.op in ("GRU", "LSTM", "RNN") and node.int_attr("layout", 0):
        return f"OpenVINO reads {node.op} with layout 1 as layout 0"
    repeats = node.input(1)
    if node.op == "Tile" and repeats is not None and repeats.data is None:
        return "OpenVINO's Tile is wrong when its repeats are no constant"
    if node.op in ("AveragePool", "LpPool", "MaxPool") and node.int_attr("ceil_mode", 0):
        return f"OpenVINO's {node.op} counts windows otherwise with ceil_mode"
    return None


def _resize_limit(node: Node) -> str | None:
    mode = node.str_attr("mode", "nearest")
    for name in ("antialias", "exclude_outside"):
        if node.int_attr(name, 0):
            return f"OpenVINO's Resize differs from the standard: {name}"
    if node.str_attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "OpenVINO's Resize ignores keep_aspect_ratio_policy"
    aligned = node.str_attr("coordinate_transformation_mode", "half_pixel") == "align_corners"
    if aligned and mode != "nearest" and node.input(2) is not None:
        return "OpenVINO's Resize differs from the standard: align_corners with scales"
    return None


def _integer_limit(node: Node) -> str | None:
    moves = node.op in _MOVEMENT
    index_inputs = _INDEX_INPUTS.get(node.op, ())
    for position, value in enumerate(node.inputs):
        element = _element(value)
        if value is None or position in index_inputs or element is None or element in _FLOATS:
            continue
        if element in _WIDE and not _is_small(value):
            return f"OpenVINO computes {element} in 32 bits, and {value.name!r} may need more"
        if element in _NARROW and not moves and node.op not in _NARROW_ARITHMETIC:
            return f"OpenVINO saturates {element} where ONNX wraps"
        if element.is_integer and node.op in ("Div", "Mod", "Pow"):
            return f"OpenVINO computes {node.op} of integers in float32"
    for position, value in enumerate(node.outputs):
        element = _element(value)
        if element is None or not element.is_integer or moves or position in _INDEX_OUTPUTS.get(node.op, ()):
            continue
        if element in _WIDE and not _is_small(value):
            return f"OpenVINO computes {element} in 32 bits, and {value.name!r} may need more"
        if node.op == "Cast" and _element(node.input(0)) in _FLOATS:
            return f"OpenVINO's cast of floats to {element} saturates in its own way"
    return None


def _element(value: Value | None) -> DType | None:
    declared = value.type if value is not None else None
    return declared.dtype if isinstance(declared, TensorType) else None


def _is_small(value: Value, depth: int = 16) -> bool:
    """Whether the elements of an integer value are known to lie in 32 bits: extents, indices, and what moves those."""
    if value.symbolic is not None:
        return True
    if value.data is not None:
        array = value.data.numpy()
        # The ends of a slice may be the largest int64: OpenVINO clamps constants that address.
        return not array.size or (int(array.min()) >= -(2**31) and int(array.max()) < 2**31)
    node = value.producer
    if node is None or not depth:
        return False
    if value.output_index in _INDEX_OUTPUTS.get(node.op, ()):
        return True
    if node.op == "Cast":
        source = _element(node.input(0))
        return source in _NARROW or source in (dtypes.BOOL, dtypes.INT32)
    if node.op in _MOVEMENT:
        skipped = _INDEX_INPUTS.get(node.op, ())
        moved = [v for i, v in enumerate(node.inputs) if i not in skipped and v is not None]
        return all(_element(v) is dtypes.BOOL or _is_small(v, depth - 1) for v in moved)
    return False
