"""Chains of convolutions in graphs: joined or not, the same answers; what is joined, and what is left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import whet
from whet.codegen.target import AVX2, AVX512, NEON, Target
from whet.compiler.compile import compile_graph
from whet.compiler.lowering import LowerEnv
from whet.compiler.tactics.chain import APART, BOTH, CHAIN_TACTICS, EXPAND, ChainGeometry, choose_chain
from whet.compiler.tactics.question import Question
from whet.errors import InvalidArgument
from whet.kernels.chain_shape import ChainWork
from whet.kernels.conv import Window
from whet.providers.cpu.executable import CpuExecutable

Array = np.ndarray[Any, Any]


class Net:
    """Convolutions one behind the other, in a model."""

    def __init__(self, channels: int, image: tuple[int | str, int | str], images: int | str = 1) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels, self.last = channels, "x"
        self.input = helper.make_tensor_value_info("x", 1, [images, channels, *image])

    def add(self, op: str, *others: str, **attributes: Any) -> str:
        name = f"{op} {len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [self.last, *others], [name], name=name, **attributes))
        self.last = name
        return name

    def constant(self, array: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, outputs: int, bias: bool = True) -> str:
        w = self.constant(self.rng.standard_normal((outputs, self.channels, 1, 1)) / self.channels**0.5)
        self.channels = outputs
        return self.add("Conv", w, *([self.constant(self.rng.standard_normal(outputs))] if bias else []))

    def depthwise(self, kernel: int = 3, stride: int = 1, **attributes: Any) -> str:
        w = self.constant(self.rng.standard_normal((self.channels, 1, kernel, kernel)) / kernel)
        attributes = {"pads": [kernel // 2] * 4} | attributes
        return self.add(
            "Conv", w, self.constant(self.rng.standard_normal(self.channels)), group=self.channels,
            strides=[stride] * 2, **attributes,
        )  # fmt: skip

    def silu(self) -> None:
        before = self.last
        self.add("Sigmoid")
        self.add("Mul", before)

    def model(self, *outputs: str) -> bytes:
        results = [helper.make_tensor_value_info(name, 1, None) for name in (outputs or (self.last,))]
        graph = helper.make_graph(self.nodes, "chain", [self.input], results, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        data: bytes = made.SerializeToString()
        return data


def tactics_of(profile: str) -> set[str]:
    """The tactics of a run's steps."""
    events = json.loads(Path(profile).read_text())
    return {event["args"]["tactic"] for event in events if "tactic" in event.get("args", {})}


def run(
    model: bytes, feed: dict[str, Array], mode: str, tmp_path: Any, threads: int = 2
) -> tuple[list[Array], set[str]]:
    """What a model gives, and the tactics of its steps."""
    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / f"{mode}{threads}")
    options.add_session_config_entry("cpu.tactic.chain", mode)
    session = whet.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    assert set(session.placement.by_provider) == {"CPUExecutionProvider"}
    answers = [np.asarray(a) for a in session.run(None, feed)]
    return answers, tactics_of(session.end_profiling())


def check(net: Net, image: tuple[int, ...], tmp_path: Any, expected: str | None, *outputs: str) -> None:
    """Joined or not, a net gives what the reference provider gives, with the same bits for any number of threads."""
    model = net.model(*outputs)
    feed = {"x": np.random.default_rng(1).standard_normal(image).astype(np.float32)}
    exact = whet.InferenceSession(model, providers=["ReferenceExecutionProvider"]).run(None, feed)
    joined, tactics = run(model, feed, "on", tmp_path)
    apart, others = run(model, feed, "off", tmp_path)
    alone, _ = run(model, feed, "on", tmp_path, threads=1)
    assert not {EXPAND, BOTH, "depthwise-project"} & others
    assert (expected in tactics) if expected else not {EXPAND, BOTH, "depthwise-project"} & tactics
    for a, b, c, wanted in zip(joined, apart, alone, exact, strict=True):
        size = np.abs(np.asarray(wanted)).max()
        assert np.abs(a - wanted).max() <= 2e-6 * size
        assert np.abs(b - wanted).max() <= 2e-6 * size
        assert (a == c).all()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_inverted_residual(kernel: int, stride: int, tmp_path: Any) -> None:
    net = Net(24, (29, 31), 2)
    net.conv(16)
    before = net.last
    net.conv(96)
    net.add("Relu")
    net.depthwise(kernel, stride)
    net.silu()
    net.conv(16, bias=False)
    if stride == 1:
        net.add("Add", before)
    check(net, (2, 24, 29, 31), tmp_path, BOTH)


def test_squeeze_and_excite(tmp_path: Any) -> None:
    net = Net(8, (20, 20))
    net.conv(48)
    net.silu()
    net.depthwise()
    net.silu()
    whole = net.last
    net.add("GlobalAveragePool")
    net.conv(4)
    net.add("Relu")
    net.conv(48)
    net.add("Sigmoid")
    net.add("Mul", whole)
    net.conv(12)
    check(net, (1, 8, 20, 20), tmp_path, EXPAND)


def test_separable(tmp_path: Any) -> None:
    net = Net(16, (18, 21))
    for stride, outputs in ((1, 32), (2, 48), (1, 20)):
        net.depthwise(3, stride)
        net.add("Relu")
        net.conv(outputs)
        net.add("Relu")
    check(net, (1, 16, 18, 21), tmp_path, "depthwise-project")


class Recorder:
    """Keeps the questions of a lowering and leaves the answers to the cost model."""

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def pick(self, question: Question) -> str | None:
        self.asked.append(question)
        return None


def questions(net: Net) -> list[Question]:
    """What the lowering of a net asks about chains."""
    made = whet.InferenceSession(net.model(), providers=["CPUExecutionProvider"])
    (step,) = made._main.compiled.executor._steps
    executable = step.executable
    assert isinstance(executable, CpuExecutable)
    assert executable._specializer is not None
    recorder = Recorder()
    compile_graph(executable._specializer.specialize({}), replace(executable._lower_env, choices=recorder))
    return [question for question in recorder.asked if question.family == "chain"]


def test_a_choice_is_timed_with_all_that_it_decides_on() -> None:
    # Each 1x1 convolution can end one chain or begin the next, so the first choice reaches to the last.
    separable = Net(16, (18, 21))
    names = []
    for outputs in (32, 48, 20):
        names += [separable.depthwise(), separable.conv(outputs)]
    asked = questions(separable)
    assert asked
    for question in asked:
        assert {label.split("(")[1].rstrip(")") for label in question.nodes} == set(names)

    # A residual stands between these chains, so each is by itself.
    residual = Net(16, (18, 21))
    blocks = []
    for _ in range(2):
        start = residual.last
        blocks.append({residual.conv(48), residual.depthwise(), residual.conv(16)})
        residual.add("Add", start)
    found = [{label.split("(")[1].rstrip(")") for label in question.nodes} for question in questions(residual)]
    assert len(found) == 2
    assert found[0] != found[1]
    assert all(nodes in blocks for nodes in found)


def test_images_at_run_time(tmp_path: Any) -> None:
    net = Net(16, (14, 14), "n")
    net.conv(64)
    net.depthwise()
    net.conv(10)
    check(net, (3, 16, 14, 14), tmp_path, BOTH)


def test_extents_at_run_time_stay_apart(tmp_path: Any) -> None:
    net = Net(16, ("h", "w"))
    net.conv(64)
    net.depthwise()
    net.conv(10)
    check(net, (1, 16, 9, 14), tmp_path, None)


def test_what_others_read_is_not_joined(tmp_path: Any) -> None:
    net = Net(16, (12, 12))
    net.conv(64)
    first = net.add("Relu")
    net.depthwise()
    second = net.add("Relu")
    net.conv(10)
    check(net, (1, 16, 12, 12), tmp_path, None, first, second, net.last)


def test_an_operand_for_each_pixel_is_not_joined(tmp_path: Any) -> None:
    net = Net(32, (12, 12))
    before = net.last
    net.conv(32)
    net.add("Add", before)
    net.depthwise()
    net.add("Add", before)
    net.conv(10)
    check(net, (1, 32, 12, 12), tmp_path, None)


def test_written_into_a_part_of_another(tmp_path: Any) -> None:
    net = Net(16, (10, 10))
    net.conv(32)
    net.depthwise()
    first = net.conv(24)
    net.last, net.channels = "x", 16
    net.conv(32)
    net.depthwise(5)
    net.conv(8)
    net.add("Concat", first, axis=1)
    check(net, (1, 16, 10, 10), tmp_path, BOTH)


@pytest.mark.parametrize("target", [AVX512, AVX2, NEON], ids=["avx512", "avx2", "neon"])
def test_costs(target: Target) -> None:
    """Large maps of many channels are joined; small ones, whose weights are more than they are, are not."""
    window = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1))

    def choice(extent: int, inputs: int, channels: int, mode: str = "auto", outputs: int | None = None) -> str:
        work = ChainWork(window, channels, (extent, extent), (extent, extent), inputs, outputs)
        env = LowerEnv(target, threads=2, tactics={"chain": mode})
        return choose_chain(ChainGeometry(work, 1, 2), env, None, None, ())

    if target is AVX512:
        assert choice(112, 16, 96) == EXPAND
        assert choice(56, 24, 144, outputs=24) == BOTH
    assert choice(7, 160, 960, outputs=160) == APART
    assert choice(112, 16, 96, "off") == APART
    assert choice(7, 160, 960, "on") == EXPAND
    assert choice(56, 24, 145, "on", outputs=24) == APART


def test_refusals_have_reasons() -> None:
    window = Window((7, 7), (1, 1), (1, 1), (3, 3, 3, 3))
    work = ChainWork(window, 96, (14, 14), (14, 14), 24, None)
    reasons = [tactic.refusal(ChainGeometry(work, 1, 2), LowerEnv(AVX512)) for tactic in CHAIN_TACTICS]
    assert reasons == [None, "more than 25 taps", "no 1x1 convolution behind it", "no 1x1 convolution behind it"]


def test_values_of_the_key() -> None:
    options = whet.SessionOptions()
    with pytest.raises(InvalidArgument, match="does not take"):
        options.add_session_config_entry("cpu.tactic.chain", "always")
