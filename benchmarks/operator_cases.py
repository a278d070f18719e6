"""Single-operator models, five sizes for each family of operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
SEED = 7


@dataclass(frozen=True)
class Case:
    """One model with its feed."""

    family: str
    size: str
    model: bytes
    feed: dict[str, Array]


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def floats(*shape: int) -> Array:
    return rng().standard_normal(shape, dtype=np.float32)


def case(
    family: str,
    size: str,
    op: str,
    inputs: Sequence[Array],
    constants: Sequence[Array | None] = (),
    outputs: int = 1,
    kinds: Sequence[int] | None = None,
    domain: str = "",
    **attributes: Any,
) -> Case:
    """A model of one node: `inputs` are fed, `constants` follow them as initializers (None: left out)."""
    fed = {f"x{i}": a for i, a in enumerate(inputs)}
    held = {f"w{i}": a for i, a in enumerate(constants) if a is not None}
    names = [*fed, *(f"w{i}" if a is not None else "" for i, a in enumerate(constants))]
    made = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, made, domain=domain, **attributes)
    types = kinds or [TensorProto.FLOAT] * outputs
    graph = helper.make_graph(
        [node],
        family,
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in fed.items()],
        [helper.make_tensor_value_info(n, t, None) for n, t in zip(made, types, strict=True)],
        [numpy_helper.from_array(a, n) for n, a in held.items()],
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    return Case(family, size, model.SerializeToString(), fed)


def text(*numbers: object) -> str:
    return "x".join(str(n) for n in numbers)


def convolutions() -> Iterator[Case]:
    for c, o, hw in ((64, 64, 56), (128, 128, 28), (256, 256, 14), (512, 512, 7), (32, 64, 112)):
        x = floats(1, c, hw, hw)
        yield case("conv 3x3", text(c, o, hw), "Conv", [x], [floats(o, c, 3, 3), floats(o)], pads=[1] * 4)
        yield case("conv 1x1", text(c, o, hw), "Conv", [x], [floats(o, c, 1, 1), floats(o)])
        yield case(
            "conv stride 2", text(c, o, hw), "Conv", [x], [floats(o, c, 3, 3), floats(o)], pads=[1] * 4, strides=[2, 2]
        )
        yield case(
            "conv groups 4", text(c, o, hw), "Conv", [x], [floats(o, c // 4, 3, 3), floats(o)], pads=[1] * 4, group=4
        )
        yield case("conv depthwise", text(c, hw), "Conv", [x], [floats(c, 1, 3, 3), floats(c)], pads=[1] * 4, group=c)
        yield case("conv dilated", text(c, o, hw), "Conv", [x], [floats(o, c, 3, 3)], pads=[2] * 4, dilations=[2, 2])
        yield case(
            "conv transposed", text(c, o, hw // 2), "ConvTranspose", [floats(1, c, hw // 2, hw // 2)],
            [floats(c, o, 2, 2)], strides=[2, 2],
        )  # fmt: skip
    for c, o, n in ((16, 32, 500), (64, 64, 1000), (128, 128, 400), (256, 256, 100), (80, 256, 3000)):
        yield case("conv 1D", text(c, o, n), "Conv", [floats(1, c, n)], [floats(o, c, 3)], pads=[1, 1])
    for c, o, n in ((8, 16, 16), (16, 16, 24), (32, 32, 12), (64, 64, 8), (3, 16, 32)):
        yield case("conv 3D", text(c, o, n), "Conv", [floats(1, c, n, n, n)], [floats(o, c, 3, 3, 3)], pads=[1] * 6)
    for hw, k, s in ((224, 7, 2), (224, 3, 2), (320, 3, 2), (128, 3, 1), (64, 5, 1)):
        p = k // 2
        yield case(
            "conv first layer", text(hw, k, s), "Conv", [floats(1, 3, hw, hw)], [floats(32, 3, k, k)], pads=[p] * 4,
            strides=[s, s],
        )  # fmt: skip


def products() -> Iterator[Case]:
    for m, n, k in ((128, 768, 768), (128, 3072, 768), (1, 1000, 2048), (197, 768, 3072), (33, 65, 129)):
        yield case("matmul constant", text(m, n, k), "MatMul", [floats(m, k)], [floats(k, n)])
        yield case("gemm", text(m, n, k), "Gemm", [floats(m, k)], [floats(n, k), floats(n)], transB=1)
        yield case("matmul two inputs", text(m, n, k), "MatMul", [floats(m, k), floats(k, n)])
    for b, s, d in ((12, 128, 64), (12, 197, 64), (8, 256, 40), (1, 512, 128), (16, 32, 32)):
        yield case("matmul batched", text(b, s, d), "MatMul", [floats(1, b, s, d), floats(1, b, d, s)])


def pools() -> Iterator[Case]:
    for c, hw in ((64, 112), (64, 56), (128, 28), (256, 14), (1280, 7)):
        x = floats(1, c, hw, hw)
        yield case("max pool", text(c, hw), "MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        yield case("average pool", text(c, hw), "AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
        yield case("global pool", text(c, hw), "GlobalAveragePool", [x])
        yield case(
            "batch norm", text(c, hw), "BatchNormalization", [x],
            [floats(c), floats(c), floats(c), np.abs(floats(c)) + 1],
        )  # fmt: skip
        yield case("instance norm", text(c, hw), "InstanceNormalization", [x], [floats(c), floats(c)])


ROWS = ((128, 768), (197, 768), (512, 1024), (1, 4096), (1500, 768))


def rows() -> Iterator[Case]:
    for m, n in ROWS:
        x, size = floats(m, n), text(m, n)
        yield case("softmax", size, "Softmax", [x])
        yield case("log softmax", size, "LogSoftmax", [x])
        yield case("layer norm", size, "LayerNormalization", [x], [floats(n), floats(n)])
        for op in ("Add", "Mul", "Div"):
            yield case(op.lower(), size, op, [x, floats(m, n)])
        yield case("add broadcast", size, "Add", [x], [floats(n)])
        for op in ("Relu", "Sigmoid", "Tanh", "Exp", "Erf", "Sqrt", "Gelu", "HardSwish", "Softplus", "Sin"):
            yield case(op.lower(), size, op, [np.abs(x) if op == "Sqrt" else x])
        yield case("pow", size, "Pow", [np.abs(x)], [np.array(2.5, np.float32)])
        yield case("where", size, "Where", [x > 0, x, floats(m, n)])
        yield case("greater", size, "Greater", [x], [np.array(0, np.float32)], kinds=[TensorProto.BOOL])
        yield case("cast", size, "Cast", [x], kinds=[TensorProto.INT32], to=TensorProto.INT32)
        integers = rng().integers(-9, 9, (m, n))
        yield case("add int64", size, "Add", [integers, integers], kinds=[TensorProto.INT64])
        yield case("reduce sum last", size, "ReduceSum", [x], [np.array([1])])
        yield case("reduce mean first", size, "ReduceMean", [x], [np.array([0])])
        yield case("reduce max all", size, "ReduceMax", [x], keepdims=0)
        yield case("arg max", size, "ArgMax", [x], kinds=[TensorProto.INT64], axis=1)
        yield case("cumulative sum", size, "CumSum", [x], [np.array(1)])
        yield case(
            "top-k", size, "TopK", [x], [np.array([10])], outputs=2, kinds=[TensorProto.FLOAT, TensorProto.INT64]
        )
        yield case("transpose", size, "Transpose", [x], perm=[1, 0])
        yield case("concat", size, "Concat", [x, floats(m, n)], axis=1)
        yield case("split", size, "Split", [x], outputs=2, axis=1, num_outputs=2)
        yield case("slice", size, "Slice", [x], [np.array([1]), np.array([n - 1]), np.array([1]), np.array([2])])
        yield case("gather", size, "Gather", [x, rng().integers(0, m, 64)], axis=0)
        yield case("gather columns", size, "Gather", [x, rng().integers(0, n, 64)], axis=1)
        yield case("gather elements", size, "GatherElements", [x, rng().integers(0, n, (m, n))], axis=1)
        yield case("gather nd", size, "GatherND", [x, rng().integers(0, m, (100, 1))])
        yield case("scatter nd", size, "ScatterND", [x, np.arange(min(m, 50))[:, None], floats(min(m, 50), n)])
        yield case(
            "scatter elements", size, "ScatterElements", [x, np.argsort(floats(m, n), axis=1)[:, : n // 2],
                                                          floats(m, n // 2)], axis=1,
        )  # fmt: skip
        yield case("pad", size, "Pad", [x], [np.array([1, 2, 3, 4])])
        yield case("tile", size, "Tile", [x], [np.array([2, 2])])
        yield case("expand", size, "Expand", [floats(1, n)], [np.array([m, n])])
        yield case("trilu", size, "Trilu", [x])
        yield case(
            "one-hot", size, "OneHot", [rng().integers(0, 50, m)], [np.array(50), np.array([0, 1], np.float32)], axis=-1
        )


def images() -> Iterator[Case]:
    for c, hw in ((3, 64), (16, 32), (64, 28), (128, 14), (320, 8)):
        x, size = floats(1, c, hw, hw), text(c, hw)
        scales = np.array([1, 1, 2, 2], np.float32)
        yield case("resize nearest", size, "Resize", [x], [None, scales], mode="nearest", nearest_mode="floor",
                   coordinate_transformation_mode="asymmetric")  # fmt: skip
        yield case("resize linear", size, "Resize", [x], [None, scales], mode="linear")
        yield case("depth to space", text(c * 4, hw), "DepthToSpace", [floats(1, c * 4, hw, hw)], blocksize=2)
        yield case("transpose to channels last", size, "Transpose", [x], perm=[0, 2, 3, 1])


def recurrent() -> Iterator[Case]:
    for s, b, i, h in ((1, 1, 128, 128), (16, 1, 64, 64), (50, 4, 128, 128), (100, 8, 32, 64), (25, 1, 256, 256)):
        x, size = floats(s, b, i) * 0.3, text(s, b, i, h)
        for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
            weights = [floats(1, gates * h, i) * 0.1, floats(1, gates * h, h) * 0.1, floats(1, 2 * gates * h) * 0.1]
            yield case(op.lower(), size, op, [x], weights, outputs=2, hidden_size=h)


def trees() -> Iterator[Case]:
    for count, depth, samples in ((10, 4, 1), (50, 6, 1), (100, 6, 100), (100, 8, 1000), (20, 10, 50)):
        yield tree_case(count, depth, samples)


def tree_case(count: int, depth: int, samples: int) -> Case:
    """A regressor of `count` full trees of `depth` levels over ten features."""
    features, draw = 10, rng()
    node_count, inner = 2 ** (depth + 1) - 1, 2**depth - 1
    ids = np.tile(np.arange(node_count), count)
    tree = np.repeat(np.arange(count), node_count)
    is_inner = ids < inner
    leaves = np.nonzero(~is_inner)[0]
    model_attributes = {
        "n_targets": 1,
        "nodes_treeids": tree,
        "nodes_nodeids": ids,
        "nodes_featureids": np.where(is_inner, draw.integers(0, features, ids.size), 0),
        "nodes_values": np.where(is_inner, draw.standard_normal(ids.size), 0).astype(np.float32),
        "nodes_modes": ["BRANCH_LEQ" if x else "LEAF" for x in is_inner],
        "nodes_truenodeids": np.where(is_inner, 2 * ids + 1, 0),
        "nodes_falsenodeids": np.where(is_inner, 2 * ids + 2, 0),
        "target_treeids": tree[leaves],
        "target_nodeids": ids[leaves],
        "target_ids": np.zeros(leaves.size, np.int64),
        "target_weights": draw.standard_normal(leaves.size).astype(np.float32),
    }
    x = draw.standard_normal((samples, features)).astype(np.float32)
    return case(
        "tree ensemble", text(count, depth, samples), "TreeEnsembleRegressor", [x], domain="ai.onnx.ml",
        **{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in model_attributes.items()},
    )  # fmt: skip


FAMILIES: tuple[Callable[[], Iterator[Case]], ...] = (
    convolutions, products, pools, rows, images, recurrent, trees,
)  # fmt: skip


def all_cases(only: str | None = None) -> list[Case]:
    """Every case, or those whose family contains `only`."""
    return [c for family in FAMILIES for c in family() if only is None or only in c.family]


__all__ = ["Case", "all_cases"]
