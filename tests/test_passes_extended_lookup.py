"""One-hot products as lookups, and work on looked-up rows, against ONNX Runtime on the graph as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import whet
from tests.pass_checks import answers, assert_same, build, ops, random_array, run_passes
from whet.formats.onnx import to_proto
from whet.passes.extended.lookup import FoldIntoTable, OneHotProduct

TABLE = random_array((7, 5))
ONE_HOT = "e = Equal(x, counter) c = Cast<to = 1>(e) y = MatMul(c, table)"
LOOKUP = {"Clip": 1, "Squeeze": 1, "Gather": 1}


def one_hot(
    kind: str = "int32", body: str = ONE_HOT, shape: str = "2,9,1", counter: Any = None, table: Any = TABLE
) -> onnx.ModelProto:
    numpy = np.dtype(kind)
    counter = np.arange(7).reshape(1, 1, 7) if counter is None else np.asarray(counter)
    proto = build(f"{kind}[{shape}] x", "float y", body, counter=counter.astype(numpy), table=table)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def indices(kind: str) -> Any:
    """Every row of the table, and numbers outside it."""
    x = np.arange(18).astype(kind)
    limits = np.iinfo(x.dtype)
    x[8:12] = (limits.max, limits.min, limits.max - 1, limits.min + 1)
    if limits.min < 0:
        x[12:15] = (-1, -7, -8)
    return x.reshape(2, 9, 1)


@pytest.mark.parametrize("kind", ["int32", "int64"])
@pytest.mark.parametrize("order", ["x, counter", "counter, x"])
@pytest.mark.parametrize("shape", ["2,9,1", "b,r,1"])
def test_one_hot_products_are_lookups(kind: str, order: str, shape: str) -> None:
    proto = one_hot(kind, ONE_HOT.replace("x, counter", order), shape)
    model = run_passes(proto, OneHotProduct())
    assert ops(model) == LOOKUP
    assert_same(proto, model, {"x": indices(kind)})


@pytest.mark.parametrize("kind", ["uint8", "int8", "int16", "uint16"])
def test_indices_of_few_bits(kind: str) -> None:
    model = run_passes(one_hot(kind), OneHotProduct())
    assert ops(model) == {"Cast": 1, **LOOKUP}
    x = indices(kind)
    rows = x[..., 0].astype(np.int64)
    expected = np.where(((rows >= 0) & (rows < 7))[..., None], TABLE[np.clip(rows, 0, 6)], 0)
    (got,) = answers(to_proto(model), {"x": x})
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"counter": np.arange(1, 8)},
        {"counter": np.arange(7)[::-1]},
        {"counter": np.arange(7).reshape(7, 1), "shape": "2,7,7"},
        {"counter": np.arange(7).reshape(1, 1, 1, 7)},
        {"shape": "2,9,7"},
        {"table": np.where(np.arange(35).reshape(7, 5) == 3, np.float32(np.inf), TABLE)},
        {"kind": "uint32"},
        {"table": random_array((3, 7, 5)), "shape": "3,9,1"},
    ],
)
def test_other_products_stay(changes: dict[str, Any]) -> None:
    assert "MatMul" in ops(run_passes(one_hot(**changes), OneHotProduct()))


FOLDED: list[tuple[str, dict[str, Any]]] = [
    ("y = Relu(g)", {}),
    ("y = Add(g, c)", {"c": random_array((5,), 1)}),
    ("y = Sub(c, g)", {"c": random_array((1, 1, 5), 1)}),
    ("y = Div(g, c)", {"c": np.float32(3)}),
    ("a = Add(g, c) r = Sigmoid(a) y = Mul(d, r)", {"c": random_array((5,), 1), "d": np.float32(0.3)}),
    ("y = Clip(g, c)", {"c": np.float32(-0.5)}),
]


@pytest.mark.parametrize(("body", "constants"), FOLDED)
@pytest.mark.parametrize("shape", ["3,4", "n", "3,n"])
def test_work_moves_into_the_table(body: str, constants: dict[str, Any], shape: str) -> None:
    proto = build(f"int64[{shape}] x", "float y", f"g = Gather(table, x) {body}", table=TABLE, **constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = run_passes(proto, FoldIntoTable())
    if any(np.ndim(c) > 2 for c in constants.values()) and shape == "n":
        # The constant's rank is the result's.
        assert ops(model) != {"Gather": 1}
    else:
        assert ops(model) == {"Gather": 1}
    x = np.array([[0, 6, -1, 3], [2, 2, -7, 1], [5, 4, 3, 0]])
    assert_same(proto, model, {"x": x[0] if shape == "n" else x}, rtol=1e-6)


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("g = Gather(table, x) y = Add(g, c)", {"c": random_array((4, 5), 1)}),
        ("g = Gather(table, x) y = Add(g, g)", {}),
        ("g = Gather(table, x) r = Relu(g) y = Mul(g, r)", {}),
        ("g = Gather(table, x) h = Gather(table, x) r = Relu(g) y = Mul(h, r)", {}),
        ("g = Gather<axis = 1>(table, x) y = Relu(g)", {}),
        ("g = Gather(table, x) y = Softmax(g)", {}),
        ("g = Gather(table, x) y = Relu(g)", {"table": np.zeros((1 << 13, 33), np.float32)}),
        ("g = Gather(table, x) y = Cos(g)", {}),
    ],
)
def test_other_work_stays(body: str, constants: dict[str, Any]) -> None:
    proto = build("int64[3,4] x", "float y", body, **{"table": TABLE, **constants})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    before = ops(run_passes(proto))
    assert ops(run_passes(proto, FoldIntoTable())) == before


def test_whole_levels_on_the_cpu() -> None:
    """One-hot rows, their product, a bias and an activation are one lookup."""
    body = f"{ONE_HOT.replace('y =', 'p =')} a = Add(p, bias) y = Gelu(a)"
    proto = build(
        "int32[b,9,1] x", "float[b,9,5] y", body, counter=np.arange(7, dtype=np.int32), table=TABLE,
        bias=random_array((5,), 2),
    )  # fmt: skip
    session = whet.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert set(session.placement.by_provider) == {"CPUExecutionProvider"}
    steps = session._main.compiled.executor._steps
    tactics = [step.ops for step in steps[0].executable._only.blueprint.steps]
    assert not any("MatMul" in t or "Gelu" in t for t in tactics), tactics
    x = indices("int32")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], answers(proto, {"x": x})[0], rtol=0, atol=1e-6)
