"""The CPU compiler's own rewrites: they fire where they should, not on near misses, and keep the answers."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest

import whet

HEAD = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 6] x) => (float[p, 2, 4] y)'
WEIGHTS = "<float[6, 8] w = {" + ", ".join(str((i * 7 % 11) / 5 - 1) for i in range(48)) + "}, int64[3] s = {0, 2, 4}>"


def steps(body: str, providers: list[str]) -> tuple[list[str], np.ndarray]:
    """Operators of the steps that ran, and the output."""
    model = onnx.parser.parse_model(f"{HEAD} {WEIGHTS} {{ {body} }}").SerializeToString()
    session = whet.InferenceSession(model, providers=providers)
    feed = {"x": np.random.default_rng(3).standard_normal((4, 6), dtype=np.float32)}
    found = session.run(None, feed)[0]
    parts = session._main.compiled.parts
    names = [n.op for part in parts for n in part.nodes]
    blueprint = getattr(session._main.compiled.executor.only_part(), "_only", None)
    return ([s.ops for s in blueprint.blueprint.steps] if blueprint is not None else names), found


@pytest.mark.parametrize("activation", ["Gelu(r)", "Relu(r)", "Clip(r, lo, hi)"])
def test_a_product_does_the_work_behind_its_reshape(activation: str) -> None:
    bounds = "lo = Constant<value_float = -0.5>() hi = Constant<value_float = 0.75>()"
    body = f"{bounds} m = MatMul(x, w) r = Reshape(m, s) y = {activation}"
    ops, found = steps(body, ["CPUExecutionProvider"])
    assert ops == [f"MatMul+{activation.partition('(')[0]}"]
    _, expected = steps(body, ["ReferenceExecutionProvider"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    [
        "m = MatMul(x, w) r = Reshape(m, s) y = Mul(r, r)",  # read twice
        "m = MatMul(x, w) r = Reshape(m, s) t = Relu(r) y = Add(r, t)",  # another reader
    ],
)
def test_near_misses_stay(body: str) -> None:
    ops, found = steps(body, ["CPUExecutionProvider"])
    assert "MatMul" in ops
    _, expected = steps(body, ["ReferenceExecutionProvider"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
