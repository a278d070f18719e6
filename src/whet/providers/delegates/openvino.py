"""The `openvino` delegate: whole parts of a model run in OpenVINO, on its CPU or on another of its devices."""

from __future__ import annotations

import importlib
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from whet.errors import EPFail, InvalidArgument, RuntimeException, did_you_mean, shorten
from whet.formats.onnx import save_model, to_proto
from whet.graph import Graph, Model, Node, TensorType, copy_model
from whet.passes.base import Pass
from whet.passes.export import lower_for_onnxruntime
from whet.providers.base import (
    Accept,
    Claim,
    CompileEnv,
    Executable,
    Level,
    ProfileEvent,
    Refuse,
    RunState,
    Subgraph,
)
from whet.providers.delegates.openvino_limits import limit
from whet.providers.delegates.opset import OpsetChoice
from whet.providers.delegates.parts import NoOutputs, identity_model, origin, part_name
from whet.providers.delegates.probe import Verdicts, single_node_model, unknown_type
from whet.providers.delegates.watch import WATCHER
from whet.runtime.cores import core_budget
from whet.runtime.values import RuntimeValue, Tensor

PINNED: dict[str, str] = {
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
"""Properties that OpenVINO would set to a narrower precision by itself where the processor is faster with it."""

EMBEDDED_BYTES = 1 << 28
"""A part with more constants than this is handed over as a file with mapped weights."""

_NO_RULE = re.compile(r"No conversion rule found for operations: (.+)")


class OpenVINODelegate:
    """Runs parts of a model in OpenVINO.

    Options: `device` (default CPU), and OpenVINO's own properties of that device by name (NUM_STREAMS,
    PERFORMANCE_HINT, INFERENCE_PRECISION_HINT, ...). Whet narrows precision only when it is asked to, so
    INFERENCE_PRECISION_HINT is f32 unless it is given, where OpenVINO itself takes bfloat16 on processors that have it;
    likewise PINNED. Raises EPFail when OpenVINO or the device is missing, InvalidArgument for an unknown property or a
    value that OpenVINO refuses.
    """

    name = "openvino"

    def __init__(self, options: Mapping[str, str] | None = None) -> None:
        self._given = {str(k): str(v) for k, v in (options or {}).items()}
        self._ov = _import_openvino()
        self._core = self._ov.Core()
        self._device = self._given.get("device", "CPU")
        available = self._core.available_devices
        if self._device.split(".")[0].split(":")[0] not in {d.split(".")[0] for d in (*available, "AUTO", "HETERO")}:
            raise EPFail("OpenVINO has no such device here", found=self._device, expected=", ".join(available))
        supported = {str(k): str(v) for k, v in self._core.get_property(self._device, "SUPPORTED_PROPERTIES").items()}
        self._properties = {k: v for k, v in self._given.items() if k != "device"}
        self._check_properties(supported)
        self._pinned = {k: v for k, v in PINNED.items() if k in supported and k not in self._properties}
        self._takes_threads = "INFERENCE_NUM_THREADS" in supported
        self._takes_hint = "PERFORMANCE_HINT" in supported
        self._verdicts = Verdicts()
        self._opsets = OpsetChoice()
        self._queries: dict[object, str | None] = {}
        if self._properties:
            self._try_properties()

    def claim(self, node: Node, graph: Graph) -> Claim:
        """Ask OpenVINO to read and take this node alone, remembered for nodes like it."""
        refusal = unknown_type(node)
        if refusal is not None:
            return refusal
        reason = limit(node)
        if reason is not None:
            return Refuse(reason)
        opsets = self._opsets.of(graph)
        return self._verdicts.get(node, tuple(opsets.items()), lambda: self._probe(node, opsets))

    def passes(self, level: Level) -> tuple[Pass, ...]:
        """None: OpenVINO optimizes its part itself, at every level."""
        return ()

    def compile(self, subgraph: Subgraph, env: CompileEnv) -> Executable:
        """Compile the part for the device. Its threads come out of the process's one budget."""
        graph = subgraph.graph
        if not graph.outputs:
            return NoOutputs()
        name = part_name(subgraph)
        model = copy_model(subgraph.model)
        lower_for_onnxruntime(model, fuse=False)
        config = self._config(env)
        # Mapped weights are read for as long as the compiled model lives.
        folder: str | None = None
        try:
            if sum(v.data.nbytes for v in model.graph.constants() if v.data is not None) > EMBEDDED_BYTES:
                folder = tempfile.mkdtemp(prefix="whet-openvino-")
                path = Path(folder) / "part.onnx"
                save_model(model, path, opset=self._opsets.of(origin(subgraph))[""], external_data=True)
                read = self._core.read_model(str(path))
            else:
                read = self._core.read_model(_serialized(model, self._opsets.of(origin(subgraph))))
            compiled = self._core.compile_model(read, self._device, config)
            part = _Part(self._ov, compiled, graph, name)
        except Exception as error:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise EPFail(
                "openvino cannot compile a part of the model", file=env.model_path, node=name, found=_message(error)
            ) from error
        if folder is not None:
            weakref.finalize(part, shutil.rmtree, folder, ignore_errors=True)
        return part

    def options(self) -> dict[str, str]:
        """The device, and every property that is not left to OpenVINO."""
        return {"device": self._device, **self._pinned, **self._properties}

    def _config(self, env: CompileEnv) -> dict[str, str]:
        config = {**self._pinned}
        if self._takes_threads:
            config["INFERENCE_NUM_THREADS"] = str(env.intra_op_threads or core_budget())
        if self._takes_hint:
            config["PERFORMANCE_HINT"] = "THROUGHPUT" if env.goal == "throughput" else "LATENCY"
        return {**config, **self._properties}

    def _check_properties(self, supported: Mapping[str, str]) -> None:
        for name in self._properties:
            if name not in supported:
                known = [*supported, "device"]
                raise InvalidArgument(
                    f"unknown property of OpenVINO's {self._device}",
                    value=name,
                    hint=did_you_mean(name, known) or f"Known: {', '.join(sorted(known))}.",
                )
            if supported[name] == "RO":
                raise InvalidArgument(f"a property of OpenVINO's {self._device} that can only be read", value=name)

    def _try_properties(self) -> None:
        """Let OpenVINO check the values; it does so when it compiles."""
        model = self._core.read_model(_serialized(identity_model(), {"": 17}))
        try:
            self._core.compile_model(model, self._device, {**self._pinned, **self._properties})
        except Exception as error:
            raise InvalidArgument(
                f"OpenVINO's {self._device} refuses its properties",
                value=", ".join(f"{k}={v}" for k, v in self._properties.items()),
                found=_message(error),
            ) from error

    def _probe(self, node: Node, opsets: dict[str, int]) -> Claim:
        if not any(v.name for v in node.outputs):
            return Refuse("the node has no output")
        try:
            model = single_node_model(node)
            lower_for_onnxruntime(model, fuse=False)
            read = self._core.read_model(_serialized(model, opsets))
        except Exception as error:
            return Refuse(shorten(_message(error), 200))
        read_inputs = {parameter.get_node().get_friendly_name() for parameter in read.inputs}
        ignored = [v.name for v in model.graph.inputs if v.name not in read_inputs]
        if ignored:
            return Refuse(f"OpenVINO ignores {', '.join(ignored)}")
        key = tuple(_operation_key(operation) for operation in read.get_ops())
        if key not in self._queries:
            self._queries[key] = self._query(read)
        reason = self._queries[key]
        return Accept() if reason is None else Refuse(reason)

    def _query(self, model: Any) -> str | None:
        try:
            taken = self._core.query_model(model, self._device)
        except Exception as error:
            return shorten(_message(error), 200)
        left = [o.get_type_name() for o in model.get_ops() if o.get_friendly_name() not in taken]
        left = [name for name in left if name not in ("Constant", "Result", "Parameter")]
        return f"OpenVINO's {self._device} does not run {', '.join(left)}" if left else None


class _Part:
    """A compiled model with a pool of infer requests, one for each run under way."""

    def __init__(self, ov: Any, compiled: Any, graph: Graph, name: str) -> None:
        self._ov = ov
        self._compiled = compiled
        self._name = name
        ports = {port.get_node().get_friendly_name(): index for index, port in enumerate(compiled.inputs)}
        self._inputs = tuple(ports[v.name] for v in graph.inputs)
        types: list[TensorType] = []
        for value in graph.outputs:
            assert isinstance(value.type, TensorType)
            types.append(value.type)
        self._outputs = tuple(types)
        self._idle: list[Any] = []
        self._lock = threading.Lock()

    def run(self, inputs: Sequence[RuntimeValue], state: RunState) -> list[RuntimeValue]:
        """Run one infer request. Raises RuntimeException naming the part, Terminated when the run stops."""
        with self._lock:
            request = self._idle.pop() if self._idle else None
        if request is None:
            request = self._compiled.create_infer_request()
        started = time.monotonic_ns() if state.events is not None else 0
        watched = WATCHER.add(state, request.cancel)
        try:
            # OpenVINO reads these where they lie and does not keep them alive.
            arrays = [_contiguous(value) for value in inputs]
            for port, array in zip(self._inputs, arrays, strict=True):
                request.set_input_tensor(port, self._ov.Tensor(array, shared_memory=True))
            request.infer()
            results = [self._result(request, index) for index in range(len(self._outputs))]
        except Exception as error:
            state.check()
            raise RuntimeException("a part failed in openvino", node=self._name, found=_message(error)) from error
        finally:
            WATCHER.remove(watched)
        state.check()
        with self._lock:
            self._idle.append(request)
        if state.events is not None:
            event = ProfileEvent(self._name, "Subgraph", "openvino", started, time.monotonic_ns() - started)
            state.events.append(event)
        return results

    def _result(self, request: Any, index: int) -> RuntimeValue:
        # The request's own memory is written again by its next run.
        array = np.array(request.get_output_tensor(index).data)
        element = self._outputs[index].dtype
        assert element is not None
        return Tensor.from_numpy(array.astype(element.numpy, copy=False), element)


def _import_openvino() -> Any:
    try:
        return importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise _broken(error) from error
        raise EPFail(
            "the execution provider is not installed",
            found="openvino",
            hint="Install it with: pip install 'whet[openvino]'.",
        ) from error
    except Exception as error:
        raise _broken(error) from error


def _broken(error: Exception) -> EPFail:
    return EPFail(
        "openvino is installed but cannot be imported",
        found=f"{type(error).__name__}: {error}",
        hint="Install it again: pip install --force-reinstall openvino.",
    )


def _serialized(model: Model, opsets: dict[str, int]) -> bytes:
    model.opset_imports.update(opsets)
    message: bytes = to_proto(model, opset=opsets[""]).SerializeToString()
    return message


def _operation_key(operation: Any) -> object:
    def port(p: Any) -> object:
        shape = p.get_partial_shape()
        return (str(p.get_element_type()), shape.rank.get_length() if shape.rank.is_static else None, shape.is_static)

    return (
        operation.get_type_name(),
        tuple(port(p) for p in operation.inputs()),
        tuple(port(p) for p in operation.outputs()),
    )


def _contiguous(value: RuntimeValue) -> Any:
    assert isinstance(value, Tensor), "only tensors are given to OpenVINO"
    array = value.numpy()
    # OpenVINO wraps writeable arrays only, though it writes to no input.
    return np.require(array, requirements=["C", "ALIGNED", "WRITEABLE"]).reshape(array.shape)


def _message(error: Exception) -> str:
    text = str(error)
    rule = _NO_RULE.search(text)
    if rule is not None:
        return f"OpenVINO has no conversion for {rule.group(1)}"
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return shorten(" ".join(lines) or text or type(error).__name__, 600)
