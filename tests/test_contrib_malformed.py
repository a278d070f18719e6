"""Contrib kernels given malformed operands: every refusal is typed, and nothing is written to the inputs."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pytest

from tests import test_contrib_attention as attention
from tests import test_contrib_closed_forms as closed_forms
from tests import test_contrib_kernels as kernels
from tests import test_contrib_quantized as quantized
from tests.contrib_reference import Array, Case, Draw, run_whet
from whet.errors import InvalidArgument, ResourceExhausted

DERIVED = {**closed_forms.CLOSED_FORMS, **quantized.CLOSED_FORMS}
CASES = [
    *kernels.CASES,
    *attention.CASES,
    *quantized.CASES,
    *(Case(op_type, make, attributes) for op_type, (make, attributes, _) in DERIVED.items()),
]
EXTREMES = (-1000, -1, 0, 1000)


def damaged(array: Array, random: np.random.Generator) -> Array | None:
    """The array left out, one shorter, with one axis more or less, empty, or with integers out of any range."""
    kind = int(random.integers(0, 6))
    if kind == 0:
        return None
    if kind == 1:
        return array[None]
    if kind == 2 and array.dtype.kind == "i" and array.itemsize >= 4:
        return np.where(random.random(array.shape) < 0.5, random.choice(EXTREMES), array).astype(array.dtype)
    if array.ndim == 0 or array.shape[0] == 0:
        return array
    if kind == 3:
        axis = int(random.integers(0, array.ndim))
        return np.delete(array, -1, axis=axis) if array.shape[axis] else array
    return np.array(array[0]) if kind == 4 else array[:0]


def changed(attributes: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    """The attributes, one of them odd."""
    result = dict(attributes)
    if result:
        name = str(random.choice(list(result)))
        value = result[name]
        if isinstance(value, int):
            result[name] = int(random.choice([-1, 0, 3, 7, 100, 2**40]))
        elif isinstance(value, list):
            result[name] = value[:-1]
        elif isinstance(value, str):
            result[name] = "bogus"
    return result


@pytest.mark.parametrize("op_type", sorted({case.op_type for case in CASES}))
def test_malformed_operands_end_in_a_typed_error_or_an_answer(op_type: str) -> None:
    """A crash, a raw numpy error, a numpy warning or a changed input fails the test."""
    for number, case in enumerate(case for case in CASES if case.op_type == op_type):
        for seed in range(10):
            random = np.random.default_rng([number, seed])
            inputs = case.make(Draw(seed))
            attributes = dict(case.attributes)
            if seed % 4 == 3:
                attributes = changed(attributes, random)
            else:
                index = int(random.integers(0, len(inputs)))
                array = inputs[index]
                if array is not None:
                    inputs[index] = damaged(np.asarray(array), random)
            with suppress(InvalidArgument, ResourceExhausted):
                run_whet(op_type, inputs, attributes, len(case.outputs))
    with pytest.raises(InvalidArgument):
        run_whet(op_type, [], {})
