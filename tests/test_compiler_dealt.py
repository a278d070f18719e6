"""Which tiles a thread gets: a depthwise convolution behind a product whose columns were dealt out, by channels too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import whet
from whet.codegen.target import host_target
from whet.compiler.compile import lower_graph
from whet.compiler.lowering import LowerEnv
from whet.compiler.specialize import Specializer
from whet.config import DEFAULT_LIMITS
from whet.formats.onnx import load_model
from whet.kernels.depthwise import Depthwise
from whet.kernels.gemm import Gemm
from whet.passes.pipeline import optimize

Array = np.ndarray[Any, np.dtype[Any]]


def model(channels: int, image: int) -> bytes:
    """A 1x1 convolution to `channels`, and a depthwise one."""
    rng = np.random.default_rng(channels)
    inputs = 64
    weights = {
        "w": rng.standard_normal((channels, inputs, 1, 1)) / 8, "d": rng.standard_normal((channels, 1, 3, 3)) / 3,
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "d"], ["y"], group=channels, pads=[1] * 4),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "graph", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs, image, image])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, image, image])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )  # fmt: skip
    return bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    )


@pytest.mark.parametrize(("channels", "image"), [(512, 14), (512, 7), (64, 14), (64, 56)])
def test_a_share_of_the_channels_stays_with_its_thread(channels: int, image: int) -> None:
    data = model(channels, image)
    loaded = load_model(data)
    optimize(loaded, "all")
    target = host_target()
    env = LowerEnv(target, threads=2, tactics={"chain": "off"})
    specs = [step.spec for step in lower_graph(Specializer(loaded, DEFAULT_LIMITS).specialize({}), env).steps]
    (product,) = [spec for spec in specs if isinstance(spec, Gemm)]
    (depthwise,) = [spec for spec in specs if isinstance(spec, Depthwise)]
    columns_dealt_out = channels > product.width(target) * product.panels
    assert depthwise.by_channels == (columns_dealt_out and depthwise.parts(target) >= 4)
    if channels == 64:
        assert not depthwise.by_channels


@pytest.mark.parametrize("image", [7, 14])
def test_the_same_bits_for_any_number_of_threads(image: int) -> None:
    data, x = model(512, image), np.random.default_rng(1).standard_normal((1, 64, image, image)).astype(np.float32)
    found = []
    for threads in (1, 2, 8):
        options = whet.SessionOptions()
        options.intra_op_num_threads = threads
        session = whet.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        found.append(np.asarray(session.run(None, {"x": x})[0]))
    assert all(np.array_equal(found[0], other) for other in found[1:])
