"""Constant folding, branch inlining, dead code, common subexpressions: what they do and what they must leave."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.pass_checks import assert_same, build, load, ops, random_array, run_passes
from whet.config import Limits
from whet.errors import InvalidArgument
from whet.passes.base import PassDriver, Repeat
from whet.passes.basic.branches import BranchInlining
from whet.passes.basic.cse import CommonSubexpressions, ConstantMerging
from whet.passes.basic.dead_code import DeadCode
from whet.passes.basic.fold import ConstantFolding
from whet.passes.basic.identity import NoOpRemoval
from whet.passes.basic.propagate import ShapePropagation
from whet.passes.basic.shape_arithmetic import ShapeArithmetic
from whet.passes.basic.targets import ConstantTargets
from whet.passes.pipeline import optimize

F32 = np.float32


def test_constants_fold_through_chains() -> None:
    proto = build(
        "float[2,3] x",
        "float[2,3] y",
        "a = Mul(w, w) b = Transpose(a) c = Sqrt(b) y = Add(x, c)",
        w=random_array((3, 2)),
    )
    model = run_passes(proto, ConstantFolding())
    assert ops(model) == {"Add": 1}
    assert_same(proto, model, {"x": random_array((2, 3))}, rtol=1e-6)


def test_known_shapes_fold_without_constants() -> None:
    """Shape of a free batch: the extents that are numbers fold, the target that needs the free one does not."""
    proto = build(
        "float[N,3,4] x",
        "float[M,12] y, int64[] c",
        "s = Shape(x) n = Gather(s, zero) h = Gather(s, one) w = Gather(s, two) c = Mul(h, w)"
        " u = Unsqueeze(n, axes) v = Unsqueeze(c, axes) t = Concat<axis = 0>(u, v) y = Reshape(x, t)",
        zero=np.int64(0), one=np.int64(1), two=np.int64(2), axes=np.array([0]),
    )  # fmt: skip
    model = run_passes(proto, ConstantFolding(), ConstantTargets(), Repeat((ConstantFolding(), DeadCode())))
    assert ops(model) == {"Reshape": 1, "Identity": 1}
    assert_same(proto, model, {"x": random_array((5, 3, 4))})


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("random", "a = RandomNormalLike(w) y = Add(x, a)", {"w": np.zeros(3, F32)}),
    ("bernoulli", "a = Bernoulli(w) y = Add(x, a)", {"w": np.full(3, 0.5, F32)}),
    ("training dropout", "a = Dropout(w, r, t) y = Add(x, a)",
     {"w": np.ones(3, F32), "r": F32(0.5), "t": np.bool_(True)}),
    ("quantized weights", "a = DequantizeLinear(w, s, z) y = Add(x, a)",
     {"w": np.array([1, 2, 3], np.int8), "s": F32(0.5), "z": np.int8(0)}),
    ("a terabyte of zeros", "a = ConstantOfShape(w) b = ReduceSum<keepdims = 0>(a) y = Add(x, b)",
     {"w": np.array([2**20, 2**20])}),
    ("a terabyte by expansion", "a = Expand(w, t) b = ReduceSum<keepdims = 0>(a) y = Add(x, b)",
     {"w": F32(1), "t": np.array([2**20, 2**20])}),
    ("a terabyte by tiling", "a = Tile(w, t) b = ReduceSum<keepdims = 0>(a) y = Add(x, b)",
     {"w": np.ones(4, F32), "t": np.array([2**38])}),
    ("a terabyte by counting", "a = Range(o, w, i) b = ReduceSum<keepdims = 0>(a) c = Cast<to = 1>(b) y = Add(x, c)",
     {"o": np.int64(0), "w": np.int64(2**38), "i": np.int64(1)}),
]  # fmt: skip


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_must_not_be_folded(body: str, constants: dict[str, Any]) -> None:
    proto = build("float[3] x", "float[3] y", body, **constants)
    before = ops(run_passes(proto))
    assert ops(run_passes(proto, ConstantFolding())) == before


def test_refusals_say_why() -> None:
    model = load(build("float[3] x", "float[3] y", "a = Expand(w, t) b = ReduceSum<keepdims = 0>(a) y = Add(x, b)",
                       w=F32(1), t=np.array([2**20, 2**20])))  # fmt: skip
    report = optimize(model, "basic")
    assert any(r.rewrite == "constant-folding" and "4398046511104 bytes" in r.reason for r in report.refusals)


def test_the_budget_is_the_limits() -> None:
    proto = build("float[3] x", "float[3] y", "a = Expand(w, t) b = ReduceMax<keepdims = 0>(a) y = Add(x, b)",
                  w=F32(1), t=np.array([1000]))  # fmt: skip
    for fold_bytes, left in ((3999, {"Expand", "ReduceMax", "Add"}), (4000, {"Add"})):
        model = load(proto)
        PassDriver(model, Limits(fold_bytes=fold_bytes)).run((ShapePropagation(), ConstantFolding(), DeadCode()))
        assert set(ops(model)) == left
    model = load(proto)
    PassDriver(model, Limits(fold_seconds=-1.0)).run((ShapePropagation(), ConstantFolding()))
    assert "Expand" in ops(model)


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_the_smallest_integer_by_minus_one(op: str, dtype: Any) -> None:
    """What cannot be computed is left to the run; what can be wraps around. Nothing dies."""
    least = np.iinfo(dtype).min
    code = 6 if dtype is np.int32 else 7
    kind = "int32" if dtype is np.int32 else "int64"
    proto = build(
        f"{kind}[1] x", f"{kind}[1] y", f"a = {op}(w, m) b = Cast<to = {code}>(a) y = Add(x, b)",
        w=np.array([least], dtype), m=np.array([-1], dtype),
    )  # fmt: skip
    assert "Add" in ops(run_passes(proto, ConstantFolding()))
    by_zero = build(
        f"{kind}[1] x", f"{kind}[1] y", f"a = {op}(w, m) y = Add(x, a)", w=np.array([7], dtype), m=np.array([0], dtype)
    )
    assert ops(run_passes(by_zero, ConstantFolding())) == {op: 1, "Add": 1}


def test_overridable_initializers_are_constants_that_stay_listed() -> None:
    proto = build("float[2] x, float[2] w", "float[2] y", "a = Neg(w) y = Add(x, a)", w=np.array([1, 2], F32))
    model = run_passes(proto, ConstantFolding())
    assert ops(model) == {"Add": 1}
    assert [v.name for v in model.graph.overridable] == ["w"]


IF = """
s = Shape(x)
n = Size(s)
c = Equal(n, two)
y = If(c) <
  then_branch = then () => (float[2,3] t) { p = Neg(x) q = Add(p, k) t = Mul(q, x) },
  else_branch = other () => (float[2,3] e) { e = Identity(x) }
>
"""


def test_a_known_condition_inlines_its_branch() -> None:
    proto = build("float[2,3] x", "float[2,3] y", IF, two=np.int64(2), k=random_array((3,)))
    model = run_passes(proto, ConstantFolding(), BranchInlining())
    assert ops(model) == {"Neg": 1, "Add": 1, "Mul": 1}
    assert model.graph.outputs[0].name == "y"
    assert_same(proto, model, {"x": random_array((2, 3))})


def test_a_branch_that_hands_on_an_outer_value() -> None:
    proto = build("float[2,3] x", "float[2,3] y", IF, two=np.int64(3), k=random_array((3,)))
    model = run_passes(proto, ConstantFolding(), BranchInlining(), NoOpRemoval())
    assert ops(model) == {"Identity": 1}
    assert_same(proto, model, {"x": random_array((2, 3))})


def test_nested_branches_keep_their_reads() -> None:
    inner = """
    y = If(yes) <
      then_branch = outer () => (float[2] o) {
        h = Exp(x)
        o = If(c) <
          then_branch = a () => (float[2] u) { u = Neg(h) },
          else_branch = b () => (float[2] v) { v = Mul(h, x) }
        >
      },
      else_branch = never () => (float[2] w) { w = Identity(x) }
    >
    """
    proto = build("float[2] x, bool c", "float[2] y", inner, yes=np.bool_(True))
    model = run_passes(proto, ConstantFolding(), BranchInlining(), NoOpRemoval(), CommonSubexpressions())
    assert ops(model) == {"Exp": 1, "If": 1}
    for condition in (True, False):
        assert_same(proto, model, {"x": random_array((2,)), "c": np.array(condition)})


def test_an_open_condition_stays() -> None:
    proto = build(
        "float[2] x, bool c", "float[2] y",
        "y = If(c) <then_branch = t () => (float[2] a) { a = Neg(x) },"
        " else_branch = e () => (float[2] b) { b = Exp(x) }>",
    )  # fmt: skip
    assert ops(run_passes(proto, ConstantFolding(), BranchInlining())) == {"If": 1}


def test_dead_code_goes_in_one_sweep() -> None:
    proto = build("float[2] x", "float[2] y", "a = Exp(x) b = Neg(a) c = Mul(b, a) y = Abs(x)")
    model = run_passes(proto, DeadCode())
    assert ops(model) == {"Abs": 1}


def test_equal_nodes_merge_exactly() -> None:
    body = """
    a = LeakyRelu<alpha = 0.1>(x)
    b = LeakyRelu<alpha = 0.1>(x)
    c = LeakyRelu<alpha = 0.2>(x)
    d = Add(a, k)
    e = Add(b, l)
    f = Mul(c, d)
    y = Sub(f, e)
    """
    proto = build("float[3] x", "float[3] y", body, k=np.array([1, 2, 3], F32), l=np.array([1, 2, 3], F32))
    model = run_passes(proto, ConstantMerging(), CommonSubexpressions())
    assert ops(model) == {"LeakyRelu": 2, "Add": 1, "Mul": 1, "Sub": 1}
    assert_same(proto, model, {"x": random_array((3,))})


UNEQUAL: list[tuple[str, str, dict[str, Any]]] = [
    ("other order of operands", "a = Sub(x, k) b = Sub(k, x)", {"k": np.ones(3, F32)}),
    ("zeros of two signs", "a = Add(x, k) b = Add(x, l)", {"k": np.zeros(3, F32), "l": -np.zeros(3, F32)}),
    ("equal numbers, other types", "c = Cast<to = 11>(x) a = Cast<to = 1>(c) b = Cast<to = 1>(x)", {}),
    ("random", "a = RandomNormalLike(x) b = RandomNormalLike(x)", {}),
    ("an attribute left out", "a = ArgMax<axis = 0>(x) b = ArgMax<axis = 0, keepdims = 0>(x)", {}),
]


@pytest.mark.parametrize(("body", "constants"), [c[1:] for c in UNEQUAL], ids=[c[0] for c in UNEQUAL])
def test_unequal_nodes_stay_apart(body: str, constants: dict[str, Any]) -> None:
    kind = "int64" if "ArgMax" in body else "float"
    proto = build("float[3] x", f"{kind} y, {kind} z", f"{body} y = Neg(a) z = Neg(b)", **constants)
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    before = ops(run_passes(proto))
    assert ops(run_passes(proto, ConstantMerging(), CommonSubexpressions())) == before


def test_equal_outputs_keep_both_names() -> None:
    proto = build("float[3] x", "float[3] y, float[3] z", "y = Exp(x) z = Exp(x)")
    model = run_passes(proto, Repeat((CommonSubexpressions(), NoOpRemoval())))
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert ops(model) == {"Exp": 1, "Identity": 1}
    assert_same(proto, model, {"x": random_array((3,))})


def test_targets_become_constant_where_that_is_exact() -> None:
    body = """
    s = Shape(x)
    n = Slice(s, o, i)
    t = Concat<axis = 0>(n, rest)
    a = Reshape(x, t)
    b = Transpose<perm = [0, 2, 1, 3]>(a)
    m = Slice(s, o, i)
    v = Concat<axis = 0>(m, flat)
    y = Reshape(b, v)
    """
    proto = build(
        "float[N,S,6] x", "float y", body,
        o=np.array([0]), i=np.array([2]), rest=np.array([2, 3]), flat=np.array([6]),
    )  # fmt: skip
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = run_passes(proto, ConstantTargets())
    targets = [n.inputs[1] for n in model.graph if n.op == "Reshape"]
    assert targets[0] is not None
    assert targets[0].array is not None
    assert targets[0].array.tolist() == [0, 0, 2, 3]
    # The second one's extent S is not at its place in the transposed input, and -1 beside a free N could be 0 / 0.
    assert targets[1] is not None
    assert targets[1].data is None
    assert ops(model)["Reshape"] == 2
    for shape in ((2, 5, 6), (1, 1, 6), (2, 2, 6)):
        assert_same(proto, model, {"x": random_array(shape)})


def test_shape_arithmetic_moves_to_the_inputs() -> None:
    """Extents of intermediate tensors, after a stride of 2 and a product, are computed from the input's own."""
    conv = "Conv<strides = [2, 2], pads = [1, 1, 1, 1], kernel_shape = [3, 3]>"
    part = "s{0} = Shape({1}) h{0} = Gather(s{0}, two) w{0} = Gather(s{0}, three) p{0} = Mul(h{0}, w{0})" \
        " n{0} = Gather(s{0}, zero) a{0} = Unsqueeze(n{0}, axes) b{0} = Unsqueeze(p{0}, axes)" \
        " t{0} = Concat<axis = 0>(a{0}, four, b{0}) r{0} = Reshape({1}, t{0})"  # fmt: skip
    body = f"c = {conv}(x, k) {part.format(1, 'c')} d = Neg(c) {part.format(2, 'd')} e = Exp(c) {part.format(3, 'e')}"
    proto = build(
        "float[N,2,H,W] x", "float y", body + " u = Add(r1, r2) y = Add(u, r3)",
        k=random_array((4, 2, 3, 3)), zero=np.int64(0), two=np.int64(2), three=np.int64(3), axes=np.array([0]),
        four=np.array([4]),
    )  # fmt: skip
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = run_passes(proto, ShapeArithmetic())
    left = ops(model)
    assert left["Shape"] == 3
    assert left["Concat"] == 1
    assert left["Div"] == 2
    readers = {reader for n in model.graph if n.op == "Shape" for reader in n.inputs}
    assert {v.name for v in readers if v is not None} == {"x"}
    for shape in ((1, 2, 7, 8), (2, 2, 1, 2), (3, 2, 4, 9)):
        assert_same(proto, model, {"x": random_array(shape)}, rtol=1e-6)


def test_shape_arithmetic_with_differences() -> None:
    body = """
    c = Neg(x) s = Shape(c) a = Gather(s, zero) b = Gather(s, one)
    d = Sub(a, b) u = Unsqueeze(d, axes) z = ConstantOfShape(u)
    e = Exp(x) t = Shape(e) n = Gather(t, zero) m = Gather(t, one)
    h = Neg(m) r = Range(h, n, one) f = Cast<to = 1>(r)
    y = Concat<axis = 0>(z, f)
    """
    proto = build("float[N,M] x", "float y", body, zero=np.int64(0), one=np.int64(1), axes=np.array([0]))
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = run_passes(proto, ShapeArithmetic())
    assert {n.op for n in model.graph} >= {"Sub", "Neg", "Shape"}
    assert "Gather" not in ops(model)
    for shape in ((5, 2), (3, 3), (4, 0)):
        assert_same(proto, model, {"x": random_array(shape)})


def test_shape_arithmetic_that_is_short_already_stays() -> None:
    proto = build("float[N,3] x, float[M] z", "float y", "s = Shape(x) t = ConstantOfShape(s) y = Add(t, x)")
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert ops(run_passes(proto, ShapeArithmetic())) == {"Shape": 1, "ConstantOfShape": 1, "Add": 1}


def test_an_unknown_level_suggests_the_near_one() -> None:
    with pytest.raises(InvalidArgument, match="basic"):
        optimize(load(build("float[2] x", "float[2] y", "y = Neg(x)")), "basics")


def test_stop_after_bounds_the_patches() -> None:
    proto = build("float[2] x", "float[2] y", "a = Identity(x) b = Identity(a) c = Identity(b) y = Neg(c)")
    for bound in range(4):
        model = load(proto)
        report = optimize(model, "basic", stop_after=bound)
        assert report.patches == model.patches == bound
        assert ops(model).get("Identity", 0) == 3 - bound


def test_disabled_only_infers() -> None:
    model = load(build("float[2] x", "float y", "a = Identity(x) b = Concat<axis = 0>(a, a) y = Neg(b)"))
    assert optimize(model, "disabled").patches == 0
    assert str(model.graph.outputs[0].producer.inputs[0].type) == "float32[4]"  # type: ignore[union-attr]
