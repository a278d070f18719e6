"""Shape arithmetic, done once and from the graph's inputs."""

from __future__ import annotations

from collections.abc import Iterator

from whet.graph import Expr, Graph, Node, Patch, Shape, TensorType, Value
from whet.graph.dims import Atom, Known
from whet.ops.common import never_negative
from whet.passes.base import PassContext
from whet.passes.basic.common import ints, make


class ShapeArithmetic:
    """Computes integer values that follow from the extents of graph inputs straight from these, each value once.

    Exporters read the shapes of intermediate tensors wherever they need an extent; inference knows what comes out, as
    expressions over the inputs' free extents. Runs when that takes fewer nodes than there are now.
    """

    name = "shape-arithmetic"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        wanted = [v for node in graph for v in node.outputs if _is_wanted(v)]
        if not wanted:
            return
        builder = _Builder(graph)
        made = {value: builder.value(value) for value in wanted}
        present = sum(1 for node in graph if all(_known(v) for v in node.outputs))
        reached = {v: new for v, new in made.items() if new is not None}
        if not reached or len(reached) < len(wanted) or len(builder.nodes) >= present:
            for node in builder.nodes:
                node.detach()
            return
        anchor = next(iter(graph))
        yield Patch(anchor, builder.nodes, reached)


def _known(value: Value) -> bool:
    """Whether every element is known to inference and some depend on a free extent."""
    return value.symbolic is not None and None not in value.symbolic


def _is_wanted(value: Value) -> bool:
    """Known, and read by a node whose own result inference does not know."""
    if not _known(value) or not any(isinstance(e, Expr) for e in value.symbolic or ()):
        return False
    if not isinstance(value.type, TensorType) or value.type.dtype is None or value.type.dtype.name != "int64":
        return False
    return not value.graph_outputs and any(not all(_known(v) for v in reader.outputs) for reader in value.uses)


class _Builder:
    """Makes nodes that compute expressions over the graph inputs' extents, each expression once."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[Node] = []
        self._vectors: dict[Known, Value | None] = {}
        self._values: dict[tuple[Shape, int], Value | None] = {}
        self._extents: dict[str, tuple[Value, int]] = {}
        for value in graph.inputs:
            for axis, extent in enumerate(value.shape or ()):
                if isinstance(extent, Expr) and extent.name is not None:
                    self._extents.setdefault(extent.name, (value, axis))

    def value(self, like: Value) -> Value | None:
        """A value with the elements and rank of `like`, or None where an extent is no input's."""
        wanted = like.symbolic
        assert wanted is not None
        rank = len(like.shape or ())
        key = (wanted, rank)
        if key not in self._values:
            self._values[key] = self._build(wanted, rank)
        return self._values[key]

    def _build(self, wanted: Shape, rank: int) -> Value | None:
        parts: list[Value] = []
        numbers: list[int] = []
        for element in wanted:
            assert element is not None
            if isinstance(element, int):
                numbers.append(element)
                continue
            if numbers:
                parts.append(ints(*numbers))
                numbers = []
            part = self._vector(element)
            if part is None:
                return None
            parts.append(part)
        if numbers:
            parts.append(ints(*numbers))
        whole = parts[0] if len(parts) == 1 else self._add("Concat", parts, axis=0)
        return whole if rank == 1 else self._add("Squeeze", [whole, ints(0)])

    def _add(self, op: str, inputs: list[Value], **attributes: int) -> Value:
        node = make(op, inputs, attributes)
        self.nodes.append(node)
        return node.output

    def _vector(self, expression: Known) -> Value | None:
        """The expression as a vector of one element."""
        if isinstance(expression, int):
            return ints(expression)
        if expression not in self._vectors:
            self._vectors[expression] = self._sum(expression)
        return self._vectors[expression]

    def _sum(self, expression: Expr) -> Value | None:
        total: Value | None = None
        for monomial, coefficient in sorted(expression.terms.items(), key=lambda t: (-t[1], str(t[0]))):
            factors = [self._atom(atom) for atom in monomial]
            term = ints(coefficient) if coefficient not in (1, -1) or not factors else None
            for factor in factors:
                if factor is None:
                    return None
                term = factor if term is None else self._add("Mul", [term, factor])
            assert term is not None
            if total is not None:
                total = self._add("Sub" if coefficient == -1 and factors else "Add", [total, term])
            else:
                total = self._add("Neg", [term]) if coefficient == -1 and factors else term
        return total

    def _atom(self, atom: Atom) -> Value | None:
        if atom.op == "name":
            found = self._extents.get(str(atom.args[0]))
            if found is None:
                return None
            value, axis = found
            key = Expr({(atom,): 1})
            if self._vectors.get(key) is None:
                self._vectors[key] = self._add("Shape", [value], start=axis, end=axis + 1)
            return self._vectors[key]
        a, b = atom.args
        assert isinstance(a, (int, Expr))
        assert isinstance(b, (int, Expr))
        if atom.op == "floordiv" and not (never_negative(a) and never_negative(b - 1)):
            # Div truncates, which is flooring for these alone.
            return None
        left, right = self._vector(a), self._vector(b)
        if left is None or right is None:
            return None
        return self._add({"floordiv": "Div", "min": "Min", "max": "Max"}[atom.op], [left, right])
