"""Patterns over the graph that read as the maths they match: `x * (erf(x / SQRT2) + 1) * 0.5`.

`+`, `-`, `*` and `/` of patterns match any association and order of Add, Sub, Neg, Mul, Div and Reciprocal nodes: one
formula stands for every way in which exporters write it. A variable that occurs twice must be the same value. What
lies between the pattern's root and its variables disappears, so none of it may have another reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Union, cast

from whet import dtypes
from whet.graph import Graph, Node, Patch, Value
from whet.graph.core import Attribute
from whet.passes.base import NodePass, PassContext

Number = Union[int, float]
Operand = Union["Pattern", Number]
Predicate = Callable[[Value], "str | None"]
"""Says why a value does not fit, or None when it does."""
Leaf = tuple[Value, bool]
"""A factor and whether it divides; or a term and whether it is subtracted."""

RELATIVE_TOLERANCE = {dtypes.FLOAT16: 1e-3, dtypes.BFLOAT16: 8e-3}
DEFAULT_TOLERANCE = 4e-6
"""How far a constant may be from the pattern's: exporters round to the tensor's type or to six digits."""
MOST_FLIPS = 4
"""How many Neg or Reciprocal nodes in a row are looked through: longer chains are no formula."""


@dataclass(frozen=True, slots=True)
class MatchFailure:
    """Why a pattern does not match. `near`: nearly all of it did, so that people may want to read the reason."""

    reason: str
    near: bool = True


class _State:
    """The bindings and nodes of the match under construction, and the failure that came furthest."""

    __slots__ = ("best", "bound", "graph", "nodes", "reason", "shared")

    def __init__(self, graph: Graph | None) -> None:
        self.graph = graph
        self.bound: dict[str, Value | float | Node] = {}
        self.nodes: list[Node] = []
        self.shared: list[Node] = []
        self.best = -1
        self.reason: tuple[object, ...] = ("the operators differ",)

    def fail(self, *reason: object) -> None:
        if len(self.nodes) > self.best:
            self.best, self.reason = len(self.nodes), reason

    def bind(self, name: str, item: Value | float | Node) -> Iterator[None]:
        present = self.bound.get(name)
        if present is None:
            self.bound[name] = item
            yield
            del self.bound[name]
        elif present is item or (isinstance(present, float) and present == item):
            yield
        else:
            self.fail(name, " is both ", present, " and ", item)


class Pattern:
    """What a value must be. Combine patterns with arithmetic operators, `**`, and `|` for alternatives."""

    __slots__ = ()

    def match(self, value: Value, state: _State) -> Iterator[None]:
        """Yield once for each way in which `value` matches, with `state` extended by it while the caller looks."""
        raise NotImplementedError

    def roots(self) -> frozenset[str]:
        """The operators that can make a matching value."""
        return frozenset()

    def size(self) -> int:
        """The fewest nodes that a match has."""
        return 0

    def __add__(self, other: Operand) -> Pattern:
        return _chain(Sum, (self, False), (pattern(other), False))

    def __radd__(self, other: Operand) -> Pattern:
        return pattern(other) + self

    def __sub__(self, other: Operand) -> Pattern:
        return _chain(Sum, (self, False), (pattern(other), True))

    def __rsub__(self, other: Operand) -> Pattern:
        return pattern(other) - self

    def __neg__(self) -> Pattern:
        return Op("Neg", (self,)) | self * -1.0

    def __mul__(self, other: Operand) -> Pattern:
        return _chain(Product, (self, False), (pattern(other), False))

    def __rmul__(self, other: Operand) -> Pattern:
        return pattern(other) * self

    def __truediv__(self, other: Operand) -> Pattern:
        return _chain(Product, (self, False), (pattern(other), True))

    def __rtruediv__(self, other: Operand) -> Pattern:
        return pattern(other) / self

    def __pow__(self, exponent: Number) -> Pattern:
        written = Op("Pow", (self, Const(float(exponent))))
        if exponent in (2, 3):
            return written | Product(((self, False),) * int(exponent))
        return written

    def __or__(self, other: Pattern) -> Pattern:
        return Alternatives((*_options(self), *_options(other)))


class Var(Pattern):
    """Any value; `where` may decline it with a reason. A name that occurs again must be the same value."""

    __slots__ = ("name", "where")

    def __init__(self, name: str, where: Predicate | None = None) -> None:
        self.name = name
        self.where = where

    def match(self, value: Value, state: _State) -> Iterator[None]:
        reason = self.where(value) if self.where is not None else None
        if reason is not None:
            state.fail(self.name, " (", value, ") ", reason)
            return
        yield from state.bind(self.name, value)


class Const(Pattern):
    """A constant with one element, equal to `number` within its type's tolerance."""

    __slots__ = ("number",)

    def __init__(self, number: float) -> None:
        self.number = float(number)

    def match(self, value: Value, state: _State) -> Iterator[None]:
        yield from self.match_number(value, _number(value), state)

    def match_number(self, value: Value, found: float | None, state: _State) -> Iterator[None]:
        if found is None:
            state.fail(value, " is no constant scalar, expected ", self.number)
        elif not abs(found - self.number) <= _tolerance(value) * abs(self.number):  # so that NaN fails
            state.fail("constant ", value, " counts as ", found, ", expected ", self.number)
        else:
            yield


class Scalar(Pattern):
    """Any constant with one element; bound as a number."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def match(self, value: Value, state: _State) -> Iterator[None]:
        yield from self.match_number(value, _number(value), state)

    def match_number(self, value: Value, found: float | None, state: _State) -> Iterator[None]:
        if found is None:
            state.fail(self.name, " (", value, ") is no constant scalar")
        else:
            yield from state.bind(self.name, found)


class Op(Pattern):
    """The first output of a node of operator `op`. Inputs beyond the pattern's must be absent.

    `name` binds the node. `shared` nodes may have readers outside the match and are then left standing. Attributes
    that are given must be equal on the node (`None`: absent).
    """

    __slots__ = ("attributes", "inputs", "name", "op", "shared")

    def __init__(
        self,
        op: str,
        inputs: Sequence[Operand | None],
        *,
        name: str = "",
        shared: bool = False,
        attributes: Mapping[str, Attribute | None] | None = None,
    ) -> None:
        self.op = op
        self.inputs = tuple(None if p is None else pattern(p) for p in inputs)
        self.name = name
        self.shared = shared
        self.attributes = dict(attributes or {})

    def roots(self) -> frozenset[str]:
        return frozenset((self.op,))

    def size(self) -> int:
        return 1 + sum(p.size() for p in self.inputs if p is not None)

    def match(self, value: Value, state: _State) -> Iterator[None]:
        node = value.producer
        if node is None or node.graph is not state.graph or node.op_type != self.op.rpartition(".")[2]:
            state.fail(value, " is not made by ", self.op)
            return
        if node.op != self.op or value.output_index != 0:
            state.fail(value, " is not the first output of ", self.op)
            return
        for name, expected in self.attributes.items():
            if node.attributes.get(name) != expected:
                state.fail(node.label, " has ", name, "=", node.attributes.get(name), ", expected ", expected)
                return
        pairs: list[tuple[Pattern, Value]] = []
        for index in range(max(len(self.inputs), len(node.inputs))):
            wanted = self.inputs[index] if index < len(self.inputs) else None
            found = node.input(index)
            if (wanted is None) != (found is None):
                state.fail(node.label, ": input ", index, " is ", "missing" if found is None else "not expected")
                return
            if wanted is not None and found is not None:
                if isinstance(wanted, (Const, Scalar)) and not _keeps_rank(found, node.inputs):
                    state.fail("constant ", found, " may raise the rank")
                    return
                pairs.append((wanted, found))
        state.nodes.append(node)
        if self.shared:
            state.shared.append(node)
        for _ in state.bind(self.name, node) if self.name else (None,):
            yield from _match_all(pairs, state, 0)
        if self.shared:
            state.shared.pop()
        state.nodes.pop()


class Alternatives(Pattern):
    """The first of several patterns that matches; `|` makes it."""

    __slots__ = ("options",)

    def __init__(self, options: Sequence[Pattern]) -> None:
        self.options = tuple(options)

    def match(self, value: Value, state: _State) -> Iterator[None]:
        for option in self.options:
            yield from option.match(value, state)

    def roots(self) -> frozenset[str]:
        return frozenset().union(*(o.roots() for o in self.options))

    def size(self) -> int:
        return min(o.size() for o in self.options)


class _Chain(Pattern):
    """Operands under an associative, commutative operation and its inverse, in any association and order."""

    __slots__ = ("_ordered", "operands")

    joins: str = ""
    inverts: str = ""
    flips: str = ""
    """The operators that join two operands, join with the second one inverted, and invert one."""

    def __init__(self, operands: Sequence[tuple[Pattern, bool]]) -> None:
        self.operands = tuple(operands)
        self._ordered = sorted(self.operands, key=lambda o: -_specificity(o[0]))

    @staticmethod
    def inverse(number: float) -> float:
        """`number` where it stands inverted."""
        raise NotImplementedError

    def roots(self) -> frozenset[str]:
        mixed = any(inverted or isinstance(p, (Const, Scalar)) for p, inverted in self.operands)
        return frozenset((self.joins, self.inverts) if mixed else (self.joins,))

    def size(self) -> int:
        return len(self.operands) - 1 + sum(p.size() for p, _ in self.operands)

    def match(self, value: Value, state: _State) -> Iterator[None]:
        for leaves in self._expand(value, False, len(self.operands), state):
            yield from self._assign(0, leaves, 0, state)

    def _expand(self, value: Value, inverted: bool, count: int, state: _State) -> Iterator[tuple[Leaf, ...]]:
        """The ways to see `value` as `count` operands; the nodes between are in `state` while the caller looks."""
        yield from self._expand_flipped(value, inverted, count, state, 0)

    def _expand_flipped(
        self, value: Value, inverted: bool, count: int, state: _State, flips: int
    ) -> Iterator[tuple[Leaf, ...]]:
        """`_expand` behind `flips` inversions in a row."""
        if count == 1:
            yield ((value, inverted),)
        node = value.producer
        if node is None or node.domain or node.graph is not state.graph:
            if count > 1:
                state.fail(value, " is not made by ", self.joins)
            return
        kind = node.op_type
        if kind == self.flips:
            if flips == MOST_FLIPS:
                return
            inner = node.inputs[0]
            assert inner is not None
            state.nodes.append(node)
            yield from self._expand_flipped(inner, not inverted, count, state, flips + 1)
            state.nodes.pop()
        elif count > 1 and (kind == self.joins or kind == self.inverts):
            first, second = node.inputs
            assert first is not None
            assert second is not None
            state.nodes.append(node)
            for left_count in range(1, count):
                for left in self._expand(first, inverted, left_count, state):
                    inverted_right = inverted != (kind == self.inverts)
                    for right in self._expand(second, inverted_right, count - left_count, state):
                        yield left + right
            state.nodes.pop()
        elif count > 1:
            state.fail(value, " is not made by ", self.joins)

    def _assign(self, index: int, leaves: tuple[Leaf, ...], used: int, state: _State) -> Iterator[None]:
        """Match the operands from `index` on against the leaves whose bit in `used` is clear."""
        if index == len(self._ordered):
            yield
            return
        wanted, wanted_inverted = self._ordered[index]
        numeric = isinstance(wanted, (Const, Scalar))
        if numeric and not any(v.data is not None for v, _ in leaves):
            state.fail("none of ", [v.name for v, _ in leaves], " is constant")
        for position, (value, inverted) in enumerate(leaves):
            if used >> position & 1 or (numeric and value.data is None):
                continue
            if isinstance(wanted, (Const, Scalar)):
                found = _number(value)
                if found is not None and not _keeps_rank(value, [v for v, _ in leaves]):
                    state.fail("constant ", value, " may raise the rank")
                    continue
                if found is not None and inverted != wanted_inverted:
                    found = self.inverse(found)
                ways = wanted.match_number(value, found, state)
            elif inverted == wanted_inverted:
                ways = wanted.match(value, state)
            else:
                state.fail(value, " stands inverted")
                continue
            for _ in ways:
                yield from self._assign(index + 1, leaves, used | 1 << position, state)


class Product(_Chain):
    """Factors and divisors."""

    __slots__ = ()
    joins, inverts, flips = "Mul", "Div", "Reciprocal"

    @staticmethod
    def inverse(number: float) -> float:
        return 1.0 / number if number else float("inf")


class Sum(_Chain):
    """Terms, added and subtracted."""

    __slots__ = ()
    joins, inverts, flips = "Add", "Sub", "Neg"

    @staticmethod
    def inverse(number: float) -> float:
        return -number


def pattern(operand: Operand) -> Pattern:
    """`operand` itself, or the constant that a number stands for."""
    return operand if isinstance(operand, Pattern) else Const(operand)


def op(name: str, *inputs: Operand | None, **attributes: Attribute | None) -> Op:
    """The first output of an operator over `inputs` whose attributes, where given, are these."""
    return Op(name, inputs, attributes=attributes)


def exp(x: Operand) -> Pattern:
    return op("Exp", x)


def log(x: Operand) -> Pattern:
    return op("Log", x)


def erf(x: Operand) -> Pattern:
    return op("Erf", x)


def tanh(x: Operand) -> Pattern:
    return op("Tanh", x)


def sigmoid(x: Operand) -> Pattern:
    return op("Sigmoid", x)


def sqrt(x: Operand) -> Pattern:
    return op("Sqrt", x) | op("Pow", x, 0.5)


def commutative(name: str, a: Operand, b: Operand) -> Pattern:
    """A binary operator that does not mind the order of its operands and is neither a sum nor a product."""
    return op(name, a, b) | op(name, b, a)


def clip(x: Operand, low: Number, high: Number) -> Pattern:
    """`x` between two constants, as Clip or as minimum and maximum."""
    below = commutative("Min", commutative("Max", x, low), high) | commutative("Max", commutative("Min", x, high), low)
    if low == 0:
        below = below | commutative("Min", op("Relu", x), high)
    return op("Clip", x, low, high) | below


@dataclass(frozen=True, slots=True)
class Match:
    """A whole match: its root node, what the names stand for, and the nodes that it covers (root first)."""

    root: Node
    bound: Mapping[str, Value | float | Node]
    nodes: tuple[Node, ...]
    disappearing: tuple[Node, ...]
    """The covered nodes that nothing reads once the root is replaced, readers before what they read."""

    def value(self, name: str) -> Value:
        """The value of a variable."""
        return cast(Value, self.bound[name])

    def number(self, name: str) -> float:
        """The number of a scalar."""
        return cast(float, self.bound[name])

    def node(self, name: str) -> Node:
        """The node of a named operator."""
        return cast(Node, self.bound[name])

    def patch(self, nodes: Sequence[Node], reason: str = "") -> Patch:
        """The patch that puts `nodes` in this match's place; the last one makes the root's output."""
        new = nodes[-1].output
        new.type = new.type or self.root.output.type
        new.symbolic = self.root.output.symbolic
        return Patch(self.root, nodes, {self.root.output: new}, self.disappearing, reason)


def match(
    wanted: Pattern, root: Node, *, check: Callable[[Match], MatchFailure | None] | None = None
) -> Match | MatchFailure:
    """Match the first output of `root` against `wanted`; `check` may decline a way in which it does with a reason."""
    reason = MatchFailure("", near=False)
    for option in _options(wanted):
        state = _State(root.graph)
        for _ in option.match(root.output, state):
            found = _finish(root, state)
            problem = found if isinstance(found, MatchFailure) else check(found) if check is not None else None
            if problem is None:
                assert isinstance(found, Match)
                return found
            if not reason.near:
                reason = problem
        if not reason.near and state.best >= 2 and state.best >= option.size() - 1:
            reason = MatchFailure("".join(_describe(part) for part in state.reason))
    return reason


class PatternPass(NodePass):
    """A fusion: one pattern, and the nodes to put in the place of what it covers."""

    pattern: Pattern
    common_shape: bool = False
    """Whether graphs are full of what nearly matches, so that only matches that are declined are worth a record."""

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        """The nodes that compute the root's output, or why this match is declined. The last one's output is it."""
        raise NotImplementedError

    def check(self, found: Match) -> MatchFailure | None:
        """Why this way of matching is declined, or None."""
        return None

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        found = match(self.pattern, node, check=self.check)
        if isinstance(found, Match):
            nodes = self.replace(found, context)
            if not isinstance(nodes, MatchFailure):
                return found.patch(nodes)
            if nodes.near:
                context.refuse(self.name, node, nodes.reason)
        elif found.near and not self.common_shape:
            context.refuse(self.name, node, found.reason)
        return None


def is_constant(value: Value) -> str | None:
    """Declines a value that is no constant."""
    return None if value.data is not None else "is no constant"


def _finish(root: Node, state: _State) -> Match | MatchFailure:
    nodes = tuple(dict.fromkeys(state.nodes))
    kept = {item for item in state.bound.values() if isinstance(item, Value)}
    covered = set(nodes)
    shared = set(state.shared)
    standing: set[Node] = set()
    for node in nodes:
        if node is root:
            continue
        for value in node.outputs:
            outside = value.graph_outputs or any(reader not in covered for reader in value.uses)
            if value in kept or (node in shared and outside):
                standing.add(node)
            elif value.graph_outputs:
                return MatchFailure(f"{value.name} in its midst is an output of the graph")
            elif outside:
                reader = next(r for r in value.uses if r not in covered)
                return MatchFailure(f"{value.name} in its midst is also read by {reader.label}")
            elif value.quantization is not None:
                return MatchFailure(f"{value.name} in its midst is quantized")
    return Match(root, dict(state.bound), nodes, _disappearing(root, nodes, standing))


def _disappearing(root: Node, nodes: Sequence[Node], standing: set[Node]) -> tuple[Node, ...]:
    """What can go with the root, readers first; what a standing node reads stands as well."""
    gone: dict[Node, None] = {root: None}
    waiting = [n for n in nodes if n is not root and n not in standing]
    progress = True
    while progress:
        progress = False
        for node in list(waiting):
            if all(reader in gone for value in node.outputs for reader in value.uses):
                gone[node] = None
                waiting.remove(node)
                progress = True
    return tuple(gone)


def _match_all(pairs: Sequence[tuple[Pattern, Value]], state: _State, index: int) -> Iterator[None]:
    if index == len(pairs):
        yield
        return
    wanted, value = pairs[index]
    for _ in wanted.match(value, state):
        yield from _match_all(pairs, state, index + 1)


def _chain(kind: type[Product] | type[Sum], *operands: tuple[Pattern, bool]) -> Pattern:
    flat: list[tuple[Pattern, bool]] = []
    for operand, inverted in operands:
        if isinstance(operand, kind):
            flat += [(p, i != inverted) for p, i in operand.operands]
        else:
            flat.append((operand, inverted))
    return kind(flat)


def _options(wanted: Pattern) -> tuple[Pattern, ...]:
    return wanted.options if isinstance(wanted, Alternatives) else (wanted,)


def _specificity(wanted: Pattern) -> int:
    """Operators decide soonest, then constants, then variables."""
    return 2 if wanted.size() else 1 if isinstance(wanted, (Const, Scalar)) else 0


def _number(value: Value) -> float | None:
    data = value.data
    if data is None or data.size != 1 or not (data.dtype.is_float or data.dtype.is_integer):
        return None
    return float(data.scalar())


def _tolerance(value: Value) -> float:
    assert value.data is not None
    return RELATIVE_TOLERANCE.get(value.data.dtype, DEFAULT_TOLERANCE)


def _keeps_rank(constant: Value, operands: Sequence[Value | None]) -> bool:
    """Whether broadcasting against this one-element constant leaves the other operands' rank alone."""
    rank = len(constant.shape) if constant.shape is not None else 0
    return rank == 0 or any(v is not constant and v is not None and len(v.shape or ()) >= rank for v in operands)


def _describe(part: object) -> str:
    return part.name if isinstance(part, Value) else str(part)
