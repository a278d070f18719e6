"""Quantization annotations: what they say, and that they change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.pass_checks import assert_same, build, load, ops, random_array, run_passes
from whet import dtypes
from whet.graph import Model
from whet.passes.base import PassDriver, PassReport
from whet.passes.basic.propagate import ShapePropagation
from whet.passes.extended import EXTENDED_PASSES
from whet.passes.extended.qdq import AnnotateQuantization, Quantization

F = np.float32


def annotate(body: str, **constants: Any) -> tuple[Model, PassReport]:
    model = load(build("float[3,4] x", "float[3,4] y", body, **constants))
    return model, PassDriver(model).run((ShapePropagation(), AnnotateQuantization()))


def quantization(model: Model, name: str) -> Quantization | None:
    value = model.graph.find_value(name)
    assert value is not None
    assert value.quantization is None or isinstance(value.quantization, Quantization)
    return value.quantization


def test_a_pair_annotates_its_result_and_keeps_its_nodes_and_answers() -> None:
    body = "q=QuantizeLinear(x,s,z)\nd=DequantizeLinear(q,s,z)\ny=Relu(d)"
    constants = {"s": F(0.05), "z": np.uint8(128)}
    model, _ = annotate(body, **constants)
    found = quantization(model, "d")
    assert found is not None
    assert (found.scale.scalar(), found.dtype, found.block_size, found.pair) == (F(0.05), dtypes.UINT8, 0, True)
    assert found.zero_point is not None
    assert found.zero_point.scalar() == 128
    assert quantization(model, "x") is None
    assert quantization(model, "y") is None
    proto = build("float[3,4] x", "float[3,4] y", body, **constants)
    after = run_passes(proto, *EXTENDED_PASSES)
    assert ops(after) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "Relu": 1}
    assert_same(proto, after, {"x": random_array((3, 4)) * F(10)})


def test_stored_codes_annotate_without_a_pair_and_count_their_axis_from_zero() -> None:
    body = "w=DequantizeLinear<axis: int=-1>(codes,s)\ny=Mul(x,w)"
    model, _ = annotate(body, codes=np.arange(12, dtype=np.int8).reshape(3, 4), s=F([1, 2, 3, 4]))
    found = quantization(model, "w")
    assert found is not None
    assert (found.axis, found.pair, found.dtype, found.zero_point) == (1, False, dtypes.INT8, None)


@pytest.mark.parametrize("dynamic", ["s", "z"])
def test_a_grid_that_is_computed_is_refused_with_a_reason(dynamic: str) -> None:
    body = "q=QuantizeLinear(x,s,z)\nd=DequantizeLinear(q,s,z)\ny=Relu(d)"
    extra = {"s": ", float s", "z": ", uint8 z"}[dynamic]
    constants = {k: v for k, v in {"s": F(0.05), "z": np.uint8(128)}.items() if k != dynamic}
    model = load(build("float[3,4] x" + extra, "float[3,4] y", body, **constants))
    report = PassDriver(model).run((ShapePropagation(), AnnotateQuantization()))
    assert quantization(model, "d") is None
    assert [r.reason for r in report.refusals] == ["scale or zero point is not constant"]


def test_annotations_are_derived_anew() -> None:
    model, _ = annotate("q=QuantizeLinear(x,s)\nd=DequantizeLinear(q,s)\ny=Relu(d)", s=F(0.05))
    y = model.graph.find_value("y")
    assert y is not None
    y.quantization = quantization(model, "d")
    PassDriver(model).run((AnnotateQuantization(),))
    assert y.quantization is None
    assert quantization(model, "d") is not None
