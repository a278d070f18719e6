"""Every tactic of convolutions, forced in turn, beside ONNX Runtime; refusals by name; what the costs choose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import whet
from tests.compiled_nodes import single_node
from whet.codegen.target import AVX512
from whet.compiler.lowering import LowerEnv
from whet.compiler.tactics.choice import choose
from whet.compiler.tactics.conv import CONV_TACTICS, Geometry
from whet.dtypes import FLOAT32, INT32
from whet.errors import InvalidArgument
from whet.kernels.conv import Window

Array = np.ndarray[Any, np.dtype[Any]]

LAST = (0, 2, 3, 1)
NAMES = [tactic.name for tactic in CONV_TACTICS]
STEP_NAMES = {"pointwise": "gemm", "direct": "conv", "im2col": "conv-im2col", "padded": "conv-padded"}
"""What steps of a tactic are called where it is not the tactic's own name."""


def session(model: bytes, tactic: str | None = None, threads: int = 2) -> whet.InferenceSession:
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    if tactic is not None:
        options.add_session_config_entry("cpu.tactic.conv", tactic)
    return whet.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def random_conv(rng: np.random.Generator, tactic: str, number: int) -> tuple[bytes, dict[str, Array]]:
    """A convolution that the tactic can do, in some layout, with some work behind it."""
    images, channels, outputs = (int(rng.integers(1, high)) for high in (4, 40, 40))
    kernel = (1, 1) if tactic == "pointwise" else (3, 3)
    if tactic.startswith("winograd-line"):
        taps = int(rng.integers(3, int(tactic[-1])))
        kernel = (taps, 1) if number % 2 else (1, taps)
    image = tuple(int(n) for n in rng.integers(1, 15, 2))
    attributes: dict[str, Any] = {}
    if tactic != "pointwise":
        pads = [int(p) for p in rng.integers(0, 3, 4)]
        # The window must fit in the padded image.
        pads[2:] = [max(p, t - n - b) for p, n, b, t in zip(pads[2:], image, pads[:2], kernel, strict=True)]
        pads = [p if kernel[i % 2] > 1 else 0 for i, p in enumerate(pads)]
        attributes["pads"] = pads if number % 4 or kernel != (3, 3) else [1, 1, 1, 1]
    group = 1
    if tactic == "depthwise":
        channels = outputs = group = channels + 1
        attributes |= {"group": group, "strides": [1 + number % 2, 1]}
    elif tactic == "grouped":
        group = 2 + number
        channels, outputs = (channels % (3, 9, 33)[number % 3] + 1) * group, (outputs % (9, 3)[number % 2] + 1) * group
        attributes |= {"group": group, "strides": [1, 1 + number % 2]}
    elif tactic.endswith("stride2"):
        attributes |= {"strides": [2, 2]}
    elif tactic in ("direct", "im2col", "padded"):
        if tactic == "padded":
            group = 1 + number % 3
            channels, outputs = (channels % 16 + 1) * group, (outputs % 16 + 1) * group
            attributes |= {"group": group}
        attributes |= {"strides": [1, 1 + number % 2]}
    x = rng.standard_normal((images, channels, *image)).astype(np.float32)
    w = rng.standard_normal((outputs, channels // group, *kernel)).astype(np.float32)
    b = rng.standard_normal(outputs).astype(np.float32)
    behind: list[tuple[str, list[str]]] = [("Relu", ["y"]), ("Sigmoid", ["y"])][number % 3 : number % 3 + 1]
    inputs: dict[str, Array | None] = {"x": x, "w": w, "b": b}
    return single_node(
        "Conv", inputs, constant=("w", "b"), order=LAST if number % 2 else None, symbolic=number % 5 == 4,
        behind=behind, **attributes,
    )  # fmt: skip


@pytest.mark.parametrize("tactic", NAMES)
def test_forced(tactic: str) -> None:
    rng = np.random.default_rng(NAMES.index(tactic))
    for number in range(12):
        model, feeds = random_conv(rng, tactic, number)
        found = session(model, tactic, 1 + number % 2)
        assert set(found.placement.by_provider) == {"CPUExecutionProvider"}
        assert STEP_NAMES.get(tactic, tactic) in _tactics(found)
        (got,) = found.run(None, feeds)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        (expected,) = onnxruntime.InferenceSession(model, options).run(None, feeds)
        assert got.shape == expected.shape
        scale = max(1.0, float(np.abs(expected).max())) if expected.size else 1.0
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * scale, err_msg=str(number))


def _tactics(session: whet.InferenceSession) -> set[str]:
    """The tactics of all steps that the session made before its first run."""
    (partition,) = session._main.compiled.executor._steps
    return {step.tactic for step in partition.executable._only.blueprint.steps}


def test_residual_behind_large_layers() -> None:
    """Weights that are taken to the points while the layer runs, in parts of the depth, with a second operand."""
    rng = np.random.default_rng(5)
    for channels, size in ((200, 9), (130, 13)):
        x, w = rng.standard_normal((2, channels, size, size)), rng.standard_normal((channels, channels, 3, 3))
        model, feeds = single_node(
            "Conv", {"x": x.astype(np.float32), "w": w.astype(np.float32)}, constant=("w",), pads=[1, 1, 1, 1],
            behind=[("Add", ["y", "x"]), ("Relu", ["y"])],
        )  # fmt: skip
        (expected,) = onnxruntime.InferenceSession(model).run(None, feeds)
        for tactic in ("winograd4", "winograd2", "winograd4-few"):
            (got,) = session(model, tactic).run(None, feeds)
            np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6 * float(np.abs(expected).max()))


def test_lines_of_one_spatial_axis() -> None:
    rng = np.random.default_rng(6)
    for number, (taps, length, symbolic) in enumerate(((5, 40, False), (3, 7, True), (7, 30, False), (4, 4, True))):
        x, w = rng.standard_normal((2, 33, length)), rng.standard_normal((33, 33, taps))
        model, feeds = single_node(
            "Conv", {"x": x.astype(np.float32), "w": w.astype(np.float32)}, constant=("w",), pads=[taps - 1, 0],
            symbolic=symbolic, behind=[("Add", ["y", "x"]), ("Relu", ["y"])],
        )  # fmt: skip
        (expected,) = onnxruntime.InferenceSession(model).run(None, feeds)
        for tactic in ("winograd-line8", "winograd-line6")[: 1 if taps > 5 else 2]:
            found = session(model, tactic, 1 + number % 2)
            (got,) = found.run(None, feeds)
            assert tactic in _tactics(found)
            np.testing.assert_allclose(got, expected, rtol=0, atol=5e-6 * float(np.abs(expected).max()))


def test_refused_tactics_say_why() -> None:
    x = np.ones((1, 8, 9, 9), np.float32)
    w = np.ones((8, 8, 3, 3), np.float32)
    for tactic, attributes, reason in (
        ("winograd4", {"strides": [2, 2]}, "strides or dilations"),
        ("winograd2", {"dilations": [2, 2]}, "strides or dilations"),
        ("pointwise", {}, "not 1x1"),
        ("depthwise", {}, "more than one channel"),
        ("grouped", {}, "one group"),
        ("winograd4-stride2", {}, "strides other than 2"),
        ("winograd-line8", {}, "not along one axis"),
    ):
        model, _ = single_node("Conv", {"x": x, "w": w}, constant=("w",), **attributes)
        with pytest.raises(InvalidArgument, match=reason):
            session(model, tactic)
    model, _ = single_node("Conv", {"x": x, "w": w})
    with pytest.raises(InvalidArgument, match="not constant"):
        session(model, "winograd4")
    with pytest.raises(InvalidArgument, match="winograd4"):
        session(model, "fastest")


def geometry(channels: int, outputs: int, size: int, **changes: Any) -> Geometry:
    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))
    made = Geometry(window, 1, channels, outputs, 1, (size, size), (size, size), FLOAT32, True)
    return replace(made, **changes)


def chosen(g: Geometry) -> str:
    return choose("conv", CONV_TACTICS, g, LowerEnv(replace(AVX512, cpu="znver5")))


def test_choice() -> None:
    assert chosen(geometry(64, 64, 56)) == "winograd4"
    assert chosen(geometry(320, 320, 64)) == "winograd4"
    # Few tiles of 4 x 4, half of them beyond the image, have not enough work for the weights' way to the points.
    assert chosen(geometry(512, 512, 6)) == "winograd2"
    assert chosen(geometry(512, 512, 7)) == "winograd4-few"
    assert chosen(geometry(256, 256, 14)) == "winograd4"
    assert chosen(geometry(3, 32, 224)) == "padded"
    assert chosen(geometry(256, 256, 1)) == "direct"
    assert chosen(geometry(64, 64, 56, element=INT32)) == "direct"
    assert chosen(geometry(64, 64, 56, constant=False)) == "direct"
    assert chosen(geometry(32, 32, 56, groups=2)) == "grouped"
    assert chosen(geometry(8, 8, 28, groups=13)) == "grouped"
    assert chosen(geometry(16, 16, 7, groups=48, window=Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1)))) == "grouped"
    assert chosen(geometry(128, 128, 28, groups=2)) == "direct"
    assert chosen(geometry(1, 1, 56, groups=64)) == "depthwise"
    pointwise = Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0))
    assert chosen(geometry(64, 64, 56, window=pointwise)) == "pointwise"
    assert chosen(geometry(3, 64, 56, window=pointwise)) == "pointwise"
    line = Window((5, 1), (1, 1), (1, 1), (0, 0, 0, 0))
    assert chosen(geometry(256, 512, 0, window=line, image=(512, 1), out=(508, 1))) == "winograd-line8"
    assert chosen(geometry(64, 64, 0, window=line, image=(6, 1), out=(2, 1), images=64)) == "winograd-line6"
    assert chosen(geometry(256, 512, 0, window=line, image=(5, 1), out=(1, 1))) == "direct"
    strided = Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
    assert chosen(geometry(64, 64, 56, window=strided)) == "winograd4-stride2"
    assert chosen(geometry(256, 256, 14, window=strided)) == "winograd2-stride2"
    assert chosen(geometry(512, 512, 7, window=strided)) == "direct"
    assert chosen(geometry(64, 64, 56, window=strided, constant=False)) == "direct"
    assert chosen(geometry(3, 64, 112, window=strided)) == "padded"
    spread = Window((3, 3), (1, 1), (1, 2), (1, 2, 1, 2))
    assert chosen(geometry(3, 32, 224, window=spread)) == "im2col"


def test_profile_names_the_tactic(tmp_path: Path) -> None:
    x, w = np.ones((1, 16, 12, 12), np.float32), np.ones((16, 16, 3, 3), np.float32)
    model, feeds = single_node("Conv", {"x": x, "w": w}, constant=("w",))
    for tactic in ("winograd4", "winograd2"):
        options = whet.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / tactic)
        options.add_session_config_entry("cpu.tactic.conv", tactic)
        profiled = whet.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        profiled.run(None, feeds)
        events = json.loads(Path(profiled.end_profiling()).read_text())
        assert tactic in {event["args"].get("tactic") for event in events if "args" in event}
