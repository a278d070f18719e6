"""FlexAttention (ai.onnx.preview): attention whose scores and probabilities pass through subgraphs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whet import dtypes
from whet.errors import InvalidArgument
from whet.graph import Graph, Node
from whet.ops.kernels.common import working
from whet.ops.kernels.reduce import softmax_along
from whet.providers.reference.run import Body, Call, Run


def bind_flex_attention(node: Node, bodies: Mapping[str, Body], widen: bool) -> Call:
    """The node as a function of Q (B, N, S, H), K (B, K, T, H), V (B, K, T, Hv) and what its subgraphs capture.

    Scores are computed in Q's type, then in `softmax_precision` (at least float32 where it is absent).
    """
    given = len(node.inputs)
    precision = dtypes.BY_CODE.get(node.int_attr("softmax_precision", 0))
    for name in ("score_mod", "prob_mod"):
        graph = node.attributes.get(name)
        if isinstance(graph, Graph) and (len(graph.inputs), len(graph.outputs)) != (1, 1):
            raise InvalidArgument(
                f"attribute {name} must map one tensor to one",
                node=node.label,
                found=f"{len(graph.inputs)} inputs, {len(graph.outputs)} outputs",
            )

    def call(inputs: Sequence[Any], run: Run) -> list[Any]:
        q, k, v = inputs[:3]
        captured = inputs[given:]
        if not q.ndim == k.ndim == v.ndim == 4 or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
            raise InvalidArgument(
                "the shapes of Q, K and V do not fit", node=node.label, found=[q.shape, k.shape, v.shape]
            )
        if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
            raise InvalidArgument(
                "the query heads do not divide among the key heads", node=node.label, found=[q.shape, k.shape]
            )
        each = q.shape[1] // k.shape[1]
        root = q.dtype.type(math.sqrt(node.float_attr("scale", 1 / math.sqrt(max(q.shape[3], 1)))))
        keys, values = np.repeat(k * root, each, axis=1), np.repeat(v, each, axis=1)
        scores = np.matmul(working(q * root), working(keys).swapaxes(-1, -2)).astype(q.dtype)
        kind = np.dtype(np.float64) if widen else (precision.numpy if precision else working(scores).dtype)
        scores = _through(bodies.get("score_mod"), scores.astype(kind), captured, run)
        weights = _through(bodies.get("prob_mod"), softmax_along(scores, -1), captured, run)
        return [np.matmul(weights, values.astype(kind)).astype(v.dtype)]

    return call


def _through(body: Body | None, x: Any, captured: Sequence[Any], run: Run) -> Any:
    return x if body is None else body((x,), captured, run)[0].astype(x.dtype, copy=False)
