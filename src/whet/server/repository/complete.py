"""A configuration is completed from the model, and checked against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from whet.errors import InvalidArgument, did_you_mean
from whet.server.auto_config import batch_symbol, model_config, tensor_datatype
from whet.server.model_config import DynamicBatching, ModelConfig, TensorConfig
from whet.session.feeds import NodeArg


def complete(
    given: ModelConfig | None, name: str, inputs: Sequence[NodeArg], outputs: Sequence[NodeArg], max_batch_rows: int
) -> ModelConfig:
    """The whole configuration of a model with these inputs and outputs. `given`: what its file says, if it has one.

    A file that leaves out max_batch_size, inputs and outputs gets them from the model, as Triton completes them.
    Raises InvalidArgument naming the tensor where the two do not agree.
    """
    if given is None:
        return model_config(name, inputs, outputs, max_batch_rows)
    if not given.max_batch_rows and not given.inputs and not given.outputs:
        found = model_config(name, inputs, outputs, max_batch_rows)
        if given.dynamic_batching is None and given.sequence_batching is None:
            batching = found.dynamic_batching
        else:
            batching = given.dynamic_batching
        return replace(
            given, inputs=_without_state(found.inputs, given, True),
            outputs=_without_state(found.outputs, given, False), max_batch_rows=found.max_batch_rows,
            dynamic_batching=batching if found.max_batch_rows else None,
        )  # fmt: skip
    batched = given.max_batch_rows > 0
    if batched and batch_symbol(inputs, outputs) is None:
        first = next((a for a in (*inputs, *outputs) if not a.shape or isinstance(a.shape[0], int)), None)
        raise InvalidArgument(
            "max_batch_size asks for batches, and the model does not lead every tensor with one free dimension",
            file=name, value=first.name if first else None, found=first.shape if first else None,
            expected="max_batch_size: 0",
        )  # fmt: skip
    completed = replace(
        given,
        inputs=_tensors(given.inputs, inputs, given, batched, "input"),
        outputs=_tensors(given.outputs, outputs, given, batched, "output"),
    )
    if batched and given.dynamic_batching is None and given.sequence_batching is None and not given.inputs:
        completed = replace(completed, dynamic_batching=DynamicBatching())
    return completed


def _managed(config: ModelConfig, are_inputs: bool) -> set[str]:
    """Tensors that the server fills or keeps itself: they are in the model and not in requests."""
    sequence = config.sequence_batching
    if sequence is None:
        return set()
    states = {s.input if are_inputs else s.output for s in sequence.states}
    return states | ({c.name for c in sequence.controls} if are_inputs else set())


def _without_state(
    tensors: tuple[TensorConfig, ...], config: ModelConfig, are_inputs: bool
) -> tuple[TensorConfig, ...]:
    managed = _managed(config, are_inputs)
    return tuple(t for t in tensors if t.name not in managed)


def _tensors(
    given: tuple[TensorConfig, ...], args: Sequence[NodeArg], config: ModelConfig, batched: bool, kind: str
) -> tuple[TensorConfig, ...]:
    by_name = {a.name: a for a in args}
    managed = _managed(config, kind == "input")
    skip = 1 if batched else 0
    if not given:
        return tuple(
            TensorConfig(
                a.name,
                tensor_datatype(a, config.name),
                tuple(d if isinstance(d, int) else -1 for d in a.shape[skip:]),
            )
            for a in args
            if a.name not in managed
        )
    for tensor in given:
        arg = by_name.get(tensor.name)
        if arg is None:
            raise InvalidArgument(
                f"model {config.name!r} has no such {kind}", value=tensor.name, hint=did_you_mean(tensor.name, by_name)
            )
        datatype = tensor_datatype(arg, config.name)
        if datatype is not tensor.datatype:
            raise InvalidArgument(
                f"model {config.name!r}: the configured type of an {kind} is not the model's", value=tensor.name,
                found=tensor.datatype.config_name, expected=datatype.config_name,
            )  # fmt: skip
        dims = tensor.reshape if tensor.reshape is not None else tensor.dims
        shape = arg.shape[skip:]
        fits = len(dims) == len(shape) and all(
            not isinstance(s, int) or d in (-1, s) for d, s in zip(dims, shape, strict=True)
        )
        if not fits:
            raise InvalidArgument(
                f"model {config.name!r}: the configured dims of an {kind} do not fit the model", value=tensor.name,
                found=list(dims), expected=list(shape),
            )  # fmt: skip
    if kind == "input":
        named = {t.name for t in given} | managed
        missing = [a.name for a in args if a.name not in named]
        if missing:
            raise InvalidArgument(f"model {config.name!r}: the configuration leaves out an input", value=missing[0])
    return given
