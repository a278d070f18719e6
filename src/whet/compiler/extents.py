"""Names for the extents that a run finds out: of results whose size the data decides, and of what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.errors import InvalidGraph, NotImplemented
from whet.graph import Graph, Node, TensorType, Value
from whet.graph.dims import Dim, Expr, Known, maximum, minimum, symbol
from whet.ops.common import elements
from whet.ops.infer import infer_node
from whet.ops.infer_table import INFER

Guess = Callable[[Node], bool]
"""Whether the unknown extents of a node's results may be taken for free ones (while claims are made)."""


def name_extents(graph: Graph, guess: Guess = lambda node: False) -> None:
    """Let every extent be known: as a number, in names of the graph's inputs, or in names that the program declares.

    Those are the names of an extent of the value that has it first, and of a loop's count of rounds; the lowering of
    the node that makes the value declares them. Raises NotImplemented naming a node whose result has an extent that
    nothing bounds, or a loop whose state changes its shape.
    """
    if any(node.op in MEASURED or any(map(_is_open, node.outputs)) for node in graph.all_nodes()) or _has_control(
        graph
    ):
        _Namer(guess).settle(graph)


def unbounded_nodes(graph: Graph, guess: Guess) -> dict[Node, str]:
    """The nodes of a main graph whose results depend on extents that a run finds out in a way that nothing bounds."""
    found: dict[Node, str] = {}
    namer = _Namer(guess)
    for node in graph:
        try:
            namer.settle_node(node)
        except (NotImplemented, InvalidGraph) as error:
            if namer.follows_data(node):
                found[node] = error.problem
            namer.free(node)
    return found


def _has_control(graph: Graph) -> bool:
    return any(True for node in graph for _ in node.subgraphs())


def _is_open(value: Value) -> bool:
    """Whether the value is a tensor of known rank with an extent that is not known."""
    return value.shape is not None and any(d is None for d in value.shape)


def branches(node: Node) -> tuple[Graph, Graph]:
    """The graphs of an If: that for true, that for false."""
    return body_of(node, "then_branch"), body_of(node, "else_branch")


def body_of(node: Node, name: str = "body") -> Graph:
    """A graph among a node's attributes."""
    graph = node.attributes[name]
    assert isinstance(graph, Graph)
    return graph


def repeated_dim(a: Known, b: Known) -> Known:
    """The extent that broadcasting two gives where either may be 1."""
    if a == b or b == 1:
        return a
    if a == 1:
        return b
    if isinstance(a, int):
        return a
    if isinstance(b, int):
        return b
    # The larger one; nothing where one of them is 0.
    return maximum(a, b) * minimum(minimum(a, b), 1)


class _Namer:
    def __init__(self, guess: Guess) -> None:
        self.guess = guess
        self.made: list[str] = []
        """Every name that has been given."""

    def settle(self, graph: Graph) -> None:
        for node in graph:
            self.settle_node(node)

    def settle_node(self, node: Node) -> None:
        infer_node(node)
        if node.op == "If":
            self._if(node)
        elif node.op == "Loop":
            self._loop(node)
        elif node.op == "Scan":
            self._scan(node)
        else:
            if node.op in OPEN:
                # What the model declares of these is a wish.
                for value, kind in zip(node.outputs, INFER[node.op](node), strict=False):
                    value.type = kind
            if any(map(_is_open, node.outputs)):
                self._node(node)

    def free(self, node: Node) -> None:
        """Let the results of a node be what comes from outside."""
        for value in node.outputs:
            self._open(value)

    def follows_data(self, node: Node) -> bool:
        """Whether an extent that a run finds out reaches the node."""
        names = set(self.made)
        for value in (*node.inputs, *node.captured()):
            dims = () if value is None else (*(value.shape or ()), *(value.symbolic or ()))
            if any(isinstance(d, Expr) and d.names() & names for d in dims):
                return True
        return False

    def _name(self, value: Value, axis: int | str) -> Expr:
        self.made.append(f"{value.name} axis {axis} #{len(self.made)}")
        return symbol(self.made[-1])

    def _set(self, value: Value, dims: Sequence[Dim]) -> None:
        kind = value.type
        assert isinstance(kind, TensorType)
        value.type = TensorType(kind.dtype, tuple(dims), kind.sparse)

    def _open(self, value: Value) -> None:
        """Names for what is not known of a value's extents."""
        if value.shape is not None:
            self._set(value, [self._name(value, i) if d is None else d for i, d in enumerate(value.shape)])

    def _node(self, node: Node) -> None:
        if node.op in SCALAR_RULES or node.op == "Expand":
            shapes = [v.shape for v in node.inputs if v is not None]
            if node.op == "Expand":
                shapes = [shapes[0], elements(node.inputs[1])]
            self._broadcast(node, shapes)
        elif node.op == "MatMul":
            a, b = (v.shape if v is not None and v.shape is not None else () for v in node.inputs[:2])
            product = node.output.shape or ()
            rows = (len(a) > 1) + (len(b) > 1)
            batch = len(product) - rows
            self._broadcast(node, [a[:-2], b[:-2]], product[batch:])
        elif node.op == "Concat":
            self._concat(node)
        elif node.op in OPEN:
            self._open(node.output)
            for value in node.outputs[1:]:
                # TopK: indices of the values.
                self._set(value, node.output.shape or ())
        if any(_is_open(v) for v in node.outputs) and self.guess(node):
            for value in node.outputs:
                self._open(value)
        if any(_is_open(v) and v.use_count for v in node.outputs):
            raise _unknown(node)

    def _broadcast(self, node: Node, shapes: Sequence[Sequence[Dim] | None], tail: Sequence[Dim] = ()) -> None:
        known: list[list[Known]] = []
        for shape in shapes:
            dims = [d for d in shape or () if d is not None]
            if shape is None or len(dims) != len(shape):
                return
            known.append(dims)
        rank = max(map(len, known))
        result: list[Known] = [1] * rank
        for dims in known:
            for i, dim in enumerate(dims):
                at = rank - len(dims) + i
                result[at] = repeated_dim(result[at], dim)
        self._set(node.output, [*result, *tail])

    def _concat(self, node: Node) -> None:
        """Extents that must agree, of which a run tells whether they do: any of them."""
        shapes = [v.shape for v in node.inputs if v is not None and v.shape is not None]
        dims = list(node.output.shape or ())
        for axis, dim in enumerate(dims):
            if dim is None and axis != node.int_attr("axis", 0) % len(dims):
                dims[axis] = next((s[axis] for s in shapes if s[axis] is not None), None)
        self._set(node.output, dims)

    def _if(self, node: Node) -> None:
        for graph in branches(node):
            self.settle(graph)
        infer_outputs = [graph.outputs for graph in branches(node)]
        for value, one, other in zip(node.outputs, *infer_outputs, strict=True):
            kinds = one.type, other.type
            if not (isinstance(kinds[0], TensorType) and isinstance(kinds[1], TensorType)):
                raise _unknown(node)
            a, b = kinds[0].shape, kinds[1].shape
            if a is None or b is None or len(a) != len(b) or kinds[0].dtype is not kinds[1].dtype:
                if value.use_count:
                    raise _unknown(node, "its branches make tensors of different ranks or types")
                continue
            inner = set(self.made)
            same = [x if x == y and not (isinstance(x, Expr) and x.names() & inner) else None
                    for x, y in zip(a, b, strict=True)]  # fmt: skip
            value.type = TensorType(kinds[0].dtype, tuple(same))
            self._open(value)

    def _loop(self, node: Node) -> None:
        body, before = body_of(node), len(self.made)
        body.inputs[0].symbolic = (self._name(body.inputs[0], "round"),)
        self._carry(node, body, list(node.inputs[2:]), body.inputs[2:], body.outputs[1 : len(node.inputs) - 1])
        inside = set(self.made[before:])
        carried = len(node.inputs) - 2
        stacked = [v for v in node.outputs[carried:] if v.use_count]
        if not stacked:
            return
        rounds = loop_rounds(node)
        if rounds is None and not (node.input(0) is not None and self.guess(node)):
            raise _unknown(node, "nothing bounds its number of rounds, by which its results grow")
        length = rounds if rounds is not None and runs_all(node) else self._name(stacked[0], "rounds")
        for value, made in zip(node.outputs[carried:], body.outputs[carried + 1 :], strict=True):
            self._stack(node, value, made, length, 0, inside)

    def _scan(self, node: Node) -> None:
        body, before = body_of(node), len(self.made)
        count = len(node.inputs) - node.int_attr("num_scan_inputs", 0)
        axes = node.ints_attr("scan_input_axes", (0,) * (len(node.inputs) - count))
        length: Dim = None
        for value, inner, axis in zip(node.inputs[count:], body.inputs[count:], axes, strict=True):
            if value is None or value.shape is None or not isinstance(value.type, TensorType):
                raise _unknown(node)
            dims = list(value.shape)
            own = dims.pop(axis % len(dims))
            length = own if length is None else length
            inner.type = TensorType(value.type.dtype, tuple(dims))
        self._carry(node, body, list(node.inputs[:count]), body.inputs[:count], body.outputs[:count])
        inside = set(self.made[before:])
        out_axes = node.ints_attr("scan_output_axes", (0,) * (len(body.outputs) - count))
        if length is None:
            raise _unknown(node)
        for value, made, axis in zip(node.outputs[count:], body.outputs[count:], out_axes, strict=True):
            self._stack(node, value, made, length, axis, inside)

    def _carry(
        self,
        node: Node,
        body: Graph,
        initial: Sequence[Value | None],
        inputs: Sequence[Value],
        results: Sequence[Value],
    ) -> None:
        """The types of a loop's states, which are the same in every round, and of what its body holds."""
        for value, inner in zip(initial, inputs, strict=True):
            if value is None or not isinstance(value.type, TensorType):
                raise _unknown(node, "a value that it carries is no tensor")
            inner.type = value.type
        self.settle(body)
        for value, made, outer in zip(initial, results, node.outputs, strict=False):
            assert value is not None
            assert isinstance(value.type, TensorType)
            if not isinstance(made.type, TensorType) or made.type.dtype is not value.type.dtype:
                raise _unknown(node, f"{made.name} has another element type than the state that it replaces")
            if made.type.shape is None or made.type.shape != value.type.shape:
                raise _unknown(node, f"the state {made.name} changes its shape from {value.type} to {made.type}")
            outer.type = value.type

    def _stack(self, node: Node, value: Value, made: Value, length: Known, axis: int, inside: set[str]) -> None:
        kind = made.type
        if not isinstance(kind, TensorType) or kind.dtype is None or kind.shape is None:
            raise _unknown(node, f"{made.name} is no tensor of known rank")
        if any(d is None or (isinstance(d, Expr) and d.names() & inside) for d in kind.shape):
            raise _unknown(node, f"the shape of {made.name} depends on the round")
        dims = list(kind.shape)
        dims.insert(axis % (len(dims) + 1), length)
        value.type = TensorType(kind.dtype, tuple(dims))


OPEN = frozenset({"NonZero", "Compress", "Reshape", "Slice", "TopK"})
"""Operators whose results' extents the data may decide, within what their operands bound."""

MEASURED = frozenset({"NonZero", "Compress"})
"""Those whose extents nothing but the data decides."""

ENDLESS = 1 << 62
"""Loops of more rounds than this are as good as unbounded."""


def loop_rounds(node: Node) -> Known | None:
    """The most rounds that a Loop makes, where that is known."""
    limit = elements(node.input(0))
    if limit is None or len(limit) != 1 or limit[0] is None:
        return None
    rounds = maximum(limit[0], 0)
    return None if isinstance(rounds, int) and rounds >= ENDLESS else rounds


def runs_all(node: Node) -> bool:
    """Whether nothing but the limit ends a Loop: its condition is left out or always true."""
    given, body = node.input(1), body_of(node)
    return (given is None or _is_true(given)) and (body.outputs[0] is body.inputs[1] or keeps_going(body))


def keeps_going(body: Graph) -> bool:
    """Whether the condition that a loop's body computes is always true, if the one before was."""
    made = body.outputs[0]
    while made.producer is not None and made.producer.op == "Identity" and made.producer.inputs[0] is not None:
        made = made.producer.inputs[0]
    return made is body.inputs[1] or _is_true(made)


def _is_true(value: Value) -> bool:
    found = elements(value)
    return found is not None and len(found) == 1 and isinstance(found[0], int) and found[0] != 0


def _unknown(node: Node, reason: str = "an extent stays unknown until the model runs") -> NotImplemented:
    value = next((v for v in node.outputs if v.use_count and _is_open(v)), None)
    return NotImplemented(
        reason, node=node.label, value=None if value is None else value.name,
        found=None if value is None else str(value.type),
    )  # fmt: skip
