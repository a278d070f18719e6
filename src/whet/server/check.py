"""A request is checked against a model's configuration before it may wait for a run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from whet.errors import InvalidArgument, did_you_mean
from whet.server.datatypes import BYTES
from whet.server.model_config import ModelConfig, TensorConfig
from whet.server.request import Array, InferRequest, InputTensor
from whet.server.scheduling.work import ShapeKey

FORMS = 16
"""Forms of requests that are remembered."""


class RequestCheck:
    """The check for one configuration. Calling it gives the feed (the model's shapes), its rows and its shape key.

    Raises InvalidArgument that names model, input, what was found and what was expected.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._model = config.name
        self._batched = config.max_batch_rows > 0
        self._max_rows = config.max_batch_rows
        self._inputs: Mapping[str, TensorConfig] = {t.name: t for t in config.inputs}
        self._input_names = tuple(self._inputs)
        self._required = frozenset(t.name for t in config.inputs if not t.is_optional)
        self._outputs = tuple(t.name for t in config.outputs)
        self._output_set = frozenset(self._outputs)
        self._known: dict[object, tuple[str, tuple[str, ...], int, ShapeKey]] = {}
        """What came out for forms of requests."""

    def __call__(self, request: InferRequest) -> tuple[dict[str, Array], tuple[str, ...], int, ShapeKey]:
        known = self._known.get(request.form)
        if known is not None:
            name, names, count, key = known
            return {name: request.inputs[0].array}, names, count, key
        feed: dict[str, Array] = {}
        count = 0
        for tensor in request.inputs:
            config = self._inputs.get(tensor.name)
            if config is None:
                raise self._error(
                    "the model has no such input", tensor.name, hint=did_you_mean(tensor.name, self._inputs)
                )
            if tensor.name in feed:
                raise self._error("the input is given twice", tensor.name)
            if tensor.datatype is not config.datatype:
                raise self._error(
                    "the input's datatype is wrong", tensor.name, tensor.datatype.name, config.datatype.name
                )
            array, rows = self._shaped(tensor, config)
            if count and rows != count:
                raise self._error("inputs differ in their rows", tensor.name, rows, count)
            count = rows
            feed[tensor.name] = array
        missing = self._required.difference(feed) if len(feed) < len(self._inputs) else ()
        if missing:
            raise self._error("an input is missing", min(missing))
        names, key = self._names(request), self._key(feed)
        if request.form is not None and feed[(tensor := request.inputs[0]).name] is tensor.array:
            if len(self._known) >= FORMS:
                self._known.clear()
            self._known[request.form] = tensor.name, names, count, key
        return feed, names, count or 1, key

    def _key(self, feed: Mapping[str, Array]) -> ShapeKey:
        """In the model's order, whatever the request's is."""
        names = self._input_names
        skip = 1 if self._batched else 0
        if len(names) == 1 and feed:
            return (feed[names[0]].shape[skip:],)
        return tuple([feed[name].shape[skip:] if name in feed else None for name in names])

    def _shaped(self, tensor: InputTensor, config: TensorConfig) -> tuple[Array, int]:
        array, shape = tensor.array, tensor.array.shape
        rows = 1
        if self._batched:
            if not shape:
                raise self._error("a batched input has a first dimension for its rows", tensor.name, "[]")
            rows, shape = shape[0], shape[1:]
            if not 1 <= rows <= self._max_rows:
                raise self._error(
                    "the number of rows is not in the model's range", tensor.name, rows, f"1 to {self._max_rows}"
                )
        dims = config.dims
        if shape != dims and (
            len(shape) != len(dims) or any(d not in (-1, s) for d, s in zip(dims, shape, strict=True))
        ):
            expected = [-1, *dims] if self._batched else list(dims)
            raise self._error("the input's shape is wrong", tensor.name, list(array.shape), expected)
        if config.reshape is not None:
            target = (rows, *config.reshape) if self._batched else config.reshape
            array = array.reshape(_without_free(target, array.size))
        if config.datatype is BYTES:
            array = _text(array, self._model, tensor.name)
        return array, rows

    def _names(self, request: InferRequest) -> tuple[str, ...]:
        if not request.outputs:
            return self._outputs
        names = tuple(o.name for o in request.outputs)
        for name in names:
            if name not in self._output_set:
                raise self._error("the model has no such output", name, hint=did_you_mean(name, self._outputs))
        if len(set(names)) != len(names):
            raise self._error("an output is asked for twice", next(n for n in names if names.count(n) > 1))
        return names

    def _error(
        self, problem: str, tensor: str, found: object = None, expected: object = None, hint: str | None = None
    ) -> InvalidArgument:
        return InvalidArgument(
            f"model {self._model!r}: {problem}", value=tensor, found=found, expected=expected, hint=hint
        )


def _without_free(target: tuple[int, ...], size: int) -> tuple[int, ...]:
    """`target` with its one -1 replaced, also where `size` is 0."""
    if -1 not in target or size:
        return target
    return tuple(0 if d == -1 else d for d in target)


def _text(array: Array, model: str, name: str) -> Array:
    """Text for a string model: BYTES are bytes in the protocol and UTF-8 text in ONNX."""
    out = np.empty(array.shape, object)
    flat, given = out.reshape(-1), array.reshape(-1)
    for index, content in enumerate(given):
        try:
            flat[index] = content.decode() if isinstance(content, bytes) else str(content)
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"model {model!r}: a BYTES element is not UTF-8, and ONNX's strings are",
                value=name,
                found=f"element {index}",
            ) from error
    return out
