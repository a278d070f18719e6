"""The one file that wraps `onnx.reference`'s kernels (private to each minor version of onnx, which is pinned)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx.defs
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op
from onnx.reference.ops.aionnx_preview import load_op as load_preview_op
from onnx.reference.ops.aionnx_preview_training import load_op as load_training_op
from onnx.reference.ops.aionnxml import load_op as load_ml_op

from whet.formats.onnx import node_to_proto
from whet.graph import Graph, Node

_LOADERS: Mapping[str, Callable[..., Any]] = {
    "": load_op,
    "ai.onnx.ml": load_ml_op,
    "ai.onnx.preview": load_preview_op,
    "ai.onnx.preview.training": load_training_op,
}

_WRITES_ITS_INPUT: frozenset[str] = frozenset({"MaxUnpool", "Imputer", "Binarizer", "Normalizer"})
"""Operators whose kernels may write into their arguments: these get copies; all others get read-only views."""


@cache
def _kernel_class(domain: str, op_type: str) -> type[OpRun] | None:
    loader = _LOADERS.get(domain)
    if loader is None:
        return None
    try:
        found = loader(domain, op_type, onnx.defs.onnx_opset_version() if domain == "" else None)
    except (NotImplementedError, AssertionError, KeyError, RuntimeError):
        # How the loaders say that they have no kernel (for an operator that is a function: by an assertion).
        return None
    return found if isinstance(found, type) and issubclass(found, OpRun) else None


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
        outputs: Sequence[Any] = instance.run(*arguments)  # type: ignore[no-untyped-call]
        return outputs

    return run


def _read_only(array: Any) -> Any:
    view = array.view()
    view.flags.writeable = False
    return view


def _no_log(pattern: str, *arguments: object) -> None:
    """Discard what the kernels would print."""
