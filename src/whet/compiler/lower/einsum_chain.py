"""Einsum of more than two operands: the first two are contracted, then that and the third, and so on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from whet.compiler.lower import einsum
from whet.compiler.lower.matmul import PRODUCTS
from whet.compiler.lower.parts import Parts
from whet.compiler.lower.pointwise import MAX_RANK, tensor_refusal
from whet.compiler.lower.rule import Rule
from whet.compiler.lowering import dtype_of
from whet.graph import Node, Value


def refusal(node: Node) -> str | None:
    """Why an Einsum cannot be lowered, or None."""
    if len(node.inputs) <= 2:
        return einsum.refusal(node)
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    if dtype_of(node.output) not in PRODUCTS:
        return f"no products of {dtype_of(node.output)}"
    if "..." in node.str_attr("equation", ""):
        return "its equation of more than two operands has an ellipsis"
    equation = einsum.parse(node.str_attr("equation", ""), [len(v.shape or ()) for v in node.inputs if v is not None])
    if isinstance(equation, str):
        return equation
    extents: dict[str, int] = {}
    for value, operand in zip(node.inputs, equation.operands, strict=True):
        assert value is not None
        for label, extent in zip(operand, value.shape or (), strict=True):
            if isinstance(extent, int) and extents.setdefault(label, extent) != extent:
                return f"the extents of {label!r} differ"
    if any(len({*a, *b}) > MAX_RANK for a, b, _ in _steps(equation)):
        return "it has too many axes"
    return None


def _steps(equation: einsum.Equation) -> Iterator[tuple[einsum.Labels, einsum.Labels, einsum.Labels]]:
    """The labels of both operands and of the result of every contraction."""
    first, *rest = equation.operands
    for index, other in enumerate(rest):
        later = rest[index + 1 :]
        needed = {*equation.result, *(label for operand in later for label in operand)}
        kept = tuple(label for label in dict.fromkeys((*first, *other)) if label in needed)
        result = kept if later else equation.result
        yield first, other, result
        first = result


def pairs(node: Node, parts: Parts) -> Sequence[Value] | None:
    """The contractions of an Einsum with more than two operands; None where it has no more."""
    operands = [v for v in node.inputs if v is not None]
    if len(operands) <= 2:
        return None
    equation = einsum.parse(node.str_attr("equation", ""), [len(v.shape or ()) for v in operands])
    assert isinstance(equation, einsum.Equation), equation
    total = operands[0]
    for other, (a, b, result) in zip(operands[1:], _steps(equation), strict=True):
        text = f"{''.join(a)},{''.join(b)}->{''.join(result)}"
        total = parts.node("Einsum", total, other, attributes={"equation": text})
    return [total]


EINSUM = Rule(einsum.lower_einsum, refusal)
