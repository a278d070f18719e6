"""The repository of the soak, and for each of its models: random inputs, and the outputs that must come back.

Outputs are those of a session in this process. Only a model with products of matrices gets a tolerance: the size of its
batch may change the order of its sums. Everything else is compared bit by bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto
from onnx import helper as oh

from tests.server.grpc_models import RAW_ONLY, TYPES, make_repository, random_tensor
from tests.server.repository_models import scale_bytes
from tests.server.sequence_models import floats, integers, save, save_running_sum, sequence_config
from whet.session.inference_session import InferenceSession

Array = npt.NDArray[Any]
Feed = dict[str, Array]

MLP_TOLERANCE = 1e-5
IDLE_US = 300_000_000
"""A sequence is not given up because a busy machine lets its client wait."""
POOL = 24
"""Different questions to the model with a response cache, so that most are asked again."""

BATCHED = """
max_batch_size: 16
input [{ name: "x" data_type: TYPE_FP32 dims: [ 16 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 8 ] }]
instance_group [{ count: 2 kind: KIND_CPU }]
dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 2000 }
"""
CACHED = """
max_batch_size: 8
input [{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 4 ] }]
response_cache { enable: true }
"""
PIPE = """
platform: "ensemble"
max_batch_size: 8
input [{ name: "in" data_type: TYPE_FP32 dims: [ 4 ] }]
output [{ name: "out" data_type: TYPE_FP32 dims: [ 4 ] }, { name: "half" data_type: TYPE_FP32 dims: [ 4 ] }]
ensemble_scheduling { step [
  { model_name: "first" model_version: -1 input_map { key: "x" value: "in" } output_map { key: "y" value: "half" } },
  { model_name: "scale" model_version: -1 input_map { key: "x" value: "half" } output_map { key: "y" value: "out" } }
] }
"""


@dataclass(frozen=True)
class Asked:
    """A model as clients use it. `expect` gives the outputs by name for the inputs of `draw`."""

    name: str
    draw: Callable[[np.random.Generator], Feed]
    expect: Callable[[Feed], Feed]
    tolerance: float = 0.0
    json: bool = True
    """Whether its tensors can be compared after they were JSON."""

    def problem(self, feed: Feed, found: Feed) -> str | None:
        """What is wrong with the answer `found`; None where nothing is."""
        expected = self.expect(feed)
        if found.keys() != expected.keys():
            return f"outputs {sorted(found)}, expected {sorted(expected)}"
        for name, wanted in expected.items():
            array = found[name]
            if array.shape != wanted.shape:
                return f"{name} has shape {array.shape}, expected {wanted.shape}"
            if self.tolerance:
                same = np.allclose(array, wanted, rtol=self.tolerance, atol=self.tolerance)
            else:
                same = _same(array, wanted)
            if not same:
                return f"{name} is {array!r}, expected {wanted!r}, for {feed!r}"
        return None


def _same(array: Array, wanted: Array) -> bool:
    if wanted.dtype == np.object_:
        return [_text(a) for a in array.reshape(-1)] == [_text(a) for a in wanted.reshape(-1)]
    return array.dtype == wanted.dtype and array.tobytes() == wanted.tobytes()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Reference:
    """The session of a file, for any thread: outputs by name."""

    def __init__(self, file: Path) -> None:
        self._session = InferenceSession(str(file))
        self._names = [o.name for o in self._session.get_outputs()]
        self._lock = threading.Lock()

    def __call__(self, feed: Feed) -> Feed:
        with self._lock:
            return dict(zip(self._names, self._session.run(None, feed), strict=True))


def make_soak_repository(folder: Path) -> dict[str, Asked]:
    """Write the repository; returns the models that every client may use at any time."""
    make_repository(folder)  # scale, echo, plain, scores, slow, and one that is broken from the start
    _write(folder / "first/1/model.onnx", scale_bytes(0.5))
    (folder / "pipe").mkdir()
    (folder / "pipe/config.pbtxt").write_text(PIPE)
    _write(folder / "cached/1/model.onnx", scale_bytes(3.0))
    (folder / "cached/config.pbtxt").write_text(CACHED)
    _mlp(folder / "mlp/1/model.onnx")
    (folder / "mlp/config.pbtxt").write_text(BATCHED)
    _strings(folder / "strings/model.onnx")
    for name, strategy in (("sums", "direct { }"), ("oldest", "oldest { max_candidate_sequences: 4 }")):
        save_running_sum(folder / f"{name}/1/model.onnx")
        (folder / f"{name}/config.pbtxt").write_text(sequence_config(idle=IDLE_US, strategy=strategy))
    _write(folder / "swap.onnx", scale_bytes(1.0))
    _write(folder / "onoff.onnx", scale_bytes(5.0))

    scale, first = Reference(folder / "scale.onnx"), Reference(folder / "first/1/model.onnx")

    def pipe(feed: Feed) -> Feed:
        half = first({"x": feed["in"]})["y"]
        return {"half": half, "out": scale({"x": half})["y"]}

    def typed(names: list[str]) -> Callable[[np.random.Generator], Feed]:
        def draw(rng: np.random.Generator) -> Feed:
            shape = int(rng.integers(1, 4)), int(rng.integers(1, 5))
            return {f"in_{n}": random_tensor(n, shape, rng) for n in names}

        return draw

    every = [n for n, _, _ in TYPES]
    questions = [_floats("x", 4, 2)(np.random.default_rng(at)) for at in range(POOL)]
    found = (
        Asked("scale", _floats("x", 4, 8), scale),
        Asked("first", _floats("x", 4, 8), first),
        Asked("pipe", _floats("in", 4, 8), pipe),
        Asked("echo", typed(every), Reference(folder / "echo.onnx"), json=False),
        Asked("plain", typed([n for n in every if n not in RAW_ONLY]), Reference(folder / "plain.onnx")),
        Asked("mlp", _floats("x", 16, 6), Reference(folder / "mlp/1/model.onnx"), MLP_TOLERANCE),
        Asked("strings", _words, Reference(folder / "strings/model.onnx")),
        Asked(
            "cached", lambda rng: questions[int(rng.integers(POOL))], Reference(folder / "cached/1/model.onnx")
        ),
    )  # fmt: skip
    return {asked.name: asked for asked in found}


def _floats(name: str, width: int, most: int) -> Callable[[np.random.Generator], Feed]:
    return lambda rng: {name: rng.standard_normal((int(rng.integers(1, most + 1)), width)).astype(np.float32)}


def _words(rng: np.random.Generator) -> Feed:
    rows = int(rng.integers(1, 5))
    words = np.empty((rows, 3), object)
    words.reshape(-1)[:] = ["é" * int(rng.integers(0, 4)) + str(rng.integers(1 << 40)) for _ in range(rows * 3)]
    return {"words": words, "order": rng.permutation(3).astype(np.int64)}


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _mlp(file: Path) -> None:
    rng = np.random.default_rng(7)
    weights = [rng.standard_normal(shape).astype(np.float32) / 4 for shape in ((16, 32), (32, 8))]
    constants = [
        oh.make_tensor(n, TensorProto.FLOAT, w.shape, w.reshape(-1)) for n, w in zip("ab", weights, strict=True)
    ]
    nodes = [
        oh.make_node("MatMul", ["x", "a"], ["h"]),
        oh.make_node("Relu", ["h"], ["r"]),
        oh.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    save(file, nodes, [floats("x", "n", 16)], [floats("y", "n", 8)], constants)


def _strings(file: Path) -> None:
    """Words in another order. The order is for all rows: the model takes no batches."""
    words = oh.make_tensor_value_info("words", TensorProto.STRING, ["n", 3])
    sorted_words = oh.make_tensor_value_info("sorted", TensorProto.STRING, ["n", 3])
    nodes = [oh.make_node("Gather", ["words", "order"], ["sorted"], axis=1)]
    save(file, nodes, [words, integers("order", 3)], [sorted_words])
