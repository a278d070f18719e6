"""Nodes that ONNX Runtime 1.31's CPU accepts when a session is made, and then fails, answers wrongly or dies of."""

from __future__ import annotations

from collections.abc import Callable

from whet import dtypes
from whet.graph import Node, TensorData, TensorType, Value


def limit(node: Node) -> str | None:
    """Why ONNX Runtime must not get this node (its subgraphs apart), or None."""
    check = _CHECKS.get(node.op)
    return None if check is None else check(node)


def _integer_division(node: Node) -> str | None:
    dividend, divisor = node.input(0), node.input(1)
    if dividend is None or divisor is None or not isinstance(divisor.type, TensorType):
        return None
    element = divisor.type.dtype
    if element not in (dtypes.INT32, dtypes.INT64) or element is None:
        return None
    if divisor.data is not None:
        safe = not _contains(divisor.data, -1)
    elif dividend.data is not None:
        safe = not _contains(dividend.data, -(2 ** (element.bits - 1)))
    else:
        # Extents are not negative.
        safe = dividend.symbolic is not None or divisor.symbolic is not None
    return None if safe else f"integer {node.op_type} of the smallest integer by -1 would end the process"


def _modulo(node: Node) -> str | None:
    value = node.input(0)
    if _is_float(value):
        return None if node.int_attr("fmod", 0) else "Mod of floats needs fmod=1 there"
    return None if node.int_attr("fmod", 0) else _integer_division(node)


def _attention(node: Node) -> str | None:
    if len(node.outputs) > 3 and node.outputs[3].name and (node.input(3) or node.int_attr("is_causal", 0)):
        return "its qk_matmul_output holds the lowest float where the standard says -inf"
    if node.input(3) is not None and node.input(6) is not None:
        return "a mask that is shorter than the keys fails there beside nonpad_kv_seqlen"
    return None


def _max_unpool(node: Node) -> str | None:
    return "MaxUnpool with output_shape is wrong there" if node.input(2) is not None else None


def _resize(node: Node) -> str | None:
    scales = node.input(2)
    if node.str_attr("coordinate_transformation_mode", "half_pixel") != "align_corners" or scales is None:
        return None
    if node.str_attr("mode", "nearest") == "nearest" or scales.shape == (0,):
        return None
    return "align_corners with scales that do not divide evenly is wrong there"


def _roi_align(node: Node) -> str | None:
    return "RoiAlign with mode max is wrong there" if node.str_attr("mode", "avg") == "max" else None


def _reduce_bool(node: Node) -> str | None:
    value = node.input(0)
    is_bool = value is not None and isinstance(value.type, TensorType) and value.type.dtype is dtypes.BOOL
    return f"{node.op_type} of no bool elements fails there" if is_bool else None


def _conv_integer(node: Node) -> str | None:
    zero_point = node.input(3)
    if zero_point is None or zero_point.shape in ((), (1,)):
        return None
    return "a zero point for each channel is not supported there"


def _is_float(value: Value | None) -> bool:
    declared = value.type if value is not None else None
    return isinstance(declared, TensorType) and declared.dtype is not None and declared.dtype.is_float


def _contains(data: TensorData, number: int) -> bool:
    return bool((data.numpy() == number).any())


_CHECKS: dict[str, Callable[[Node], str | None]] = {
    "Attention": _attention,
    "ConvInteger": _conv_integer,
    "Div": _integer_division,
    "MaxUnpool": _max_unpool,
    "Mod": _modulo,
    "ReduceMax": _reduce_bool,
    "ReduceMin": _reduce_bool,
    "Resize": _resize,
    "RoiAlign": _roi_align,
}
