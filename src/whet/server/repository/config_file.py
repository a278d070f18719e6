"""config.pbtxt, as users of Triton have it, becomes a ModelConfig. What the server does not have is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import json_format, text_format

from whet.errors import InvalidArgument, NoSuchFile
from whet.server.datatypes import BY_CONFIG_NAME, Datatype
from whet.server.errors import Unsupported
from whet.server.model_config import (
    ControlInput,
    ControlKind,
    DynamicBatching,
    EnsembleStep,
    ModelConfig,
    QueuePolicy,
    RateLimit,
    SequenceBatching,
    StateConfig,
    TensorConfig,
    VersionPolicy,
    Warmup,
    WarmupInput,
)
from whet.server.protocol.messages import ModelConfigMessage

BACKENDS = ("onnxruntime", "whet")
PLATFORMS = ("onnxruntime_onnx", "ensemble")

UNSUPPORTED: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("batch_input", lambda m: bool(m.batch_input), "inputs that the batcher computes"),
    ("batch_output", lambda m: bool(m.batch_output), "outputs that the batcher scatters"),
    ("model_operations", lambda m: m.HasField("model_operations"), "libraries of custom operators"),
    ("model_repository_agents", lambda m: m.HasField("model_repository_agents"), "repository agents"),
    ("model_transaction_policy.decoupled", lambda m: m.model_transaction_policy.decoupled, "decoupled answers"),
    ("cc_model_filenames", lambda m: bool(m.cc_model_filenames), "model files by compute capability"),
    ("runtime", lambda m: bool(m.runtime), "a backend library of one's own"),
    (
        "optimization.execution_accelerators",
        lambda m: m.optimization.HasField("execution_accelerators"),
        "execution accelerators; name execution providers in parameters { key: \"providers\" }",
    ),
    (
        "sequence_batching.iterative_sequence",
        lambda m: m.sequence_batching.iterative_sequence,
        "sequences that a model goes on with by itself",
    ),
)  # fmt: skip
"""Fields that would change answers, with what they are."""


def read_config(path: Path) -> Any:
    """The message that a config.pbtxt holds. Raises InvalidArgument with line and column where it does not parse."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise NoSuchFile("the configuration cannot be read", file=str(path), found=error.strerror) from error
    except UnicodeDecodeError as error:
        raise InvalidArgument("the configuration is not text", file=str(path), found=str(error)) from error
    return parse_config(text, str(path))


def parse_config(text: str, where: str) -> Any:
    """The message of a configuration's text."""
    try:
        return text_format.Parse(text, ModelConfigMessage(), allow_unknown_field=False)
    except (text_format.ParseError, RecursionError, ValueError) as error:
        raise InvalidArgument("the model configuration does not parse", file=where, found=str(error)) from error


def parse_config_json(text: str, where: str) -> Any:
    """The message of a configuration in the protocol's JSON. Raises InvalidArgument."""
    if not text.lstrip().startswith("{"):
        raise InvalidArgument(
            "the model configuration does not parse", file=where, found=text[:20], expected="a JSON object"
        )
    try:
        return json_format.Parse(text, ModelConfigMessage())
    except (json_format.ParseError, RecursionError, ValueError) as error:
        raise InvalidArgument("the model configuration does not parse", file=where, found=str(error)) from error


def to_model_config(message: Any, name: str, folder: Path, where: str) -> ModelConfig:
    """The configuration of model `name` from its message; `folder` holds label files and first states.

    Inputs and outputs may be missing: they are completed from the model later. Raises Unsupported, InvalidArgument.
    """
    if message.name and message.name != name:
        raise InvalidArgument("the configuration is of another model", file=where, found=message.name, expected=name)
    for field, is_set, what in UNSUPPORTED:
        if is_set(message):
            raise Unsupported(f"this server does not have {what}", file=where, value=field)
    platform, backend = message.platform, message.backend
    is_ensemble = platform == "ensemble" or message.HasField("ensemble_scheduling")
    if platform and platform not in PLATFORMS:
        raise Unsupported(
            "this server runs ONNX models and ensembles of them", file=where, value="platform", found=platform,
            expected=", ".join(PLATFORMS),
        )  # fmt: skip
    if backend and backend not in BACKENDS:
        raise Unsupported(
            "this server runs ONNX models and no other backend's", file=where, value="backend", found=backend,
            expected=", ".join(BACKENDS),
        )  # fmt: skip
    if is_ensemble and not message.ensemble_scheduling.step:
        raise InvalidArgument("the ensemble has no steps", file=where, value="ensemble_scheduling.step")
    for kind, tensors in (("input", message.input), ("output", message.output)):
        _refuse_bad_names(kind, [t.name for t in tensors], where)
    if message.max_batch_size < 0:
        raise InvalidArgument("max_batch_size is negative", file=where, found=message.max_batch_size)
    return ModelConfig(
        name=name,
        inputs=tuple(_input(t, where) for t in message.input),
        outputs=tuple(_output(t, folder, where) for t in message.output),
        max_batch_rows=message.max_batch_size,
        model_file=_file_name(message.default_model_filename or "model.onnx", where, "default_model_filename"),
        platform="ensemble" if is_ensemble else "onnxruntime_onnx",
        backend="" if is_ensemble else (backend or "onnxruntime"),
        version_policy=_version_policy(message, where),
        instances=_instances(message, where),
        threads=_threads(message, where),
        providers=tuple(p for p in _parameter(message, "providers").split(",") if p),
        dynamic_batching=_dynamic(message.dynamic_batching, message.max_batch_size, where)
        if message.HasField("dynamic_batching")
        else None,
        sequence_batching=_sequence(message.sequence_batching, folder, where)
        if message.HasField("sequence_batching")
        else None,
        ensemble=_ensemble(message, where),
        warmups=tuple(_warmup(w, where) for w in message.model_warmup),
        response_cache=message.response_cache.enable,
        rate_limit=_rate_limit(message),
        parameters={key: p.string_value for key, p in message.parameters.items()},
    )


def _refuse_bad_names(kind: str, names: Sequence[str], where: str) -> None:
    for name in names:
        if not name:
            raise InvalidArgument(f"an {kind} has no name", file=where)
        if names.count(name) > 1:
            raise InvalidArgument(f"an {kind} is configured twice", file=where, value=name)


def _file_name(name: str, where: str, field: str) -> str:
    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise InvalidArgument(f"{field} is a file's name, without folders", file=where, found=name)
    return name


def _inner_path(name: str, where: str, field: str) -> str:
    """A file in the model's folder or below it."""
    if name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise InvalidArgument(f"{field} is a file in the model's folder", file=where, found=name)
    return name


def _datatype(entry: Any, where: str) -> Datatype:
    enum = entry.DESCRIPTOR.fields_by_name["data_type"].enum_type
    name = enum.values_by_number[entry.data_type].name
    if name not in BY_CONFIG_NAME:
        raise InvalidArgument("the tensor has no data type", file=where, value=getattr(entry, "name", ""), found=name)
    return BY_CONFIG_NAME[name]


def _dims(given: Sequence[int], where: str, name: str) -> tuple[int, ...]:
    for extent in given:
        if extent < -1:
            raise InvalidArgument("an extent is -1 or not negative", file=where, value=name, found=list(given))
    return tuple(given)


def _reshape(entry: Any, where: str) -> tuple[int, ...] | None:
    return _dims(entry.reshape.shape, where, entry.name) if entry.HasField("reshape") else None


def _refuse_shape_tensor(entry: Any, where: str) -> None:
    if entry.is_shape_tensor or entry.is_non_linear_format_io:
        raise Unsupported("this server does not have shape tensors of TensorRT", file=where, value=entry.name)


def _input(entry: Any, where: str) -> TensorConfig:
    _refuse_shape_tensor(entry, where)
    if entry.allow_ragged_batch:
        raise Unsupported("this server does not have ragged batches", file=where, value=entry.name)
    return TensorConfig(
        entry.name, _datatype(entry, where), _dims(entry.dims, where, entry.name), _reshape(entry, where),
        is_optional=entry.optional,
    )  # fmt: skip


def _output(entry: Any, folder: Path, where: str) -> TensorConfig:
    _refuse_shape_tensor(entry, where)
    labels: tuple[str, ...] = ()
    if entry.label_filename:
        file = folder / _inner_path(entry.label_filename, where, "label_filename")
        try:
            labels = tuple(file.read_bytes().decode("utf-8-sig").splitlines())
        except OSError as error:
            raise NoSuchFile("the labels cannot be read", file=str(file), found=error.strerror) from error
        except UnicodeDecodeError as error:
            raise InvalidArgument("the labels are not text", file=str(file), found=str(error)) from error
    return TensorConfig(
        entry.name, _datatype(entry, where), _dims(entry.dims, where, entry.name), _reshape(entry, where), labels,
        label_file=entry.label_filename,
    )  # fmt: skip


def _version_policy(message: Any, where: str) -> VersionPolicy:
    policy = message.version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return VersionPolicy(all=True)
        case "specific":
            return VersionPolicy(specific=tuple(policy.specific.versions))
        case "latest" if policy.latest.num_versions == 0:
            raise InvalidArgument("version_policy.latest serves no version", file=where)
        case "latest":
            return VersionPolicy(latest=policy.latest.num_versions)
    return VersionPolicy()


def _instances(message: Any, where: str) -> int:
    count = 0
    for group in message.instance_group:
        kind = group.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number[group.kind].name
        if kind in ("KIND_GPU", "KIND_MODEL"):
            raise Unsupported("this server runs instances on the CPU", file=where, value="instance_group", found=kind)
        if group.count < 0:
            raise InvalidArgument("a number of instances is negative", file=where, value="instance_group",
                                  found=group.count)  # fmt: skip
        for field in ("passive", "secondary_devices"):
            if getattr(group, field):
                raise Unsupported(f"this server does not have {field} of instances", file=where, value="instance_group")
        count += max(group.count, 1)
    return max(count, 1)


def _parameter(message: Any, name: str) -> str:
    return message.parameters[name].string_value if name in message.parameters else ""


def _threads(message: Any, where: str) -> int:
    text = _parameter(message, "intra_op_thread_count")
    if text and not (text.isdigit() and int(text) < 4096):
        raise InvalidArgument("a number of threads", file=where, value="intra_op_thread_count", found=text)
    return int(text or 0)


def _policy(given: Any) -> QueuePolicy:
    return QueuePolicy(
        max_size=given.max_queue_size,
        default_timeout_us=given.default_timeout_microseconds,
        allow_timeout_override=given.allow_timeout_override,
        delay_expired=given.timeout_action == 1,
    )


def _dynamic(given: Any, max_rows: int, where: str) -> DynamicBatching:
    preferred = tuple(given.preferred_batch_size)
    for rows in preferred:
        if not 0 < rows <= max_rows:
            found = f"preferred_batch_size {rows}"
            raise InvalidArgument(
                "a preferred size is not in the range", file=where, found=found, expected=f"1 to {max_rows}"
            )
    levels, default = given.priority_levels, given.default_priority_level
    if levels and not 1 <= default <= levels:
        raise InvalidArgument(
            "default_priority_level is one of the levels", file=where, found=default, expected=f"1 to {levels}"
        )
    for level in given.priority_queue_policy:
        if not 1 <= level <= levels:
            raise InvalidArgument(
                "priority_queue_policy is of a level that is not there", file=where, found=level,
                expected=f"1 to {levels}",
            )  # fmt: skip
    return DynamicBatching(
        preferred_rows=tuple(sorted(preferred)),
        # Triton takes an absent delay for 0, too; here it is learned then, and only a 0 that is written is one.
        max_queue_delay_us=given.max_queue_delay_microseconds
        if given.HasField("max_queue_delay_microseconds")
        else None,
        preserve_ordering=given.preserve_ordering,
        priority_levels=levels,
        default_priority_level=default,
        default_queue_policy=_policy(given.default_queue_policy),
        priority_queue_policy={level: _policy(p) for level, p in given.priority_queue_policy.items()},
    )


_CONTROLS: dict[str, ControlKind] = {
    "CONTROL_SEQUENCE_START": "START",
    "CONTROL_SEQUENCE_READY": "READY",
    "CONTROL_SEQUENCE_END": "END",
    "CONTROL_SEQUENCE_CORRID": "CORRID",
}


def _control(entry: Any, where: str) -> ControlInput:
    if len(entry.control) != 1:
        raise InvalidArgument("a control input has one control", file=where, value=entry.name, found=len(entry.control))
    control = entry.control[0]
    kind = _CONTROLS[control.DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_number[control.kind].name]
    if kind == "CORRID":
        return ControlInput(entry.name, kind, _datatype(control, where))
    for field, datatype in (
        ("fp32_false_true", "TYPE_FP32"),
        ("int32_false_true", "TYPE_INT32"),
        ("bool_false_true", "TYPE_BOOL"),
    ):
        values = getattr(control, field)
        if values:
            if len(values) != 2:
                raise InvalidArgument(f"{field} holds two values", file=where, value=entry.name, found=len(values))
            return ControlInput(entry.name, kind, BY_CONFIG_NAME[datatype], float(values[0]), float(values[1]))
    raise InvalidArgument("a control has its false and true values", file=where, value=entry.name)


def _state(entry: Any, folder: Path, where: str) -> StateConfig:
    initial = None
    for first in entry.initial_state:
        if first.data_file:
            initial = str(folder / "initial_state" / _file_name(first.data_file, where, "initial_state.data_file"))
    return StateConfig(
        entry.input_name,
        entry.output_name,
        _datatype(entry, where),
        _dims(entry.dims, where, entry.input_name),
        initial,
    )


def _sequence(given: Any, folder: Path, where: str) -> SequenceBatching:
    oldest = given.WhichOneof("strategy_choice") == "oldest"
    strategy = given.oldest if oldest else given.direct
    return SequenceBatching(
        strategy="oldest" if oldest else "direct",
        max_sequence_idle_us=given.max_sequence_idle_microseconds or 1_000_000,
        max_candidate_sequences=given.oldest.max_candidate_sequences if oldest else 0,
        max_queue_delay_us=strategy.max_queue_delay_microseconds,
        preferred_rows=tuple(given.oldest.preferred_batch_size) if oldest else (),
        controls=tuple(_control(c, where) for c in given.control_input),
        states=tuple(_state(s, folder, where) for s in given.state),
    )


def _ensemble(message: Any, where: str) -> tuple[EnsembleStep, ...]:
    steps = []
    for step in message.ensemble_scheduling.step:
        version = "" if step.model_version == -1 else str(step.model_version)
        if not step.model_name:
            raise InvalidArgument("a step of the ensemble names no model", file=where)
        steps.append(EnsembleStep(step.model_name, version, dict(step.input_map), dict(step.output_map)))
    return tuple(steps)


def _warmup(given: Any, where: str) -> Warmup:
    inputs = []
    for name, entry in given.inputs.items():
        source = entry.WhichOneof("input_data_type")
        if source is None:
            raise InvalidArgument("an input of a warm-up has no data", file=where, value=f"{given.name}: {name}")
        inputs.append(
            WarmupInput(
                name, _datatype(entry, where), _dims(entry.dims, where, name),
                {"zero_data": "zero", "random_data": "random", "input_data_file": "file"}[source],  # type: ignore[arg-type]
                _file_name(entry.input_data_file, where, "input_data_file") if source == "input_data_file" else "",
            )
        )  # fmt: skip
    return Warmup(given.name, given.batch_size, max(given.count, 1), tuple(inputs))


def _rate_limit(message: Any) -> RateLimit | None:
    for group in message.instance_group:
        if group.HasField("rate_limiter"):
            limiter = group.rate_limiter
            return RateLimit({r.name: r.count for r in limiter.resources}, max(limiter.priority, 1))
    return None
