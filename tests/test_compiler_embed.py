"""EmbedLayerNormalization compiled, against the reference provider and ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.compiler_cases import FLOAT, FLOAT16, INT32, check, compare, feeds, node_model, run
from whet.errors import InvalidArgument

Array = np.ndarray[Any, Any]
TABLES = (2, 3, 4, 5, 6)


def operands(
    batch: int, columns: int, width: int, *, segments: bool, mask: bool, positions: str, dtype: Any = np.float32
) -> list[Array | None]:
    random = np.random.default_rng(batch * 100 + columns + width)

    def table(*shape: int) -> Array:
        return np.asarray(random.standard_normal(shape).astype(dtype))

    def ids(limit: int, rows: int) -> Array:
        return random.integers(0, limit, (rows, columns)).astype(np.int32)

    return [
        ids(23, batch), ids(2, batch) if segments else None, table(23, width), table(columns + 3, width),
        table(2, width) if segments else None, table(width), table(width),
        random.integers(0, 2, (batch, columns)).astype(np.int32) if mask else None,
        {"none": None, "shared": ids(columns + 3, 1), "each": ids(columns + 3, batch)}[positions],
    ]  # fmt: skip


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("positions", ["none", "shared", "each"])
@pytest.mark.parametrize(("segments", "mask"), [(False, False), (True, True), (True, False)])
def test_against_the_reference(segments: bool, mask: bool, positions: str, symbolic: bool) -> None:
    given = operands(3, 7, 37, segments=segments, mask=mask, positions=positions)
    model = node_model(
        "EmbedLayerNormalization", given, (FLOAT, INT32, FLOAT), {"epsilon": 1e-5},
        domain="com.microsoft", constants=TABLES, symbolic=symbolic,
    )  # fmt: skip
    found = check(model, feeds(model, given))
    theirs = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    compare(found, theirs.run(None, feeds(model, given)), 1e-4)


@pytest.mark.parametrize("width", [8, 768])
def test_half_floats_and_tables_that_are_inputs(width: int) -> None:
    given = operands(2, 5, width, segments=True, mask=True, positions="none", dtype=np.float16)
    model = node_model(
        "EmbedLayerNormalization", given, (FLOAT16, INT32, FLOAT16), domain="com.microsoft", symbolic=True
    )  # fmt: skip
    check(model, feeds(model, given), 2e-3)


def test_only_the_first_output() -> None:
    given = operands(1, 128, 384, segments=True, mask=False, positions="none")
    model = node_model("EmbedLayerNormalization", given, (FLOAT, INT32), domain="com.microsoft", constants=TABLES)
    check(model, feeds(model, given))


@pytest.mark.parametrize("wrong", [-1, 23])
def test_indices_are_checked(wrong: int) -> None:
    given = operands(2, 4, 16, segments=True, mask=False, positions="none")
    assert given[0] is not None
    given[0][1, 2] = wrong
    model = node_model("EmbedLayerNormalization", given, (FLOAT, INT32), domain="com.microsoft", constants=TABLES)
    with pytest.raises(InvalidArgument, match="index"):
        run(model, feeds(model, given))


@pytest.mark.parametrize("symbolic", [False, True])
def test_a_sequence_longer_than_the_positions(symbolic: bool) -> None:
    given = operands(1, 4, 16, segments=False, mask=False, positions="none")
    assert given[3] is not None
    given[3] = given[3][:3]
    model = node_model(
        "EmbedLayerNormalization", given, (FLOAT, INT32), domain="com.microsoft", constants=TABLES, symbolic=symbolic
    )
    with pytest.raises(InvalidArgument):
        run(model, feeds(model, given))
