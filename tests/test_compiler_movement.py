"""Movement as compiled code against the reference provider: layouts, types, fixed and free extents, bad operands."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.movement_tools import Array, check, check_node, compiled, one_node
from whet.errors import InvalidArgument

RNG = np.random.default_rng(8)
SIZES: tuple[Any, ...] = (np.uint8, np.float16, np.float32, np.float64, np.bool_, ml_dtypes.bfloat16, np.int64)


def data(shape: Sequence[int], dtype: Any = np.float32) -> Array:
    if dtype == np.bool_:
        return RNG.integers(0, 2, shape).astype(dtype)
    return RNG.integers(-50, 50, shape).astype(np.float64).astype(dtype)


def ints(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def model_of(
    nodes: Sequence[onnx.NodeProto], inputs: dict[str, Sequence[int | str]], constants: dict[str, Array] | None = None,
    outputs: Sequence[str] = ("y",), kinds: dict[str, int] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    infos = [helper.make_tensor_value_info(n, (kinds or {}).get(n, TensorProto.FLOAT), s) for n, s in inputs.items()]
    graph = helper.make_graph(
        list(nodes), "g", infos, [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("dtype", SIZES)
def test_transposes(dtype: Any) -> None:
    for shape in ((3, 5), (17, 33), (64, 3), (2, 19, 70), (2, 3, 4, 5), (1, 40, 1, 37)):
        for perm in list(itertools.permutations(range(len(shape))))[::5][:4]:
            check_node("Transpose", {"x": data(shape, dtype)}, perm=perm)


def test_slices() -> None:
    x = data((7, 9))
    far = 2**63 - 1
    for (start, end, step), axis in itertools.product(
        [(0, far, 1), (2, -1, 2), (-3, far, 1), (-20, 4, 1), (5, 5, 1), (6, 2, 1), (-1, -far - 1, -1), (far, 1, -2),
         (3, -far, -1), (20, 30, 1), (-2, -5, -1), (0, far, 3), (8, -100, -3), (-100, -100, -1), (1, 4, 1)],
        (0, 1, -1),
    ):  # fmt: skip
        operands = {"starts": ints(start), "ends": ints(end), "axes": ints(axis), "steps": ints(step)}
        check_node("Slice", {"x": x, **operands}, constants=tuple(operands))
    operands = {"starts": ints(1, 8), "ends": ints(6, -10), "axes": ints(-2, 1), "steps": ints(2, -3)}
    check_node("Slice", {"x": x, **operands}, constants=tuple(operands))
    check_node("Slice", {"x": x, "starts": ints(1), "ends": ints(3)}, constants=("starts", "ends"))
    # Starts and ends that are known only when the model runs.
    for start, end in ((0, 3), (-4, far), (5, 2)):
        check_node("Slice", {"x": x, "starts": ints(start), "ends": ints(end), "axes": ints(1)}, constants=("axes",))


def test_a_slice_up_to_an_extent() -> None:
    nodes = [
        helper.make_node("Shape", ["like"], ["n"], start=1),
        helper.make_node("Sub", ["zero", "n"], ["back"]),
        helper.make_node("Slice", ["x", "back", "far", "one"], ["tail"]),
        helper.make_node("Slice", ["x", "zero", "n", "one"], ["head"]),
    ]
    constants = {"zero": ints(0), "one": ints(1), "far": ints(2**31 - 1)}
    model = model_of(nodes, {"x": ["a", "b"], "like": [1, "n"]}, constants, ("tail", "head"))
    for extent in (1, 4, 9):
        check(model, {"x": data((3, 6)), "like": data((1, extent))})


def test_splits_and_concats() -> None:
    x = data((4, 9, 5))
    check_node("Split", {"x": x}, 3, axis=1, num_outputs=3)
    check_node("Split", {"x": x}, 2, axis=1, num_outputs=2)
    check_node("Split", {"x": x, "split": ints(2, 0, 7)}, 3, constants=("split",), axis=-2)
    a, b, c = data((2, 3, 4)), data((2, 5, 4)), data((2, 1, 4))
    check_node("Concat", {"a": a, "b": b, "c": c}, axis=1)
    check_node("Concat", {"a": a, "b": b, "c": data((2, 0, 4))}, constants=("b", "c"), axis=-2)
    check_node("Concat", {"a": a}, axis=2)
    nodes = [
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Neg", ["b"], ["n"]),
        helper.make_node("Concat", ["r", "r", "n", "a", "r"], ["j"], axis=1),
        helper.make_node("Concat", ["j", "j"], ["k"], axis=0),
        helper.make_node("Transpose", ["j"], ["y"], perm=[2, 0, 1]),
        helper.make_node("Abs", ["k"], ["z"]),
    ]
    for shape in ([2, 3, 4], [2, "m", "n"]):
        model = model_of(nodes, {"a": shape, "b": shape}, outputs=("y", "z", "j"))
        check(model, {"a": a, "b": data((2, 3, 4))})


def test_a_concat_whose_extents_only_a_run_can_compare() -> None:
    nodes = [
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Relu", ["b"], ["s"]),
        helper.make_node("Concat", ["r", "s"], ["j"], axis=1),
        helper.make_node("Abs", ["j"], ["y"]),
    ]
    model = model_of(nodes, {"a": ["n", 2], "b": ["m", 3]})
    check(model, {"a": data((4, 2)), "b": data((4, 3))})
    with pytest.raises(InvalidArgument):
        compiled(model).run(None, {"a": data((4, 2)), "b": data((5, 3))})


def test_broadcasts_whose_extents_only_a_run_can_compare() -> None:
    model = model_of([helper.make_node("Add", ["a", "b"], ["y"])], {"a": ["n"], "b": [5]})
    for extent in (1, 5):
        check(model, {"a": data((extent,)), "b": data((5,))})
    with pytest.raises(InvalidArgument):
        compiled(model).run(None, {"a": data((3,)), "b": data((5,))})
    model = model_of([helper.make_node("Expand", ["a", "s"], ["y"])], {"a": ["n", 1]}, {"s": ints(2, 4, 3)})
    for extent in (1, 4):
        check(model, {"a": data((extent, 1))})
    with pytest.raises(InvalidArgument):
        compiled(model).run(None, {"a": data((2, 1))})


def test_reshapes_whose_extents_only_a_run_can_compare() -> None:
    model = model_of([helper.make_node("Reshape", ["a", "s"], ["y"])], {"a": ["n", 3]}, {"s": ints(2, 6)})
    check(model, {"a": data((4, 3))})
    with pytest.raises(InvalidArgument):
        compiled(model).run(None, {"a": data((5, 3))})
    nodes = [helper.make_node("Transpose", ["a"], ["t"]), helper.make_node("Reshape", ["t", "s"], ["y"])]
    check(model_of(nodes, {"a": ["n", "m"]}, {"s": ints(-1)}), {"a": data((5, 3))})


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_gathers(index: Any) -> None:
    for dtype, axis in itertools.product(SIZES, (0, 1, -1)):
        x = data((4, 6, 3), dtype)
        for shape in ((), (5,), (2, 3), (0,)):
            chosen = RNG.integers(-x.shape[axis], x.shape[axis], shape).astype(index)
            check_node("Gather", {"x": x, "i": chosen}, axis=axis)
    for axis, chosen in ((0, -1), (1, 2), (2, 0)):
        check_node("Gather", {"x": data((4, 6, 3)), "i": np.array(chosen, index)}, constants=("i",), axis=axis)
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Gather", ["t", "i"], ["y"], axis=1)]
    model = model_of(nodes, {"x": ["a", "b"], "i": ["k"]}, kinds={"i": TensorProto.INT64})
    check(model, {"x": data((6, 4)), "i": ints(5, 0, -1)})


def test_gathers_of_elements_and_tuples() -> None:
    x = data((4, 6, 3))
    for axis in (0, 1, -1):
        shape = [3, 5, 2]
        chosen = RNG.integers(-x.shape[axis], x.shape[axis], shape).astype(np.int64)
        check_node("GatherElements", {"x": x, "i": chosen}, axis=axis)
    for width in (1, 2, 3):
        chosen = np.stack([RNG.integers(-e, e, (2, 5)) for e in x.shape[:width]], -1).astype(np.int64)
        check(one_node("GatherND", {"x": x, "i": chosen}), {"x": x, "i": chosen})
    batched = np.stack([RNG.integers(0, e, (4, 7)) for e in x.shape[1:]], -1).astype(np.int64)
    check(one_node("GatherND", {"x": x, "i": batched}, batch_dims=1), {"x": x, "i": batched})
    rows = RNG.integers(0, 6, (4, 2, 1)).astype(np.int64)
    check(one_node("GatherND", {"x": x, "i": rows}, batch_dims=1), {"x": x, "i": rows})


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
def test_scatters(reduction: str) -> None:
    for dtype in (np.float32, np.int64, np.float16, np.uint8):
        x = data((4, 6, 3), dtype)
        for axis in (0, 1, -1):
            extent, shape = x.shape[axis], [3, 2, 3]
            shape[axis] = 2
            order = np.argsort(RNG.random((*[s for i, s in enumerate(shape) if i != axis % 3], extent)), axis=-1)
            chosen = np.moveaxis(order[..., :2], -1, axis).astype(np.int64)
            updates = data(chosen.shape, dtype)
            check_node("ScatterElements", {"x": x, "i": chosen, "u": updates}, axis=axis, reduction=reduction)
        pairs = np.array([[0, 1], [3, -1], [2, 2]], np.int64)
        if reduction != "none":
            pairs[2] = pairs[0]
        updates = data((3, 3), dtype)
        check(one_node("ScatterND", {"x": x, "i": pairs, "u": updates}, reduction=reduction),
              {"x": x, "i": pairs, "u": updates})  # fmt: skip


def test_an_index_outside_of_its_axis_is_refused() -> None:
    x = data((4, 6))
    for op, more in (("Gather", {}), ("GatherElements", {}), ("ScatterElements", {"u": data((1, 1))})):
        for wrong in (4, -5):
            model = one_node(op, {"x": x, "i": np.array([[wrong]], np.int64), **more})
            with pytest.raises(InvalidArgument, match="outside"):
                compiled(model).run(None, {"x": x, "i": np.array([[wrong]], np.int64), **more})
    chosen = np.zeros((2, 7), np.int64)
    model = model_of([helper.make_node("GatherElements", ["x", "i"], ["y"])], {"x": ["a", "b"], "i": ["c", "d"]},
                     kinds={"i": TensorProto.INT64})  # fmt: skip
    with pytest.raises(InvalidArgument):
        compiled(model).run(None, {"x": x, "i": chosen})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pads(mode: str) -> None:
    for dtype in (np.float32, np.int64, np.bool_, np.float16):
        x = data((3, 5, 4), dtype)
        for pads in ((0, 2, 1, 1, 0, 3), (-1, 3, 0, 0, -1, 2), (0, 0, 0, 0, 0, 0), (1, 0, -2, 0, 0, 1)):
            if mode == "constant" and dtype == np.float32:
                for constants in (("p",), ("p", "v")):
                    check_node("Pad", {"x": x, "p": ints(*pads), "v": np.array(2, dtype)}, constants=constants)
            check_node("Pad", {"x": x, "p": ints(*pads)}, constants=("p",), mode=mode)
    x = data((2, 40, 50, 3))
    check_node("Pad", {"x": x, "p": ints(1, 2, 3, 4), "v": None, "a": ints(-2, 1)}, constants=("p", "a"), mode=mode)
    check_node("Pad", {"x": x, "p": ints(1, 2, 3, 4), "v": None, "a": ints(2, 1)}, constants=("a",), mode=mode)
    if mode == "wrap":
        check_node("Pad", {"x": data((3, 4)), "p": ints(7, 9, 11, 6)}, constants=("p",), mode=mode)
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Pad", ["t", "p"], ["q"], mode=mode),
        helper.make_node("Transpose", ["q"], ["y"], perm=[0, 2, 3, 1]),
    ]
    for shape in ([2, 40, 50, 3], ["n", "h", "w", 3]):
        check(model_of(nodes, {"x": shape}, {"p": ints(0, 0, 2, 1, 0, 0, 3, 1)}), {"x": x})


def test_pads_that_do_not_fit_are_refused() -> None:
    for mode, pads in (("reflect", ints(4, 0)), ("constant", ints(-3, -2))):
        model = one_node("Pad", {"x": data((4,)), "p": pads}, constants=("p",), free=True, mode=mode)
        with pytest.raises(InvalidArgument):
            compiled(model).run(None, {"x": data((4,))})


def test_tiles_blocks_and_triangles() -> None:
    for dtype in SIZES:
        x = data((2, 3, 4), dtype)
        for repeats in ((1, 1, 1), (2, 1, 3), (1, 4, 1), (3, 2, 2), (0, 1, 2)):
            check_node("Tile", {"x": x, "r": ints(*repeats)}, constants=("r",))
        image = data((2, 12, 4, 6), dtype)
        for mode in ("DCR", "CRD"):
            check_node("DepthToSpace", {"x": image}, blocksize=2, mode=mode)
        check_node("SpaceToDepth", {"x": image}, blocksize=2)
    check_node("Tile", {"x": data((2, 1, 2, 1, 2)), "r": ints(2, 3, 2, 3, 2)})
    for upper, k in itertools.product((0, 1), (0, 2, -1, 9, -9)):
        check_node("Trilu", {"x": data((2, 4, 6)), "k": np.array(k, np.int64)}, constants=("k",), upper=upper)
    check_node("Trilu", {"x": data((5, 3), np.bool_)}, upper=0)
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Trilu", ["t"], ["y"])]
    check(model_of(nodes, {"x": ["a", "b"]}), {"x": data((4, 7))})


def test_tensors_that_are_made() -> None:
    x = data((3, 5))
    check_node("Shape", {"x": x})
    check_node("Shape", {"x": x}, start=-1)
    check_node("Size", {"x": x})
    for k, dtype in itertools.product((0, 2, -1, 7), (TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL)):
        check_node("EyeLike", {"x": x}, k=k, dtype=dtype)
    value = helper.make_tensor("v", TensorProto.INT32, [1], [7])
    for shape in (ints(2, 0, 3), ints(2, 3)):
        check(one_node("ConstantOfShape", {"s": shape}, value=value), {"s": shape})
        check(one_node("ConstantOfShape", {"s": shape}), {"s": shape})
    for start, limit, step in ((0, 7, 2), (5, -3, -1), (3, 3, 1)):
        for dtype in (np.int64, np.int32, np.float32, np.int16):
            operands = {n: np.array(v, dtype) for n, v in (("a", start), ("b", limit), ("c", step))}
            check_node("Range", operands)
    for axis, dtype in itertools.product((-1, 0, 1), (np.int64, np.float32, np.int32)):
        operands = {"i": RNG.integers(-8, 8, (3, 4)).astype(dtype), "d": np.array(6, np.int64)}
        check_node("OneHot", {**operands, "v": np.array([2, 5], np.float32)}, constants=("d",), axis=axis)


def test_extents_as_data() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceProd", ["s"], ["p"], keepdims=0),
        helper.make_node("Range", ["zero", "p", "one"], ["r"]),
        helper.make_node("ConstantOfShape", ["s"], ["c"]),
        helper.make_node("Add", ["c", "x"], ["y"]),
    ]
    constants = {"zero": np.array(0, np.int64), "one": np.array(1, np.int64)}
    model = model_of(nodes, {"x": ["a", "b"]}, constants, ("f", "r", "y"))
    for shape in ((3, 4), (1, 7), (0, 2)):
        check(model, {"x": data(shape)})


@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
def test_running_totals(op: str) -> None:
    opset = 23 if op == "CumSum" else 26
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip("this onnx has no CumProd")
    for dtype, axis in itertools.product((np.float32, np.float64, np.int32, np.float16), (0, 1, -1)):
        x = np.round(RNG.random((3, 20, 4)) * 4 - 2).astype(dtype)
        for exclusive, reverse in itertools.product((0, 1), repeat=2):
            check_node(op, {"x": x, "a": np.array(axis, np.int64)}, constants=("a",), opset=opset,
                       exclusive=exclusive, reverse=reverse, rtol=1e-6)  # fmt: skip


def test_the_largest_elements() -> None:
    for dtype, axis, largest in itertools.product((np.float32, np.int64, np.uint8, np.float16), (0, 1, -1), (0, 1)):
        x = data((4, 7, 5), np.int64 if dtype == np.uint8 else dtype).astype(dtype)
        for count in (0, 1, 3):
            check_node("TopK", {"x": x, "k": ints(count)}, 2, constants=("k",), axis=axis, largest=largest)
    check_node("TopK", {"x": data((4, 7)), "k": ints(2)}, 2, axis=0)


def test_sequences_turned_round() -> None:
    x, lengths = data((5, 3, 4)), ints(5, 0, 2)
    check_node("ReverseSequence", {"x": x, "n": lengths}, batch_axis=1, time_axis=0)
    check_node("ReverseSequence", {"x": data((3, 5)), "n": lengths}, batch_axis=0, time_axis=1)
    with pytest.raises(InvalidArgument):
        compiled(one_node("ReverseSequence", {"x": x, "n": lengths})).run(None, {"x": x, "n": ints(6, 0, 2)})
