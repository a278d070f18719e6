"""Every surviving value of small networks and of trained models is within 1e-4 of its range, with every tactic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tests.shared_models import TRAINED, TRAINED_FEEDS, needs_trained
from whet.compiler.tactics import chain, conv
from whet.session.config_keys import tactic_families
from whet.verify.compare import TOLERANCE
from whet.verify.values import ValueReport, compare_values

FAMILIES = {"conv": conv.CONV_TACTICS, "chain": chain.CHAIN_TACTICS}
"""Every family of tactics that there is, with the list that it is chosen from."""


class Net:
    """Writes a network layer by layer; weights keep the variance of what goes through."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._rng = np.random.default_rng(5)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._shape = shape
        self.channels = shape[1]

    def _add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def weight(self, shape: tuple[int, ...], scale: float) -> str:
        name = f"w{len(self._weights)}"
        values = (self._rng.standard_normal(shape) * scale).astype(np.float32)
        self._weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(self, x: str, outputs: int, kernel: tuple[int, ...], stride: int = 1, groups: int = 1) -> str:
        taps = self.channels // groups * int(np.prod(kernel))
        weights = [self.weight((outputs, self.channels // groups, *kernel), (1.8 / taps) ** 0.5)]
        weights += [self.weight((outputs,), 0.1)]
        self.channels = outputs
        pads = [k // 2 for k in kernel] * 2
        strides = [stride if k > 1 else 1 for k in kernel]
        return self._add("Conv", [x, *weights], pads=pads, strides=strides, group=groups)

    def op(self, op: str, *inputs: str, **attributes: Any) -> str:
        return self._add(op, list(inputs), **attributes)

    def model(self, output: str) -> bytes:
        floats = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self._nodes, "net", [helper.make_tensor_value_info("x", floats, self._shape)],
            [helper.make_tensor_value_info(output, floats, None)], self._weights,
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return made.SerializeToString()


def residual() -> tuple[bytes, tuple[int, ...]]:
    """3x3 convolutions with stride 1 and 2, from few channels and from many; sums."""
    shape = (2, 3, 37, 30)
    net = Net(shape)
    x = net.op("Relu", net.conv("x", 24, (3, 3), 2))
    y = net.op("Relu", net.conv(x, 24, (3, 3)))
    x = net.op("Relu", net.op("Add", net.conv(y, 24, (3, 3)), x))
    x = net.op("Relu", net.conv(x, 80, (3, 3), 2))
    x = net.op("Sigmoid", net.conv(x, 40, (1, 1)))
    return net.model(net.op("GlobalAveragePool", net.conv(x, 17, (3, 3)))), shape


def inverted() -> tuple[bytes, tuple[int, ...]]:
    """Expand, depthwise, project; squeeze and excite between the last two of the second block."""
    shape = (1, 16, 28, 29)
    net = Net(shape)
    x = "x"
    for stride, kernel, gate in ((1, 3, False), (2, 5, True), (1, 3, False)):
        before, channels = x, net.channels
        x = net.op("Relu", net.conv(x, 6 * channels, (1, 1)))
        x = net.op("Relu", net.conv(x, net.channels, (kernel, kernel), stride, net.channels))
        if gate:
            wide, inner = net.channels, x
            mean = net.op("GlobalAveragePool", x)
            excite = net.conv(net.op("Relu", net.conv(mean, 8, (1, 1))), wide, (1, 1))
            x = net.op("Mul", inner, net.op("Sigmoid", excite))
        x = net.conv(x, channels, (1, 1))
        if stride == 1:
            x = net.op("Add", x, before)
    return net.model(net.op("Relu", x)), shape


def line() -> tuple[bytes, tuple[int, ...]]:
    """Convolutions along one axis, as Magika has them, and grouped ones."""
    shape = (1, 64, 203)
    net = Net(shape)
    x = net.op("Relu", net.conv("x", 48, (5,)))
    x = net.op("Tanh", net.conv(x, 96, (3,)))
    x = net.op("Relu", net.conv(x, 96, (3,), groups=6))
    return net.model(net.op("GlobalMaxPool", x)), shape


NETS: dict[str, Callable[[], tuple[bytes, tuple[int, ...]]]] = {
    "residual": residual, "inverted": inverted, "line": line,
}  # fmt: skip


def check(reports: list[ValueReport]) -> None:
    for report in reports:
        off = [d for d in report.differences if not d.error <= TOLERANCE]
        assert report.differences
        assert not off, f"{report.tactic or 'chosen'}: {off}"


@pytest.fixture(scope="module")
def small() -> dict[str, list[ValueReport]]:
    """The reports of all self-made networks."""
    found = {}
    for name, make in NETS.items():
        model, shape = make()
        feed = {"x": np.random.default_rng(3).random(shape, np.float32)}
        found[name] = compare_values(model, feed)
    return found


@pytest.mark.parametrize("name", NETS)
def test_small_networks(name: str, small: dict[str, list[ValueReport]]) -> None:
    check(small[name])


def test_every_tactic_was_forced_somewhere(small: dict[str, list[ValueReport]]) -> None:
    """A new tactic needs a network here that it can be used in, and a new family a line in FAMILIES."""
    assert set(FAMILIES) == set(tactic_families())
    used = {report.tactic.split()[-1] for reports in small.values() for report in reports if report.used}
    wanted = {f"{family}={tactic.name}" for family, tactics in FAMILIES.items() for tactic in tactics}
    assert wanted <= used, f"never forced: {sorted(wanted - used)}"


def test_errors_are_found() -> None:
    """The comparison is able to fail: float32 is not right to 1e-9."""
    model, shape = residual()
    reports = compare_values(model, {"x": np.random.default_rng(3).random(shape, np.float32)})
    worst = reports[0].worst
    assert worst is not None
    assert 1e-9 < worst.error < 1e-5
    assert len(reports[0].differences) >= 6


@needs_trained
@pytest.mark.parametrize("name", ["face_rfb_320", "magika_standard_v3_3"])
def test_trained_models(name: str) -> None:
    check(compare_values(str(TRAINED / f"{name}.onnx"), TRAINED_FEEDS[name]()))
