"""Constant folding: nodes whose inputs are constants, and values that shape inference knows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from whet import dtypes
from whet.dtypes import STRING, DType
from whet.errors import WhetError
from whet.graph import Graph, Node, Patch, TensorData, TensorType, Value
from whet.graph.dims import static_shape
from whet.ops.base import NON_DETERMINISTIC
from whet.ops.evaluate import evaluate_node, has_kernel
from whet.ops.infer import infer_node
from whet.passes.base import PassContext
from whet.passes.basic.common import constant, constant_true

_NEVER = NON_DETERMINISTIC | {"Identity", "DequantizeLinear", "com.microsoft.DequantizeLinear"}
"""Not folded: random operators; Identity, which may carry an output's name; dequantization, to keep weights small."""

_BOUNDED_BY_INPUT = frozenset({"NonZero", "Compress", "Unique"})
"""Their result's size depends on data, but is at most a few times that of the input."""

_STRING_BYTES = 64
"""What one string element counts towards the budget."""


class ConstantFolding:
    """Replaces values that can be computed before a run by constants.

    A result's size must be known before it is computed, and be within `Limits.fold_bytes`, or no larger than the inputs
    where nothing else reads them. A node that fails stays, so that the error is raised when it runs. What a fold makes
    known is inferred at once.
    """

    name = "constant-folding"

    def patches(self, graph: Graph, context: PassContext) -> Iterator[Patch]:
        stale: set[Node] = set()
        yield from self._fold(graph, context, stale)

    def _fold(self, graph: Graph, context: PassContext, stale: set[Node]) -> Iterator[Patch]:
        for node in graph:
            if node in stale:
                stale.discard(node)
                _infer_again(node, stale)
            for subgraph in node.subgraphs():
                yield from self._fold(subgraph, context, stale)
            made = self._known(node) or self._evaluated(node, context)
            if not made:
                continue
            for old in made:
                stale.update(old.uses)
            unread = all(v in made or v.use_count == 0 for v in node.outputs)
            yield Patch(node, (), made, [node] if unread else [])

    def _known(self, node: Node) -> dict[Value, Value] | None:
        """Constants for outputs whose elements inference knows."""
        found: dict[Value, Value] = {}
        for value in node.outputs:
            if value.symbolic is None or node.op == "Identity" or not value.use_count:
                continue
            kind = value.type
            shape = static_shape(value.shape)
            if not isinstance(kind, TensorType) or shape is None or math.prod(shape) != len(value.symbolic):
                continue
            if kind.dtype is None or not (kind.dtype.is_integer or kind.dtype.kind == "bool"):
                continue
            numbers = [e for e in value.symbolic if isinstance(e, int)]
            if len(numbers) == len(value.symbolic) and all(_fits(number, kind.dtype) for number in numbers):
                found[value] = constant(np.array(numbers, kind.dtype.numpy).reshape(shape))
        return found

    def _evaluated(self, node: Node, context: PassContext) -> dict[Value, Value] | None:
        """Constants for all outputs of a node that reads constants only, or None where folding is refused."""
        for value in node.inputs:
            if value is not None and value.data is None:
                return None
        if node.op in _NEVER or not any(v.use_count for v in node.outputs) or not has_kernel(node):
            return None
        if node.op == "Dropout" and constant_true(node.input(2)):
            return None
        limits = context.limits
        if context.folding_seconds > limits.fold_seconds:
            context.refuse(self.name, node, f"the time for folding ({limits.fold_seconds:g} s) is used up")
            return None
        read = sum(_constant_bytes(v.data) for v in node.inputs if v is not None and v.data is not None)
        size = _result_bytes(node, read)
        # A large result may take the place of its inputs, not stand beside them.
        freed = read if all(v is None or v.only_use is node for v in node.inputs) else 0
        if size is None or size > max(limits.fold_bytes, freed):
            reason = (
                "its result's size is not known before it is computed" if size is None else f"it makes {size} bytes"
            )
            context.refuse(self.name, node, reason)
            return None
        started = time.perf_counter()
        budget = replace(limits, tensor_bytes=max(limits.fold_bytes, 8 * read))
        try:
            results = evaluate_node(node, [None if v is None else v.array for v in node.inputs], budget)
        except WhetError as error:
            context.refuse(self.name, node, f"it fails: {error.problem}")
            return None
        finally:
            context.folding_seconds += time.perf_counter() - started
        return self._constants(node, results, context)

    def _constants(self, node: Node, results: list[object], context: PassContext) -> dict[Value, Value] | None:
        found: dict[Value, Value] = {}
        for value, result in zip(node.outputs, results, strict=False):
            if not value.use_count:
                continue
            kind = value.type
            if not isinstance(result, (np.ndarray, np.generic)) or not isinstance(kind, TensorType):
                context.refuse(self.name, node, "its result is no tensor")
                return None
            array = np.asarray(result)
            if kind.dtype is not None and dtypes.from_numpy(array.dtype) is not kind.dtype:
                context.refuse(self.name, node, f"its kernel made {array.dtype} where {kind.dtype} is expected")
                return None
            found[value] = constant(TensorData.from_array(array, kind.dtype))
        return found


def _infer_again(node: Node, stale: set[Node]) -> None:
    """Infer a node whose inputs have become constant; its readers follow when it learned something."""
    before = [(v.type, v.symbolic) for v in node.outputs]
    infer_node(node)
    for value, (kind, symbolic) in zip(node.outputs, before, strict=True):
        if value.type != kind or value.symbolic != symbolic:
            stale.update(value.uses)


def _fits(number: int, dtype: DType) -> bool:
    """Whether `dtype` holds `number`: inference counts without wrapping around."""
    if dtype.kind == "bool":
        return True
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "int" else 0
    return low <= number < low + (1 << dtype.bits)


def _constant_bytes(data: TensorData) -> int:
    return data.size * _STRING_BYTES if data.dtype is STRING else data.dtype.storage_bytes(data.size)


def _result_bytes(node: Node, read: int) -> int | None:
    """Bytes that all outputs take together, or None where that is not known before they are computed."""
    if node.op in _BOUNDED_BY_INPUT:
        data = node.inputs[0].data if node.inputs[0] is not None else None
        return None if data is None else 8 * max(len(data.shape), 1) * data.size + 3 * 8 * data.size
    total = 0
    for value in node.outputs:
        kind = value.type
        shape = static_shape(value.shape)
        if not isinstance(kind, TensorType) or kind.dtype is None or shape is None:
            return None
        count = math.prod(shape)
        total += count * _STRING_BYTES if kind.dtype is STRING else kind.dtype.storage_bytes(count)
    return total
