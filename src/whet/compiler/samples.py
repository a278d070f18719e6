"""Whether the samples of a batch are computed apart: each row of the results from the same row of the inputs alone.

Where they are, a batch may be run a sample at a time, on each core its own, and the values between the steps of one
sample stay in that core's caches. The proof is by operator: one that this file does not name proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.compiler.specialize import Specialized
from whet.graph import Node, TensorType, Value
from whet.graph.dims import Dim, Expr, symbol

_Rule = Callable[["_Proof", Node], bool]
"""Whether the first axis of every result is that of the batched operands, sample by sample."""


def batch_symbol(specialized: Specialized) -> int | None:
    """The index of the symbol that counts samples which are computed apart; None where there is none.

    It is the first extent of every input and result in which it occurs, each result has it, and no value depends on it
    in another way.
    """
    graph = specialized.graph
    for index, (name, (_, axis)) in enumerate(zip(specialized.symbols, specialized.sources, strict=True)):
        if axis == 0 and _Proof(symbol(name), name).holds(graph.inputs, list(graph), graph.outputs):
            return index
    return None


class _Proof:
    def __init__(self, count: Expr, name: str) -> None:
        self._count = count
        self._name = name
        self._batched: set[Value] = set()
        self._numbers: set[Value] = set()
        """Small integers that are computed from the number of samples."""

    def holds(self, inputs: list[Value], nodes: list[Node], outputs: tuple[Value, ...]) -> bool:
        for value in inputs:
            if self._leads(value):
                self._batched.add(value)
            elif not self._free(value):
                return False
        return all(map(self._node, nodes)) and all(v in self._batched for v in outputs)

    def _node(self, node: Node) -> bool:
        if any(True for _ in node.subgraphs()):
            return False
        given = [v for v in node.inputs if v is not None]
        if node.op in ("Shape", "Size"):
            self._numbers.update(node.outputs)
            return True
        if not any(v in self._batched for v in given) and not self._is_spread(node):
            if any(v in self._numbers for v in given):
                self._numbers.update(node.outputs)
                return True
            return all(map(self._free, node.outputs))
        for position, value in enumerate(node.inputs):
            if value in self._numbers and (node.op, position) not in (("Reshape", 1), ("Expand", 1)):
                return False
        rule = _RULES.get(node.op)
        if rule is None or not rule(self, node) or not all(map(self._leads, node.outputs)):
            return False
        self._batched.update(node.outputs)
        return True

    def _is_spread(self, node: Node) -> bool:
        """Whether a value that has no samples is repeated for each."""
        return node.op == "Expand" and node.inputs[1] in self._numbers and not self._free(node.output)

    def _leads(self, value: Value) -> bool:
        """Whether the samples are the value's first axis, and no other extent depends on their number."""
        shape = _shape(value)
        return shape is not None and len(shape) > 0 and shape[0] == self._count and all(map(self._apart, shape[1:]))

    def _free(self, value: Value) -> bool:
        shape = _shape(value)
        return shape is not None and all(map(self._apart, shape))

    def _apart(self, dim: Dim) -> bool:
        return isinstance(dim, int) or (isinstance(dim, Expr) and self._name not in dim.names())

    # What the rules ask.

    def batched(self, value: Value | None) -> bool:
        return value in self._batched

    def alike(self, node: Node, *values: Value | None) -> bool:
        """Whether operands that are broadcast to the result have their samples, or none, along its first axis."""
        rank = len(_shape(node.outputs[0]) or ())
        for value in values:
            if value is None:
                continue
            shape = _shape(value)
            if shape is None or (
                len(shape) != rank if value in self._batched else len(shape) == rank and shape[0] != 1
            ):
                return False
        return True


def _shape(value: Value) -> tuple[Dim, ...] | None:
    kind = value.type
    return kind.shape if isinstance(kind, TensorType) else None


def _rank(value: Value | None) -> int:
    shape = None if value is None else _shape(value)
    return 0 if shape is None else len(shape)


def _constant(node: Node, index: int) -> list[int] | None:
    """A small operand's numbers, where they are known."""
    value = node.input(index)
    return None if value is None or value.array is None else [int(n) for n in value.array.reshape(-1)]


def _axis_is_inner(node: Node, axis: int) -> bool:
    """Whether an axis of the first operand, or of what has its rank, is not the first."""
    rank = _rank(node.input(0))
    return rank > 0 and axis % rank != 0


def _broadcast(proof: _Proof, node: Node) -> bool:
    return proof.alike(node, *node.inputs)


def _by_sample(proof: _Proof, node: Node) -> bool:
    """Only the first operand has samples; the others are parameters."""
    return proof.batched(node.input(0)) and not any(map(proof.batched, node.inputs[1:]))


def _max_pool(proof: _Proof, node: Node) -> bool:
    # The positions of its second result count from the first sample on.
    return _by_sample(proof, node) and not any(v.use_count or v.graph_outputs for v in node.outputs[1:])


def _batch_norm(proof: _Proof, node: Node) -> bool:
    return _by_sample(proof, node) and not node.int_attr("training_mode", 0)


def _quantize(proof: _Proof, node: Node) -> bool:
    # One scale, or one for each place along an axis; not blocks of places, which go along the samples too.
    rank = _rank(node.input(1))
    return _by_sample(proof, node) and (rank == 0 or (rank == 1 and _axis_is_inner(node, node.int_attr("axis", 1))))


def _norm(proof: _Proof, node: Node) -> bool:
    return _along(-1)(proof, node) and proof.alike(node, *node.inputs[1:])


def _along(default: int) -> _Rule:
    """Along the axis that the attribute names."""

    def rule(proof: _Proof, node: Node) -> bool:
        return _by_sample(proof, node) and _axis_is_inner(node, node.int_attr("axis", default))

    return rule


def _over(index: int) -> _Rule:
    """Along the axes that an operand names, which must name some."""

    def rule(proof: _Proof, node: Node) -> bool:
        axes = _constant(node, index)
        return _by_sample(proof, node) and bool(axes) and all(_axis_is_inner(node, a) for a in axes or ())

    return rule


def _reshape(proof: _Proof, node: Node) -> bool:
    # In row-major order, what keeps the first extent keeps the samples.
    return proof.batched(node.input(0))


def _transpose(proof: _Proof, node: Node) -> bool:
    return node.ints_attr("perm", range(_rank(node.input(0)))[::-1])[:1] == (0,)


def _concat(proof: _Proof, node: Node) -> bool:
    return all(map(proof.batched, node.inputs)) and _axis_is_inner(node, node.int_attr("axis", 0))


def _gather(proof: _Proof, node: Node) -> bool:
    data, indices = node.input(0), node.input(1)
    axis = node.int_attr("axis", 0) % max(_rank(data), 1)
    if proof.batched(data):
        return axis != 0 and not proof.batched(indices)
    return axis == 0


def _unsqueeze(proof: _Proof, node: Node) -> bool:
    axes = _constant(node, 1)
    return proof.batched(node.input(0)) and axes is not None and 0 not in [a % _rank(node.output) for a in axes]


def _pad(proof: _Proof, node: Node) -> bool:
    pads, axes = _constant(node, 1), _constant(node, 3)
    if not _by_sample(proof, node) or pads is None or (node.input(3) is not None and axes is None):
        return False
    rank = _rank(node.input(0))
    padded = [a % rank for a in axes] if axes is not None else list(range(rank))
    return all(
        axis != 0 or pads[i] == pads[i + len(padded)] == 0 for i, axis in enumerate(padded)
    )  # fmt: skip


def _resize(proof: _Proof, node: Node) -> bool:
    # The extent stays, so each sample stays where it is, unless a region of the input is cropped.
    return _by_sample(proof, node) and node.str_attr("coordinate_transformation_mode", "") != "tf_crop_and_resize"


def _matmul(proof: _Proof, node: Node) -> bool:
    a, b = node.input(0), node.input(1)
    rank = _rank(node.output)
    if proof.batched(b):
        return rank >= 3 and proof.alike(node, a, b)
    return _rank(a) == rank >= 2 and (_rank(b) <= 2 or proof.alike(node, b)) and (rank > 2 or _rank(b) == 2)


def _gemm(proof: _Proof, node: Node) -> bool:
    a, b, c = node.input(0), node.input(1), node.input(2)
    return proof.batched(a) and not node.int_attr("transA", 0) and not proof.batched(b) and proof.alike(node, c)


def _attention(proof: _Proof, node: Node) -> bool:
    mask = node.input(3)
    shape = None if mask is None else _shape(mask)
    if mask is not None and not proof.batched(mask) and (shape is None or (len(shape) == 4 and shape[0] != 1)):
        return False
    if proof.batched(mask) and _rank(mask) != 4:
        return False
    given = [v for i, v in enumerate(node.inputs) if i != 3 and v is not None]
    return all(map(proof.batched, given)) and len(node.inputs) <= 6


_RULES: dict[str, _Rule] = {
    **dict.fromkeys((op for op in SCALAR_RULES if "." not in op), _broadcast),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    **dict.fromkeys(
        (
            "Conv", "ConvTranspose", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool",
            "GlobalLpPool", "InstanceNormalization", "GroupNormalization", "LRN", "DepthToSpace",
            "SpaceToDepth",
        ),
        _by_sample,
    ),
    "MaxPool": _max_pool,
    "BatchNormalization": _batch_norm,
    **dict.fromkeys(
        ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
         "ReduceProd", "ReduceSum", "ReduceSumSquare"),
        _over(1),
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), _along(-1)),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _norm),
    **dict.fromkeys(("ArgMax", "ArgMin", "Split"), _along(0)),
    "TopK": _along(-1),
    "CumSum": _over(1),
    "Slice": _over(3),
    "Squeeze": _over(1),
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Expand": _broadcast,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Attention": _attention,
}  # fmt: skip
"""Operators that may keep samples apart, and when they do."""
