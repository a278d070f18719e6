"""The oracle: Whet at every level against unoptimized ONNX Runtime and against Whet's reference in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, helper, numpy_helper

import whet

Feed = dict[str, np.ndarray]

LEVELS = {
    "disabled": whet.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": whet.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": whet.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": whet.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
ALL_STAGES = ("float64", *LEVELS, "saved")
"""The passes: every level on the reference provider, and what is saved."""
CPU_STAGES = {"cpu disabled": "disabled", "cpu": "all"}
"""The compiler: the CPU provider's stages, by level."""

RELATIVE = 1e-4  # of the output's own range
ABSOLUTE = 1e-5  # for outputs that are constant but for rounding, which a norm of equal elements amplifies
NOISE_FACTOR = 16.0


@dataclass(frozen=True)
class Failure:
    """One disagreement or error: at which stage, for which output, and what was seen."""

    stage: str
    output: str
    message: str

    @property
    def kind(self) -> str:
        """What a smaller model must reproduce to count as the same failure."""
        return f"{self.stage}: {self.message.split(':')[0]}"


class OracleError(Exception):
    """ONNX Runtime itself does not run the model."""


def ort_session(model: bytes, optimized: bool = False) -> onnxruntime.InferenceSession:
    """A single-threaded session without optimization; memory reuse is off, as it trips over equal symbols."""
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_mem_reuse = False
    options.enable_mem_pattern = False
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def ort_outputs(model: bytes, feeds: Sequence[Feed]) -> list[list[np.ndarray]]:
    try:
        session = ort_session(model)
        return [session.run(None, feed) for feed in feeds]
    except Exception as error:
        raise OracleError(str(error)) from error


def whet_outputs(model: bytes, feeds: Sequence[Feed], stage: str) -> list[list[np.ndarray] | None]:
    """Whet's outputs at a level, on the CPU provider, or of its reference in float64 without optimization."""
    options = whet.SessionOptions()
    if stage == "float64":
        options.graph_optimization_level = LEVELS["disabled"]
        providers: list[object] = [("ReferenceExecutionProvider", {"compute_dtype": "float64"})]
    elif stage in CPU_STAGES:
        options.graph_optimization_level = LEVELS[CPU_STAGES[stage]]
        providers = ["CPUExecutionProvider"]
    else:
        options.graph_optimization_level = LEVELS[stage]
        providers = ["ReferenceExecutionProvider"]
    session = whet.InferenceSession(model, options, providers=providers)
    return [session.run(None, feed) for feed in feeds]


def saved_outputs(model: bytes, feeds: Sequence[Feed]) -> list[list[np.ndarray] | None]:
    """What ONNX Runtime answers for the optimized model that Whet saves.

    None for a feed that overrides an initializer which the saved model holds as a constant.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.onnx"
        options = whet.SessionOptions()
        options.graph_optimization_level = LEVELS["extended"]
        options.optimized_model_filepath = str(path)
        whet.InferenceSession(model, options, providers=["ReferenceExecutionProvider"])
        onnx.checker.check_model(str(path))
        session = ort_session(path.read_bytes())
    known = {given.name for given in session.get_inputs()}
    return [session.run(None, feed) if known.issuperset(feed) else None for feed in feeds]


def compare(found: np.ndarray, expected: np.ndarray, noise: float = 0.0, *, any_float: bool = False) -> str | None:
    """What is wrong with `found`, None when it agrees; integers and bools must be equal.

    The float tolerance is 1e-4 of the range of `expected`, plus 1e-5 of its largest magnitude (at least 1e-5), plus
    `noise`. `any_float` ignores the width of floats.
    """
    if not isinstance(found, np.ndarray):
        return f"type: {type(found).__name__} instead of an array"
    widths_differ = any_float and found.dtype.kind == expected.dtype.kind == "f"
    if found.dtype != expected.dtype and not widths_differ:
        return f"dtype: {found.dtype} instead of {expected.dtype}"
    if found.shape != expected.shape:
        return f"shape: {found.shape} instead of {expected.shape}"
    if not expected.size:
        return None
    if expected.dtype.kind != "f":
        wrong = int((found != expected).sum())
        return f"values: {wrong} of {expected.size} integers differ" if wrong else None
    left, right = found.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isfinite(left), np.isfinite(right)):
        return "values: not finite in different places"
    finite = np.isfinite(right)
    if not np.array_equal(left[~finite], right[~finite], equal_nan=True):
        return "values: different infinities"
    if not finite.any():
        return None
    left, right = left[finite], right[finite]
    extent, magnitude = float(right.max() - right.min()), float(np.abs(right).max())
    error = float(np.abs(left - right).max())
    if error <= RELATIVE * extent + ABSOLUTE * max(magnitude, 1.0) + noise:
        return None
    return f"values: error {error:.3g} for a range of {extent:.3g} and a magnitude of {magnitude:.3g}"


def noise_of(model: ModelProto, feeds: Sequence[Feed], inexact: frozenset[str]) -> list[list[float]]:
    """How far each output of each feed moves in ONNX Runtime when inputs and float constants move by a few roundings.

    Only called for outputs that disagree: an ill-conditioned graph amplifies roundings and proves nothing.
    """
    base = ort_outputs(model.SerializeToString(), feeds)
    noise = [[0.0] * len(outputs) for outputs in base]
    data = np.random.default_rng(0)

    def moved(array: np.ndarray) -> np.ndarray:
        factor = 1.0 + data.uniform(-1, 1, size=array.shape) * 2.0**-22
        return np.asarray(array * factor, array.dtype)

    for _ in range(4):
        shaken = ModelProto()
        shaken.CopyFrom(model)
        for tensor in shaken.graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype == np.float32 and not _dyadic(array):
                tensor.CopyFrom(numpy_helper.from_array(moved(array), tensor.name))
        moved_feeds = [{k: moved(v) if k in inexact else v for k, v in feed.items()} for feed in feeds]
        for place, outputs in enumerate(ort_outputs(shaken.SerializeToString(), moved_feeds)):
            for i, (left, right) in enumerate(zip(outputs, base[place], strict=True)):
                if left.dtype.kind == "f" and left.size and left.shape == right.shape:
                    noise[place][i] = max(noise[place][i], float(np.nanmax(np.abs(left - right))))
    return noise


def _dyadic(array: np.ndarray) -> bool:
    return bool(np.all(array * 64 == np.round(array * 64)))


def check(
    model: ModelProto,
    feeds: Sequence[Feed],
    *,
    inexact: frozenset[str] = frozenset(),
    stages: Sequence[str] = ALL_STAGES,
) -> list[Failure]:
    """Every disagreement of the stages with ONNX Runtime, and of the levels with float64; OracleError if ORT fails."""
    content = model.SerializeToString()
    expected = ort_outputs(content, feeds)
    names = [output.name for output in model.graph.output]
    results: dict[str, list[list[np.ndarray] | None]] = {}
    failures: list[Failure] = []
    for stage in stages:
        try:
            results[stage] = saved_outputs(content, feeds) if stage == "saved" else whet_outputs(content, feeds, stage)
        except Exception as error:  # whatever Whet raises on a valid model is a failure to report
            failures.append(Failure(stage, "", f"{type(error).__name__}: {error}"))
    noise: list[list[float]] | None = None
    for stage, outputs in results.items():
        pairs = [(expected, stage == "float64")]
        if stage not in ("float64", "saved") and "float64" in results:
            pairs.append((results["float64"], True))
        for other, any_float in pairs:
            for feed, answers in enumerate(outputs):
                for place, name in enumerate(names if answers is not None else ()):
                    found, wanted = answers[place], other[feed][place]
                    wrong = compare(found, wanted, any_float=any_float)
                    if wrong is not None and wrong.startswith("values: error"):
                        noise = noise or noise_of(model, feeds, inexact)
                        allowed = NOISE_FACTOR * noise[feed][place]
                        wrong = compare(found, wanted, allowed, any_float=any_float)
                    if wrong is not None:
                        failures.append(Failure(stage, name, wrong))
    return failures


def with_output(model: ModelProto, names: Sequence[str]) -> ModelProto:
    """`model` with exactly these outputs; types are left to the reader."""
    changed = ModelProto()
    changed.CopyFrom(model)
    known = {output.name: output for output in changed.graph.output}
    outputs = [known.get(name) or helper.make_empty_tensor_value_info(name) for name in names]
    kept = [onnx.ValueInfoProto.FromString(output.SerializeToString()) for output in outputs]
    del changed.graph.output[:]
    changed.graph.output.extend(kept)
    return changed
