"""Small models in onnx's textual syntax, as bytes, and sessions of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import parser

import whet

Array = np.ndarray[Any, np.dtype[Any]]

HEAD = '<ir_version: 10, opset_import: ["": 20]>'


def model(graph: str, head: str = HEAD) -> bytes:
    """The serialized model of a graph in textual syntax."""
    serialized: bytes = parser.parse_model(f"{head} {graph}").SerializeToString()
    return serialized


def session(graph: str, options: whet.SessionOptions | None = None, head: str = HEAD) -> whet.InferenceSession:
    """A session of that graph on the CPU."""
    return whet.InferenceSession(model(graph, head), options, providers=["CPUExecutionProvider"])


ADD = "add (float[N, 3] x, float[N, 3] y) => (float[N, 3] z) { z = Add(x, y) }"
"""Two inputs that share a free dimension."""
