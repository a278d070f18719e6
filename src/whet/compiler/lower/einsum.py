"""Einsum, made of diagonals, sums, transpositions and matrix products, pair by pair."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from whet.compiler.lower.matmul import PRODUCTS
from whet.compiler.lower.parts import Parts, taken_apart
from whet.compiler.lower.pointwise import tensor_refusal
from whet.compiler.lowering import dtype_of
from whet.graph import Node, Value
from whet.graph.dims import Dim

Labels = tuple[str, ...]
"""A label for each dimension: a letter, or "...0" for the last of those that an ellipsis stands for, "...1", ..."""

END = 2**62
BATCH = 2
"""Dimensions in front of a matrix product's matrices that need not be joined."""


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation whose ellipses are spelled out."""

    terms: tuple[Labels, ...]
    result: Labels


def parse(text: str, ranks: Sequence[int]) -> Equation | str:
    """The equation for operands of these ranks, or what is wrong with it."""
    left, arrow, right = text.replace(" ", "").partition("->")
    terms: list[Labels] = []
    written = left.split(",")
    if len(written) != len(ranks):
        return f"the equation has {len(written)} terms for {len(ranks)} operands"
    for term, rank in zip(written, ranks, strict=True):
        letters = term.replace("...", "")
        hidden = rank - len(letters)
        if not letters.isalpha() and letters or hidden < 0 or (hidden and "..." not in term):
            return f"the term {term!r} does not fit {rank} dimensions"
        terms.append(_spelled(term, hidden))
    dots = max((l for term in terms for l in term if l.startswith("...")), key=_number, default="")
    every = _number(dots) + 1 if dots else 0
    if arrow:
        result = _spelled(right, every)
        if not set(result) <= {l for term in terms for l in term} or len(set(result)) != len(result):
            return f"the result {right!r} is not made of the terms' labels, each once"
        return Equation(tuple(terms), result)
    counts = Counter(left.replace("...", "").replace(",", ""))
    return Equation(tuple(terms), _spelled("..." + "".join(sorted(l for l, n in counts.items() if n == 1)), every))


def _number(label: str) -> int:
    return int(label[3:] or 0)


def _spelled(term: str, hidden: int) -> Labels:
    before, dots, behind = term.partition("...")
    inner = tuple(f"...{i}" for i in reversed(range(hidden))) if dots else ()
    return (*before, *inner, *behind)


def _equation(node: Node) -> Equation | str:
    ranks = [len(v.shape or ()) for v in node.inputs if v is not None]
    return parse(node.str_attr("equation", ""), ranks)


def refusal(node: Node) -> str | None:
    """Why an Einsum cannot be lowered, or None."""
    reason = tensor_refusal(node)
    if reason is not None:
        return reason
    equation = _equation(node)
    if isinstance(equation, str):
        return equation
    if dtype_of(node.output) not in PRODUCTS:
        return f"no matrix product of {dtype_of(node.output)}"
    extents: dict[str, Dim] = {}
    for value, term in zip(node.inputs, equation.terms, strict=True):
        assert value is not None
        for label, extent in zip(term, value.shape or (), strict=True):
            if extent is None or extents.setdefault(label, extent) != extent:
                return f"the extents of {label!r} are not known to be the same"
            if term.count(label) > 1 and not isinstance(extent, int):
                return f"{label!r} stands for a diagonal whose extent is free"
    return None


@dataclass(frozen=True, slots=True)
class Operand:
    """A value with the labels of its dimensions, each of which is there once."""

    value: Value
    labels: Labels


def einsum(node: Node, parts: Parts) -> Sequence[Value]:
    """The parts of an Einsum: the first two operands are contracted, then that and the third, and so on."""
    equation = _equation(node)
    assert isinstance(equation, Equation), equation
    operands = []
    for value, labels in zip(node.inputs, equation.terms, strict=True):
        assert value is not None
        operands.append(_diagonals(parts, value, labels))
    total, *rest = operands
    total = _summed(parts, total, _needed(rest, equation))
    for index, other in enumerate(rest):
        later = _needed(rest[index + 1 :], equation)
        total = _summed(parts, total, later | set(other.labels))
        total = _contracted(parts, total, _summed(parts, other, later | set(total.labels)), later)
    result = _ordered(parts, total, equation.result)
    # An output needs a producer of its own.
    return [result if parts.nodes else parts.node("Identity", result)]


def _needed(rest: Sequence[Operand], equation: Equation) -> set[str]:
    return {*equation.result, *(label for operand in rest for label in operand.labels)}


def _diagonals(parts: Parts, value: Value, labels: Labels) -> Operand:
    """The operand with every label once: of an axis that is there twice the diagonal is left."""
    shape = list(value.shape or ())
    while len(set(labels)) < len(labels):
        label = next(l for l in labels if labels.count(l) > 1)
        first = labels.index(label)
        second = labels.index(label, first + 1)
        extent = shape[first]
        assert isinstance(extent, int)
        others = [i for i in range(len(labels)) if i not in (first, second)]
        moved = parts.node("Transpose", value, attributes={"perm": (*others, first, second)})
        shape = [shape[i] for i in others]
        joined = parts.node("Reshape", moved, parts.ints(*[0] * len(others), extent * extent))
        axis = parts.ints(len(others))
        value = parts.node("Slice", joined, parts.ints(0), parts.ints(END), axis, parts.ints(extent + 1))
        shape.append(extent)
        labels = (*(labels[i] for i in others), label)
    return Operand(value, labels)


def _summed(parts: Parts, operand: Operand, needed: set[str]) -> Operand:
    """The operand summed over what nobody needs."""
    gone = [axis for axis, label in enumerate(operand.labels) if label not in needed]
    if not gone:
        return operand
    value = parts.node("ReduceSum", operand.value, parts.ints(*gone), attributes={"keepdims": 0})
    return Operand(value, tuple(l for l in operand.labels if l in needed))


def _ordered(parts: Parts, operand: Operand, labels: Labels) -> Value:
    """The operand's value with its dimensions in this order."""
    perm = tuple(operand.labels.index(label) for label in labels)
    if perm == tuple(range(len(perm))):
        return operand.value
    return parts.node("Transpose", operand.value, attributes={"perm": perm})


def _contracted(parts: Parts, a: Operand, b: Operand, later: set[str]) -> Operand:
    """The product of two operands, summed over what both have and nobody needs later."""
    shared = [l for l in a.labels if l in b.labels]
    batch = tuple(l for l in shared if l in later)
    summed = tuple(l for l in shared if l not in later)
    rows = tuple(l for l in a.labels if l not in shared)
    columns = tuple(l for l in b.labels if l not in shared)
    labels = (*batch, *rows, *columns)
    left = _ordered(parts, a, (*batch, *rows, *summed))
    if not summed:
        right = _ordered(parts, b, (*batch, *rows[:0], *columns))
        if columns and rows:
            ends = range(len(batch) + len(rows), len(labels))
            left = parts.node("Unsqueeze", left, parts.ints(*ends))
            right = parts.node("Unsqueeze", right, parts.ints(*range(len(batch), len(batch) + len(rows))))
        elif rows:
            right = parts.node("Unsqueeze", right, parts.ints(*range(len(batch), len(labels))))
        elif columns:
            left = parts.node("Unsqueeze", left, parts.ints(*range(len(batch), len(labels))))
        return Operand(parts.node("Mul", left, right), labels)
    right = _ordered(parts, b, (*batch, *summed, *columns))
    if len(rows) == len(columns) == len(summed) == 1 and len(batch) <= BATCH:
        return Operand(parts.node("MatMul", left, right), labels)
    sizes = len(batch), len(rows), len(summed), len(columns)
    of_left, of_right = parts.node("Shape", left), parts.node("Shape", right)
    middle = sizes[0] + sizes[1]
    matrix = _joined(parts, left, of_left, (0, sizes[0], middle, middle + sizes[2]))
    middle = sizes[0] + sizes[2]
    product = parts.node("MatMul", matrix, _joined(parts, right, of_right, (0, sizes[0], middle, middle + sizes[3])))
    front = _piece(parts, of_left, 0, sizes[0] + sizes[1])
    back = _piece(parts, of_right, middle, middle + sizes[3])
    shape = parts.node("Concat", front, back, attributes={"axis": 0})
    return Operand(parts.node("Reshape", product, shape, attributes={"allowzero": 1}), labels)


def _piece(parts: Parts, shape: Value, start: int, stop: int) -> Value:
    return parts.node("Slice", shape, parts.ints(start), parts.ints(stop), parts.ints(0))


def _joined(parts: Parts, value: Value, shape: Value, cuts: Sequence[int]) -> Value:
    """The value with the dimensions between each two cuts as one."""
    pieces = [
        parts.node("ReduceProd", _piece(parts, shape, start, stop), attributes={"keepdims": 1})
        for start, stop in zip(cuts, cuts[1:], strict=False)
    ]
    target = parts.node("Concat", *pieces, attributes={"axis": 0})
    return parts.node("Reshape", value, target, attributes={"allowzero": 1})


EINSUM = taken_apart(refusal)
