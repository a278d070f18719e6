"""The engines that can be timed side by side: how each loads a model and runs it, at its best settings."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from whet.errors import EPFail, InvalidArgument, did_you_mean
from whet.version import __version__

Run = Callable[[], list[Any]]


def _whet(model: str, feed: Mapping[str, Any], threads: int, provider: str) -> Run:
    import whet

    options = whet.SessionOptions()
    options.intra_op_num_threads = threads
    session = whet.InferenceSession(model, options, providers=[provider])
    return lambda: session.run(None, feed)


def _whet_cpu(model: str, feed: Mapping[str, Any], threads: int) -> Run:
    return _whet(model, feed, threads, "CPUExecutionProvider")


def _whet_onnxruntime(model: str, feed: Mapping[str, Any], threads: int) -> Run:
    return _whet(model, feed, threads, "onnxruntime")


def _whet_openvino(model: str, feed: Mapping[str, Any], threads: int) -> Run:
    return _whet(model, feed, threads, "openvino")


def _onnxruntime(model: str, feed: Mapping[str, Any], threads: int) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: list(session.run(None, dict(feed)))


def _openvino(model: str, feed: Mapping[str, Any], threads: int) -> Run:
    import openvino

    # OpenVINO computes in bf16 where the CPU has it unless told otherwise: like must be compared with like.
    properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads:
        properties["INFERENCE_NUM_THREADS"] = str(threads)
    compiled = openvino.Core().compile_model(model, "CPU", properties)
    request = compiled.create_infer_request()

    def run() -> list[Any]:
        results = request.infer(dict(feed), share_inputs=True)
        return [results[output] for output in compiled.outputs]

    return run


ENGINES: dict[str, Callable[[str, Mapping[str, Any], int], Run]] = {
    "whet": _whet_cpu,
    "whet+onnxruntime": _whet_onnxruntime,
    "whet+openvino": _whet_openvino,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
"""Engine names; `whet+X` is Whet with the delegate X."""

_DISTRIBUTIONS: dict[str, str | None] = {
    "whet": None,
    "whet+onnxruntime": "onnxruntime",
    "whet+openvino": "openvino",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
}


def installed_engines() -> list[str]:
    """The engines that this machine can run, Whet's own first."""
    return [name for name in ENGINES if _is_installed(name)]


def installed_peers() -> list[str]:
    """The installed engines that are not Whet."""
    return [name for name in installed_engines() if not name.startswith("whet")]


def check_engine(name: str) -> None:
    """Raise InvalidArgument for an unknown engine, EPFail for one that is not installed."""
    if name not in ENGINES:
        raise InvalidArgument(
            "unknown engine", found=name, hint=did_you_mean(name, ENGINES) or f"Known: {', '.join(ENGINES)}."
        )
    if not _is_installed(name):
        raise EPFail("the engine is not installed", found=name, hint=f"pip install {_DISTRIBUTIONS[name]}")


def engine_version(name: str) -> str:
    """The version of the distribution behind an engine."""
    distribution = _DISTRIBUTIONS[name]
    if name == "whet" or distribution is None:
        return __version__
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        # A package may come from another distribution: onnxruntime from onnxruntime-gpu, -directml, ...
        version = str(importlib.import_module(distribution).__version__)
    return f"{__version__} ({distribution} {version})" if name.startswith("whet") else version


def _is_installed(name: str) -> bool:
    distribution = _DISTRIBUTIONS[name]
    return distribution is None or importlib.util.find_spec(distribution) is not None
