"""Older forms of operators: the loaded, rewritten graph gives the answers that the old form gives in ONNX Runtime."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from whet.errors import InvalidGraph, NotImplemented
from whet.formats.onnx import load_model, to_proto
from whet.formats.onnx.schemas import NEWEST_OPSET, signature
from whet.formats.onnx.upgrade_table import ML_STEPS, ONNX_STEPS
from whet.graph.verify import verify

ort = pytest.importorskip("onnxruntime")

Array = np.ndarray[Any, Any]
F = TensorProto.FLOAT


def run(proto: onnx.ModelProto, feed: dict[str, Array]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def code(array: Array) -> int:
    return int(helper.np_dtype_to_tensor_dtype(array.dtype))


def node_model(
    op: str,
    opset: int,
    feed: dict[str, Array],
    constants: dict[str, Array] | None = None,
    *,
    shapes: bool = True,
    outputs: tuple[tuple[str, int], ...] = (("y", F),),
    operands: list[str] | None = None,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """One node at `opset`; without `shapes`, inputs pass a node of an unknown shape first."""
    constants = constants or {}
    infos = [helper.make_tensor_value_info(n, code(a), a.shape if shapes else None) for n, a in feed.items()]
    node = helper.make_node(
        op, operands or [*feed, *constants], [n for n, _ in outputs], name="it", domain=domain, **attributes
    )
    graph = helper.make_graph(
        [node],
        "g",
        infos,
        [helper.make_tensor_value_info(n, c, None) for n, c in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    imports = [helper.make_opsetid(domain, opset)] + ([helper.make_opsetid("", 17)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=7)


def check(proto: onnx.ModelProto, feed: dict[str, Array], expected: list[Any] | None = None, rtol: float = 1e-6) -> Any:
    """Load, verify, write, run: the same answers as `expected`, by default those of the old model itself."""
    model = load_model(proto.SerializeToString())
    verify(model)
    assert_newest(model.graph)
    wanted = run(proto, feed) if expected is None else expected
    written = to_proto(model)
    found = run(written, feed)
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6)
        else:
            np.testing.assert_array_equal(a, b)
    return model


def assert_newest(graph: Any) -> None:
    """Every node of ONNX's domain has the newest form."""
    for node in graph.all_nodes():
        if node.domain:
            continue
        schema = signature("", node.op_type, NEWEST_OPSET)
        assert schema is not None
        assert node.op_type not in ("Upsample", "Scatter")
        assert set(node.attributes) <= set(schema.attributes), node
        assert set(schema.required) <= set(node.attributes), node
        assert len(node.inputs) >= schema.least_inputs, node


def rand(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    return np.abs(rand(*shape, seed=5)) + np.float32(0.5)


X4 = rand(2, 4, 6, 6)

CASES: dict[str, tuple[str, int, dict[str, Array], dict[str, Array], dict[str, Any]]] = {
    "clip-6": ("Clip", 6, {"x": X4}, {}, {"min": -0.5, "max": 0.25}),
    "clip-6 one bound": ("Clip", 7, {"x": X4}, {}, {"max": 0.25}),
    "clip-6 none": ("Clip", 10, {"x": X4}, {}, {}),
    "pad-2": ("Pad", 7, {"x": X4}, {}, {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 1.5}),
    "pad-2 reflect": ("Pad", 7, {"x": X4}, {}, {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "mode": "reflect"}),
    "pad-2 negative": ("Pad", 10, {"x": X4}, {}, {"pads": [0, 0, -1, 2, 0, 0, 3, -2]}),
    "slice-1": ("Slice", 7, {"x": X4}, {}, {"starts": [1, -3], "ends": [9, -1], "axes": [1, 3]}),
    "slice-1 no axes": ("Slice", 9, {"x": X4}, {}, {"starts": [0, 1], "ends": [1, 1000]}),
    "squeeze-1": ("Squeeze", 7, {"x": rand(1, 3, 1, 2)}, {}, {"axes": [0, 2]}),
    "squeeze-1 all": ("Squeeze", 7, {"x": rand(1, 3, 1, 2)}, {}, {}),
    "squeeze-11": ("Squeeze", 11, {"x": rand(1, 3, 1, 2)}, {}, {"axes": [-2]}),
    "unsqueeze-1": ("Unsqueeze", 7, {"x": rand(3, 2)}, {}, {"axes": [0, 3]}),
    "unsqueeze-11": ("Unsqueeze", 11, {"x": rand(3, 2)}, {}, {"axes": [-1]}),
    "reduce-sum-1": ("ReduceSum", 7, {"x": X4}, {}, {"axes": [1, 2], "keepdims": 0}),
    "reduce-sum-11 all": ("ReduceSum", 11, {"x": X4}, {}, {"keepdims": 0}),
    "dropout-7": ("Dropout", 7, {"x": X4}, {}, {"ratio": 0.7}),
    "dropout-10": ("Dropout", 10, {"x": X4}, {}, {}),
    "flatten-1": ("Flatten", 7, {"x": X4}, {}, {"axis": 2}),
    "concat": ("Concat", 7, {"x": X4, "z": X4 + 1}, {}, {"axis": 1}),
    "batchnorm-7": (
        "BatchNormalization",
        7,
        {"x": X4},
        {"s": positive(4), "b": rand(4), "m": rand(4, seed=2), "v": positive(4)},
        {"epsilon": 1e-3},
    ),
    "batchnorm-7 spatial=0": (
        "BatchNormalization",
        7,
        {"x": X4},
        {"s": positive(4, 6, 6), "b": rand(4, 6, 6), "m": rand(4, 6, 6, seed=2), "v": positive(4, 6, 6)},
        {"spatial": 0, "epsilon": 1e-2},
    ),
    "upsample-7": ("Upsample", 7, {"x": X4}, {}, {"scales": [1.0, 1.0, 2.0, 1.5]}),
    "upsample-7 linear": ("Upsample", 7, {"x": X4}, {}, {"scales": [1.0, 1.0, 2.0, 1.5], "mode": "linear"}),
    "upsample-9": ("Upsample", 9, {"x": X4}, {"s": np.array([1, 1, 2.5, 2], np.float32)}, {}),
    "upsample-9 linear": (
        "Upsample", 9, {"x": X4}, {"s": np.array([1, 1, 2.5, 2], np.float32)}, {"mode": "linear"},
    ),
    "resize-10 grow": ("Resize", 10, {"x": X4}, {"s": np.array([1, 1, 2.3, 1.7], np.float32)}, {}),
    "resize-10 shrink": ("Resize", 10, {"x": X4}, {"s": np.array([1, 1, 0.6, 0.7], np.float32)}, {}),
    "resize-10 both": ("Resize", 10, {"x": X4}, {"s": np.array([1, 1, 0.6, 1.7], np.float32)}, {}),
    "resize-10 linear": (
        "Resize", 10, {"x": X4}, {"s": np.array([1, 1, 0.6, 1.7], np.float32)}, {"mode": "linear"},
    ),
    "resize-10 run time": ("Resize", 10, {"x": X4, "s": np.array([1, 1, 0.6, 1.7], np.float32)}, {}, {}),
    "resize-11 empty": (
        "Resize",
        11,
        {"x": X4},
        {"r": np.zeros(0, np.float32), "s": np.zeros(0, np.float32), "z": np.array([2, 4, 9, 3], np.int64)},
        {"mode": "linear"},
    ),
    "resize-11 tf nearest": (
        "Resize",
        11,
        {"x": X4},
        {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 0.7, 1.6], np.float32)},
        {"coordinate_transformation_mode": "tf_half_pixel_for_nn", "nearest_mode": "floor"},
    ),
    "scatter-9": (
        "Scatter",
        9,
        {"x": rand(3, 3)},
        {"i": np.array([[0, 2, 1]], np.int64), "u": rand(1, 3, seed=4)},
        {"axis": 0},
    ),
    "roi-align-10": (
        "RoiAlign",
        10,
        {"x": X4},
        {"r": np.array([[0, 0, 4, 5], [1, 1, 3, 3]], np.float32), "b": np.array([0, 1], np.int64)},
        {"output_height": 3, "output_width": 2, "sampling_ratio": 2},
    ),
    "grid-sample-16": ("GridSample", 16, {"x": X4}, {"g": np.tanh(rand(2, 5, 5, 2))}, {"mode": "bicubic"}),
    "grid-sample-16 default": ("GridSample", 16, {"x": X4}, {"g": np.tanh(rand(2, 5, 5, 2))}, {}),
    "dft-17": ("DFT", 17, {"x": rand(2, 5, 4, 1)}, {}, {"axis": 2}),
    "dft-17 default": ("DFT", 17, {"x": rand(2, 5, 4, 1)}, {"n": np.array(7, np.int64)}, {"onesided": 1}),
    "lrn-1": ("LRN", 7, {"x": X4}, {}, {"size": 3}),
    "prelu-7": ("PRelu", 7, {"x": X4}, {"s": rand(4, 1, 1)}, {}),
    "gemm-9": ("Gemm", 9, {"x": rand(3, 4)}, {"w": rand(5, 4), "c": rand(5)}, {"transB": 1, "alpha": 0.5}),
    "max-pool-8": ("MaxPool", 8, {"x": X4}, {}, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "average-pool-7": (
        "AveragePool", 7, {"x": X4}, {}, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
    ),
    "lp-pool-2": ("LpPool", 7, {"x": X4}, {}, {"kernel_shape": [3, 2]}),
    "arg-max-1": ("ArgMax", 7, {"x": X4}, {}, {"axis": 2}),
    "cast-9": ("Cast", 9, {"x": X4 * 9}, {}, {"to": TensorProto.INT32}),
    "reshape-5": ("Reshape", 7, {"x": X4}, {"s": np.array([0, -1], np.int64)}, {}),
    "expand-8": ("Expand", 8, {"x": rand(3, 1)}, {"s": np.array([2, 3, 4], np.int64)}, {}),
    "tile-6": ("Tile", 7, {"x": rand(3, 1)}, {"s": np.array([2, 3], np.int64)}, {}),
    "one-hot-9": (
        "OneHot",
        9,
        {"x": np.array([0, 2, 1], np.int64)},
        {"d": np.array(4, np.int64), "v": np.array([0, 5], np.float32)},
        {},
    ),
    "depth-to-space-1": ("DepthToSpace", 7, {"x": X4}, {}, {"blocksize": 2}),
    "instance-norm-6": ("InstanceNormalization", 7, {"x": X4}, {"s": rand(4), "b": rand(4, seed=1)}, {}),
    "group-norm-18": ("GroupNormalization", 18, {"x": X4}, {"s": rand(2), "b": rand(2, seed=1)}, {"num_groups": 2}),
    "group-norm-18 run time": (
        "GroupNormalization", 18, {"x": X4, "s": rand(2), "b": rand(2, seed=1)}, {}, {"num_groups": 2},
    ),
    "lstm-7": ("LSTM", 7, {"x": rand(3, 2, 4)}, {"w": rand(1, 12, 4), "r": rand(1, 12, 3)}, {"hidden_size": 3}),
    "quantize-10": ("QuantizeLinear", 10, {"x": X4}, {"s": np.float32(0.1), "z": np.uint8(12)}, {}),
}  # fmt: skip
for _op in ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"):
    CASES[_op] = (_op, 13, {"x": X4}, {}, {"axes": [-1, 1]})
CASES["ReduceSumSquare"] = ("ReduceSumSquare", 8, {"x": X4}, {}, {})
CASES["ReduceLogSum"] = ("ReduceLogSum", 11, {"x": positive(2, 3)}, {}, {"axes": [0], "keepdims": 0})

OUTPUTS: dict[str, int] = {"ArgMax": TensorProto.INT64, "Cast": TensorProto.INT32, "QuantizeLinear": TensorProto.UINT8}


@pytest.mark.parametrize("shapes", [True, False], ids=["shapes", "no shapes"])
@pytest.mark.parametrize("name", CASES)
def test_old_form(name: str, shapes: bool) -> None:
    op, opset, feed, constants, attributes = CASES[name]
    outputs = (("y", OUTPUTS.get(op, F)),)
    proto = node_model(op, opset, feed, constants, shapes=shapes, outputs=outputs, **attributes)
    expected = None
    if op == "GroupNormalization":
        expected = [group_norm(feed["x"], rand(2), rand(2, seed=1), 2)]
    check(proto, feed, expected, rtol=2e-5 if op in ("GroupNormalization", "DFT", "GridSample") else 1e-6)


def group_norm(x: Array, scale: Array, bias: Array, groups: int) -> Array:
    """GroupNormalization-18's definition: scale and bias by group (ONNX Runtime does not run that version)."""
    parts = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    normal = (parts - parts.mean(2, keepdims=True)) / np.sqrt(parts.var(2, keepdims=True) + 1e-5)
    return (normal * scale[None, :, None] + bias[None, :, None]).reshape(x.shape).astype(np.float32)


def test_top_k_and_split() -> None:
    feed = {"x": X4}
    outputs = (("v", F), ("i", TensorProto.INT64))
    check(node_model("TopK", 7, feed, outputs=outputs, k=3, axis=1), feed)
    outputs = (("a", F), ("b", F), ("c", F))
    model = check(node_model("Split", 7, feed, outputs=outputs, axis=2), feed)
    assert model.graph.nodes[0].attributes == {"axis": 2, "num_outputs": 3}
    check(node_model("Split", 11, feed, outputs=outputs, axis=-1, split=[1, 2, 3]), feed)


def test_an_unread_part_of_a_split_still_counts() -> None:
    feed = {"x": X4}
    proto = node_model("Split", 11, feed, outputs=(("a", F),), axis=2)
    proto.graph.node[0].output.append("")
    check(proto, feed, [X4[:, :, :3]])


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, 3, -1, -2, -4])
@pytest.mark.parametrize("shapes", [True, False], ids=["shapes", "no shapes"])
def test_softmax_over_all_later_axes(op: str, axis: int | None, shapes: bool) -> None:
    feed = {"x": X4}
    attributes = {} if axis is None else {"axis": axis}
    opset = 11 if axis is not None and axis < 0 else 7
    model = check(node_model(op, opset, feed, shapes=shapes, **attributes), feed, rtol=1e-5)
    if axis == -1 or (axis == 3 and shapes):
        assert [n.op_type for n in model.graph] == [op]


def test_softmax_before_axes_of_one_stays_one_node() -> None:
    feed = {"x": rand(2, 5, 1, 1)}
    model = check(node_model("Softmax", 9, feed, axis=1), feed)
    assert [(n.op_type, n.attributes) for n in model.graph] == [("Softmax", {"axis": 1})]


def test_softmax_behind_nodes_of_known_rank_stays_one_node() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Softmax", ["c"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, ["n", 4, "h", "w"])],
        [helper.make_tensor_value_info("y", F, None)],
        [numpy_helper.from_array(rand(3, 4, 2, 2), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)
    model = check(proto, {"x": X4})
    assert [n.op_type for n in model.graph] == [n.op_type for n in nodes]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_bounds_have_the_type_of_the_data(dtype: type) -> None:
    feed = {"x": X4.astype(dtype)}
    kind = code(feed["x"])
    pad = node_model("Pad", 7, feed, outputs=(("y", kind),), pads=[0, 0, 1, 0, 0, 0, 0, 0], value=2.0)
    clip = node_model("Clip", 6, feed, outputs=(("y", kind),), min=-0.5)
    # ONNX Runtime has these old operators for float32 alone; the answers are numpy's.
    check(pad, feed, [np.pad(feed["x"], ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=2)])
    check(clip, feed, [np.maximum(feed["x"], dtype(-0.5))])


def test_bounds_of_unknown_type_are_cast() -> None:
    nodes = [
        helper.make_node("Thing", ["x"], ["a"], domain="custom"),
        helper.make_node("Clip", ["a"], ["y"], min=0.0, max=6.0),
    ]
    info = [helper.make_tensor_value_info(n, F, [2]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:])
    imports = [helper.make_opsetid("", 10), helper.make_opsetid("custom", 1)]
    model = load_model(helper.make_model(graph, opset_imports=imports).SerializeToString())
    verify(model)
    assert [n.op_type for n in model.graph] == ["Thing", "CastLike", "CastLike", "Clip"]


def test_dropout_masks_are_cast_back_to_the_data_type() -> None:
    feed = {"x": rand(2, 3)}
    proto = node_model("Dropout", 7, feed, outputs=(("y", F), ("m", F)))
    check(proto, feed, [feed["x"], np.ones((2, 3), np.float32)])


def test_batch_normalization_training_outputs() -> None:
    feed = {"x": X4}
    constants = {"s": positive(4), "b": rand(4), "m": rand(4, seed=2), "v": positive(4)}
    outputs = tuple((n, F) for n in ("y", "nm", "nv", "sm", "sv"))
    proto = node_model("BatchNormalization", 9, feed, constants, outputs=outputs)
    del proto.graph.output[1:]
    axes = (0, 2, 3)
    x = X4.astype(np.float64)
    normal = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    expected = normal * constants["s"][:, None, None] + constants["b"][:, None, None]
    model = load_model(proto.SerializeToString())
    verify(model)
    (found,) = ReferenceEvaluator(to_proto(model)).run(None, feed)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    proto.graph.output.append(helper.make_tensor_value_info("sm", F, None))
    with pytest.raises(NotImplemented, match="saved statistics"):
        load_model(proto.SerializeToString())


# Before opset 7 (ONNX Runtime has no kernels for most of these; the expected answers are numpy's)

A4, B1, B2 = rand(2, 3, 4, 5), rand(4, seed=1), rand(3, 4, seed=2)


@pytest.mark.parametrize("shapes", [True, False], ids=["shapes", "no shapes"])
@pytest.mark.parametrize(
    ("b", "axis", "expected"),
    [
        (B1, 2, A4 + B1[:, None]),
        (B2, 1, A4 + B2[..., None]),
        (rand(5), None, A4 + rand(5)),
        (rand(4, 5), 2, A4 + rand(4, 5)),
        (np.array([3], np.float32), None, A4 + 3),
    ],
)
def test_broadcast_from_an_axis(b: Array, axis: int | None, expected: Array, shapes: bool) -> None:
    attributes = {"broadcast": 1, **({} if axis is None else {"axis": axis})}
    feed = {"x": A4, "b": b}
    check(node_model("Add", 6, feed, shapes=shapes, **attributes), feed, [expected])


@pytest.mark.parametrize(
    ("op", "function"),
    [("Sub", np.subtract), ("Mul", np.multiply), ("Div", np.divide), ("Greater", np.greater), ("Less", np.less)],
)
def test_other_operators_that_broadcast(op: str, function: Callable[..., Array]) -> None:
    feed = {"x": A4, "b": B1}
    kind = TensorProto.BOOL if op in ("Greater", "Less") else F
    proto = node_model(op, 6, feed, outputs=(("y", kind),), broadcast=1, axis=2)
    check(proto, feed, [function(A4, B1[:, None])])


def test_a_broadcast_axis_that_does_not_fit() -> None:
    with pytest.raises(InvalidGraph, match="broadcast axis"):
        load_model(node_model("Add", 6, {"x": A4, "b": B2}, broadcast=1, axis=3).SerializeToString())


SOFT = np.log1p(np.exp(A4.astype(np.float64))).astype(np.float32)
LEGACY: dict[str, tuple[str, int, dict[str, Array], dict[str, Any], Array]] = {
    "relu-1": ("Relu", 1, {"x": A4}, {"consumed_inputs": [0]}, np.maximum(A4, 0)),
    "sum-1": ("Sum", 1, {"x": A4, "z": A4}, {"consumed_inputs": [0, 0]}, A4 + A4),
    "clip-1": ("Clip", 1, {"x": A4}, {"min": 0.1, "consumed_inputs": [0]}, np.maximum(A4, np.float32(0.1))),
    "cast-1": ("Cast", 1, {"x": A4}, {"to": "double"}, A4.astype(np.float64)),
    "concat-1": ("Concat", 1, {"x": A4, "z": A4}, {}, np.concatenate([A4, A4], 1)),
    "reshape-1": ("Reshape", 1, {"x": A4}, {"shape": [0, -1]}, A4.reshape(2, -1)),
    "pad-1": (
        "Pad", 1, {"x": A4}, {"paddings": [0, 0, 1, 0, 0, 0, 0, 0], "value": 1.0},
        np.pad(A4, ((0, 0), (0, 0), (1, 0), (0, 0)), constant_values=1),
    ),
    "prelu-1": ("PRelu", 6, {"x": A4, "s": rand(3)}, {}, np.where(A4 < 0, A4 * rand(3)[:, None, None], A4)),
    "prelu-1 matrix": (
        "PRelu", 6, {"x": A4[0, 0], "s": rand(5)}, {}, np.where(A4[0, 0] < 0, A4[0, 0] * rand(5), A4[0, 0]),
    ),
    "selu-1": (
        "Selu", 1, {"x": A4}, {}, 1.0507 * np.where(A4 < 0, 1.6732 * np.expm1(A4), A4).astype(np.float32),
    ),
    "softmax-1": ("Softmax", 1, {"x": A4[0, 0]}, {}, np.exp(A4[0, 0]) / np.exp(A4[0, 0]).sum(1, keepdims=True)),
    "tile-1": (
        "Tile", 1, {"x": A4, "t": np.array(3, np.float32), "a": np.array(1, np.float32)}, {}, np.tile(A4, (1, 3, 1, 1)),
    ),
    "gemm-6": (
        "Gemm", 6, {"x": rand(2, 3), "w": rand(3, 4), "c": rand(4)}, {"broadcast": 1},
        rand(2, 3) @ rand(3, 4) + rand(4),
    ),
    "dropout-6": ("Dropout", 6, {"x": A4}, {"is_test": 1, "ratio": 0.9}, A4),
    "batchnorm-6": (
        "BatchNormalization", 6, {"x": A4, "s": positive(3), "b": rand(3), "m": rand(3, seed=3), "v": positive(3)},
        {"is_test": 1},
        ((A4 - rand(3, seed=3)[:, None, None]) / np.sqrt(positive(3) + 1e-5)[:, None, None]
         * positive(3)[:, None, None] + rand(3)[:, None, None]),
    ),
    "global-lp-pool-1": (
        "GlobalLpPool", 1, {"x": A4}, {"p": 2.0}, np.sqrt((A4.astype(np.float64) ** 2).sum((2, 3), keepdims=True)),
    ),
    "upsample-1": (
        "Upsample", 1, {"x": A4}, {"height_scale": 2.0, "width_scale": 3.0}, A4.repeat(2, axis=2).repeat(3, axis=3),
    ),
    "upsample-1 bilinear": (
        "Upsample", 1, {"x": np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)},
        {"height_scale": 2.0, "width_scale": 1.0, "mode": "bilinear"},
        np.array([[[[0, 1], [1, 2], [2, 3], [2, 3]]]], np.float32),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEGACY)
def test_before_opset_7(name: str) -> None:
    op, opset, feed, attributes, expected = LEGACY[name]
    outputs = (("y", code(expected) if op == "Cast" else F),)
    proto = node_model(op, opset, feed, outputs=outputs, **attributes)
    check(proto, feed, [expected.astype(np.float64 if op == "Cast" else np.float32)], rtol=1e-5)


def test_batch_normalization_before_7_trains_unless_told() -> None:
    feed = {"x": A4, "s": positive(3), "b": rand(3), "m": rand(3), "v": positive(3)}
    node = load_model(node_model("BatchNormalization", 6, feed).SerializeToString()).graph.nodes[0]
    assert node.attributes == {"training_mode": 1}


def test_legacy_recurrent_attribute() -> None:
    feed = {"x": rand(3, 2, 4), "w": rand(1, 3, 4), "r": rand(1, 3, 3)}
    old = node_model("RNN", 6, feed, hidden_size=3, output_sequence=1)
    check(old, feed, run(node_model("RNN", 7, feed, hidden_size=3), feed))


# Scan-8, whose operands carry a batch axis


@pytest.mark.parametrize("direction", [0, 1])
def test_scan_8(direction: int) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Add", ["s", "a"], ["t"]),
            helper.make_node("Mul", ["t", "outer"], ["o"]),
        ],
        "body",
        [helper.make_tensor_value_info("s", F, [4]), helper.make_tensor_value_info("a", F, [4])],
        [helper.make_tensor_value_info("t", F, [4]), helper.make_tensor_value_info("o", F, [4])],
    )
    node = helper.make_node(
        "Scan", ["", "s0", "x"], ["y", "z"], body=body, num_scan_inputs=1, directions=[direction], name="scan"
    )
    feed = {"s0": rand(2, 4), "x": rand(2, 3, 4, seed=1), "outer": rand(1, seed=3)}
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, F, a.shape) for n, a in feed.items()],
        [helper.make_tensor_value_info("y", F, None), helper.make_tensor_value_info("z", F, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=4)
    model = check(proto, feed)
    assert [n.op_type for n in model.graph.all_nodes()] == ["Scan", "Scan", "Add", "Mul"]


# ai.onnx.ml


def test_label_encoder_1() -> None:
    names = ["ant", "bee", "cat"]
    feed = {"x": np.array([2, 0, 7], np.int64)}
    proto = node_model(
        "LabelEncoder", 1, feed, outputs=(("y", TensorProto.STRING),), domain="ai.onnx.ml",
        classes_strings=names, default_string="none",
    )  # fmt: skip
    check(proto, feed, [np.array(["cat", "ant", "none"], object)])
    words = {"x": np.array(["bee", "zebra"], object)}
    proto = node_model(
        "LabelEncoder", 1, {"x": np.zeros(2, np.int64)}, outputs=(("y", TensorProto.INT64),), domain="ai.onnx.ml",
        classes_strings=names,
    )  # fmt: skip
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    check(proto, words, [np.array([1, -1], np.int64)])


# The tables


def breaking_changes(domain: str) -> dict[str, list[str]]:
    """Operators whose schemas show that an older node may be no valid newer node, or mean something else."""
    history: dict[str, list[defs.OpSchema]] = {}
    for schema in defs.get_all_schemas_with_history():
        if schema.domain == domain:
            history.setdefault(schema.name, []).append(schema)
    found: dict[str, list[str]] = {}
    for name, schemas in history.items():
        schemas.sort(key=lambda s: s.since_version)
        for old, new in itertools.pairwise(schemas):
            if new.deprecated and not new.inputs:
                found.setdefault(name, []).append(f"{new.since_version}: deprecated")
                continue
            for key, attribute in old.attributes.items():
                later = new.attributes.get(key)
                if later is None:
                    found.setdefault(name, []).append(f"{new.since_version}: lost {key}")
                elif later.type != attribute.type:
                    found.setdefault(name, []).append(f"{new.since_version}: {key} changed type")
                elif later.required and not attribute.required:
                    found.setdefault(name, []).append(f"{new.since_version}: {key} became required")
                elif attribute.default_value.type and later.default_value != attribute.default_value:
                    found.setdefault(name, []).append(f"{new.since_version}: another default of {key}")
            if (
                new.min_input > old.min_input
                or [i.name for i in old.inputs if i.name][:1] == ["sequence_lens"] != [i.name for i in new.inputs][:1]
            ):
                found.setdefault(name, []).append(f"{new.since_version}: other inputs")
    return found


def test_every_breaking_change_has_an_adapter() -> None:
    # Constant has a reader of its own.
    missing = {n: why for n, why in breaking_changes("").items() if n not in ONNX_STEPS and n != "Constant"}
    assert missing == {}
    assert {n: why for n, why in breaking_changes("ai.onnx.ml").items() if n not in ML_STEPS} == {}


def test_adapters_stand_in_order() -> None:
    for name, steps in {**ONNX_STEPS, **ML_STEPS}.items():
        assert [s for s, _ in steps] == sorted(s for s, _ in steps), name
