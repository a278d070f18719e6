"""An ensemble's steps are put in order and checked against its members before it is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from whet.errors import InvalidArgument, did_you_mean
from whet.server.datatypes import Datatype
from whet.server.errors import ModelNotFound, ModelUnavailable, Unsupported
from whet.server.model_config import ModelConfig, TensorConfig
from whet.server.request import InferRequest, InferResponse, RequestedOutput


class Member(Protocol):
    """What an ensemble needs of a model."""

    @property
    def config(self) -> ModelConfig: ...

    async def infer(self, request: InferRequest) -> InferResponse: ...


Resolve = Callable[[str, str], Member]
"""The model of a name and version ("" for the newest) that serves now. Raises ModelNotFound."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step in its place. `inputs`: the model's input, its type, and the ensemble's tensor that goes there; `outputs`:
    the model's outputs, and the tensors that they become. `after`: how many steps it waits for; `before`: which wait
    for it."""

    title: str
    model: str
    version: str
    inputs: tuple[tuple[str, Datatype, str], ...]
    requested: tuple[RequestedOutput, ...]
    outputs: tuple[str, ...]
    after: int
    before: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EnsemblePlan:
    """The steps in an order in which they can run. `is_chain`: none can run beside another."""

    steps: tuple[Step, ...]
    is_chain: bool


@dataclass(frozen=True, slots=True)
class _Tensor:
    datatype: Datatype
    shape: tuple[int, ...]
    source: str
    step: int | None


def plan_ensemble(config: ModelConfig, resolve: Resolve) -> EnsemblePlan:
    """The plan of an ensemble. Raises InvalidArgument, naming step and tensor, for a model or tensor that is missing, a
    type or shape that does not fit, a tensor with two sources, a circle; ModelUnavailable for a model that does not
    serve; Unsupported for a response cache with sequences in it."""
    name = config.name
    order = _order(config)
    members = {i: _member(config, i, resolve) for i in order}
    tensors: dict[str, _Tensor] = {
        t.name: _Tensor(t.datatype, _shape(t, config), "the ensemble's input", None) for t in config.inputs
    }
    place = {step: at for at, step in enumerate(order)}
    before: list[set[int]] = [set() for _ in order]
    after: list[set[int]] = [set() for _ in order]
    for at, index in enumerate(order):
        step, member = config.ensemble[index], members[index]
        inputs = {t.name: t for t in member.config.inputs}
        for given, source in step.input_map.items():
            where = step_title(config, index)
            if given not in inputs:
                raise InvalidArgument(f"{where}: the model has no such input", value=given,
                                      hint=did_you_mean(given, inputs))  # fmt: skip
            tensor = tensors[source]
            _fit(where, given, tensor, inputs[given], member.config)
            if tensor.step is not None:
                before[place[tensor.step]].add(at)
                after[at].add(place[tensor.step])
        missing = [n for n, t in inputs.items() if n not in step.input_map and not t.is_optional]
        if missing:
            raise InvalidArgument(f"{step_title(config, index)}: nothing goes into an input", value=missing[0])
        outputs = {t.name: t for t in member.config.outputs}
        for given, target in step.output_map.items():
            if given not in outputs:
                raise InvalidArgument(f"{step_title(config, index)}: the model has no such output", value=given,
                                      hint=did_you_mean(given, outputs))  # fmt: skip
            out = outputs[given]
            source = f"output {given!r} of {step.model!r}"
            tensors[target] = _Tensor(out.datatype, _shape(out, member.config), source, index)
    for out in config.outputs:
        _fit(f"ensemble {name!r}", out.name, tensors[out.name], out, config)
    steps = tuple(
        Step(
            step_title(config, index), step.model, step.version,
            tuple((given, tensors[source].datatype, source) for given, source in step.input_map.items()),
            tuple(RequestedOutput(given) for given in step.output_map), tuple(step.output_map.values()),
            len(after[at]), tuple(sorted(before[at])),
        )
        for at, index in enumerate(order)
        for step in (config.ensemble[index],)
    )  # fmt: skip
    if config.response_cache and any(m.config.sequence_batching for m in members.values()):
        raise Unsupported("an ensemble with sequences in it has no response cache", file=name, value="response_cache")
    return EnsemblePlan(steps, all(at - 1 in after[at] for at in range(1, len(order))))


def step_title(config: ModelConfig, index: int) -> str:
    """What a step is called in errors."""
    return f"ensemble {config.name!r}, step {index + 1} ({config.ensemble[index].model!r})"


def _order(config: ModelConfig) -> list[int]:
    """The steps' indices such that each comes after those whose tensors it takes."""
    if not config.ensemble:
        raise InvalidArgument(f"ensemble {config.name!r} has no steps")
    if not config.inputs or not config.outputs:
        raise InvalidArgument(f"ensemble {config.name!r} does not list its inputs and outputs")
    source: dict[str, int | None] = {t.name: None for t in config.inputs}
    for index, step in enumerate(config.ensemble):
        for target in step.output_map.values():
            if target in source:
                other = source[target]
                found = "an input of the ensemble" if other is None else step_title(config, other)
                raise InvalidArgument(
                    f"{step_title(config, index)}: the tensor has a source already", value=target, found=found
                )
            source[target] = index
    for index, step in enumerate(config.ensemble):
        for wanted in step.input_map.values():
            if wanted not in source:
                raise InvalidArgument(
                    f"{step_title(config, index)}: nothing gives this tensor", value=wanted,
                    hint=did_you_mean(wanted, source),
                )  # fmt: skip
    for out in config.outputs:
        if out.name not in source:
            raise InvalidArgument(
                f"ensemble {config.name!r}: no step gives this output", value=out.name,
                hint=did_you_mean(out.name, source),
            )  # fmt: skip
    order: list[int] = []
    left = list(range(len(config.ensemble)))
    while left:
        ready = [i for i in left if all(source[t] is None or source[t] in order
                                        for t in config.ensemble[i].input_map.values())]  # fmt: skip
        if not ready:
            found = ", ".join(f"{i + 1} ({config.ensemble[i].model!r})" for i in left)
            raise InvalidArgument(f"ensemble {config.name!r}: its steps wait for each other in a circle", found=found)
        order += ready
        left = [i for i in left if i not in ready]
    return order


def _member(config: ModelConfig, index: int, resolve: Resolve) -> Member:
    step = config.ensemble[index]
    where = step_title(config, index)
    if step.model == config.name:
        raise InvalidArgument(f"{where}: the ensemble holds itself")
    try:
        member = resolve(step.model, step.version)
    except ModelNotFound as error:
        raise ModelUnavailable(f"{where}: the model does not serve", value=step.model, hint=error.hint) from error
    if _holds(member.config, config.name, resolve, set()):
        raise InvalidArgument(f"{where}: the ensemble holds itself, through this model")
    if config.max_batch_rows and member.config.max_batch_rows < config.max_batch_rows:
        raise InvalidArgument(
            f"{where}: the model takes smaller batches than the ensemble", value="max_batch_size",
            found=member.config.max_batch_rows, expected=f"at least {config.max_batch_rows}",
        )  # fmt: skip
    return member


def _holds(config: ModelConfig, name: str, resolve: Resolve, seen: set[str]) -> bool:
    for step in config.ensemble:
        if step.model == name:
            return True
        if step.model in seen:
            continue
        seen.add(step.model)
        try:
            inner = resolve(step.model, step.version).config
        except ModelNotFound:
            continue
        if _holds(inner, name, resolve, seen):
            return True
    return False


def _shape(tensor: TensorConfig, config: ModelConfig) -> tuple[int, ...]:
    return (-1, *tensor.dims) if config.max_batch_rows else tensor.dims


def _fit(where: str, name: str, found: _Tensor, wanted: TensorConfig, config: ModelConfig) -> None:
    if found.datatype is not wanted.datatype:
        raise InvalidArgument(
            f"{where}: the tensor's type does not fit", value=name, found=f"{found.datatype.name} from {found.source}",
            expected=wanted.datatype.name,
        )  # fmt: skip
    shape = _shape(wanted, config)
    if len(shape) != len(found.shape) or any(
        a != b and -1 not in (a, b) for a, b in zip(shape, found.shape, strict=True)
    ):
        raise InvalidArgument(
            f"{where}: the tensor's shape does not fit", value=name, found=f"{list(found.shape)} from {found.source}",
            expected=list(shape),
        )  # fmt: skip


def members_of(config: ModelConfig) -> Mapping[str, str]:
    """The models that an ensemble takes, with the versions that it asks for."""
    return {step.model: step.version for step in config.ensemble}
