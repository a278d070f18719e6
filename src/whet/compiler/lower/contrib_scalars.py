"""How the pointwise operators of com.microsoft become steps of a tape."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.lower.scalar_rule import ScalarRule, result_type
from whet.compiler.tape import TapeBuilder
from whet.dtypes import DType
from whet.graph import Node, TensorType


def _stored_type(node: Node) -> DType:
    """The type in memory of a node's first output."""
    kind = node.output.type
    assert isinstance(kind, TensorType)
    assert kind.dtype is not None
    return kind.dtype


def _rounded(tape: TapeBuilder, node: Node, value: int) -> int:
    """The value as the node's result type can hold it."""
    return tape.cast(tape.cast(value, _stored_type(node)), result_type(node))


def _given(args: Sequence[int | None], index: int) -> int | None:
    return args[index] if index < len(args) else None


def _needed(args: Sequence[int | None], index: int) -> int:
    value = args[index]
    assert value is not None
    return value


def _biased(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    """The first operand plus a bias, where there is one."""
    value, bias = _needed(args, 0), _given(args, 1)
    return value if bias is None else tape.add("add", result_type(node), value, bias)


def _behind_bias(op: str) -> ScalarRule:
    def build(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
        return tape.add(op, result_type(node), _biased(tape, node, args))

    return ScalarRule(build, op, _bias_refusal)


def _bias_refusal(node: Node) -> str | None:
    """A bias is a row of the last axis: one of another shape is an error that numpy's broadcasting would not see."""
    x, bias = node.input(0), node.input(1)
    if x is None or bias is None:
        return None
    shape, own = x.shape, bias.shape
    if not shape or own is None or len(own) != 1 or own[0] is None or own[0] != shape[-1]:
        return "its bias is not known to be a row of the last axis"
    return None


def _quick_gelu(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    numbers = [node.float_attr("alpha", 1.702)]
    return tape.add("silu", result_type(node), _needed(args, 0), numbers=numbers)


def _bias_add(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    total = _rounded(tape, node, _biased(tape, node, args))
    return tape.add("add", result_type(node), total, _needed(args, 2))


def _same_refusal(node: Node, index: int) -> str | None:
    """Why operand `index` is not known to have the shape of the first."""
    x, other = node.input(0), node.input(index)
    if x is None or other is None or x.shape is None or x.shape != other.shape or None in x.shape:
        return f"its operand {index} is not known to have the shape of the first"
    return None


def _gated_add(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    dtype = result_type(node)
    product = _rounded(tape, node, tape.add("mul", dtype, _needed(args, 1), _needed(args, 2)))
    return tape.add("add", dtype, _needed(args, 0), product)


def _gate_refusal(node: Node) -> str | None:
    x, gate = node.input(0), node.input(2)
    if x is None or gate is None or not x.shape or gate.shape is None or gate.shape != (*x.shape[:-1], 1):
        return "its gate is not known to be a number for each row"
    return _same_refusal(node, 1)


def _scaled_silu(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    dtype, factor = result_type(node), _given(args, 1)
    if factor is None:
        factor = tape.constant(node.float_attr("alpha", 1.0), dtype)
    z = _rounded(tape, node, tape.add("mul", dtype, _needed(args, 0), tape.cast(factor, dtype)))
    opening = _rounded(tape, node, tape.add("sigmoid", dtype, z))
    return tape.add("mul", dtype, z, opening)


def _scale_refusal(node: Node) -> str | None:
    scale = node.input(1)
    if scale is not None and (scale.shape is None or any(extent != 1 for extent in scale.shape)):
        return "its scale is not known to be one number"
    x = node.input(0)
    if scale is not None and x is not None and len(scale.shape or ()) > len(x.shape or ()):
        return "its scale has more dimensions than the operand"
    return None


CONTRIB_SCALARS: dict[str, ScalarRule] = {
    "com.microsoft.Gelu": _behind_bias("gelu"),
    "com.microsoft.BiasGelu": _behind_bias("gelu"),
    "com.microsoft.FastGelu": _behind_bias("gelu_tanh"),
    "com.microsoft.QuickGelu": ScalarRule(_quick_gelu, "silu"),
    "com.microsoft.BiasAdd": ScalarRule(_bias_add, "add", lambda node: _bias_refusal(node) or _same_refusal(node, 2)),
    "com.microsoft.GatedAdd": ScalarRule(_gated_add, "add", _gate_refusal),
    "com.microsoft.ScaledSiLU": ScalarRule(_scaled_silu, "sigmoid", _scale_refusal),
}
