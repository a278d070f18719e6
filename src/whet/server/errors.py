"""Errors of the server, and what each is called in HTTP and in gRPC."""

from __future__ import annotations

from whet.errors import (
    EPFail,
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    NoModel,
    NoSuchFile,
    NotImplemented,
    ResourceExhausted,
    Terminated,
    WhetError,
)


class ModelNotFound(InvalidArgument):
    """The server knows no model, or no version of it, of this name."""


class ModelUnavailable(Fail):
    """The model is known, and is not ready: it loads, unloads, or its last load failed."""


class QueueFull(Fail):
    """The model's queue, or the server's, holds as many requests as it may."""


class DeadlineExceeded(Fail):
    """The request's time was over before its answer was ready."""


class Cancelled(Fail):
    """The client went away, or cancelled the request."""


class PayloadTooLarge(InvalidArgument):
    """A body, or a tensor in it, is larger than the server accepts."""


class Unsupported(WhetError):
    """A part of the protocol, or of a configuration, that this server does not have."""


class LoadNotAllowed(Fail):
    """A load or an unload is asked for, and the server's control mode decides what is served without being asked."""


class Unauthorized(WhetError):
    """An administrative call without the token, or on a port where there are none."""


class ShuttingDown(Fail):
    """The server drains: it answers what it accepted and takes nothing new."""


# The first class that an error is an instance of decides. Names of codes are those of grpc.StatusCode.
STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (ModelNotFound, 404, "NOT_FOUND"),
    (ModelUnavailable, 503, "UNAVAILABLE"),
    (QueueFull, 503, "UNAVAILABLE"),
    (ShuttingDown, 503, "UNAVAILABLE"),
    (LoadNotAllowed, 503, "UNAVAILABLE"),  # as Triton answers
    (DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
    (Cancelled, 499, "CANCELLED"),
    (PayloadTooLarge, 413, "RESOURCE_EXHAUSTED"),
    (Unsupported, 501, "UNIMPLEMENTED"),
    (Unauthorized, 403, "PERMISSION_DENIED"),
    (InvalidArgument, 400, "INVALID_ARGUMENT"),
    (InvalidGraph, 400, "INVALID_ARGUMENT"),
    (InvalidProtobuf, 400, "INVALID_ARGUMENT"),
    (NoModel, 400, "INVALID_ARGUMENT"),
    (NoSuchFile, 404, "NOT_FOUND"),
    (NotImplemented, 400, "INVALID_ARGUMENT"),
    (ResourceExhausted, 400, "RESOURCE_EXHAUSTED"),
    (Terminated, 504, "DEADLINE_EXCEEDED"),
    (EPFail, 500, "INTERNAL"),
)


def http_status(error: Exception) -> int:
    """The HTTP status for an error; 500 for one that nobody foresaw."""
    return next((status for kind, status, _ in STATUS if isinstance(error, kind)), 500)


def grpc_code(error: Exception) -> str:
    """The name of the gRPC status code for an error; INTERNAL for one that nobody foresaw."""
    return next((code for kind, _, code in STATUS if isinstance(error, kind)), "INTERNAL")
