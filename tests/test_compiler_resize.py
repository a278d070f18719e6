"""Resize as compiled code against the reference provider: modes, coordinates, layouts, types, free extents."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.movement_tools import check

RNG = np.random.default_rng(5)
COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_crop_and_resize",
)  # fmt: skip


def resize_model(
    shape: Sequence[int | str],
    dtype: Any = np.float32,
    *,
    scales: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    roi: Sequence[float] | None = None,
    channels_last: bool = False,
    **attributes: Any,
) -> onnx.ModelProto:
    """A Resize of `x`; with `channels_last` x is transposed before and the result after it."""
    code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = []
    for name, numbers, kind in (("roi", roi, np.float32), ("scales", scales, np.float32), ("sizes", sizes, np.int64)):
        if numbers is not None:
            constants.append(numpy_helper.from_array(np.array(numbers, kind), name))
    names = ["roi" if roi is not None else "", "scales" if scales is not None else ""]
    inputs = [*names, *(["sizes"] if sizes is not None else [])]
    nodes = []
    if channels_last:
        nodes.append(helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]))
        nodes.append(helper.make_node("Resize", ["t", *inputs], ["r"], **attributes))
        nodes.append(helper.make_node("Transpose", ["r"], ["y"], perm=[0, 2, 3, 1]))
    else:
        nodes.append(helper.make_node("Resize", ["x", *inputs], ["y"], **attributes))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", code, shape)],
        [helper.make_tensor_value_info("y", code, [None] * len(shape))], constants,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def image(shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    if np.dtype(dtype).kind == "f":
        return RNG.standard_normal(shape).astype(dtype)
    if dtype == np.bool_:
        return RNG.integers(0, 2, shape).astype(dtype)
    info = np.iinfo(dtype)
    return RNG.integers(max(info.min, -1000), min(info.max, 1000), shape).astype(dtype)


def options(mode: str, coordinates: str) -> dict[str, Any]:
    more: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    if coordinates == "tf_crop_and_resize":
        more |= {"extrapolation_value": 1.5, "roi": [0, 0, -0.1, 0.2, 1, 1, 0.7, 1.3]}
    return more


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
def test_every_coordinate_mode_with_free_and_with_fixed_extents(mode: str, coordinates: str) -> None:
    x = image((2, 3, 9, 11))
    for free, by_size in itertools.product((False, True), repeat=2):
        shape: list[int | str] = ["n", 3, "h", "w"] if free else [2, 3, 9, 11]
        goal: dict[str, Any] = {"sizes": [2, 3, 13, 5]} if by_size else {"scales": [1, 1, 2, 0.75]}
        check(resize_model(shape, **goal, **options(mode, coordinates)), {"x": x}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_every_rounding_of_nearest(rounding: str) -> None:
    for coordinates, scale, free in itertools.product(("half_pixel", "asymmetric"), (2.0, 0.5, 1.5), (False, True)):
        shape: list[int | str] = [1, "c", "h", 6] if free else [1, 4, 8, 6]
        model = resize_model(
            shape, scales=[1, 1, scale, scale], mode="nearest", nearest_mode=rounding,
            coordinate_transformation_mode=coordinates,
        )  # fmt: skip
        check(model, {"x": image((1, 4, 8, 6))})


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("channels", [1, 3, 16, 70])
def test_channels_last(mode: str, channels: int) -> None:
    for free in (False, True):
        shape: list[int | str] = [2, "h", "w", channels] if free else [2, 5, 7, channels]
        model = resize_model(shape, scales=[1, 1, 2, 3], mode=mode, channels_last=True)
        check(model, {"x": image((2, 5, 7, channels))}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_antialiasing_and_what_lies_outside(mode: str) -> None:
    for free, outside, goal in itertools.product(
        (False, True), (0, 1), ({"scales": [1, 1, 0.25, 0.6]}, {"sizes": [1, 2, 4, 40]})
    ):
        shape: list[int | str] = [1, 2, "h", "w"] if free else [1, 2, 20, 17]
        model = resize_model(shape, mode=mode, antialias=1, exclude_outside=outside, cubic_coeff_a=-0.5, **goal)
        check(model, {"x": image((1, 2, 20, 17))}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, np.int8, np.int32, np.int64, np.bool_])
def test_element_types(dtype: Any) -> None:
    x = image((1, 2, 6, 5), dtype)
    for mode in ("nearest", "linear", "cubic") if dtype != np.bool_ else ("nearest",):
        model = resize_model([1, 2, 6, 5], dtype, scales=[1, 1, 1.7, 2.4], mode=mode)
        tolerance = {np.float64: 1e-12, np.float16: 2e-3}.get(dtype, 0)
        check(model, {"x": x}, rtol=tolerance, atol=tolerance)


def test_axes_ranks_and_single_elements() -> None:
    check(resize_model([4, 5], scales=[3.0], axes=[-1], mode="linear"), {"x": image((4, 5))}, rtol=1e-5, atol=1e-5)
    check(resize_model([4, 5, 6], sizes=[8, 2], axes=[2, 0], mode="cubic"), {"x": image((4, 5, 6))},
          rtol=1e-5, atol=1e-5)  # fmt: skip
    for shape, sizes in (((1, 1, 4, 4), [1, 1, 1, 1]), ((1, 1, 1, 1), [1, 1, 3, 5]), ((2, 1, 3, 1), [2, 1, 1, 4])):
        for mode, coordinates in itertools.product(("nearest", "linear", "cubic"), COORDINATES[:5]):
            model = resize_model(list(shape), sizes=sizes, **options(mode, coordinates))
            check(model, {"x": image(shape)}, rtol=1e-5, atol=1e-5)
    volume = image((1, 2, 3, 4, 5))
    check(resize_model([1, 2, 3, 4, 5], scales=[1, 1, 2, 2, 2], mode="linear"), {"x": volume}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_a_kept_aspect_ratio(policy: str) -> None:
    for free in (False, True):
        shape: list[int | str] = [1, 1, "h", "w"] if free else [1, 1, 8, 6]
        model = resize_model(shape, sizes=[7, 9], axes=[2, 3], mode="linear", keep_aspect_ratio_policy=policy)
        check(model, {"x": image((1, 1, 8, 6))}, rtol=1e-5, atol=1e-5)


def test_opset_ten_upsampling_and_sizes_from_another_input() -> None:
    code = TensorProto.FLOAT
    nodes = [
        helper.make_node("Shape", ["like"], ["s"], start=2),
        helper.make_node("Resize", ["x", "", "", "s"], ["y"], axes=[2, 3], mode="linear"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", code, [1, 2, "a", "b"]),
         helper.make_tensor_value_info("like", code, [1, 5, "h", "w"])],
        [helper.make_tensor_value_info("y", code, [1, 2, "h", "w"])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    for h, w in ((12, 9), (3, 17)):
        check(model, {"x": image((1, 2, 6, 6)), "like": image((1, 5, h, w))}, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.float16])
def test_whole_factors(dtype: Any) -> None:
    for factor, width in ((2, 1), (2, 8), (3, 17), (5, 100), (8, 3), (2, 4200), (9, 5)):
        x = image((2, 3, 2, width), dtype)
        for modes in (("asymmetric", "floor"), ("half_pixel", "round_prefer_ceil"), ("asymmetric", "ceil")):
            chosen = {"mode": "nearest", "coordinate_transformation_mode": modes[0], "nearest_mode": modes[1]}
            for shape in ((2, 3, 2, width), ("a", 3, "b", "c")):
                check(resize_model(shape, dtype, scales=[1, 1, 2, factor], **chosen), {"x": x})
