"""The one file that wraps `onnx.reference`'s kernels (private to each minor version of onnx, which is pinned)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx.defs

from whet.formats.onnx import node_to_proto
from whet.graph import Graph, Node

# Looked up by name when the first kernel is asked for: importing them costs more than most models take to load.
_LOADERS: Mapping[str, str] = {
    "": "onnx.reference.ops",
    "ai.onnx.ml": "onnx.reference.ops.aionnxml",
    "ai.onnx.preview": "onnx.reference.ops.aionnx_preview",
    "ai.onnx.preview.training": "onnx.reference.ops.aionnx_preview_training",
}

_WRITES_ITS_INPUT: frozenset[str] = frozenset({"MaxUnpool", "Imputer", "Binarizer", "Normalizer"})
"""Operators whose kernels may write into their arguments: these get copies; all others get read-only views."""


@cache
def _kernel_class(domain: str, op_type: str) -> type[Any] | None:
    module = _LOADERS.get(domain)
    if module is None:
        return None
    base = importlib.import_module("onnx.reference.op_run").OpRun
    try:
        found = importlib.import_module(module).load_op(
            domain, op_type, onnx.defs.onnx_opset_version() if domain == "" else None
        )
    except (NotImplementedError, AssertionError, KeyError, RuntimeError):
        # How the loaders say that they have no kernel (for an operator that is a function: by an assertion).
        return None
    return found if isinstance(found, type) and issubclass(found, base) else None


def has_onnx_kernel(node: Node) -> bool:
    """Whether `onnx.reference` has a kernel for this node's operator."""
    return _kernel_class(node.domain, node.op_type) is not None


def onnx_kernel(node: Node) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The kernel of `node`, its attributes bound. Subgraphs are not supported: they belong to the interpreter."""
    kernel = _kernel_class(node.domain, node.op_type)
    assert kernel is not None
    assert not any(isinstance(a, Graph) for a in node.attributes.values())
    parameters = {
        "log": _no_log,
        "opsets": {"": onnx.defs.onnx_opset_version()},
        "verbose": 0,
        "new_ops": {},
        "existing_functions": {},
        "evaluator_cls": None,
    }
    instance = kernel(node_to_proto(node), parameters)
    protect = np.array if node.op_type in _WRITES_ITS_INPUT else _read_only

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        arguments = [protect(x) if isinstance(x, np.ndarray) else x for x in inputs]
        while arguments and arguments[-1] is None:
            arguments.pop()
        outputs: Sequence[Any] = instance.run(*arguments)
        return outputs

    return run


def _read_only(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


def _no_log(pattern: str, *arguments: object) -> None:
    """Discard what the kernels would print."""
