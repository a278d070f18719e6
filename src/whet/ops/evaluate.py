"""Evaluation of single nodes with numpy: finding the kernel, checking its result's size, naming the node in errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx.defs

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import NotImplemented, ResourceExhausted, RuntimeException, WhetError, shorten
from whet.graph import Graph, Node, TensorData
from whet.ops.base import Kernel
from whet.ops.contrib.table import CONTRIB_KERNELS
from whet.ops.kernels.sizes import RESULT_BYTES
from whet.ops.kernels.table import KERNELS
from whet.ops.kernels.trees import PREPARED
from whet.ops.onnx_kernels import has_onnx_kernel, onnx_kernel

Bound = Callable[[Sequence[Any], Limits], list[Any]]
"""A node's kernel with its attributes bound: inputs and limits to outputs. Thread-safe."""


def find_kernel(node: Node) -> Kernel | None:
    """Whet's own kernel for this node's operator, or None."""
    kernel = KERNELS.get(node.op)
    if kernel is not None:
        return kernel
    if node.domain == "com.microsoft" or (node.domain == "" and not onnx.defs.has(node.op_type)):
        return CONTRIB_KERNELS.get(node.op_type)
    return None


def has_kernel(node: Node) -> bool:
    """Whether `evaluate_node` can run this node (one with subgraphs it never can)."""
    if any(True for _ in node.subgraphs()):
        return False
    return node.op in PREPARED or find_kernel(node) is not None or has_onnx_kernel(node)


def evaluate_node(node: Node, inputs: Sequence[Any], limits: Limits = DEFAULT_LIMITS) -> list[Any]:
    """The outputs of `node` (None for one left out) from its inputs, as arrays, lists (sequences) and dicts (maps).

    Raises typed errors that name the node: ResourceExhausted before a result past `limits.tensor_bytes` is allocated,
    NotImplemented for an operator without a kernel, InvalidArgument or RuntimeException for inputs it cannot take.
    """
    with np.errstate(all="ignore"):
        return bind(node)(inputs, limits)


def bind(node: Node) -> Bound:
    """The kernel of `node`, attributes decoded once; to be called under `np.errstate(all="ignore")`."""
    prepare = PREPARED.get(node.op)
    if prepare is not None:
        try:
            return bind_kernel(node, prepare(plain_attributes(node)))
        except Exception as error:
            raise explain(error, node, ()) from error
    kernel = find_kernel(node)
    if kernel is not None:
        return bind_kernel(node, kernel)
    if not has_kernel(node):
        raise NotImplemented(f"no kernel for operator {node.op}", node=node.label)
    try:
        run = onnx_kernel(node)
    except WhetError:
        raise
    except Exception as error:
        raise RuntimeException(f"the node's attributes do not fit its operator: {error}", node=node.label) from error
    attributes = plain_attributes(node)

    def call(inputs: Sequence[Any], limits: Limits) -> list[Any]:
        try:
            check_size(node, inputs, attributes, limits)
            return finish(node, run(inputs))
        except Exception as error:
            raise explain(error, node, inputs) from error

    return call


def bind_kernel(node: Node, kernel: Kernel) -> Bound:
    """`kernel` bound to the attributes and outputs of `node`, its errors made typed and naming the node."""
    attributes = plain_attributes(node)
    count = len(node.outputs)

    def call(inputs: Sequence[Any], limits: Limits) -> list[Any]:
        try:
            check_size(node, inputs, attributes, limits)
            return finish(node, kernel(inputs, attributes, count))
        except Exception as error:
            raise explain(error, node, inputs) from error

    return call


def plain_attributes(node: Node) -> dict[str, Any]:
    """The attributes of `node` with tensors as arrays; graphs are left out."""
    plain: dict[str, Any] = {}
    for name, value in node.attributes.items():
        if isinstance(value, TensorData):
            plain[name] = value.numpy()
        elif isinstance(value, tuple) and value and isinstance(value[0], TensorData):
            plain[name] = tuple(v.numpy() for v in value if isinstance(v, TensorData))
        elif not (isinstance(value, Graph) or (isinstance(value, tuple) and value and isinstance(value[0], Graph))):
            plain[name] = value
    return plain


def check_size(node: Node, inputs: Sequence[Any], attributes: Mapping[str, Any], limits: Limits) -> None:
    """Raise ResourceExhausted when the largest result of `node` would pass `limits.tensor_bytes`."""
    measure = RESULT_BYTES.get(node.op)
    if measure is None:
        return
    size = measure(inputs, attributes)
    if size > limits.tensor_bytes:
        raise ResourceExhausted(
            "the result would be larger than the limit",
            node=node.label,
            found=f"{size} bytes",
            expected=f"at most {limits.tensor_bytes} bytes",
            hint="Raise Limits.tensor_bytes if this is meant.",
        )


def finish(node: Node, results: Sequence[Any]) -> list[Any]:
    """A kernel's results as one item for each output of `node`: scalars as arrays, strings as object arrays."""
    outputs = [_as_value(r) for r in results[: len(node.outputs)]]
    outputs.extend([None] * (len(node.outputs) - len(outputs)))
    return outputs


def _as_value(result: Any) -> Any:
    if isinstance(result, np.ndarray):
        return result.astype(np.object_) if result.dtype.kind in "UST" else result
    if isinstance(result, (np.generic, int, float, bool, str)):
        array = np.asarray(result)
        return array.astype(np.object_) if array.dtype.kind in "UST" else array
    if isinstance(result, (list, tuple)):
        return [_as_value(r) for r in result]
    return result


def explain(error: Exception, node: Node, inputs: Sequence[Any]) -> Exception:
    """`error` with the node in it: typed errors as they are, others as RuntimeException over the inputs' types."""
    if isinstance(error, WhetError):
        if error.node is None:
            error.node = node.label
            error.value = _operand(node, error.value)
        return error
    found = ", ".join(describe(x) for x in inputs)
    if isinstance(error, MemoryError):
        return ResourceExhausted("there is not enough memory for the result", node=node.label, found=found)
    if isinstance(error, RecursionError):
        return RuntimeException("the node nests too deeply", node=node.label)
    text = shorten(str(error) or type(error).__name__)
    cause = error.__cause__
    if cause is not None and str(cause) and str(cause) not in text:
        text = f"{text} ({shorten(str(cause))})"
    return RuntimeException(f"the operator cannot take these inputs: {text}", node=node.label, found=found)


def describe(value: Any) -> str:
    """Element type and shape of a run-time value, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, list):
        return f"sequence of {len(value)}"
    return "nothing" if value is None else type(value).__name__


def _operand(node: Node, formal: str | None) -> str | None:
    """The standard's name of an input with the model's own name behind it."""
    if formal is None or node.domain != "" or not onnx.defs.has(node.op_type):
        return formal
    parameters = onnx.defs.get_schema(node.op_type).inputs
    for index, parameter in enumerate(parameters):
        value = node.input(index)
        if parameter.name == formal and value is not None:
            return f"input {index} ({formal}) {value.name!r}"
    return formal


def elements(shape: Sequence[int]) -> int:
    """The number of elements of a shape, as an unbounded integer."""
    return math.prod(int(d) for d in shape)
