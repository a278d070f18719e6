"""Typed errors: every one names the thing that is wrong, what was found, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WhetError(Exception):
    """Base of every error that Whet raises on purpose.

    The fields stay readable one by one (`error.node`, `error.found`, ...) so that programs need not parse the message.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | None = None,
        node: str | None = None,
        value: str | None = None,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.problem = problem
        self.file = file
        self.node = node
        self.value = value
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(problem)

    def __str__(self) -> str:
        parts = [self.problem]
        for label, content in (
            ("file", self.file),
            ("node", self.node),
            ("value", self.value),
            ("found", self.found),
            ("expected", self.expected),
        ):
            if content is not None:
                parts.append(f"{label}: {shorten(str(content))}")
        text = "; ".join(parts)
        return f"{text}. {self.hint}" if self.hint else text


class Fail(WhetError):
    """Something failed that no narrower class describes."""


class InvalidArgument(WhetError, ValueError):
    """An argument, option or input tensor does not fit what the model or the call expects."""


class NoSuchFile(WhetError):
    """The named file does not exist or is not a regular, readable file."""


class NoModel(WhetError):
    """The file or the bytes hold no model."""


class InvalidProtobuf(WhetError):
    """The bytes are not a well-formed ONNX protobuf."""


class InvalidGraph(WhetError):
    """The model parses, but breaks a rule of the ONNX specification."""


class NotImplemented(WhetError):  # noqa: A001 - the name that users of ONNX Runtime catch
    """The model is valid, but no chosen execution provider runs this part of it."""


class RuntimeException(WhetError):
    """A node failed while the model ran."""


class EPFail(WhetError):
    """An execution provider failed, or is not installed."""


class Terminated(Fail):
    """The run was stopped through `RunOptions.terminate` or its deadline."""


class ResourceExhausted(RuntimeException):
    """A result would pass a limit of `config` (memory, nesting, size); nothing was allocated."""


class VerificationFailed(WhetError):
    """Two computations of the same values differ by more than the tolerance."""


def shorten(text: str, limit: int = 300) -> str:
    """`text`, with its middle left out when it is longer than `limit` characters; control characters escaped."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]}...({len(text) - limit} more characters)...{text[head - limit :]}"


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A hint that names the nearest of `known`, or None when nothing is near."""
    names = list(known)
    near = difflib.get_close_matches(name[:200], names, n=1, cutoff=0.6)
    if not near:
        lowered = {n.lower(): n for n in names}
        near = [lowered[m] for m in difflib.get_close_matches(name[:200].lower(), list(lowered), n=1, cutoff=0.6)]
    return f"Did you mean {near[0]!r}?" if near else None
