"""Random valid ONNX models with their feeds: one seed, one case, the same on every machine."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from . import arithmetic, attention, control, layers, movement, quantized, recipes
from .builder import BOOL, DOUBLE, FLOAT, INT32, INT64, Builder, Dim, GraphInput, Shared, Value
from .functions import outline

Template = Callable[[Builder], Value | None]


@dataclass(frozen=True)
class Case:
    """A model and the feeds to run it with; `inexact` names the float inputs that hold arbitrary values."""

    seed: int
    model: ModelProto
    feeds: tuple[dict[str, np.ndarray], ...]
    inexact: frozenset[str] = frozenset()


# The IR version that came with each opset: readers of that time know the pair.
_IR_VERSION = {
    7: 3, 8: 3, 9: 4, 10: 5, 11: 6, 12: 7, 13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10,
}  # fmt: skip

_OPSETS = (7, 8, 9, 9, 10, 11, 11, 12, 13, 13, 14, 15, 16, 17, 17, 18, 18, 19, 20, 20, 21, 21, 22)

_TEMPLATES: tuple[tuple[Template, int], ...] = (
    (arithmetic.random_unary, 12),
    (arithmetic.random_binary, 16),
    (arithmetic.random_comparison, 3),
    (arithmetic.random_logic, 2),
    (arithmetic.random_where, 4),
    (arithmetic.random_clip, 3),
    (arithmetic.random_cast_chain, 4),
    (movement.random_reshape, 6),
    (movement.random_flatten, 2),
    (movement.random_transpose, 6),
    (movement.random_squeeze, 4),
    (movement.random_slice, 6),
    (movement.random_expand, 3),
    (movement.random_tile, 2),
    (movement.random_concat, 6),
    (movement.random_split, 4),
    (movement.random_pad, 3),
    (movement.random_gather, 4),
    (movement.random_gather_elements, 2),
    (movement.random_scatter, 2),
    (movement.random_half, 1),
    (movement.random_shape, 3),
    (movement.random_range, 1),
    (movement.random_constant_of_shape, 2),
    (movement.random_depth, 2),
    (layers.random_matmul, 9),
    (layers.random_gemm, 4),
    (layers.random_einsum, 1),
    (layers.random_conv, 9),
    (layers.random_batch_norm, 3),
    (layers.random_conv_transpose, 1),
    (layers.random_pool, 4),
    (layers.random_resize, 2),
    (layers.random_reduction, 6),
    (layers.random_softmax, 4),
    (layers.random_arg, 3),
    (layers.random_top_k, 1),
    (layers.random_cumulative, 1),
    (layers.random_one_hot, 2),
    (layers.random_triangle, 2),
    (layers.random_dropout, 2),
    (layers.random_norm, 4),
    (layers.random_recurrent, 1),
    (quantized.random_quantize_pair, 2),
    (quantized.random_quantized_matmul, 2),
    (recipes.random_recipe, 16),
    (attention.random_attention, 8),
    (attention.double_activation, 2),
    (control.random_if, 4),
    (control.random_loop, 3),
    (control.random_scan, 2),
)


def generate(seed: int) -> Case:
    """The case of `seed`: a model of 10 to 60 nodes (and a few more in its bodies), and one to three feeds."""
    choices = random.Random(seed)
    feeds = choices.choice([1, 2, 3])
    symbols: dict[str, Dim] = {}
    if feeds > 1:
        for name in ("batch", "tokens", "n")[: choices.choice([1, 1, 2])]:
            symbols[name] = tuple(choices.sample(range(1, 6), feeds))
    shared = Shared(choices, np.random.default_rng(seed), choices.choice(_OPSETS), feeds, symbols)
    b = Builder(shared)
    inexact = _add_inputs(b)
    target = choices.randint(10, 50)
    templates = [template for template, _ in _TEMPLATES]
    weights = [float(weight) for _, weight in _TEMPLATES]
    # A graph has its own taste, so that some are all convolutions and some all shape arithmetic.
    weights = [weight * choices.choice([0, 1, 1, 1, 2, 4]) for weight in weights]
    while len(b.nodes) < target and shared.node_count < 2 * target + 40:
        choices.choices(templates, weights)[0](b)
        weights = [weight + 0.01 for weight in weights]  # a taste that fits nothing wears off
        if choices.random() < 0.04:
            _duplicate(b)
    model = _finish(b, seed)
    if choices.random() < 0.1:
        outline(model, choices)
    return Case(seed, model, _feeds(shared), inexact)


# inputs


def _add_inputs(b: Builder) -> frozenset[str]:
    inexact = set()
    styles = ["image", "sequence", "matrix", "vector", "line", "scalar", "stack"]
    main = b.choose(["image", "image", "sequence", "sequence", "matrix"])
    chosen = [main, *(b.choose([*styles, main]) for _ in range(b.choose([0, 1, 1, 2])))]
    for place, style in enumerate(chosen):
        exact = b.chance(0.35)
        value = _add_input(b, f"x{place}", _input_shape(b, style), b.choose([FLOAT] * 9 + [DOUBLE]), exact)
        if not exact:
            inexact.add(value.name)
    if b.chance(0.5):
        _add_input(b, "index", _input_shape(b, b.choose(["matrix", "vector"])), b.choose([INT64, INT64, INT32]), True)
    if b.chance(0.25):
        _add_input(b, "mask", _input_shape(b, b.choose(["matrix", "sequence", "vector"])), BOOL, True)
    return frozenset(inexact)


def _input_shape(b: Builder, style: str) -> list[str | int]:
    names = list(b.shared.symbols)
    batch: str | int = names[0] if names and b.chance(0.8) else b.choose([1, 2, 3])
    tokens: str | int = names[1] if len(names) > 1 and b.chance(0.8) else b.choose([2, 3, 4])
    width = b.choose([2, 4, 4, 6, 8])
    return {
        "image": [batch, b.choose([1, 2, 3, 4, 4, 8]), b.choose([4, 5, 6, 8]), b.choose([4, 5, 6, 8])],
        "sequence": [batch, tokens, width],
        "matrix": [batch, width],
        "vector": [b.choose([width, tokens])],
        "line": [batch, b.choose([2, 4]), b.choose([5, 8])],
        "scalar": [],
        "stack": [batch, 1, tokens, width],
    }[style]


def _add_input(b: Builder, name: str, dims: list[str | int], dtype: int, exact: bool) -> Value:
    shape = tuple(b.shared.symbols[dim] if isinstance(dim, str) else b.static_dim(dim) for dim in dims)
    arrays = []
    low, high, grain = -4.0, 4.0, 0.5 if exact else None
    highest = b.choose([1, 2, 3, 7])
    for feed in range(b.shared.feeds):
        extents = [dim[feed] for dim in shape]
        if dtype == BOOL:
            arrays.append(np.asarray(b.data.integers(0, 2, size=extents), np.bool_))
            low, high, grain = 0.0, 1.0, 1.0
        elif dtype in (INT32, INT64):
            low, high, grain = 0.0, float(highest), 1.0
            kind = np.int64 if dtype == INT64 else np.int32
            arrays.append(np.asarray(b.data.integers(0, highest + 1, size=extents), kind))
        elif exact:
            arrays.append(np.asarray(b.data.integers(-8, 9, size=extents) * 0.5, _kind(dtype)))
        else:
            arrays.append(np.asarray(np.clip(b.data.normal(size=extents) * 1.3, -4, 4), _kind(dtype)))
    info = helper.make_tensor_value_info(name, dtype, dims)
    b.shared.inputs.append(GraphInput(info, tuple(arrays)))
    return b.keep(Value(name, dtype, shape, low, high, grain))


def _kind(dtype: int) -> type:
    return np.float64 if dtype == DOUBLE else np.float32


# duplicates and outputs


def _duplicate(b: Builder) -> None:
    """Repeats one node on the same inputs: a common subexpression."""
    values = {value.name: value for value in b.pool}
    nodes = [node for node in b.nodes if len(node.output) == 1 and node.output[0] in values and node.op_type != "Loop"]
    if not nodes or b.random.random() < 0.3:
        return
    original = b.choose(nodes)
    if any(attribute.HasField("g") for attribute in original.attribute):
        return  # names inside a body may appear only once
    copy = NodeProto()
    copy.CopyFrom(original)
    copy.output[0] = b.fresh("v")
    copy.name = b.fresh("n")
    b.nodes.append(copy)
    b.shared.node_count += 1
    value = values[original.output[0]]
    b.keep(Value(copy.output[0], value.dtype, value.shape, value.low, value.high, value.grain))


def _finish(b: Builder, seed: int) -> ModelProto:
    outputs = _outputs(b)
    inputs = [given.info for given in b.shared.inputs]
    b.random.shuffle(inputs)
    graph = b.graph(f"random_{seed}", inputs, outputs)
    opsets = [helper.make_opsetid("", b.opset)]
    if b.chance(0.1):
        opsets.append(helper.make_opsetid("com.microsoft", 1))
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=_IR_VERSION[b.opset], producer_name="random_graphs"
    )


def _outputs(b: Builder) -> list[ValueInfoProto]:
    """The unused results (some stay unused), a few intermediates, and what near misses asked for."""
    produced = {name for node in b.nodes for name in node.output}
    made = [value for value in b.pool if value.name in produced]
    unused = [value for value in made if value.name not in b.used]
    chosen = [value for value in unused if b.chance(0.85)] or made[-1:]
    chosen += [value for value in made if value.name in b.used and b.chance(0.05)]
    chosen += [value for value in b.wanted if value.name in produced]
    if b.chance(0.03) and b.opset >= 9:
        chosen.append(b.pool[0])  # an input handed through
    unique = {value.name: value for value in chosen}
    return [b.info(value, shaped=not b.chance(0.2)) for value in unique.values()]


def _feeds(shared: Shared) -> tuple[dict[str, np.ndarray], ...]:
    result = []
    for feed in range(shared.feeds):
        arrays = {given.info.name: given.arrays[feed] for given in shared.inputs}
        result.append({name: array for name, array in arrays.items() if array is not None})
    return tuple(result)
