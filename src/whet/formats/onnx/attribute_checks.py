"""Attribute values that no input can make right: non-positive windows, repeated axes, bad equations, unknown modes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from whet.errors import InvalidGraph, did_you_mean
from whet.graph import Node

Check = Callable[[Node, str], None]


def check_attributes(node: Node) -> None:
    """Raise InvalidGraph for an attribute of a standard operator whose value cannot be right."""
    checks = CHECKS.get(node.op_type)
    if checks is None or node.domain:
        return
    for name, check in checks.items():
        if name in node.attributes:
            check(node, name)


def _refuse(node: Node, name: str, expected: str, hint: str | None = None) -> InvalidGraph:
    return InvalidGraph(
        "an attribute value that cannot be right",
        node=node.label,
        value=name,
        found=node.attributes[name],
        expected=expected,
        hint=hint,
    )


def _positive(node: Node, name: str) -> None:
    value = node.attributes[name]
    if isinstance(value, int) and value <= 0:
        raise _refuse(node, name, "a positive number")
    if isinstance(value, tuple) and any(isinstance(v, int) and v <= 0 for v in value):
        raise _refuse(node, name, "positive numbers")


def _not_negative(node: Node, name: str) -> None:
    value = node.attributes[name]
    values = value if isinstance(value, tuple) else (value,)
    if any(isinstance(v, int) and v < 0 for v in values):
        raise _refuse(node, name, "no negative number")


def _permutation(node: Node, name: str) -> None:
    perm = node.ints_attr(name)
    if sorted(perm) != list(range(len(perm))):
        raise _refuse(node, name, f"each axis of 0 to {len(perm) - 1} once")
    rank = _rank(node)
    if rank is not None and len(perm) != rank:
        raise _refuse(node, name, f"{rank} axes, one for each of the input's")


def _axis(node: Node, name: str) -> None:
    rank = _rank(node)
    axis = node.int_attr(name, 0)
    if rank is not None and not -rank <= axis < max(rank, 1):
        raise _refuse(node, name, f"{-rank} to {rank - 1}, as the input has {rank} dimensions")


def _axis_or_rank(node: Node, name: str) -> None:
    rank = _rank(node)
    axis = node.int_attr(name, 0)
    if rank is not None and not -rank <= axis <= rank:
        raise _refuse(node, name, f"{-rank} to {rank}, as the input has {rank} dimensions")


def _axes(node: Node, name: str) -> None:
    rank = _rank(node)
    axes = node.ints_attr(name)
    if rank is not None and any(not -rank <= a < max(rank, 1) for a in axes):
        raise _refuse(node, name, f"{-rank} to {rank - 1}, as the input has {rank} dimensions")
    normal = [a % rank if rank else a for a in axes]
    if len(set(normal)) != len(normal):
        raise _refuse(node, name, "each axis once")


def _finite(node: Node, name: str) -> None:
    value = node.attributes[name]
    values = value if isinstance(value, tuple) else (value,)
    if any(isinstance(v, float) and (not math.isfinite(v) or v <= 0) for v in values):
        raise _refuse(node, name, "finite positive numbers")


def _choice(*options: str | int) -> Check:
    def check(node: Node, name: str) -> None:
        value = node.attributes[name]
        if value not in options:
            raise _refuse(node, name, f"one of {options}", did_you_mean(str(value), map(str, options)))

    return check


_TERM = re.compile(r"[A-Za-z]*(\.\.\.)?[A-Za-z]*")


def _equation(node: Node, name: str) -> None:
    text = node.str_attr(name, "").replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if not all(_TERM.fullmatch(t) for t in (*terms, right)) or "->" in right:
        raise _refuse(node, name, "terms of letters and at most one '...' each, as in 'ij,jk->ik'")
    if len(terms) != len(node.inputs):
        raise _refuse(node, name, f"one term for each of the {len(node.inputs)} inputs")
    letters = right.replace(".", "")
    if arrow and (len(set(letters)) != len(letters) or not set(letters) <= set(left)):
        raise _refuse(node, name, "an output that names letters of the inputs, each once")
    for term, value in zip(terms, node.inputs, strict=True):
        rank = len(value.shape) if value is not None and value.shape is not None else None
        count = len(term.replace(".", ""))
        if rank is not None and (count > rank or ("." not in term and count != rank)):
            raise _refuse(node, name, f"{rank} letters for input {value.name!r}" if value else "a letter per dimension")


def _rank(node: Node) -> int | None:
    value = node.inputs[0] if node.inputs else None
    return len(value.shape) if value is not None and value.shape is not None else None


_AUTO_PAD = _choice("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
_CONV: dict[str, Check] = {
    "kernel_shape": _positive,
    "strides": _positive,
    "dilations": _positive,
    "group": _positive,
    "auto_pad": _AUTO_PAD,
}
_POOL: dict[str, Check] = {
    "kernel_shape": _positive,
    "strides": _positive,
    "dilations": _positive,
    "auto_pad": _AUTO_PAD,
}
_REDUCE: dict[str, Check] = {"axes": _axes}
_RNN: dict[str, Check] = {
    "hidden_size": _positive,
    "direction": _choice("forward", "reverse", "bidirectional"),
}

CHECKS: dict[str, dict[str, Check]] = {
    "ArgMax": {"axis": _axis},
    "ArgMin": {"axis": _axis},
    "AveragePool": _POOL,
    "BitShift": {"direction": _choice("LEFT", "RIGHT")},
    "Compress": {"axis": _axis},
    "Concat": {"axis": _axis},
    "Conv": _CONV,
    "ConvInteger": _CONV,
    "ConvTranspose": {**_CONV, "output_padding": _not_negative},
    "DeformConv": {**_CONV, "offset_group": _positive},
    "DepthToSpace": {"blocksize": _positive, "mode": _choice("DCR", "CRD")},
    "Einsum": {"equation": _equation},
    "Flatten": {"axis": _axis_or_rank},
    "GRU": _RNN,
    "Gather": {"axis": _axis},
    "GatherElements": {"axis": _axis},
    "GridSample": {"padding_mode": _choice("zeros", "border", "reflection")},
    "GroupNormalization": {"num_groups": _positive},
    "Hardmax": {"axis": _axis},
    "LRN": {"size": _positive},
    "LSTM": _RNN,
    "LayerNormalization": {"axis": _axis},
    "LogSoftmax": {"axis": _axis},
    "LpNormalization": {"axis": _axis, "p": _choice(1, 2)},
    "LpPool": _POOL,
    "MaxPool": _POOL,
    "MaxRoiPool": {"pooled_shape": _positive},
    "MaxUnpool": {"kernel_shape": _positive, "strides": _positive},
    "Pad": {"mode": _choice("constant", "reflect", "edge", "wrap")},
    "QLinearConv": _CONV,
    "RMSNormalization": {"axis": _axis},
    "RNN": _RNN,
    "ReduceL1": _REDUCE,
    "ReduceL2": _REDUCE,
    "ReduceLogSum": _REDUCE,
    "ReduceLogSumExp": _REDUCE,
    "ReduceMax": _REDUCE,
    "ReduceMean": _REDUCE,
    "ReduceMin": _REDUCE,
    "ReduceProd": _REDUCE,
    "ReduceSum": _REDUCE,
    "ReduceSumSquare": _REDUCE,
    "Resize": {"axes": _axes},
    "RoiAlign": {"mode": _choice("avg", "max"), "output_height": _positive, "output_width": _positive},
    "Scatter": {"axis": _axis},
    "ScatterElements": {"axis": _axis, "reduction": _choice("none", "add", "mul", "max", "min")},
    "ScatterND": {"reduction": _choice("none", "add", "mul", "max", "min")},
    "Softmax": {"axis": _axis},
    "SpaceToDepth": {"blocksize": _positive},
    "Split": {"axis": _axis, "split": _not_negative, "num_outputs": _positive},
    "Squeeze": {"axes": _axes},
    "TopK": {"axis": _axis, "k": _not_negative},
    "Transpose": {"perm": _permutation},
    "Upsample": {"scales": _finite, "height_scale": _finite, "width_scale": _finite},
}
"""Operator to attribute to check; the input's rank is used where the file states it."""
