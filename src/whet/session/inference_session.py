"""InferenceSession: a model that runs, with the methods that programs written for ONNX Runtime call."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableSequence, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from whet.config import DEFAULT_LIMITS
from whet.engine import is_engine
from whet.errors import Fail, InvalidArgument, NotImplemented, did_you_mean
from whet.graph import Model, Value
from whet.graph.tensor import TensorData
from whet.passes.base import PassReport
from whet.providers.base import CompileEnv, ExecutionProvider, MemoryUse, ProfileEvent, ReportsTuning, RunState
from whet.providers.partition import Placement
from whet.runtime.values import RuntimeValue
from whet.session import engine, saved_model
from whet.session.auto import AutoReport, choose_providers
from whet.session.config_keys import forced_tactics, limit_changes, tuning
from whet.session.device import OrtDevice, OrtMemoryInfo
from whet.session.environment import LOGGER
from whet.session.executor import copied
from whet.session.feeds import FeedChecker, ModelMetadata, NodeArg, node_arg
from whet.session.io_binding import IOBinding, fit
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
from whet.session.profile import Profile
from whet.session.provider_list import normalize
from whet.session.seed import current_seed
from whet.session.shape_ranges import shape_ranges
from whet.session.short_run import ShortRun, short_run
from whet.tuning.tuner import Outcome

SPECIALIZATIONS = 4
"""How many sets of overridden initializers keep their own compiled form."""

AUTO = "auto"

IGNORED_ARGUMENTS = ("enable_fallback", "read_config_from_model")
"""Arguments of ONNX Runtime's class that change nothing: nothing falls back, and models hold no configuration."""


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
        for accepted in IGNORED_ARGUMENTS:
            kwargs.pop(accepted, None)
        if kwargs:
            name = next(iter(kwargs))
            known = ["sess_options", "providers", "provider_options", "disabled_optimizers", *IGNORED_ARGUMENTS]
            raise InvalidArgument("unknown argument of InferenceSession", value=name, hint=did_you_mean(name, known))
        if not isinstance(path_or_bytes, (str, os.PathLike, bytes, bytearray, memoryview)):
            raise TypeError(
                f"a model is given by its path or as bytes, not as {type(path_or_bytes).__name__}; "
                "serialize an onnx.ModelProto with model.SerializeToString()"
            )
        if sess_options is not None and not isinstance(sess_options, SessionOptions):
            raise TypeError(f"sess_options is a whet.SessionOptions, not {type(sess_options)}")
        in_memory = isinstance(path_or_bytes, (bytes, bytearray, memoryview))
        self._source = path_or_bytes
        self._model_path = None if in_memory else os.fsdecode(path_or_bytes)
        self._model_name = self._model_path or "<bytes>"
        self._is_engine = self._model_path is not None and is_engine(self._model_path)
        self._options = sess_options.snapshot() if sess_options is not None else SessionOptions()
        self._profile = Profile(self._options.profile_file_prefix) if self._options.enable_profiling else None
        self._profile_start_ns = time.monotonic_ns() if self._profile is None else self._profile.start_ns
        if self._profile is not None:
            # A profile that nobody ends is written when the session goes, as ONNX Runtime does.
            weakref.finalize(self, self._profile.end)
        self._settings = self._load_settings(disabled)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._specializations: OrderedDict[frozenset[str], Specialization] = OrderedDict()
        self._short: ShortRun | None = None
        self.auto_report: AutoReport | None = None
        """What `providers="auto"` measured; None for other sessions."""
        if self._options.has_providers():
            if providers is None:
                providers = list(self._options._providers)
            else:
                warnings.warn(
                    "providers given to InferenceSession replace those of its SessionOptions", UserWarning, stacklevel=2
                )
        self._set_up(providers, provider_options)

    # Set-up

    def _set_up(self, providers: Any, provider_options: Any) -> None:
        """Everything that depends on the providers; the session stays as it was when this fails."""
        report = None
        if isinstance(providers, str) and providers == AUTO:
            providers, report = choose_providers(
                self._options, lambda options, names: InferenceSession(self._source, options, providers=names)
            )
        requested = normalize(providers, provider_options)
        strict = self._options._config.get("session.disable_cpu_ep_fallback") == "1"
        made, notes = make_providers(
            requested,
            self._options._custom_ops,
            self._options._custom_op_libraries,
            allow_reference=True,
            strict=strict,
        )
        stamp = _stamp(self._model_path)
        main = self._compile(frozenset(), made, notes)
        if strict:
            check_no_reference(main.compiled.placement, requested)
        if self._options.optimized_model_filepath:
            self._save(main, self._options.optimized_model_filepath)
        self.auto_report = report
        self._providers, self._notes, self._stamp, self._main = made, notes, stamp, main
        interface = main.compiled.loaded.interface
        self._short = (
            short_run(main.compiled.executor, interface.inputs, main.output_names)
            if self._profile is None and not interface.overridable
            else None
        )
        self._inputs = [node_arg(v) for v in interface.inputs]
        self._outputs = [node_arg(v) for v in interface.outputs]
        self._overridable = [node_arg(v) for v in interface.overridable]
        self._overridable_names = frozenset(v.name for v in interface.overridable)
        with self._lock:
            self._specializations.clear()

    def _load_settings(self, disabled: Sequence[str] | None) -> LoadSettings:
        options = self._options
        names = options._config.get("optimization.disable_specified_optimizers", "")
        limits = replace(DEFAULT_LIMITS, **limit_changes(options._config))  # type: ignore[arg-type]
        return LoadSettings(
            level=options.level,
            limits=limits,
            dims_by_name=dict(options._dims_by_name),
            dims_by_denotation=dict(options._dims_by_denotation),
            initializers={n: _tensor_data(v) for n, v in options._initializers.items()},
            folder=options._config.get("session.model_external_initializers_file_folder_path") or None,
            files=dict(options._files),
            disabled_passes=frozenset(n for n in (*names.split(";"), *(disabled or ())) if n),
            custom_ops=tuple(options._custom_ops),
        )

    def _compile(
        self, overridden: frozenset[str], providers: Sequence[ExecutionProvider], notes: Sequence[str]
    ) -> Specialization:
        started = time.perf_counter_ns()
        if self._is_engine:
            if not any(p.name == engine.CPU for p in providers):
                raise InvalidArgument("an engine runs on one provider", file=self._model_path, expected=engine.CPU)
            if self._options._config.get("tune", "off") != "off":
                raise InvalidArgument(
                    "an engine keeps the choices that it was saved with", file=self._model_path, value="tune",
                    expected="off", hint="Tune the model, and save its engine again.",
                )  # fmt: skip
            model = self._options._config.get("engine.model")
            compiled = engine.load(self._model_name, self._environment, self._settings, model)
            optimized = started
        else:
            loaded = load(self._source, replace(self._settings, as_inputs=overridden))
            optimized = time.perf_counter_ns()
            env = self._environment(loaded.interface.inputs, loaded.model.path)
            compiled = compile_model(loaded, providers, env, notes)
        loaded = compiled.loaded
        if self._profile is not None:
            self._profile.session_event("model_loading", started, optimized)
            self._profile.session_event("session_initialization", optimized, time.perf_counter_ns())
        names = tuple(v.name for v in loaded.interface.outputs)
        return Specialization(compiled, FeedChecker(loaded.interface.inputs, self._model_name), names)

    def _environment(self, inputs: Sequence[Value], path: str | None) -> CompileEnv:
        """What providers may know when they compile, or load, a model with these inputs."""
        return CompileEnv(
            limits=self._settings.limits,
            level=self._settings.level,
            intra_op_threads=max(self._options.intra_op_num_threads, 0),
            goal="throughput" if self._options._config.get("goal") == "throughput" else "latency",
            deterministic=self._options.use_deterministic_compute,
            tactics=forced_tactics(self._options._config),
            model_path=path,
            shapes=shape_ranges(self._options._config, inputs),
            tuning=replace(
                tuning(self._options._config, self._options.use_deterministic_compute),
                report=self._options._tuning_report,
            ),
        )

    def _specialization(self, feed: Mapping[str, Any]) -> Specialization:
        """The compiled form for the initializers that this feed overrides."""
        overridden = self._overridable_names.intersection(feed) if self._overridable_names else None
        if not overridden:
            return self._main
        with self._lock:
            found = self._specializations.get(overridden)
            if found is not None:
                self._specializations.move_to_end(overridden)
                return found
        if _stamp(self._model_path) != self._stamp:
            raise Fail(
                "the model file has changed since this session was made, which must read it again to override",
                file=self._model_path,
                value=", ".join(sorted(overridden)),
                hint="Make a new session.",
            )
        made = self._compile(overridden, self._providers, self._notes)
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
        short = self._short
        if short is None:
            return [to_python(v) for v in self._prepare(output_names, input_feed, run_options)()]
        state = None if run_options is None else self._run_state(run_options, False)
        found = short.run(output_names, input_feed, state)
        if found is not None:
            return found
        results = [to_python(v) for v in self._prepare(output_names, input_feed, run_options)()]
        short.accept(input_feed)
        return results

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, OrtValue],
        run_options: RunOptions | None = None,
    ) -> list[OrtValue]:  # fmt: skip
        """Like `run`, with OrtValues in and out."""
        return [OrtValue(v) for v in self._prepare(output_names, input_dict_ort_values, run_options)()]

    def run_with_ortvaluevector(
        self, run_options: RunOptions | None, feed_names: Sequence[str], feeds: Sequence[OrtValue],
        fetch_names: Sequence[str], fetches: MutableSequence[OrtValue], fetch_devices: Sequence[OrtDevice] = (),
    ) -> None:  # fmt: skip
        """Run from lists: `fetches` is filled with the outputs, or its tensors are written where it holds some."""
        if len(feed_names) != len(feeds) or (len(fetches) and len(fetches) != len(fetch_names)):
            found = f"{len(feed_names)} names, {len(feeds)} feeds, {len(fetch_names)} outputs, {len(fetches)} fetches"
            raise InvalidArgument("names and values differ in number", file=self._model_name, found=found)
        if any(device.device_type() != 0 for device in fetch_devices):
            raise NotImplemented("outputs on this device are not supported", file=self._model_name, expected="cpu")
        results = self._prepare(fetch_names, dict(zip(feed_names, feeds, strict=True)), run_options)()
        if not len(fetches):
            fetches.extend(OrtValue(r) for r in results)
            return
        for name, target, result in zip(fetch_names, fetches, results, strict=True):
            fit(name, target._tensor(), result)
        for target, result in zip(fetches, results, strict=True):
            target.update_inplace(OrtValue(result))

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[Any], Any, str], None],
        user_data: Any,
        run_options: RunOptions | None = None,
    ) -> None:
        """Run on another thread; `callback(results, user_data, error)` gets an empty list and a message on failure.

        A feed that does not fit is refused here, at once, as `run` refuses it.
        """
        ready = self._prepare(output_names, input_feed, run_options)
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix="whet-run-async")
            pool = self._pool

        def work() -> None:
            try:
                results, error = [to_python(v) for v in ready()], ""
            except Exception as failure:  # the callback's contract: every failure arrives as its text
                results, error = [], f"{type(failure).__name__}: {failure}"
            try:
                callback(results, user_data, error)
            except Exception:  # nobody else would hear of it: this thread is the pool's
                LOGGER.exception("the callback of run_async failed")

        pool.submit(work)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: RunOptions | None = None) -> None:
        """Run with the inputs and outputs of an IOBinding."""
        if iobinding._session is not self:
            raise InvalidArgument("an IOBinding runs with the session that made it", file=self._model_name)
        iobinding.accept(self._prepare(iobinding.output_names(), iobinding.feed(), run_options)())

    def _prepare(
        self, output_names: Sequence[str] | None, feed: Mapping[str, Any], run_options: RunOptions | None
    ) -> Callable[[], list[RuntimeValue]]:
        """Check a run's arguments; the result is called once, and runs."""
        if not isinstance(feed, Mapping):
            found = type(feed).__name__
            raise InvalidArgument("a feed is a dict", file=self._model_name, found=found, expected="{name: value}")
        specialization = self._specialization(feed)
        selected = self._select(specialization.output_names, output_names)
        inputs = specialization.check(feed)
        profile = self._profile
        recording = profile is not None and profile.recording
        state = self._run_state(run_options, recording)

        def run() -> list[RuntimeValue]:
            started = time.perf_counter_ns() if recording else 0
            outputs = specialization.compiled.executor.run(inputs, state)
            if profile is not None and recording:
                profile.node_events(state.events or ())
                profile.session_event("model_run", started, time.perf_counter_ns())
            if selected is None:
                return outputs
            # An output that is asked for twice is given twice, never in the same memory.
            return [copied(outputs[i]) if i in selected[:n] else outputs[i] for n, i in enumerate(selected)]

        return run

    def _select(self, known: Sequence[str], output_names: Sequence[str] | None) -> list[int] | None:
        if not output_names:
            return None
        if isinstance(output_names, (str, bytes)):
            raise InvalidArgument(
                "output_names is a list of names", file=self._model_name, found=repr(output_names), expected="[name]"
            )
        for name in output_names:
            if name not in known:
                hint = did_you_mean(str(name), known) or f"The outputs are: {', '.join(known)}."
                raise InvalidArgument("the model has no such output", file=self._model_name, value=str(name), hint=hint)
        return [known.index(name) for name in output_names]

    def _run_state(self, run_options: RunOptions | None, recording: bool) -> RunState:
        state = RunState(seed=current_seed(), events=[] if recording else None)
        if run_options is not None:
            if not isinstance(run_options, RunOptions):
                raise InvalidArgument("run_options is a whet.RunOptions", found=type(run_options).__name__)
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
        """A copy of the options that the session was made with."""
        return self._options.snapshot()

    def get_input_memory_infos(self) -> list[OrtMemoryInfo]:
        """Where each input is read: in plain memory."""
        return [OrtMemoryInfo() for _ in self._inputs]

    def get_output_memory_infos(self) -> list[OrtMemoryInfo]:
        """Where each output is written: in plain memory."""
        return [OrtMemoryInfo() for _ in self._outputs]

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
        """Load, place and compile the model again, for other providers; on an error the session stays as it was."""
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

    @property
    def memory(self) -> MemoryUse:
        """Bytes that the compiled model holds, as far as its providers tell: weights, arenas, contexts, code."""
        with self._lock:
            compiled = [self._main.compiled, *(s.compiled for s in self._specializations.values())]
        return sum((c.executor.memory() for c in compiled), MemoryUse())

    @property
    def tuning(self) -> list[Outcome]:
        """What tuning did (session key `tune`), for each program that it looked at."""
        executables = self._main.compiled.executor.executables
        return [outcome for e in executables if isinstance(e, ReportsTuning) for outcome in e.tuned]

    def save_optimized_model(self, path: str | os.PathLike[str]) -> None:
        """Write the optimized model in a form that ONNX Runtime reads; on an error nothing is left behind."""
        self._save(self._main, path)

    def save_engine(self, path: str | os.PathLike[str]) -> None:
        """Write what has been compiled so far, code and packed weights, as one file that `InferenceSession` takes.

        It loads without compiling, on this kind of machine, with this version, and only from a folder that its user
        owns and nobody else can write. Raises NotImplemented for a model that is not one part on the CPU provider.
        """
        self._check_graph()
        engine.save(self._main.compiled, self._source, self._settings, path)

    def _check_graph(self) -> None:
        if self._is_engine:
            raise NotImplemented(
                "an engine holds no graph", file=self._model_path, hint="Use the model that it was made of."
            )

    def exported_model(self) -> Model:
        """The model in the form that `save_optimized_model` writes."""
        self._check_graph()
        return saved_model.export(self._main.compiled.loaded.model, fuse=self._settings.level != "disabled")

    def _save(self, specialization: Specialization, path: str | os.PathLike[str]) -> None:
        self._check_graph()
        config = self._options._config
        least = config.get("session.optimized_model_external_initializers_min_size_in_bytes")
        saved_model.save(
            specialization.compiled.loaded.model,
            path,
            fuse=self._settings.level != "disabled",
            data_name=config.get("session.optimized_model_external_initializers_file_name"),
            data_min_bytes=int(least) if least is not None else saved_model.EXTERNAL_BYTES,
        )

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
        """Write the Chrome trace and return its path; later runs are not recorded.

        Returns the same path when called again, and an empty string when profiling is off.
        """
        return "" if self._profile is None else self._profile.end()

    def profile(self, input_feed: Mapping[str, Any], runs: int = 1) -> list[ProfileEvent]:
        """What every step of `runs` runs took, for programs; `enable_profiling` writes a Chrome trace for people."""
        specialization = self._specialization(input_feed)
        inputs = specialization.check(input_feed)
        events: list[ProfileEvent] = []
        for _ in range(runs):
            specialization.compiled.executor.run(inputs, RunState(seed=current_seed(), events=events))
        return events

    def get_profiling_start_time_ns(self) -> int:
        """`time.monotonic_ns()` at which the profile's time stamps begin."""
        return self._profile_start_ns

    # Binding

    def io_binding(self) -> IOBinding:
        """A new, empty IOBinding for this session."""
        return IOBinding(self)

    def create_ortvalue_from_shape_and_type(
        self, shape: Sequence[int], element_type: Any, device_type: str, device_id: int = 0, vendor_id: int = -1
    ) -> OrtValue:
        """A new, zero-filled tensor, to be bound to this session or any other."""
        return OrtValue.ortvalue_from_shape_and_type(shape, element_type, device_type, device_id, vendor_id)


def _tensor_data(value: OrtValue) -> TensorData:
    tensor = value._tensor()
    return TensorData.from_array(tensor.numpy(), tensor.dtype)


def _stamp(path: str | None) -> tuple[int, ...] | None:
    """What tells a file from the one that replaces it; None for models in memory, and for a file that is gone."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
