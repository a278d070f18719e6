"""Triton Inference Server without a container: the binary in the wheel `nvidia-pytriton`, with its Python backend.

In an environment of its own, for one of the Python versions that the wheel carries a stub for:

    python -m venv triton
    triton/bin/pip install --no-deps nvidia-pytriton
    triton/bin/pip install "numpy<2" onnxruntime
    triton/bin/pip install whet        # for Whet inside of Triton's Python backend

numpy 2 is no choice: with it the stub of nvidia-pytriton 0.7 takes every output for empty.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ONNX_MODEL = """import sys
sys.path[:0] = {paths}
import numpy as np
import {engine} as engine
import triton_python_backend_utils as utils


class TritonPythonModel:
    def initialize(self, args):
        options = engine.SessionOptions()
        options.intra_op_num_threads = {threads}
        self.session = engine.InferenceSession({model!r}, options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        arrays = [utils.get_input_tensor_by_name(r, {input!r}).as_numpy() for r in requests]
        joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        result = self.session.run(None, {{{input!r}: joined}})[0]
        answers, at = [], 0
        for array in arrays:
            answers.append(utils.InferenceResponse([utils.Tensor({output!r}, result[at : at + len(array)])]))
            at += len(array)
        return answers
"""

IDENTITY_MODEL = """import sys
sys.path[:0] = {paths}
import triton_python_backend_utils as utils


class TritonPythonModel:
    def execute(self, requests):
        arrays = [utils.get_input_tensor_by_name(r, {input!r}).as_numpy() for r in requests]
        return [utils.InferenceResponse([utils.Tensor({output!r}, array)]) for array in arrays]
"""

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {rows}
input [ {{ name: "{input}" data_type: TYPE_FP32 dims: [ {input_dims} ] }} ]
output [ {{ name: "{output}" data_type: TYPE_FP32 dims: [ {output_dims} ] }} ]
dynamic_batching {{ }}
instance_group [ {{ count: {instances} kind: KIND_CPU }} ]
"""


@dataclass(frozen=True)
class Tensor:
    """An input or output without its rows."""

    name: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """One way to put a model into Triton: who computes, with how many threads, in how many instances."""

    engine: str  # onnxruntime, whet, or nothing: the answer is the input
    threads: int
    instances: int

    @property
    def label(self) -> str:
        """As figures name it."""
        if not self.engine:
            return "Python backend, identity"
        shown = {"onnxruntime": "ONNX Runtime", "whet": "Whet"}[self.engine]
        return f"Python backend, {shown}, {self.instances} x {self.threads} threads"

    def model_name(self, base: str) -> str:
        """The model's name in Triton's repository."""
        return f"{base}_{self.engine or 'plain'}_{self.instances}x{self.threads}"


class Triton:
    """`tritonserver` of an environment. `problem` says why it cannot be started; None where it can."""

    def __init__(self, environment: Path | None) -> None:
        self.problem: str | None = None
        self.versions: dict[str, str] = {}
        if environment is None:
            self.problem = "no environment was given (--triton)"
            return
        found = sorted(environment.glob("lib/python3.*/site-packages/pytriton/tritonserver/bin/tritonserver"))
        if not found:
            self.problem = f"{environment} has no nvidia-pytriton"
            return
        self._binary = found[0]
        self._home = found[0].parent.parent
        self._packages = self._home.parent.parent
        self._python = re.sub("python", "", self._packages.parent.name)
        stub = self._home / "python_backend_stubs" / self._python / "triton_python_backend_stub"
        if not stub.is_file():
            self.problem = f"nvidia-pytriton has no stub for Python {self._python}"
            return
        self._stub = stub
        for entry in sorted(self._packages.glob("*.dist-info")):
            name, _, version = entry.name.removesuffix(".dist-info").partition("-")
            if name in ("nvidia_pytriton", "numpy", "onnxruntime"):
                self.versions[name] = version
        if self.versions.get("numpy", "2").split(".")[0] != "1":
            self.problem = "Triton's stub needs numpy 1"

    def write(self, repository: Path, base: str, variant: Variant, model: Path | None, given: Tensor, gives: Tensor,
              rows: int, extra_paths: Sequence[str] = ()) -> str:  # fmt: skip
        """Put a model into Triton's repository; returns its name."""
        name = variant.model_name(base)
        folder = repository / name
        (folder / "1").mkdir(parents=True)
        text = CONFIG.format(
            name=name, rows=rows, input=given.name, output=gives.name, input_dims=", ".join(map(str, given.dims)),
            output_dims=", ".join(map(str, gives.dims)), instances=variant.instances,
        )  # fmt: skip
        (folder / "config.pbtxt").write_text(text, encoding="utf-8")
        program = ONNX_MODEL if variant.engine else IDENTITY_MODEL
        source = program.format(
            paths=json.dumps([*extra_paths, str(self._packages)]), engine=variant.engine, threads=variant.threads,
            model=str(model), input=given.name, output=gives.name,
        )  # fmt: skip
        (folder / "1" / "model.py").write_text(source, encoding="utf-8")
        return name

    def start(self, repository: Path, scratch: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
        """Start the server on a loopback port, HTTP only."""
        backend = scratch / "backends" / "python"
        backend.mkdir(parents=True)
        for file in (self._home / "backends" / "python").iterdir():
            if file.is_file():
                shutil.copy(file, backend)
        shutil.copy(self._stub, backend)
        arguments = {
            "model-repository": repository, "backend-directory": backend.parent, "http-address": "127.0.0.1",
            "http-port": port, "allow-grpc": "false", "allow-metrics": "false",
        }  # fmt: skip
        # A copied stub does not find its libraries by its own place.
        libraries = str(self._packages / "nvidia_pytriton.libs")
        with log.open("wb") as out:
            return subprocess.Popen(
                [str(self._binary), *(f"--{k}={v}" for k, v in arguments.items())], stdout=out, stderr=out,
                env={**os.environ, "LD_LIBRARY_PATH": libraries},
            )  # fmt: skip
