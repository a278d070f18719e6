"""Random operators over a counter-based generator: the same numbers for any thread and any order of nodes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whet import dtypes
from whet.errors import InvalidArgument
from whet.graph import Node
from whet.ops.evaluate import bind_kernel
from whet.providers.reference.run import Run

Draw = Callable[[Sequence[Any], Mapping[str, Any], np.random.Generator], Sequence[Any]]


def _normal(inputs: Sequence[Any], attributes: Mapping[str, Any], generator: np.random.Generator) -> Sequence[Any]:
    dtype = _dtype(inputs, attributes)
    draws = generator.standard_normal(_shape(inputs, attributes))
    return [(attributes.get("mean", 0.0) + attributes.get("scale", 1.0) * draws).astype(dtype)]


def _uniform(inputs: Sequence[Any], attributes: Mapping[str, Any], generator: np.random.Generator) -> Sequence[Any]:
    dtype = _dtype(inputs, attributes)
    low, high = attributes.get("low", 0.0), attributes.get("high", 1.0)
    return [(low + (high - low) * generator.random(_shape(inputs, attributes))).astype(dtype)]


def _bernoulli(inputs: Sequence[Any], attributes: Mapping[str, Any], generator: np.random.Generator) -> Sequence[Any]:
    x = inputs[0]
    return [(generator.random(x.shape) < x.astype(np.float64)).astype(_dtype(inputs, attributes))]


def _multinomial(inputs: Sequence[Any], attributes: Mapping[str, Any], generator: np.random.Generator) -> Sequence[Any]:
    x = inputs[0]
    if x.ndim != 2 or x.shape[1] == 0:
        raise InvalidArgument("the log probabilities must be a matrix", value="input", found=x.shape, expected="(B, C)")
    dtype = dtypes.BY_CODE[attributes.get("dtype", dtypes.INT32.onnx_code)].numpy
    count = attributes.get("sample_size", 1)
    logits = x.astype(np.float64)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    limits = np.cumsum(weights, axis=1)
    draws = generator.random((x.shape[0], count)) * limits[:, -1:]
    picks = [np.searchsorted(row, draw, side="right") for row, draw in zip(limits, draws, strict=True)]
    return [np.minimum(np.array(picks, np.int64).reshape(x.shape[0], count), x.shape[1] - 1).astype(dtype)]


def _dropout(inputs: Sequence[Any], attributes: Mapping[str, Any], generator: np.random.Generator) -> Sequence[Any]:
    x = inputs[0]
    ratio = 0.5 if len(inputs) < 2 or inputs[1] is None else float(inputs[1].reshape(-1)[0])
    training = len(inputs) > 2 and inputs[2] is not None and bool(inputs[2].reshape(-1)[0])
    if not training or ratio == 0:
        return [x, np.ones(x.shape, np.bool_)]
    if not 0 <= ratio < 1:
        raise InvalidArgument("the dropout ratio is out of range", value="ratio", found=ratio, expected="[0, 1)")
    seed = attributes.get("seed")
    # With a seed of its own, the node draws the mask that the standard's reference implementation draws.
    draws = generator.random(x.shape) if seed is None else np.random.RandomState(seed % 2**32).random_sample(x.shape)
    mask = draws >= ratio
    return [np.where(mask, x, x.dtype.type(0)) * x.dtype.type(1 / (1 - ratio)), mask]


RANDOM: dict[str, Draw] = {
    "RandomNormal": _normal,
    "RandomNormalLike": _normal,
    "RandomUniform": _uniform,
    "RandomUniformLike": _uniform,
    "Bernoulli": _bernoulli,
    "Multinomial": _multinomial,
    "Dropout": _dropout,
}


def is_random(node: Node) -> bool:
    """Whether `node` draws random numbers (a Dropout only decides when it runs)."""
    return node.op in RANDOM


def draws(node: Node) -> bool:
    """Whether `node` makes its model's answers random: a Dropout only in training mode, which its third input sets."""
    return is_random(node) and (node.op != "Dropout" or node.input(2) is not None)


def bind_random(node: Node) -> Callable[[Sequence[Any], Run], list[Any]]:
    """The node bound to its generator: keyed by seed (its own, else the run's), name and repetition in the run."""
    draw = RANDOM[node.op]
    name = node.name or node.outputs[0].name
    seed = node.attributes.get("seed")

    def call(inputs: Sequence[Any], run: Run) -> list[Any]:
        generator = _generator(run.entropy if seed is None else seed, name, run.next_count(name))
        bound = bind_kernel(node, lambda given, attributes, count: draw(given, attributes, generator))
        return bound(inputs, run.limits)

    return call


def _generator(seed: Any, name: str, repetition: int) -> np.random.Generator:
    encoded = struct.pack("<d", seed) if isinstance(seed, float) else str(seed).encode()
    digest = hashlib.blake2b(b"|".join((encoded, str(repetition).encode(), name.encode("utf-8", "replace"))))
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest()[:16], "little")))


def _shape(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> tuple[int, ...]:
    shape = tuple(inputs[0].shape) if inputs else tuple(attributes.get("shape", ()))
    if any(d < 0 for d in shape):
        raise InvalidArgument("attribute shape has a negative extent", found=shape)
    return shape


def _dtype(inputs: Sequence[Any], attributes: Mapping[str, Any]) -> np.dtype[Any]:
    code = attributes.get("dtype")
    if code is not None:
        found = dtypes.BY_CODE.get(code)
        if found is None:
            raise InvalidArgument("attribute dtype is no element type", found=code)
        return found.numpy
    if inputs and inputs[0] is not None:
        dtype: np.dtype[Any] = inputs[0].dtype
        return dtype
    return np.dtype(np.float32)
