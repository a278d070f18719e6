"""InferenceSession: a model that runs, with the methods that programs written for ONNX Runtime call."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from whet.errors import InvalidArgument, did_you_mean
from whet.graph import Model
from whet.graph.tensor import TensorData
from whet.passes.base import PassReport
from whet.profiling.trace import TraceRecorder
from whet.providers.base import CompileEnv, RunState
from whet.providers.partition import Placement
from whet.runtime.values import RuntimeValue, Tensor
from whet.session import saved_model
from whet.session.feeds import FeedChecker, ModelMetadata, NodeArg, node_arg
from whet.session.io_binding import IOBinding
from whet.session.options import RunOptions, SessionOptions
from whet.session.ortvalue import OrtValue, to_python
from whet.session.prepare import (
    Compiled,
    Interface,
    LoadSettings,
    Source,
    check_no_reference,
    compile_model,
    load,
    make_providers,
)
from whet.session.provider_list import normalize
from whet.session.seed import current_seed

SPECIALIZATIONS = 4
"""How many sets of overridden initializers keep their own compiled form."""

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Specialization:
    """A compiled model with its feed checker; another one is made when a run overrides other initializers."""

    compiled: Compiled
    check: FeedChecker
    output_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OrtEpAssignedNode:
    """A node and its operator, in the graph assignment info."""

    name: str
    domain: str
    op_type: str


@dataclass(frozen=True, slots=True)
class OrtEpAssignedSubgraph:
    """The nodes of one part, in the graph assignment info."""

    ep_name: str
    nodes: tuple[OrtEpAssignedNode, ...]

    def get_nodes(self) -> tuple[OrtEpAssignedNode, ...]:
        return self.nodes


class InferenceSession:
    """Loads, optimizes, places and compiles a model; `run` may be called from many threads at once.

    `path_or_bytes`: a file or the serialized model. `providers`: names, or (name, options) pairs, in order of
    priority, or "auto" to measure the installed ones and keep the fastest right one. Raises the typed errors of
    `whet.errors`: NoSuchFile, InvalidProtobuf, InvalidGraph, InvalidArgument, NotImplemented, EPFail.
    """

    def __init__(
        self,
        path_or_bytes: Source,
        sess_options: SessionOptions | None = None,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | str | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        disabled = kwargs.pop("disabled_optimizers", None)
        if kwargs:
            name = next(iter(kwargs))
            hint = did_you_mean(name, ["sess_options", "providers", "provider_options", "disabled_optimizers"])
            raise InvalidArgument("unknown argument of InferenceSession", value=name, hint=hint)
        self._source = path_or_bytes
        self._options = sess_options if sess_options is not None else SessionOptions()
        self._profile_start_ns = time.monotonic_ns()
        self._trace = TraceRecorder(self._profile_start_ns) if self._options.enable_profiling else None
        self._settings = self._load_settings(disabled)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._specializations: OrderedDict[frozenset[str], Specialization] = OrderedDict()
        self._model_name = os.fspath(path_or_bytes) if not isinstance(path_or_bytes, bytes) else "<bytes>"
        if providers is None and self._options.has_providers():
            providers = list(self._options._providers)
        self._set_up(providers, provider_options)

    # Set-up

    def _set_up(self, providers: Any, provider_options: Any) -> None:
        if providers == AUTO:
            from whet.session.auto import choose_providers

            providers, self.auto_report = choose_providers(self._source, self._options)
        self._requested = normalize(providers, provider_options)
        strict = self._options._config.get("session.disable_cpu_ep_fallback") == "1"
        self._providers, self._notes = make_providers(
            self._requested,
            self._options._custom_ops,
            self._options._custom_op_libraries,
            allow_reference=True,
            strict=strict,
        )
        self._main = self._specialize(frozenset())
        if strict:
            check_no_reference(self._main.compiled.placement, self._requested)
        if self._options.optimized_model_filepath:
            self.save_optimized_model(self._options.optimized_model_filepath)
        interface = self._main.compiled.loaded.interface
        self._inputs = [node_arg(v) for v in interface.inputs]
        self._outputs = [node_arg(v) for v in interface.outputs]
        self._overridable = [node_arg(v) for v in interface.overridable]
        self._overridable_names = frozenset(v.name for v in interface.overridable)

    def _load_settings(self, disabled: Sequence[str] | None) -> LoadSettings:
        options = self._options
        limits = LoadSettings().limits
        folding = options._config.get("optimization.constant_folding_max_output_size_in_bytes")
        if folding:
            limits = replace(limits, fold_bytes=int(folding))
        names = options._config.get("optimization.disable_specified_optimizers", "")
        return LoadSettings(
            level=options.level,
            limits=limits,
            dims_by_name=dict(options._dims_by_name),
            dims_by_denotation=dict(options._dims_by_denotation),
            initializers={n: _tensor_data(n, v) for n, v in options._initializers.items()},
            disabled_passes=frozenset(n for n in (*names.split(";"), *(disabled or ())) if n),
            custom_ops=tuple(options._custom_ops),
        )

    def _specialize(self, overridden: frozenset[str]) -> Specialization:
        started = time.monotonic_ns()
        loaded = load(self._source, replace(self._settings, as_inputs=overridden))
        optimized = time.monotonic_ns()
        env = CompileEnv(
            limits=self._settings.limits,
            level=self._settings.level,
            intra_op_threads=self._options.intra_op_num_threads,
            goal="throughput" if self._options._config.get("goal") == "throughput" else "latency",
            deterministic=self._options.use_deterministic_compute,
            model_path=loaded.model.path,
        )
        compiled = compile_model(loaded, self._providers, env, self._notes)
        if self._trace is not None:
            self._trace.session_event("model_loading", started, optimized - started)
            self._trace.session_event("session_initialization", optimized, time.monotonic_ns() - optimized)
        names = tuple(v.name for v in loaded.interface.outputs)
        made = Specialization(compiled, FeedChecker(loaded.interface.inputs, self._model_name), names)
        with self._lock:
            self._specializations[overridden] = made
            self._specializations.move_to_end(overridden)
            while len(self._specializations) > SPECIALIZATIONS:
                self._specializations.popitem(last=False)
        return made

    # Running

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: RunOptions | None = None
    ) -> list[Any]:
        """Compute the outputs called `output_names` (all, when None or empty) from `input_feed` (name → value).

        Returns arrays; lists for sequences, dicts for maps, None for an empty optional. Raises InvalidArgument for a
        feed that does not fit, RuntimeException naming the node that failed, Terminated when stopped.
        """
        return [to_python(v) for v in self._run(output_names, input_feed, run_options)]

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, OrtValue],
        run_options: RunOptions | None = None,
    ) -> list[OrtValue]:  # fmt: skip
        """Like `run`, with OrtValues in and out."""
        return [OrtValue(v) for v in self._run(output_names, input_dict_ort_values, run_options)]

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], None],
        user_data: Any,
        run_options: RunOptions | None = None,
    ) -> None:
        """Run on another thread; `callback(results, user_data, error)` gets an empty list and a message on failure."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix="whet-run-async")
            pool = self._pool

        def work() -> None:
            try:
                results, error = self.run(output_names, input_feed, run_options), ""
            except Exception as failure:  # the callback's contract: every failure arrives as its text
                results, error = [], f"{type(failure).__name__}: {failure}"
            callback(results, user_data, error)

        pool.submit(work)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions | None = None) -> None:
        """Run with the inputs and outputs of an IOBinding."""
        names = iobinding.output_names()
        results = self._run(names, iobinding.feed(), run_options)
        iobinding.accept(results)

    def _run(
        self, output_names: Sequence[str] | None, feed: Mapping[str, Any], run_options: RunOptions | None
    ) -> list[RuntimeValue]:
        specialization = self._main
        if self._overridable_names:
            overridden = self._overridable_names.intersection(feed)
            if overridden:
                with self._lock:
                    found = self._specializations.get(overridden)
                specialization = found if found is not None else self._specialize(overridden)
        selected = self._select(specialization, output_names)
        inputs = specialization.check(feed)
        state = self._run_state(run_options)
        started = time.monotonic_ns() if self._trace is not None else 0
        outputs = specialization.compiled.executor.run(inputs, state)
        if self._trace is not None:
            self._trace.node_events(state.events or ())
            self._trace.session_event("model_run", started, time.monotonic_ns() - started)
        return outputs if selected is None else [outputs[i] for i in selected]

    def _select(self, specialization: Specialization, output_names: Sequence[str] | None) -> list[int] | None:
        if not output_names:
            return None
        known = specialization.output_names
        for name in output_names:
            if name not in known:
                hint = did_you_mean(str(name), known) or f"The outputs are: {', '.join(known)}."
                raise InvalidArgument("the model has no such output", file=self._model_name, value=str(name), hint=hint)
        return [known.index(name) for name in output_names]

    def _run_state(self, run_options: RunOptions | None) -> RunState:
        state = RunState(seed=current_seed(), events=[] if self._trace is not None else None)
        if run_options is not None:
            state.cancel = run_options._cancel
            deadline = run_options._config.get("deadline_ms")
            if deadline is not None:
                state.deadline = time.monotonic() + float(deadline) / 1000
        return state

    # Inspection

    def get_inputs(self) -> list[NodeArg]:
        return list(self._inputs)

    def get_outputs(self) -> list[NodeArg]:
        return list(self._outputs)

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Initializers that a run may replace by feeding them."""
        return list(self._overridable)

    def get_modelmeta(self) -> ModelMetadata:
        model = self._main.compiled.loaded.model
        return ModelMetadata(
            producer_name=model.producer_name,
            graph_name=model.graph.name,
            domain=model.domain,
            description=model.doc_string,
            graph_description=model.graph.doc_string,
            version=model.model_version,
            custom_metadata_map=dict(model.metadata),
        )

    def get_session_options(self) -> SessionOptions:
        return self._options

    def get_providers(self) -> list[str]:
        """The providers of this session, in order of priority."""
        return [p.name for p in self._providers]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {p.name: p.options() for p in self._providers}

    def set_providers(
        self,
        providers: Sequence[str | tuple[str, dict[Any, Any]]] | str | None = None,
        provider_options: Sequence[dict[Any, Any]] | None = None,
    ) -> None:
        """Place and compile the model again, for other providers. Not while runs are under way."""
        with self._lock:
            self._specializations.clear()
        self._set_up(providers, provider_options)

    def disable_fallback(self) -> None:
        """Accepted for compatibility: a failed run never moves to other providers by itself."""

    def enable_fallback(self) -> None:
        """Accepted for compatibility: a failed run never moves to other providers by itself."""

    @property
    def placement(self) -> Placement:
        """Which provider runs each node, and why the ones before it refused."""
        return self._main.compiled.placement

    @property
    def pass_report(self) -> PassReport:
        """What the passes did at load."""
        return self._main.compiled.loaded.report

    @property
    def interface(self) -> Interface:
        """Inputs, outputs and overridable initializers with their types."""
        return self._main.compiled.loaded.interface

    @property
    def optimized_model(self) -> Model:
        """The model as the passes left it; not to be changed."""
        return self._main.compiled.loaded.model

    def save_optimized_model(self, path: str | os.PathLike[str]) -> None:
        """Write the optimized model in a form that ONNX Runtime reads; on an error nothing is left behind."""
        saved_model.save(self._main.compiled.loaded.model, path, fuse=self._settings.level != "disabled")

    def get_provider_graph_assignment_info(self) -> list[OrtEpAssignedSubgraph]:
        """The nodes of each part. Needs the session key `session.record_ep_graph_assignment_info`, as ORT does."""
        if self._options._config.get("session.record_ep_graph_assignment_info") != "1":
            raise InvalidArgument(
                "the graph assignment is not recorded",
                hint="Set the session key 'session.record_ep_graph_assignment_info' to '1'; `placement` always works.",
            )
        return [
            OrtEpAssignedSubgraph(
                part.provider.name, tuple(OrtEpAssignedNode(n.name, n.domain, n.op_type) for n in part.nodes)
            )
            for part in self._main.compiled.parts
        ]

    # Profiling

    def end_profiling(self) -> str:
        """Write the Chrome trace and return its path; later runs are not recorded. Raises when profiling is off."""
        if self._trace is None:
            raise InvalidArgument(
                "profiling is off", hint="Set SessionOptions.enable_profiling before the session is made."
            )
        path = f"{self._options.profile_file_prefix}{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}.json"
        self._trace.write(path)
        self._trace = None
        return path

    def get_profiling_start_time_ns(self) -> int:
        """`time.monotonic_ns()` at which the profile's time stamps begin."""
        return self._profile_start_ns

    # Binding

    def io_binding(self) -> IOBinding:
        """A new, empty IOBinding for this session."""
        return IOBinding([a.name for a in (*self._inputs, *self._overridable)], [a.name for a in self._outputs])


def _tensor_data(name: str, value: OrtValue) -> TensorData:
    tensor = value._value
    if not isinstance(tensor, Tensor):
        raise InvalidArgument("an initializer must be a tensor", value=name, found=value.data_type())
    return TensorData.from_array(tensor.numpy(), tensor.dtype)
