"""The `onnxruntime` delegate: whole parts of a model run in ONNX Runtime, on its CPU or on any of its own providers."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from whet.errors import EPFail, InvalidArgument, RuntimeException, shorten
from whet.formats.onnx.detached import to_bytes_detached
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
from whet.providers.delegates.genuine import real_onnxruntime
from whet.providers.delegates.onnxruntime_limits import limit
from whet.providers.delegates.onnxruntime_options import CPU, LEVELS, DelegateOptions
from whet.providers.delegates.onnxruntime_values import (
    PLAIN,
    exotic,
    feed_value,
    from_feed,
    from_ort_value,
    is_container,
    ort_value,
    weight_value,
)
from whet.providers.delegates.opset import OpsetChoice
from whet.providers.delegates.parts import NoOutputs, identity_model, origin, part_name
from whet.providers.delegates.probe import (
    Verdicts,
    nodes_of,
    single_node_model,
    tensor_types,
    unknown_type,
    values_of,
)
from whet.providers.delegates.watch import WATCHER
from whet.runtime.cores import core_budget
from whet.runtime.values import RuntimeValue, Tensor

_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_AT_NODE = re.compile(r"running (\S+) node\. Name:'([^']*)'")
_QUIET = 4
"""ONNX Runtime's log severity "fatal": what it would print, the errors that it raises say."""

_providers: list[str] = []
_providers_lock = threading.Lock()


def installed_providers() -> list[str]:
    """The providers that the installed onnxruntime was built with. Raises EPFail when it cannot be imported."""
    with _providers_lock:
        if not _providers:
            _providers.extend(real_onnxruntime().get_available_providers())
        return list(_providers)


class OnnxRuntimeDelegate:
    """Runs parts of a model in ONNX Runtime.

    `provider` is one of ONNX Runtime's own: its CPU makes this the provider called `onnxruntime`, any other goes by
    its own name and must run every claimed node itself. `options` are session options and session configuration keys
    by ONNX Runtime's names (see onnxruntime_options), and for another provider than the CPU also that provider's own.
    Raises EPFail when onnxruntime or the provider is missing, InvalidArgument for an option that nobody knows.
    """

    def __init__(
        self,
        options: Mapping[str, str] | None = None,
        provider: str = CPU,
        custom_op_libraries: Sequence[str] = (),
    ) -> None:
        self.name = "onnxruntime" if provider == CPU else provider
        self._ort = real_onnxruntime()
        self._provider = provider
        if provider not in installed_providers():
            raise EPFail(
                "the installed onnxruntime has no such provider",
                found=provider,
                expected=", ".join(installed_providers()),
            )
        self._options = DelegateOptions(options or {}, provider)
        self._libraries = tuple(custom_op_libraries)
        self._verdicts = Verdicts()
        self._opsets = OpsetChoice()
        self._containers: tuple[Graph, bool] | None = None
        self._try_options()

    def claim(self, node: Node, graph: Graph) -> Claim:
        """Ask ONNX Runtime: a session of this node alone, remembered for nodes like it."""
        refusal = unknown_type(node)
        if refusal is not None:
            return refusal
        if exotic(v.type for v in node.outputs) and self._has_containers(graph):
            # Such results come as OrtValues only, and sequences do not.
            return Refuse("ONNX Runtime's Python interface cannot give this element type beside sequences or maps")
        limited = self._known_limits(node)
        if limited is not None:
            return limited
        opsets = self._opsets.of(graph)
        return self._verdicts.get(node, tuple(opsets.items()), lambda: self._probe(node, opsets))

    def passes(self, level: Level) -> tuple[Pass, ...]:
        """None: ONNX Runtime optimizes its part itself, up to the session's level."""
        return ()

    def compile(self, subgraph: Subgraph, env: CompileEnv) -> Executable:
        """Make an ONNX Runtime session of the part. Its threads come out of the process's one budget."""
        graph = subgraph.graph
        if not graph.outputs:
            return NoOutputs()
        name = part_name(subgraph)
        model = copy_model(subgraph.model)
        lower_for_onnxruntime(model, fuse=env.level != "disabled")
        settings = self._session_options(env.intra_op_threads or core_budget(), LEVELS[env.level])
        settings.use_deterministic_compute = env.deterministic
        self._options.apply(settings)
        try:
            session, weights = self._session(model, settings, self._opsets.of(origin(subgraph)))
        except Exception as error:
            raise EPFail(
                f"{self.name} cannot compile a part of the model", file=env.model_path, node=name, found=_message(error)
            ) from error
        return _Part(self._ort, session, weights, graph, name, self.name)

    def options(self) -> dict[str, str]:
        """The options that were given."""
        return dict(self._options.given)

    # Asking

    def _has_containers(self, graph: Graph) -> bool:
        if self._containers is None or self._containers[0] is not graph:
            values = (*graph.inputs, *(v for node in graph for v in node.outputs))
            self._containers = (graph, any(is_container(v.type) for v in values))
        return self._containers[1]

    def _known_limits(self, node: Node) -> Refuse | None:
        """What ONNX Runtime accepts and then answers wrongly, or dies of."""
        for inner in nodes_of(node):
            reason = limit(inner)
            if reason is not None:
                return Refuse(reason)
        for value in values_of(node):
            for declared in tensor_types(value.type):
                if declared.sparse:
                    return Refuse("sparse tensors do not pass through ONNX Runtime's Python interface")
                if (
                    is_container(value.type)
                    and declared.dtype is not None
                    and declared.dtype.name not in PLAIN
                ):  # fmt: skip
                    return Refuse(f"{value.type} does not pass through ONNX Runtime's Python interface")
        return None

    def _probe(self, node: Node, opsets: dict[str, int]) -> Claim:
        if not any(v.name for v in node.outputs):
            return Refuse("the node has no output")
        settings = self._session_options(1, "ORT_DISABLE_ALL")
        settings.add_session_config_entry("session.disable_prepacking", "1")
        if self._provider != CPU:
            settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            model = single_node_model(node)
            lower_for_onnxruntime(model, fuse=False)
            self._session(model, settings, opsets)
        except Exception as error:
            return Refuse(shorten(_message(error), 200))
        return Accept()

    def _try_options(self) -> None:
        """Let ONNX Runtime check the options of a provider that only it knows."""
        if self._provider == CPU and not self._libraries:
            return
        try:
            settings = self._session_options(1, "ORT_DISABLE_ALL")
            session, _ = self._session(identity_model(), settings, {"": 17})
        except Exception as error:
            raise InvalidArgument(
                f"ONNX Runtime refuses the options of {self.name}",
                value=", ".join(self._options.given) or ", ".join(self._libraries),
                found=_message(error),
            ) from error
        if self._provider not in session.get_providers():
            raise EPFail(
                "ONNX Runtime has the provider but cannot start it",
                found=self._provider,
                hint="Its libraries or its device are missing; ONNX Runtime's log says which.",
            )

    # Sessions

    def _provider_list(self) -> list[Any]:
        return [(self._provider, self._options.provider)] if self._provider != CPU else [CPU]

    def _session_options(self, threads: int, level: str) -> Any:
        settings = self._ort.SessionOptions()
        settings.log_severity_level = _QUIET
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.graph_optimization_level = getattr(self._ort.GraphOptimizationLevel, level)
        for library in self._libraries:
            settings.register_custom_ops_library(library)
        return settings

    def _session(self, model: Model, settings: Any, opsets: dict[str, int]) -> tuple[Any, list[Any]]:
        """A session of `model`, and the OrtValues over the weights that it reads in place."""
        message, detached = to_bytes_detached(model, opsets)
        names = list(detached)
        weights = [weight_value(detached[name], self._ort) for name in names]
        if names:
            settings.add_external_initializers(names, weights)
        return self._ort.InferenceSession(message, settings, providers=self._provider_list()), weights


class _Part:
    """An ONNX Runtime session. Thread-safe, as its sessions are."""

    def __init__(
        self, ort: ModuleType, session: Any, weights: Sequence[Any], graph: Graph, name: str, provider: str
    ) -> None:
        self._ort = ort
        self._session = session
        # The session reads these where they lie.
        self._weights = weights
        self._inputs = tuple(v.name for v in graph.inputs)
        self._outputs = tuple((v.name, v.type) for v in graph.outputs)
        self._names = [v.name for v in graph.outputs]
        self._through_ort_values = exotic(declared for _, declared in self._outputs)
        self._name = name
        self._provider = provider

    def run(self, inputs: Sequence[RuntimeValue], state: RunState) -> list[RuntimeValue]:
        """Run the session. Raises RuntimeException naming the node that failed, Terminated when the run stops."""
        options = self._ort.RunOptions()
        options.log_severity_level = _QUIET
        started = time.monotonic_ns() if state.events is not None else 0

        def stop() -> None:
            options.terminate = True

        watched = WATCHER.add(state, stop)
        try:
            results = self._results(inputs, options)
        except Exception as error:
            state.check()
            raise self._failure(error) from error
        finally:
            WATCHER.remove(watched)
        if state.events is not None:
            event = ProfileEvent(self._name, "Subgraph", self._provider, started, time.monotonic_ns() - started)
            state.events.append(event)
        return results

    def _results(self, inputs: Sequence[RuntimeValue], options: Any) -> list[RuntimeValue]:
        if self._through_ort_values:
            values = {}
            for name, value in zip(self._inputs, inputs, strict=True):
                assert isinstance(value, Tensor), "a container beside elements that numpy does not have"
                values[name] = ort_value(value.numpy(), value.dtype, self._ort)
            made = self._session.run_with_ort_values(self._names, values, options)
            results: list[RuntimeValue] = []
            for result, (_, declared) in zip(made, self._outputs, strict=True):
                assert isinstance(declared, TensorType)
                results.append(from_ort_value(result, declared))
            return results
        feed = {name: feed_value(value, self._ort) for name, value in zip(self._inputs, inputs, strict=True)}
        made = self._session.run(self._names, feed, options)
        return [from_feed(result, declared) for result, (_, declared) in zip(made, self._outputs, strict=True)]

    def _failure(self, error: Exception) -> RuntimeException:
        text = _message(error)
        at = _AT_NODE.search(text)
        node = f"{at.group(1)}({at.group(2)})" if at else self._name
        return RuntimeException(f"a node failed in {self._provider}", node=node, found=text)


def _message(error: Exception) -> str:
    return shorten(_PREFIX.sub("", str(error)).strip() or type(error).__name__, 600)
