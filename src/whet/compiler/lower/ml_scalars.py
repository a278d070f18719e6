"""How the pointwise operators of ai.onnx.ml become steps of a tape."""

from __future__ import annotations

from collections.abc import Sequence

from whet.compiler.lower.quantize_scalars import type_of
from whet.compiler.lower.scalar_rule import ScalarRule, result_type
from whet.compiler.tape import TapeBuilder
from whet.dtypes import BOOL, FLOAT32, FLOAT64
from whet.graph import Node


def _binarizer(tape: TapeBuilder, node: Node, args: Sequence[int | None]) -> int:
    value = args[0]
    assert value is not None
    dtype = result_type(node)
    above = tape.add("greater", BOOL, value, tape.constant(node.float_attr("threshold", 0.0), dtype))
    return tape.cast(above, dtype)


def _float_refusal(node: Node) -> str | None:
    given = type_of(node.input(0))
    return None if given in (FLOAT32, FLOAT64) else f"no threshold for {given}"


ML_SCALARS: dict[str, ScalarRule] = {
    "ai.onnx.ml.Binarizer": ScalarRule(_binarizer, "greater", _float_refusal),
}
