"""Attributes and constants that are wrong, or too large to compute at load."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.bad_models import info, model, refused
from whet.formats.onnx import from_text, load_model
from whet.graph.verify import verify
from whet.passes.pipeline import optimize

# Attributes


def attribute_model(op: str, inputs: int = 1, opset: int = 21, rank: int = 4, **attributes: Any) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(inputs)]
    node = helper.make_node(op, names, ["y"], name="the_node", **attributes)
    return model([node], inputs=[info(n, [2] * rank) for n in names], opset=opset)


@pytest.mark.parametrize(
    ("proto", "parts"),
    [
        (attribute_model("Concat", 2), ["required attribute is missing", "value: axis"]),
        (attribute_model("Cast"), ["required attribute is missing", "value: to"]),
        (attribute_model("Softmax", axis="1"), ["wrong type", "found: STRING", "expected: INT"]),
        (attribute_model("Softmax", axis=1.0), ["wrong type", "found: FLOAT", "expected: INT"]),
        (attribute_model("Transpose", perm=2), ["wrong type", "found: INT", "expected: INTS"]),
        (attribute_model("Softmax", axes=1), ["does not have", "value: axes", "Did you mean 'axis'?"]),
        (attribute_model("Softmax", axis=4), ["value: axis", "found: 4", "-4 to 3"]),
        (attribute_model("Softmax", axis=-5), ["value: axis", "found: -5"]),
        (attribute_model("Concat", 2, axis=4), ["value: axis", "found: 4"]),
        (attribute_model("Gather", 2, axis=9), ["value: axis", "found: 9"]),
        (attribute_model("Flatten", axis=5), ["value: axis", "found: 5"]),
        (attribute_model("Transpose", perm=[0, 1, 1, 2]), ["value: perm", "(0, 1, 1, 2)", "once"]),
        (attribute_model("Transpose", perm=[0, 1]), ["value: perm", "4 axes"]),
        (attribute_model("Transpose", perm=[0, 1, 2, 4]), ["value: perm"]),
        (attribute_model("MaxPool", kernel_shape=[0, 2]), ["value: kernel_shape", "(0, 2)", "positive"]),
        (attribute_model("MaxPool", kernel_shape=[2, 2], strides=[1, -1]), ["value: strides", "(1, -1)"]),
        (attribute_model("Conv", 2, dilations=[0, 1]), ["value: dilations"]),
        (attribute_model("Conv", 2, strides=[0, 0]), ["value: strides"]),
        (attribute_model("Conv", 2, group=0), ["value: group", "found: 0"]),
        (attribute_model("Conv", 2, group=-2), ["value: group", "found: -2"]),
        (attribute_model("Conv", 2, auto_pad="SAME"), ["value: auto_pad", "SAME_UPPER"]),
        (attribute_model("DepthToSpace", blocksize=0), ["value: blocksize"]),
        (attribute_model("ReduceMean", opset=13, axes=[4]), ["value: axes", "(4,)"]),
        (attribute_model("Squeeze", opset=11, axes=[0, -4]), ["value: axes", "each axis once"]),
        (attribute_model("Einsum", 2, rank=2, equation="ij,jk->ik)"), ["value: equation"]),
        (attribute_model("Einsum", 2, rank=2, equation="ij->ji"), ["value: equation", "each of the 2 inputs"]),
        (attribute_model("Einsum", 2, rank=2, equation="ij,jk->il"), ["value: equation", "letters of the inputs"]),
        (attribute_model("Einsum", 2, rank=2, equation="ij,jk->ii"), ["value: equation"]),
        (attribute_model("Einsum", 2, rank=2, equation="ijk,jk->i"), ["value: equation", "2 letters for input 'x0'"]),
        (attribute_model("Einsum", 1, rank=2, equation="i..j"), ["value: equation"]),
        (attribute_model("Einsum", 1, rank=2, equation="ij->i->j"), ["value: equation"]),
        (attribute_model("Upsample", opset=8, scales=[1.0, 1.0, float("nan"), 2.0]), ["value: scales", "finite"]),
    ],
    ids=lambda p: "" if isinstance(p, list) else None,
)
def test_attributes(proto: onnx.ModelProto, parts: list[str]) -> None:
    refused(proto, "the_node", *parts)


def test_nan_attribute_gives_nan() -> None:
    node = load_model(attribute_model("LeakyRelu", alpha=float("nan")).SerializeToString()).graph.nodes[0]
    assert np.isnan(node.float_attr("alpha", 0.0))


def test_attribute_without_content_or_type() -> None:
    proto = attribute_model("Softmax", axis=1)
    attribute = proto.graph.node[0].attribute[0]
    attribute.type = onnx.AttributeProto.STRING
    refused(proto, "not of its type", "value: axis", "found: INT", "expected: STRING")
    attribute.type = onnx.AttributeProto.UNDEFINED
    assert load_model(proto.SerializeToString()).graph.nodes[0].attributes == {"axis": 1}
    attribute.ClearField("i")
    refused(proto, "without a type", "value: axis")


def test_duplicate_attribute() -> None:
    proto = attribute_model("Softmax", axis=1)
    proto.graph.node[0].attribute.append(helper.make_attribute("axis", 2))
    refused(proto, "two attributes", "value: axis", "the_node")


def test_attribute_reference_outside_of_a_function() -> None:
    proto = attribute_model("Softmax", axis=1)
    proto.graph.node[0].attribute[0].ref_attr_name = "axis"
    refused(proto, "outside of a function", "the_node")


@pytest.mark.parametrize(
    "attributes", [{}, {"value_int": 1, "value_float": 1.0}, {"value_int": 1.0}, {"value_ints": [1.0]}]
)
def test_bad_constants(attributes: dict[str, Any]) -> None:
    refused(model([helper.make_node("Constant", [], ["y"], name="c", **attributes)], inputs=[]), "Constant")


# Constants that would fill the memory

TERABYTES = {
    "ConstantOfShape": "ConstantOfShape(big)",
    "Expand": "Expand(one, big)",
    "Tile": "Tile(one, big)",
    "Range": "Range(zero, trillion, step)",
    "OneHot": "OneHot(zero, trillion, pair)",
    "twice": "Expand(half, big)",
}


@pytest.mark.parametrize("level", ["disabled", "basic", "extended"])
@pytest.mark.parametrize("name", TERABYTES)
def test_constant_folding_to_terabytes_is_left_undone(name: str, level: str) -> None:
    loaded = from_text(f"""<ir_version: 10, opset_import: ["": 21]>
    g (float[1] x) => (float[1] y, z) <
      int64[1] big = {{1000000000000}}, int64[1] one = {{1}}, int64 zero = {{0}}, int64 step = {{1}},
      int64 trillion = {{1000000000000}}, int64[2] pair = {{0, 1}}, int64[1] million = {{1000000}}
    > {{
      y = Neg(x)
      half = Expand(one, one)
      z = {TERABYTES[name]}
    }}""")
    optimize(loaded, level)
    verify(loaded)
    producer = next(v for v in loaded.graph.outputs if v.name == "z").producer
    assert producer is not None
    assert producer.op_type == TERABYTES[name].split("(")[0]
    held = sum(v.data.nbytes for v in loaded.graph.constants() if v.data is not None)
    assert held < 1000
