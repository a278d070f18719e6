"""A configuration as the protocol's ModelConfig message: what the configuration extension shows, completed.

The inverse of `config_file.to_model_config`: every field that this server acts on is there, defaults included. Only
the delay of dynamic batching is left out where it is learned: a 0 would be read as "do not wait".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import json_format

from whet.server.model_config import (
    ControlInput,
    DynamicBatching,
    ModelConfig,
    QueuePolicy,
    SequenceBatching,
    StateConfig,
    TensorConfig,
    VersionPolicy,
    Warmup,
)
from whet.server.protocol.messages import ModelConfigMessage, from_document

Document = dict[str, Any]


def config_message(config: ModelConfig) -> Any:
    """The message of a configuration."""
    return from_document(ModelConfigMessage, _document(config))


def config_document(config: ModelConfig) -> Document:
    """The configuration as the JSON of `GET /v2/models/M/config`: every field, 64-bit numbers as text, as the
    protocol's JSON has them."""
    found: Document = json_format.MessageToDict(
        config_message(config), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def _document(config: ModelConfig) -> Document:
    document: Document = {
        "name": config.name,
        "platform": config.platform,
        "backend": config.backend,
        "default_model_filename": "" if config.is_ensemble else config.model_file,
        "version_policy": _version_policy(config.version_policy),
        "max_batch_size": config.max_batch_rows,
        "input": [_tensor(t, is_input=True) for t in config.inputs],
        "output": [_tensor(t, is_input=False) for t in config.outputs],
        "model_warmup": [_warmup(w) for w in config.warmups],
        "response_cache": {"enable": config.response_cache},
        "parameters": {key: {"string_value": value} for key, value in config.parameters.items()},
    }
    if config.is_ensemble:
        document["ensemble_scheduling"] = {
            "step": [
                {
                    "model_name": s.model,
                    "model_version": int(s.version) if s.version else -1,
                    "input_map": dict(s.input_map),
                    "output_map": dict(s.output_map),
                }
                for s in config.ensemble
            ]
        }
    else:
        document["instance_group"] = [_instances(config)]
    if config.dynamic_batching is not None:
        document["dynamic_batching"] = _dynamic(config.dynamic_batching)
    if config.sequence_batching is not None:
        document["sequence_batching"] = _sequence(config.sequence_batching)
    return document


def _version_policy(policy: VersionPolicy) -> Document:
    if policy.all:
        return {"all": {}}
    if policy.specific:
        return {"specific": {"versions": list(policy.specific)}}
    return {"latest": {"num_versions": policy.latest}}


def _tensor(tensor: TensorConfig, is_input: bool) -> Document:
    document: Document = {
        "name": tensor.name,
        "data_type": tensor.datatype.config_name,
        "dims": list(tensor.dims),
    }
    if tensor.reshape is not None:
        document["reshape"] = {"shape": list(tensor.reshape)}
    if tensor.label_file:
        document["label_filename"] = tensor.label_file
    if is_input and tensor.is_optional:
        document["optional"] = True
    return document


def _instances(config: ModelConfig) -> Document:
    group: Document = {"name": config.name, "kind": "KIND_CPU", "count": config.instances}
    if config.rate_limit is not None:
        resources = [{"name": name, "count": count} for name, count in config.rate_limit.resources.items()]
        group["rate_limiter"] = {"resources": resources, "priority": config.rate_limit.priority}
    return group


def _policy(policy: QueuePolicy) -> Document:
    return {
        "timeout_action": "DELAY" if policy.delay_expired else "REJECT",
        "default_timeout_microseconds": policy.default_timeout_us,
        "allow_timeout_override": policy.allow_timeout_override,
        "max_queue_size": policy.max_size,
    }


def _dynamic(batching: DynamicBatching) -> Document:
    document: Document = {
        "preferred_batch_size": list(batching.preferred_rows),
        "preserve_ordering": batching.preserve_ordering,
        "priority_levels": batching.priority_levels,
        "default_priority_level": batching.default_priority_level,
        "priority_queue_policy": {str(k): _policy(p) for k, p in batching.priority_queue_policy.items()},
    }
    if batching.max_queue_delay_us is not None:
        document["max_queue_delay_microseconds"] = batching.max_queue_delay_us
    if batching.default_queue_policy != QueuePolicy():
        document["default_queue_policy"] = _policy(batching.default_queue_policy)
    return document


def _sequence(sequence: SequenceBatching) -> Document:
    document: Document = {
        "max_sequence_idle_microseconds": sequence.max_sequence_idle_us,
        "control_input": [_control(c) for c in sequence.controls],
        "state": [_state(s) for s in sequence.states],
    }
    if sequence.strategy == "oldest":
        document["oldest"] = {
            "max_candidate_sequences": sequence.max_candidate_sequences,
            "preferred_batch_size": list(sequence.preferred_rows),
            "max_queue_delay_microseconds": sequence.max_queue_delay_us,
        }
    else:
        document["direct"] = {"max_queue_delay_microseconds": sequence.max_queue_delay_us}
    return document


def _control(control: ControlInput) -> Document:
    entry: Document = {"kind": f"CONTROL_SEQUENCE_{control.kind}"}
    values = [control.false_value, control.true_value]
    if control.kind == "CORRID":
        entry["data_type"] = control.datatype.config_name
    elif control.datatype.name == "FP32":
        entry["fp32_false_true"] = values
    elif control.datatype.name == "INT32":
        entry["int32_false_true"] = [int(v) for v in values]
    else:
        entry["bool_false_true"] = [bool(v) for v in values]
    return {"name": control.name, "control": [entry]}


def _state(state: StateConfig) -> Document:
    document: Document = {
        "input_name": state.input,
        "output_name": state.output,
        "data_type": state.datatype.config_name,
        "dims": list(state.dims),
    }
    if state.initial_file is not None:
        first = {"data_type": document["data_type"], "dims": document["dims"], "name": state.input}
        document["initial_state"] = [{**first, "data_file": Path(state.initial_file).name}]
    return document


def _warmup(warmup: Warmup) -> Document:
    inputs: Document = {}
    for entry in warmup.inputs:
        source: Document = {"data_type": entry.datatype.config_name, "dims": list(entry.dims)}
        if entry.source == "file":
            source["input_data_file"] = entry.file
        else:
            source[f"{entry.source}_data"] = True
        inputs[entry.name] = source
    return {"name": warmup.name, "batch_size": warmup.rows, "count": warmup.count, "inputs": inputs}
