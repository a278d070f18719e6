"""What a client asks and what it gets, in no protocol's words. Tensors are numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.server.datatypes import Datatype

Array = npt.NDArray[Any]
Parameters = Mapping[str, Any]
"""Names to bool, int, float or str."""

NO_PARAMETERS: Parameters = {}


@dataclass(slots=True)
class InputTensor:
    """An input: `array` has the shape that the client gave; BYTES tensors are object arrays of bytes."""

    name: str
    datatype: Datatype
    array: Array


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the client names. `classes` > 0 asks for the largest values' indices instead of the tensor."""

    name: str
    classes: int = 0


@dataclass(slots=True)
class InferRequest:
    """One inference. `version` "" means the newest that is ready. Times are `time.monotonic_ns()` values.

    `deadline_ns`: when the client stops waiting, 0 for never; it covers the queue and the computation. `priority`: 1 is
    the highest, 0 the model's default. `sequence_id`: 0 or "" outside of a sequence. `traceparent`, `tracestate`: W3C
    trace context of the caller, set where `DataPlane.tracing` asks for it. `source`: the number of its connection,
    where that has one request at a time. `form`: the same for requests that differ in their elements only.
    """

    model: str
    inputs: list[InputTensor]
    version: str = ""
    id: str = ""
    outputs: tuple[RequestedOutput, ...] = ()
    parameters: Parameters = field(default_factory=lambda: NO_PARAMETERS)
    priority: int = 0
    deadline_ns: int = 0
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    received_ns: int = 0
    traceparent: str = ""
    tracestate: str = ""
    source: int | None = None
    form: object = None


@dataclass(slots=True)
class OutputTensor:
    """An output as it leaves the model, or BYTES strings `value:index[:label]` where classes were asked for."""

    name: str
    datatype: Datatype
    array: Array


@dataclass(slots=True)
class RequestTimes:
    """Where a request's time went, as `time.monotonic_ns()` values; 0 where it did not get that far."""

    received_ns: int = 0
    queued_ns: int = 0
    started_ns: int = 0
    computed_ns: int = 0
    finished_ns: int = 0


@dataclass(frozen=True, slots=True)
class StepRun:
    """What a step of an ensemble was for one request: the answer of its model, without the tensors."""

    model: str
    version: str
    times: RequestTimes
    batch_rows: int
    batch_closed: str
    from_cache: bool
    steps: Sequence[StepRun]


@dataclass(slots=True)
class InferResponse:
    """The answer to one request. `batch_rows` and `batch_closed` say in which batch it ran and why that was closed.

    `steps`: of an ensemble, in the order in which they ended.
    """

    model: str
    version: str
    id: str
    outputs: list[OutputTensor]
    parameters: Parameters = field(default_factory=lambda: NO_PARAMETERS)
    times: RequestTimes = field(default_factory=RequestTimes)
    batch_rows: int = 0
    batch_closed: str = ""
    from_cache: bool = False
    steps: Sequence[StepRun] = ()


def rows(array: Array) -> int:
    """Rows of a batched tensor: its first extent; 1 for a scalar."""
    return int(array.shape[0]) if array.ndim else 1


def concatenated(arrays: list[Array]) -> Array:
    """The rows of several tensors as one; the only one itself, not a copy."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
