"""Inference rules one by one: symbolic shapes, values that reach shapes, subgraphs, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.pass_checks import build, load
from whet import dtypes
from whet.dtypes import FLOAT32
from whet.errors import InvalidGraph
from whet.graph import Graph, Node, Shape, TensorType, Type, Value
from whet.graph.dims import broadcast, maximum, minimum, symbol
from whet.ops.common import never_negative
from whet.ops.indexing import sliced
from whet.ops.infer import infer_graph, infer_node
from whet.ops.merge import join, refine
from whet.ops.movement import reshaped


def inferred(inputs: str, body: str, **constants: Any) -> dict[str, str]:
    """The types of all values that nodes make, as text."""
    proto = build(inputs, "float _out", body + " _out = Identity(y)", opset=23, **constants)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model = load(proto)
    infer_graph(model.graph)
    return {v.name: str(v.type) for node in model.graph for v in node.outputs}


def vector(*numbers: int) -> Any:
    return np.array(numbers, np.int64)


SYMBOLIC: list[tuple[str, str, dict[str, Any], str]] = [
    ("float[N,3,H,W] x", "y = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w)",
     {"w": np.zeros((8, 3, 3, 3), np.float32)}, "float32[N,8,floordiv(H + 1, 2),floordiv(W + 1, 2)]"),
    ("float[N,3,H,8] x", '''y = Conv<auto_pad = "SAME_UPPER", strides = [3, 3]>(x, w)''',
     {"w": np.zeros((8, 3, 3, 3), np.float32)}, "float32[N,8,floordiv(H + 2, 3),3]"),
    ("float[N,3,H,8] x", "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1>(x)", {},
     "float32[N,3,floordiv(H + 1, 2),4]"),
    ("float[N,3,H,8] x", "y = ConvTranspose<strides = [2, 2], output_padding = [1, 1], pads = [1, 1, 1, 1]>(x, w)",
     {"w": np.zeros((3, 5, 3, 3), np.float32)}, "float32[N,5,2*H,16]"),
    ("float[N,S,768] x", "y = Reshape(x, t)", {"t": vector(0, 0, 12, 64)}, "float32[N,S,12,64]"),
    ("float[N,S,768] x", "y = Reshape(x, t)", {"t": vector(0, -1, 12, 64)}, "float32[N,S,12,64]"),
    ("float[N,C,H,W] x", "y = Reshape(x, t)", {"t": vector(0, 0, -1)}, "float32[N,C,H*W]"),
    ("float[N,4,H,W] x", "s = Shape(x) n = Slice(s, a, b) t = Concat<axis = 0>(n, m) y = Reshape(x, t)",
     {"a": vector(0), "b": vector(1), "m": vector(-1)}, "float32[N,4*H*W]"),
    ("float[N,4,H,W] x", "s = Shape<start = 2>(x) y = Expand(k, s)", {"k": np.float32(1)}, "float32[H,W]"),
    ("float[N,4,H,W] x", "y = Resize(x, , k)", {"k": np.array([1, 1, 2, 0.5], np.float32)},
     "float32[N,4,2*H,floordiv(W, 2)]"),
    ("float[N,4,H,W] x",
     "s = Shape<start = 2>(x) f = Cast<to = 1>(s) g = Mul(f, two) h = Floor(g) i = Cast<to = 7>(h)"
     " c = Shape<end = 2>(x) t = Concat<axis = 0>(c, i) y = Resize(x, , , t)", {"two": np.float32(2)},
     "float32[N,4,2*H,2*W]"),
    ("float[N,S] x", "y = Slice(x, a, b, c)", {"a": vector(1), "b": vector(2**63 - 1), "c": vector(1)},
     "float32[N,max(0, S - 1)]"),
    ("float[N,S] x", "y = Slice(x, a, b, c, a)", {"a": vector(-1), "b": vector(-(2**63)), "c": vector(1)},
     "float32[N,S]"),
    ("float[N,S] x", "y = Slice(x, a, b, c)", {"a": vector(-3), "b": vector(2**63 - 1), "c": vector(1)},
     "float32[N,min(3, S)]"),
    ("float[N,S] x", "s = Shape(x) n = Gather(s, i) y = Slice(k, z, n, c)",
     {"i": vector(1), "z": vector(0), "c": vector(1), "k": np.zeros((1, 512), np.float32)}, "float32[1,min(512, S)]"),
    ("float[N,S] x", "s = Shape(x) n = Gather(s, i) p = Slice(k, z, n, c) y = Add(x, p)",
     {"i": vector(1), "z": vector(0), "c": vector(1), "k": np.zeros((1, 512), np.float32)}, "float32[N,S]"),
    ("float[N,S] x", "s = Shape(x) a = Gather(s, i) r = Range(z, a, o) f = Cast<to = 1>(r) y = Mul(f, x)",
     {"i": np.int64(1), "z": np.int64(0), "o": np.int64(1)}, "float32[N,S]"),
    ("float[N,S] x", "s = Shape(x) e = Equal(s, m) w = Where(e, o, s) y = Expand(k, w)",
     {"m": vector(-1, -1), "o": vector(1, 1), "k": np.float32(0)}, "float32[N,S]"),
    ("float[N,S] x", "s = Shape(x) a, b = Split<axis = 0>(s, p) t = Concat<axis = 0>(b, a) y = Reshape(x, t)",
     {"p": vector(1, 1)}, "float32[S,N]"),
    ("float[N,S] x", "y = Concat<axis = 1>(x, x, k)", {"k": np.zeros((1, 4), np.float32)}, "float32[1,2*S + 4]"),
    ("float[N,S] x", "y, i = TopK(x, k)", {"k": vector(3)}, "float32[N,3]"),
    ("float[N,S] x", "i = NonZero(x) y = Cast<to = 1>(i)", {}, "float32[2,?]"),
    ("float[N,6,S] x", "a, y = Split<axis = 1, num_outputs = 2>(x)", {}, "float32[N,3,S]"),
    ("float[N,H,W,C] x", "y = Transpose<perm = [0, 3, 1, 2]>(x)", {}, "float32[N,C,H,W]"),
    ("float[N,4] x", "y = Einsum<equation = \"ij,kj->ik\">(x, x)", {}, "float32[N,N]"),
    ("float[N,8,S,64] q", "y = Attention(q, q, q)", {}, "float32[N,8,S,64]"),
    ("float[S,N,4] x", "_a, y = GRU<hidden_size = 6>(x, w, r)",
     {"w": np.zeros((1, 18, 4), np.float32), "r": np.zeros((1, 18, 6), np.float32)}, "float32[1,N,6]"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "body", "constants", "expected"), SYMBOLIC, ids=[c[1][-40:] for c in SYMBOLIC])
def test_free_extents(inputs: str, body: str, constants: dict[str, Any], expected: str) -> None:
    assert inferred(inputs, body, **constants)["y"] == expected


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("float[2,3] x", "y = Add(x, k)", {"k": np.zeros(4, np.float32)}, "broadcast"),
    ("float[2,3] x", "y = Add(x, k)", {"k": np.zeros(3, np.float64)}, "element types differ"),
    ("float[2,3] x", "y = MatMul(x, k)", {"k": np.zeros((4, 2), np.float32)}, "depths"),
    ("float[2,3] x", "y = Gemm<transA = 1>(x, k)", {"k": np.zeros((3, 2), np.float32)}, "depths"),
    ("float[2,3] x", "y = Gemm(x, k, c)",
     {"k": np.zeros((3, 5), np.float32), "c": np.zeros(4, np.float32)}, "input C"),
    ("float[2,3] x", "y = Concat<axis = 1>(x, k)", {"k": np.zeros((3, 3), np.float32)}, "axis 0"),
    ("float[2,3] x", "y = Reshape(x, t)", {"t": vector(4, 2)}, "number of elements"),
    ("float[2,3] x", "y = Reshape(x, t)", {"t": vector(4, -1)}, "divisible"),
    ("float[2,3] x", "y = Reshape(x, t)", {"t": vector(-1, -1)}, "more than once"),
    ("float[2,3] x", "y = Squeeze(x, a)", {"a": vector(1)}, "extent 1"),
    ("float[2,3] x", "y = Unsqueeze(x, a)", {"a": vector(0, 0)}, "twice"),
    ("float[2,3] x", "a, y = Split(x, s)", {"s": vector(1, 2)}, "add up"),
    ("float[2,3] x", "y = Expand(x, t)", {"t": vector(2, 4)}, "expanded"),
    ("float[2,3] x", "y = Slice(x, a, b, c, d)",
     {"a": vector(0), "b": vector(2), "c": vector(0), "d": vector(0)}, "step"),
    ("float[2,3] x", "y, i = TopK(x, k)", {"k": vector(4)}, "TopK"),
    ("float[1,2,4,4] x", "y = Conv(x, w)", {"w": np.zeros((3, 3, 1, 1), np.float32)}, "channels"),
    ("float[1,2,4,4] x", "y = Conv(x, w)", {"w": np.zeros((3, 2, 5, 5), np.float32)}, "larger"),
    ("float[1,2,4,4] x", "y = BatchNormalization(x, k, k, k, k)", {"k": np.zeros(3, np.float32)}, "channel"),
]  # fmt: skip


@pytest.mark.parametrize(("inputs", "body", "constants", "text"), REFUSED, ids=[f"{c[3]} {c[1]}" for c in REFUSED])
def test_what_cannot_be_right_names_its_node(inputs: str, body: str, constants: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidGraph, match=text) as caught:
        inferred(inputs, body, **constants)
    assert caught.value.node is not None
    assert caught.value.node.startswith(body.split("= ", 1)[1].split("(")[0].split("<")[0])
    assert caught.value.found is not None


def test_a_loop_that_grows_its_state_claims_no_extent() -> None:
    body = """
    n = Constant<value_int = 3>()
    c = Constant<value = bool {1}>()
    final, stack = Loop(n, c, x) <body = b (int64 i, bool go, float[2] s) => (bool g, float[?] t, float[?] o) {
      g = Identity(go)
      t = Concat<axis = 0>(s, s)
      o = ReduceSum<keepdims = 1>(t)
    }>
    y = Neg(final)
    """
    types = inferred("float[2] x", body)
    assert types["final"] == "float32[?]"
    assert types["stack"] == "float32[?,1]"


def test_a_loop_that_keeps_its_state_keeps_the_extent() -> None:
    body = """
    n = Constant<value_int = 3>()
    c = Constant<value = bool {1}>()
    y, z = Loop(n, c, x) <body = b (int64 i, bool go, float[a,b] s) => (bool g, float[a,b] t, float[b,a] o) {
      g = Identity(go)
      t = Add(s, x)
      o = Transpose<perm = [1, 0]>(t)
    }>
    """
    types = inferred("float[N,4] x", body)
    assert types["y"] == "float32[N,4]"
    assert types["z"] == "float32[?,4,N]"


def test_a_loop_whose_rank_grows() -> None:
    body = """
    n = Constant<value_int = 3>()
    c = Constant<value = bool {1}>()
    a = Constant<value_ints = [0]>()
    y = Loop(n, c, x) <body = b (int64 i, bool go, float s) => (bool g, float t) {
      g = Identity(go)
      t = Unsqueeze(s, a)
    }>
    """
    assert inferred("float[4] x", body)["y"] == "float32[...]"


def test_branches_that_differ_agree_on_what_they_share() -> None:
    body = """
    y = If(c) <
      then_branch = t () => (float[?,?] p) { p = Transpose(x) },
      else_branch = e () => (float[?,?] q) { q = Concat<axis = 0>(x, x) }
    >
    """
    assert inferred("float[N,N] x, bool c", body)["y"] == "float32[?,N]"


def test_a_scan_strips_and_stacks() -> None:
    body = """
    z = Constant<value = float[4] {0, 0, 0, 0}>()
    y, s = Scan<num_scan_inputs = 1, body = b (float[4] h, float[4] r) => (float[4] n, float[4] o) {
      n = Add(h, r)
      o = Neg(n)
    }>(z, x)
    """
    types = inferred("float[T,4] x", body)
    assert types["y"] == "float32[4]"
    assert types["s"] == "float32[T,4]"


def test_sequences_know_their_elements() -> None:
    types = inferred("float[N,3] x", "q = SequenceConstruct(x, x) y = SequenceAt(q, i)", i=np.int64(0))
    assert types["q"] == "seq(float32[N,3])"
    assert types["y"] == "float32[N,3]"


def test_inference_wins_over_a_wrong_declaration() -> None:
    proto = build("float[2,3] x", "float[7] y", "y = Transpose(x)")
    model = load(proto)
    infer_graph(model.graph)
    assert str(model.graph.outputs[0].type) == "float32[3,2]"


def test_a_declaration_stands_where_inference_knows_less() -> None:
    proto = build("float[2,3] x, int64[2] t", "float[5,M] y", "y = Reshape(x, t)")
    model = load(proto)
    infer_graph(model.graph)
    assert str(model.graph.outputs[0].type) == "float32[5,M]"


def test_custom_operators_have_their_own_rules() -> None:
    def double(node: Node) -> Sequence[Type | None]:
        kind = node.inputs[0].type if node.inputs[0] is not None else None
        assert isinstance(kind, TensorType)
        assert kind.shape is not None
        return (TensorType(kind.dtype, (*kind.shape, 2)),)

    graph = Graph()
    x = Value("x", TensorType(FLOAT32, (symbol("N"),)))
    graph.inputs.append(x)
    graph.append(Node("Pair", [x], ["y"], domain="mine"))
    infer_graph(graph, {"mine.Pair": double})
    assert str(graph.nodes[0].output.type) == "float32[N,2]"


@pytest.mark.parametrize(
    ("op", "attributes", "text"),
    [
        ("Transpose", {"perm": (1, 1, 0, 0)}, "permutation"),
        ("Softmax", {"axis": 4}, "out of range"),
        ("MaxPool", {"kernel_shape": (2, 2), "strides": (0, 1)}, "at least 1"),
        ("MaxPool", {"kernel_shape": (2,)}, "kernel_shape"),
    ],
)
def test_graphs_that_no_loader_checked(op: str, attributes: dict[str, Any], text: str) -> None:
    node = Node(op, [Value("x", TensorType(FLOAT32, (1, 2, 4, 4)))], ["y"], attributes, name="n1")
    with pytest.raises(InvalidGraph, match=text) as caught:
        infer_node(node)
    assert caught.value.node == f"{op}(n1)"


def test_operators_that_nobody_knows_stay_open() -> None:
    node = Node("Mystery", [Value("x", TensorType(FLOAT32, (1,)))], ["y"], domain="nowhere")
    infer_node(node)
    assert node.output.type is None


def test_slices_of_numbers_agree_with_python() -> None:
    generator = np.random.default_rng(11)
    for _ in range(2000):
        extent = int(generator.integers(0, 7))
        start, end = (int(v) for v in generator.choice([-(2**63), -9, -3, -1, 0, 1, 2, 5, 9, 2**63 - 1], 2))
        step = int(generator.choice([-3, -1, 1, 2]))
        assert sliced(extent, start, end, step) == len(list(range(extent))[start:end:step])


def test_slices_of_free_extents_agree_with_numbers() -> None:
    generator = np.random.default_rng(12)
    s = symbol("s")
    resolved = 0
    for _ in range(3000):
        start, end = (int(v) for v in generator.choice([-(2**63), -9, -3, -1, 0, 1, 2, 5, 9, 2**63 - 1], 2))
        step = int(generator.choice([-3, -1, 1, 2]))
        found = sliced(s, start, end, step)
        if found is None:
            continue
        resolved += 1
        for extent in range(8):
            value = found if isinstance(found, int) else found.evaluate({"s": extent})
            assert value == sliced(extent, start, end, step), (extent, start, end, step, str(found))
    assert resolved > 1000


def test_reshapes_of_free_extents_agree_with_numpy() -> None:
    n, h = symbol("n"), symbol("h")
    cases: list[tuple[Shape, Shape]] = [
        ((n, 4, h), (n, -1)),
        ((n, 4, h), (-1, 2)),
        ((n, 6), (n, 2, -1)),
        ((n, 4, h), (0, 2, -1, h)),
        ((n, None, 4), (n, -1, 2, 2)),
    ]
    for source, wanted in cases:
        found = reshaped(source, wanted, False)
        for extents in ({"n": 3, "h": 5}, {"n": 1, "h": 2}):
            real = [7 if d is None else d if isinstance(d, int) else d.evaluate(extents) for d in source]
            target = [d if isinstance(d, int) else d.evaluate(extents) for d in wanted if d is not None]
            target = [real[i] if t == 0 else t for i, t in enumerate(target)]
            shape = np.zeros(real).reshape(target).shape
            for dim, extent in zip(found, shape, strict=True):
                assert dim is None or (dim if isinstance(dim, int) else dim.evaluate(extents)) == extent


def test_refine_and_join() -> None:
    open_, fixed = TensorType(FLOAT32, (None, 3)), TensorType(FLOAT32, (2, 4))
    assert refine(open_, fixed) == TensorType(FLOAT32, (2, 3))
    assert refine(TensorType(None, None), fixed) == fixed
    assert refine(open_, TensorType(FLOAT32, (1, 2, 3))) == open_
    assert join(fixed, TensorType(FLOAT32, (2, 5))) == TensorType(FLOAT32, (2, None))
    assert join(fixed, TensorType(dtypes.INT8, (2, 4))) == TensorType(None, (2, 4))
    assert join(fixed, None) is None


def test_signs() -> None:
    a, b = symbol("a"), symbol("b")
    assert never_negative(a * b + 2)
    assert never_negative(maximum(a - 5, 0))
    assert not never_negative(minimum(a - 5, b))
    assert not never_negative(a - b)
    assert broadcast((minimum(512, a),), (a,)) == (a,)
    assert broadcast((minimum(512, a),), (b,)) == (None,)


def test_expressions_that_would_explode_are_given_up() -> None:
    """Squaring (n + m) thirty times over would take 2^30 terms; a product of 60 sums 2^60."""
    squares = " ".join(f"a{i + 1} = Mul(a{i}, a{i})" for i in range(30))
    body = f"n = Shape(x) s = ReduceSum<keepdims = 1>(n) a0 = Identity(s) {squares} y = ConstantOfShape(a30)"
    assert inferred("float[N,M] x", body)["y"] == "float32[?]"
    tiles = " ".join(f"s{i} = Shape(a{i}) a{i + 1} = Tile(a{i}, s{i})" for i in range(30))
    assert inferred("float[N,M] x", f"a0 = Concat<axis = 0>(x, x) {tiles} y = Neg(a30)")["y"] == "float32[?,?]"
    shape = tuple(symbol(f"d{i}") + 1 for i in range(60))
    node = Node("Size", [Value("x", TensorType(FLOAT32, shape))], ["y"])
    infer_node(node)
    assert node.output.symbolic == (None,)


def test_nested_loops_cost_no_more_at_each_level() -> None:
    """Forty loops in one another, whose states all grow: a fixpoint at each level would take 2^40 rounds."""
    graph = Graph("g")
    x = Value("x", TensorType(FLOAT32, (2,)))
    graph.inputs.append(x)
    count = Value.constant("", np.array(3, np.int64))
    go = Value.constant("", np.array(True))
    outer, state = graph, x
    loops = []
    for level in range(40):
        body = Graph(f"body{level}")
        inner = Value(f"s{level}")
        body.inputs.extend([Value(f"i{level}"), Value(f"c{level}"), inner])
        loop = Node("Loop", [count, go, state], [f"y{level}"], {"body": body})
        outer.append(loop)
        outer.set_outputs([go, loop.output] if level else [loop.output])
        loops.append(loop)
        grown = Node("Concat", [inner, inner], [f"t{level}"], {"axis": 0})
        body.append(grown)
        body.set_outputs([go, grown.output])
        outer, state = body, grown.output
    infer_graph(graph)
    assert [str(loop.output.type) for loop in loops] == ["float32[...]"] * 40
