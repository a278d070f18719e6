"""Which small integers of a graph reach a shape, an axis or a branch, and where they come from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from whet.graph import Graph, Node, TensorType, Value

SHAPE_OPERANDS: dict[str, tuple[int, ...]] = {
    "Reshape": (1,),
    "Expand": (1,),
    "Tile": (1,),
    "ConstantOfShape": (0,),
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Split": (1,),
    "Resize": (1, 2, 3),
    "Range": (0, 1, 2),
    "TopK": (1,),
    "OneHot": (1,),
    "CumSum": (1,),
    "CumProd": (1,),
    "Trilu": (1,),
    "If": (0,),
    "Loop": (0,),
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    "DFT": (1, 2),
    "STFT": (1, 3),
    "MaxUnpool": (2,),
    "Col2Im": (1, 2),
    "Dropout": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    **dict.fromkeys(
        ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
         "ReduceLogSumExp", "ReduceSumSquare"),
        (1,),
    ),
}  # fmt: skip
"""Operands whose numbers decide what a program looks like: constants of a specialization."""

SMALL = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Cast", "Concat", "Gather", "Squeeze", "Unsqueeze", "Slice",
        "Reshape", "Identity", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or", "Where",
        "Neg", "Abs", "Ceil", "Floor", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "Range", "ConstantOfShape",
        "Expand", "Split", "Flatten", "Transpose", "Tile", "Sqrt", "Round", "Sign", "Pow", "CastLike", "If",
    }
)  # fmt: skip
"""Operators that shape arithmetic is made of: a value is followed back through them."""

ALWAYS_KNOWN = frozenset({"Shape", "Size"})
"""Their results depend on extents only."""

MOST_ELEMENTS = 64
"""Larger inputs are data."""


def shape_operands(node: Node) -> Iterable[Value]:
    """The operands of `node` that must be known before its program is made."""
    if node.op == "Loop" and len(node.outputs) == len(node.inputs) - 2:
        # Nothing grows by the number of rounds.
        return
    for index in SHAPE_OPERANDS.get(node.op, ()):
        value = node.input(index)
        if value is not None:
            yield value


def sources(
    value: Value, found: dict[Value, None], seen: set[Value], inputs: Collection[Value] | None = None
) -> str | None:
    """Adds to `found` the graph inputs that `value` is computed from; a reason where it depends on large data.

    With `inputs`, those of the main graph, also a reason where it depends on what changes within a run.
    """
    waiting = [value]
    while waiting:
        here = waiting.pop()
        if here.data is not None or here in seen:
            continue
        seen.add(here)
        node = here.producer
        if node is None:
            if inputs is not None and here not in inputs:
                if is_known(here):
                    continue
                return f"it depends on {here.name!r}, which changes from one iteration to the next"
            if not _small(here):
                return f"it depends on the elements of {here.name!r}, which is not small"
            found[here] = None
        elif node.op in ALWAYS_KNOWN or is_known(here):
            continue
        elif node.op in SMALL:
            waiting.extend(v for v in (*node.inputs, *node.captured()) if v is not None)
        else:
            return f"it depends on the result of {node.label}, which is data"
    return None


def structural_inputs(graph: Graph, skip: Callable[[Node], bool] = lambda node: False) -> tuple[int, ...]:
    """Positions of the graph inputs whose elements are constants of a specialization.

    Operands of nodes that `skip` names do not count.
    """
    found: dict[Value, None] = {}
    seen: set[Value] = set()
    for node in graph.all_nodes():
        for value in shape_operands(node):
            if not skip(node):
                sources(value, found, seen)
    return tuple(i for i, value in enumerate(graph.inputs) if value in found)


def is_known(value: Value) -> bool:
    return value.symbolic is not None and all(e is not None for e in value.symbolic)


def _small(value: Value) -> bool:
    kind = value.type
    if not isinstance(kind, TensorType) or kind.dtype is None or kind.shape is None:
        return False
    size = 1
    for extent in kind.shape:
        if isinstance(extent, int):
            size *= extent
        elif len(kind.shape) > 1:
            return False
    return size <= MOST_ELEMENTS and len(kind.shape) <= 1 and kind.dtype.kind in ("int", "uint", "bool", "float")
