"""Runs a model as compiled code and on the reference provider, and compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import whet
from tests.backend_cases import mismatch

Array = np.ndarray[Any, Any]


def compiled(model: onnx.ModelProto) -> whet.InferenceSession:
    """A session all of whose nodes are compiled."""
    session = whet.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    others = {n.label if hasattr(n, "label") else n.node: n.refusals for n in session.placement.nodes
              if n.provider != "CPUExecutionProvider"}  # fmt: skip
    assert not others, others
    return session


def reference(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> list[Any]:
    """What the reference provider says."""
    session = whet.InferenceSession(model.SerializeToString(), providers=["ReferenceExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def check(model: onnx.ModelProto, feeds: Mapping[str, Array], *, rtol: float = 0, atol: float = 0) -> None:
    """Compiled code and the reference provider agree."""
    found = compiled(model).run(None, dict(feeds))
    for index, (f, e) in enumerate(zip(found, reference(model, feeds), strict=True)):
        reason = mismatch(f, e, rtol, atol, f"output {index}")
        assert reason is None, reason


def one_node(
    op: str,
    inputs: Mapping[str, Array | None],
    outputs: int = 1,
    *,
    constants: tuple[str, ...] = (),
    free: bool = False,
    opset: int = 23,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node over these inputs (None: left out), of which `constants` are initializers.

    With `free` every extent is a name, the same for extents that are equal.
    """
    infos, initializers, names = [], [], []
    for name, array in inputs.items():
        names.append(name if array is not None else "")
        if array is None:
            continue
        if name in constants:
            initializers.append(numpy_helper.from_array(array, name))
            continue
        shape = [f"d{e}" for e in array.shape] if free else list(array.shape)
        infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), shape))
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, **attributes)
    graph = helper.make_graph([node], "g", infos, [onnx.ValueInfoProto(name=r) for r in results], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def check_node(
    op: str,
    inputs: Mapping[str, Array | None],
    outputs: int = 1,
    *,
    constants: tuple[str, ...] = (),
    rtol: float = 0,
    atol: float = 0,
    opset: int = 23,
    **attributes: Any,
) -> None:
    """One node with fixed and with free extents."""
    feeds = {name: array for name, array in inputs.items() if array is not None and name not in constants}
    for free in (False, True):
        model = one_node(op, inputs, outputs, constants=constants, free=free, opset=opset, **attributes)
        check(model, feeds, rtol=rtol, atol=atol)
