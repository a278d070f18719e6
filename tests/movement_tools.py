"""Runs a model as compiled code and on the reference provider, and compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

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
