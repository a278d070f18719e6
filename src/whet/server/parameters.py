"""The parameters of a request that the server itself acts on: priority, timeout, sequence. HTTP and gRPC share this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from whet.errors import InvalidArgument
from whet.server.errors import Unsupported
from whet.server.request import InferRequest, Parameters

MAX_TIMEOUT_US = 1 << 62


def _priority(request: InferRequest, value: Any) -> None:
    if type(value) is str and value.isdigit():
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise InvalidArgument("`priority` is a whole number, 1 for the highest", found=value)
    request.priority = value


def _timeout(request: InferRequest, value: Any) -> None:
    """Microseconds from when the request was received; 0 for none."""
    if type(value) is not int or not 0 <= value <= MAX_TIMEOUT_US:
        raise InvalidArgument("`timeout` is a number of microseconds", found=value)
    if value:
        deadline = request.received_ns + value * 1000
        request.deadline_ns = min(request.deadline_ns or deadline, deadline)


def _sequence_id(request: InferRequest, value: Any) -> None:
    if type(value) is str:
        if len(value) > 128:
            raise InvalidArgument("`sequence_id` is too long", found=f"{len(value)} characters", expected="128")
    elif type(value) is not int or not 0 <= value < 1 << 64:
        raise InvalidArgument("`sequence_id` is a whole number or a string", found=value)
    request.sequence_id = value


def _flag(name: str, value: Any) -> bool:
    if type(value) is not bool:
        raise InvalidArgument(f"`{name}` is true or false", found=value)
    return value


def _sequence_start(request: InferRequest, value: Any) -> None:
    request.sequence_start = _flag("sequence_start", value)


def _sequence_end(request: InferRequest, value: Any) -> None:
    request.sequence_end = _flag("sequence_end", value)


_KNOWN: dict[str, Callable[[InferRequest, Any], None]] = {
    "priority": _priority,
    "timeout": _timeout,
    "sequence_id": _sequence_id,
    "sequence_start": _sequence_start,
    "sequence_end": _sequence_end,
}


def apply_parameters(request: InferRequest) -> None:
    """Set the request's fields from its parameters; those that the server does not know are left as they are.

    Raises InvalidArgument naming the parameter, and for a sequence's start or end without its id.
    """
    parameters = request.parameters
    if not parameters:
        return
    for name, value in parameters.items():
        act = _KNOWN.get(name)
        if act is not None:
            act(request, value)
    if (request.sequence_start or request.sequence_end) and not request.sequence_id:
        raise InvalidArgument("a sequence's start or end needs its `sequence_id`")


SHARED_MEMORY = ("shared_memory_region", "shared_memory_byte_size", "shared_memory_offset")


def tensor_parameters(parameters: Parameters, tensor: str) -> None:
    """Refuse those parameters of an input or a requested output that this server does not have. Raises Unsupported."""
    for name in SHARED_MEMORY:
        if name in parameters:
            raise Unsupported(
                "this server does not have shared memory", value=tensor, found=name,
                hint="Send the tensor in the request.",
            )  # fmt: skip
