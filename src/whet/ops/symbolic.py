"""Propagation of small integer values as symbolic dimensions, so that computed shapes are known before a run.

Each rule gives the elements of a node's first output, a scalar or vector of at most MAX_ELEMENTS numbers. Float values
are followed while they are integers (shape arithmetic that detours over floats), within what the type holds exactly.
"""

from __future__ import annotations

from collections.abc import Callable

from whet.graph import Node, Shape, TensorData
from whet.graph.dims import Dim, Expr, Known, exact_div, floor_div, maximum, minimum, product, static_shape
from whet.ops.common import MAX_ELEMENTS, dtype_of, elements, exact, follows, never_negative, shape_of, static_ints
from whet.ops.movement import shape_range


def shape(node: Node) -> Shape | None:
    source = shape_of(node.inputs[0])
    if source is None or len(source) > MAX_ELEMENTS:
        return None
    start, end = shape_range(node, len(source))
    return source[start:end]


def size(node: Node) -> Shape | None:
    source = shape_of(node.inputs[0])
    return None if source is None else (product(source),)


def identity(node: Node) -> Shape | None:
    return elements(node.inputs[0])


def cast(node: Node) -> Shape | None:
    found, to = elements(node.inputs[0]), dtype_of(node.outputs[0])
    if found is None or not follows(to):
        return None
    assert to is not None
    if to.kind == "bool":
        return tuple(int(d != 0) if isinstance(d, int) else None for d in found)
    return tuple(exact(d, to) for d in found)


def gather(node: Node) -> Shape | None:
    source, indices = elements(node.inputs[0]), static_ints(node.inputs[1])
    picked = shape_of(node.inputs[1])
    dims = shape_of(node.inputs[0])
    if source is None or indices is None or picked is None or len(picked) > 1 or dims is None or len(dims) != 1:
        return None
    if any(not -len(source) <= i < len(source) for i in indices):
        return None
    return tuple(source[i] for i in indices)


def slice_(node: Node) -> Shape | None:
    source = elements(node.inputs[0])
    if source is None or len(shape_of(node.inputs[0]) or ()) != 1:
        return None
    start, end, step = (static_ints(node.input(i)) for i in (1, 2, 4))
    if node.input(4) is None:
        step = (1,)
    if start is None or end is None or step is None or not len(start) == len(end) == len(step) == 1 or step == (0,):
        return None
    return source[slice(start[0], end[0], step[0])]


def concat(node: Node) -> Shape | None:
    result: list[Dim] = []
    for value in node.inputs:
        found = elements(value)
        if found is None:
            length = static_shape(shape_of(value))
            if length is None or len(length) != 1 or length[0] > MAX_ELEMENTS or not follows(dtype_of(value)):
                return None
            found = (None,) * length[0]
        result.extend(found)
    return tuple(result) if len(result) <= MAX_ELEMENTS else None


def view(node: Node) -> Shape | None:
    """Squeeze, Unsqueeze, Reshape: the same elements, as long as the result is a scalar or a vector."""
    dims = shape_of(node.outputs[0])
    return elements(node.inputs[0]) if dims is not None and len(dims) <= 1 else None


def expand(node: Node) -> Shape | None:
    source, dims = elements(node.inputs[0]), static_shape(shape_of(node.outputs[0]))
    return _spread(source, dims)


def _spread(source: Shape | None, dims: tuple[int, ...] | None) -> Shape | None:
    """The elements repeated to a scalar or vector of shape `dims`."""
    if source is None or dims is None or len(dims) > 1:
        return None
    length = dims[0] if dims else 1
    if length > MAX_ELEMENTS:
        return None
    if len(source) == length:
        return source
    return source * length if len(source) == 1 else None


def constant_of_shape(node: Node) -> Shape | None:
    dims = static_shape(shape_of(node.outputs[0]))
    value = node.attributes.get("value")
    if dims is None or len(dims) > 1 or not isinstance(value, TensorData) or not value.dtype.is_integer:
        return None
    return _spread((int(value.scalar()),), dims) if follows(value.dtype) and value.size == 1 else None


def range_(node: Node) -> Shape | None:
    dims = static_shape(shape_of(node.outputs[0]))
    start, delta = elements(node.inputs[0]), static_ints(node.inputs[2])
    if dims is None or start is None or delta is None or start[0] is None or dims[0] > MAX_ELEMENTS:
        return None
    first = start[0]
    return tuple(first + delta[0] * i for i in range(dims[0]))


def where(node: Node) -> Shape | None:
    condition, yes, no = (elements(v) for v in node.inputs[:3])
    dims = static_shape(shape_of(node.outputs[0]))
    condition, yes, no = _spread(condition, dims), _spread(yes, dims), _spread(no, dims)
    if condition is None or yes is None or no is None:
        return None
    return tuple(
        (y if c else n) if isinstance(c, int) else y if y == n else None
        for c, y, n in zip(condition, yes, no, strict=True)
    )


def reduce_prod(node: Node) -> Shape | None:
    found = _whole(node)
    return None if found is None else (exact(product(found), dtype_of(node.inputs[0])),)


def reduce_sum(node: Node) -> Shape | None:
    found = _whole(node)
    if found is None:
        return None
    total: Dim = 0
    for element in found:
        total = None if total is None or element is None else total + element
    return (exact(total, dtype_of(node.inputs[0])),)


def reduce_max(node: Node) -> Shape | None:
    return _extremum(_whole(node), maximum)


def reduce_min(node: Node) -> Shape | None:
    return _extremum(_whole(node), minimum)


def _extremum(found: Shape | None, choose: Callable[[Known, Known], Known]) -> Shape | None:
    if not found or found[0] is None:
        return None
    best: Known = found[0]
    for element in found[1:]:
        if element is None:
            return None
        best = choose(best, element)
    return (best,)


def _whole(node: Node) -> Shape | None:
    """The elements of the input when the node reduces all of them to one."""
    source, dims = elements(node.inputs[0]), shape_of(node.outputs[0])
    if source is None or dims is None or any(d != 1 for d in dims) or len(shape_of(node.inputs[0]) or ()) != 1:
        return None
    if node.input(1) is None and node.int_attr("noop_with_empty_axes", 0):
        return None
    return source


# Element by element ------------------------------------------------------------------------------------------------


def _pairwise(node: Node, combine: Callable[[Known, Known], Dim]) -> Shape | None:
    a, b = elements(node.inputs[0]), elements(node.inputs[1])
    if a is None or b is None:
        return None
    if len(a) != len(b):
        if len(a) == 1:
            a = a * len(b)
        elif len(b) == 1:
            b = b * len(a)
        else:
            return None
    dtype = dtype_of(node.inputs[0])
    return tuple(
        exact(combine(x, y), dtype) if x is not None and y is not None else None for x, y in zip(a, b, strict=True)
    )


def add(node: Node) -> Shape | None:
    return _pairwise(node, lambda x, y: x + y)


def sub(node: Node) -> Shape | None:
    return _pairwise(node, lambda x, y: x - y)


def mul(node: Node) -> Shape | None:
    return _pairwise(node, lambda x, y: x * y)


def div(node: Node) -> Shape | None:
    dtype = dtype_of(node.inputs[0])
    return _pairwise(node, _exact_quotient if dtype is not None and dtype.is_float else _quotient)


def _quotient(x: Known, y: Known) -> Dim:
    """Integer division as ONNX has it, truncating; None where the sign is open."""
    if y == 0:
        return None
    if isinstance(x, int) and isinstance(y, int):
        return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
    if never_negative(x) and never_negative(y):
        return floor_div(x, y)
    return exact_div(x, y)


def _exact_quotient(x: Known, y: Known) -> Dim:
    return None if y == 0 else exact_div(x, y)


def mod(node: Node) -> Shape | None:
    return _pairwise(node, _remainder) if not node.int_attr("fmod", 0) else None


def _remainder(x: Known, y: Known) -> Dim:
    if y == 0:
        return None
    if isinstance(x, int) and isinstance(y, int):
        return x % y
    return 0 if exact_div(x, y) is not None else None


def neg(node: Node) -> Shape | None:
    found = elements(node.inputs[0])
    return None if found is None else tuple(None if d is None else -d for d in found)


def max_(node: Node) -> Shape | None:
    return _pairwise(node, maximum) if len(node.inputs) == 2 else None


def min_(node: Node) -> Shape | None:
    return _pairwise(node, minimum) if len(node.inputs) == 2 else None


def equal(node: Node) -> Shape | None:
    return _truth(node, lambda d: int(d == 0) if isinstance(d, int) else _never_zero(d))


def _never_zero(difference: Expr) -> Dim:
    """0 (unequal) when the difference provably has one sign, else None."""
    return 0 if never_negative(difference - 1) or never_negative(-difference - 1) else None


def greater(node: Node) -> Shape | None:
    return _truth(node, lambda d: _at_least(d - 1))


def greater_or_equal(node: Node) -> Shape | None:
    return _truth(node, _at_least)


def less(node: Node) -> Shape | None:
    return _truth(node, lambda d: _at_least(-d - 1))


def less_or_equal(node: Node) -> Shape | None:
    return _truth(node, lambda d: _at_least(-d))


def _at_least(value: Known) -> Dim:
    """1 when `value` is never negative, 0 when it always is, None when that depends on extents."""
    if never_negative(value):
        return 1
    return 0 if never_negative(-value - 1) else None


def _truth(node: Node, of_difference: Callable[[Known], Dim]) -> Shape | None:
    a, b = elements(node.inputs[0]), elements(node.inputs[1])
    if a is None or b is None:
        return None
    dims = static_shape(shape_of(node.outputs[0]))
    a, b = _spread(a, dims), _spread(b, dims)
    if a is None or b is None:
        return None
    return tuple(None if x is None or y is None else of_difference(x - y) for x, y in zip(a, b, strict=True))


def not_(node: Node) -> Shape | None:
    found = elements(node.inputs[0])
    return None if found is None else tuple(1 - d if isinstance(d, int) else None for d in found)


def and_(node: Node) -> Shape | None:
    return _pairwise_logic(node, 0)


def or_(node: Node) -> Shape | None:
    return _pairwise_logic(node, 1)


def _pairwise_logic(node: Node, decisive: int) -> Shape | None:
    """And (decisive 0), Or (decisive 1): one decisive operand settles an element."""
    dims = static_shape(shape_of(node.outputs[0]))
    a, b = _spread(elements(node.inputs[0]), dims), _spread(elements(node.inputs[1]), dims)
    if a is None or b is None:
        return None
    return tuple(
        decisive if decisive in (x, y) else None if x is None or y is None else 1 - decisive
        for x, y in zip(a, b, strict=True)
    )
