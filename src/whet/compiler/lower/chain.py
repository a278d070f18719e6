"""Chains of convolutions: which neighbours become one kernel, and the step.

A chain is found around a depthwise convolution: the 1x1 convolution whose result it alone reads, and the one that
alone reads its result, each with the pointwise work behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from whet.compiler.fuse import Group
from whet.compiler.lower.conv import (
    channels_last,
    depthwise_weights,
    even_pixels,
    finish_words,
    in_place_pairs,
    out_words,
    pixel_stride,
    vector,
    vector_operand,
    window_of,
)
from whet.compiler.lower.copy import copy
from whet.compiler.lower.epilogue import Extra, Finish, finish, operand_kind
from whet.compiler.lower.matmul import constant_rows
from whet.compiler.lower.reduce import wants_spatial_sums
from whet.compiler.lower.scalar_table import SCALAR_RULES
from whet.compiler.lowering import Lowering, dtype_of, shape_of
from whet.compiler.step import Word, address
from whet.compiler.tactics.chain import APART, EXPAND, PROJECT, ChainGeometry, choose_chain
from whet.compiler.tape import TapeBuilder, scalar_constant
from whet.compiler.views import View
from whet.compiler.weights import Array
from whet.dtypes import FLOAT32, FLOAT64, DType
from whet.graph import Node, Value
from whet.graph.dims import Known
from whet.kernels.chain import Chain, Pointwise
from whet.kernels.chain_shape import ChainWork, choose_chain_shape, epilogue_cycles
from whet.kernels.pairs import pack_pairs
from whet.kernels.tile import Epilogue

Item = Node | Group
"""A node that is lowered by itself, or with the pointwise work behind it."""
_LAST = (0, 2, 3, 1)
"""Channels behind the spatial axes."""
_CHANNEL = -3


@dataclass(frozen=True, slots=True)
class Chained:
    """What becomes one kernel: two or three items, the depthwise convolution at `middle`."""

    items: tuple[Item, ...]
    middle: int
    work: ChainWork
    tactic: str


def join_chains(ctx: Lowering, items: Sequence[Item]) -> Sequence[Item | Chained]:
    """The items with chains in the places of their last ones, where that is likely to be faster."""
    if ctx.env.tactics.get("chain") == "off" or "conv" in ctx.env.tactics:
        return items
    made = {_root(item): item for item in items if _node(item) is not None}
    readers = {_node(item): item for item in items if _node(item) is not None}
    taken: set[int] = set()
    found: dict[int, Chained] = {}
    linked = _linked(items, made, readers)
    for item in items:
        chain = None if id(item) in taken else _chain_around(ctx, item, made, readers, taken, linked)
        if chain is not None:
            taken.update(id(part) for part in chain.items)
            found[id(chain.items[-1])] = chain
    return [found.get(id(item), item) for item in items if id(item) not in taken or id(item) in found]


def _node(item: Item) -> Node | None:
    """The convolution of an item."""
    node = item.anchor if isinstance(item, Group) else item
    return node if node is not None and node.op == "Conv" else None


def _root(item: Item) -> Value:
    return item.root if isinstance(item, Group) else item.output


def _linked(
    items: Sequence[Item], made: Mapping[Value, Item], readers: Mapping[Node | None, Item]
) -> dict[int, tuple[str, ...]]:
    """For each item that can be part of a chain, the labels of all convolutions whose steps depend on its choice.

    Where the end of one chain can be the beginning of the next, what is chosen for the first decides on the second.
    """
    runs: dict[int, list[Item]] = {}
    for item in items:
        work = _depthwise(item)
        if work is None:
            continue
        joined: dict[int, Item] = {}
        for part in (item, *_neighbours(item, made, readers, work.dtype)):
            if part is not None:
                joined |= {id(other): other for other in runs.get(id(part), [part])}
        run = list(joined.values())
        runs |= {id(part): run for part in run}
    return {key: tuple(n.label for n in map(_node, run) if n is not None) for key, run in runs.items()}


def _neighbours(
    item: Item, made: Mapping[Value, Item], readers: Mapping[Node | None, Item], element: DType
) -> tuple[Item | None, Item | None]:
    """The 1x1 convolutions before and behind a depthwise one that can be in one chain with it."""
    node, root = _node(item), _root(item)
    assert node is not None
    x = node.inputs[0]
    assert x is not None
    before = made.get(x) if x.only_use is node else None
    if before is not None and not (_is_pointwise(before, element) and _stays_inside(before)):
        before = None
    behind = readers.get(root.only_use)
    if behind is not None and not (_is_pointwise(behind, element) and _reads(behind, root) and _stays_inside(item)):
        behind = None
    return before, behind


def _chain_around(
    ctx: Lowering, item: Item, made: Mapping[Value, Item], readers: Mapping[Node | None, Item], taken: set[int],
    linked: Mapping[int, tuple[str, ...]],
) -> Chained | None:  # fmt: skip
    """The chain around a depthwise convolution that is worth it, or None."""
    work = _depthwise(item)
    if work is None:
        return None
    node, root = _node(item), _root(item)
    assert node is not None
    before, behind = (
        None if part is None or id(part) in taken else part for part in _neighbours(item, made, readers, work.dtype)
    )
    if before is not None:
        first = _node(before)
        assert first is not None
        # Factors that the convolution is going to multiply into its weights are not a chain's business.
        source = first.inputs[0]
        assert source is not None
        if source.producer is not None and source.producer.op == "Mul":
            before = None
        else:
            work = replace(work, inputs=_extent(source, 1), expand_cycles=_steps(before))
    if behind is not None:
        work = replace(work, outputs=_extent(_root(behind), 1))
    if before is None and behind is None:
        return None
    images = shape_of(root)[0]
    geometry = ChainGeometry(work, images if isinstance(images, int) else 1, ctx.env.threads)
    parts = tuple(part for part in (before, item, behind) if part is not None)
    detail = [[inner.op for inner in part.nodes] if isinstance(part, Group) else [] for part in parts]
    tactic = choose_chain(geometry, ctx.env, node.label, detail, linked[id(item)])
    if tactic == APART:
        return None
    if tactic == PROJECT:
        before = None
    if tactic == EXPAND:
        behind = None
    parts = tuple(part for part in (before, item, behind) if part is not None)
    return Chained(parts, parts.index(item), geometry.part(tactic), tactic)


def _depthwise(item: Item) -> ChainWork | None:
    """The middle of a chain, if the item can be one."""
    node = _node(item)
    if node is None or node.inputs[0] is None or node.inputs[1] is None or node.inputs[1].data is None:
        return None
    x, weights = node.inputs[0], node.inputs[1].data.shape
    image, out, element = shape_of(x), shape_of(node.output), dtype_of(node.output)
    if len(image) != 4 or element not in (FLOAT32, FLOAT64) or dtype_of(_root(item)) is not element:
        return None
    channels = node.int_attr("group", 1)
    if channels == 1 or image[1] != channels or weights[:2] != (channels, 1):
        return None
    window = window_of(node, weights[2:], image[2:], out[2:])
    before, behind = _numbers(image[2:]), _numbers(out[2:])
    if window is None or before is None or behind is None or window.extents(before) != behind:
        return None
    return ChainWork(window, channels, before, behind, None, None, 0.0, element)


def _numbers(extents: Sequence[Known]) -> tuple[int, int] | None:
    numbers = [n for n in extents if isinstance(n, int)]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else None


def _extent(value: Value, axis: int) -> int:
    extent = shape_of(value)[axis]
    assert isinstance(extent, int)
    return extent


def _is_pointwise(item: Item, element: DType) -> bool:
    """Whether an item is a 1x1 convolution that a chain can begin or end with."""
    node = _node(item)
    if node is None or node.inputs[0] is None or node.inputs[1] is None or node.inputs[1].data is None:
        return False
    x, weights, ones = shape_of(node.inputs[0]), node.inputs[1].data.shape, (1, 1)
    plain = weights[2:] == ones and node.ints_attr("strides", ones) == ones and node.int_attr("group", 1) == 1
    padded = any(node.ints_attr("pads", ())) and node.str_attr("auto_pad", "NOTSET") == "NOTSET"
    kinds = {dtype_of(node.inputs[0]), dtype_of(node.output), dtype_of(_root(item))}
    return plain and not padded and kinds == {element} and x[1] == weights[1]


def _stays_inside(item: Item) -> bool:
    """Whether all that an item's pointwise work reads is one number for each channel."""
    if not isinstance(item, Group):
        return True
    shape = shape_of(item.root)
    values = [v for v in item.inputs if scalar_constant(v) is None]
    return all(operand_kind(shape_of(v), shape, _CHANNEL) in ("column", "scalar") for v in values)


def _reads(item: Item, value: Value) -> bool:
    """Whether a convolution's image, and nothing else of it, is `value`."""
    node = _node(item)
    assert node is not None
    return node.inputs[0] is value and not (isinstance(item, Group) and value in item.inputs)


def _steps(item: Item) -> float:
    """Cycles of an item's pointwise work for a vector, about."""
    node = _node(item)
    assert node is not None
    if not isinstance(item, Group):
        return 0.0
    builder = TapeBuilder([dtype_of(node.output), *(dtype_of(value) for value in item.inputs)])
    at = {node.output: 0}
    for index, value in enumerate(item.inputs):
        number = scalar_constant(value)
        at[value] = index + 1 if number is None else builder.constant(number, dtype_of(value))
    for inner in item.nodes:
        arguments = [None if value is None else at[value] for value in inner.inputs]
        at[inner.output] = SCALAR_RULES[inner.op].build(builder, inner, arguments)
    return epilogue_cycles(Epilogue(builder.tape(at[item.root])))


def lower_chain(ctx: Lowering, chain: Chained) -> bool:
    """Emit a chain's one step; False where its input's layout does not suit, then its items are to be lowered apart."""
    first, item = chain.items[0], chain.items[chain.middle]
    begin = _node(first)
    assert begin is not None
    source = begin.inputs[0]
    assert source is not None
    if source in ctx.factored:
        return False
    ctx.node = _node(chain.items[-1])
    x = channels_last(ctx, ctx.view(source))
    steps = _numbers(x.strides[2:])
    if steps is None:
        return False
    work = chain.work
    found = choose_chain_shape(ctx.target, work, ctx.env.threads)
    assert found is not None
    shape = found[0]
    *inner, done = [_finish(ctx, part, work.dtype) for part in chain.items]
    expand = inner[0] if chain.middle == 1 else None
    filtered = inner[-1] if chain.middle < len(chain.items) - 1 else done
    out = ctx.new(done.result, _LAST)
    target = out if pixel_stride(out) is not None else ctx.temporary(out.element, out.shape, _LAST)
    operands = tuple(
        even_pixels(ctx, v.broadcast(out.shape), _LAST) if kind == "full" else v
        for v, kind in zip(done.operands, done.kinds, strict=True)
    )
    done = Finish(done.epilogue, operands, done.kinds, done.result, done.ops)
    if filtered.result is done.result:
        filtered = done
    spec = Chain(
        work.window, work.channels, work.image, work.out, steps, shape,
        None if work.inputs is None or expand is None else Pointwise(work.inputs, expand.epilogue),
        filtered.epilogue,
        None if work.outputs is None else Pointwise(work.outputs, done.epilogue),
        work.dtype, work.outputs is None and work.dtype is FLOAT32 and wants_spatial_sums(done.result),
    )  # fmt: skip
    middle = _node(item)
    assert middle is not None
    weights = depthwise_weights(ctx, _weights(middle), work.dtype)
    words: dict[str, Word] = {"x": address(x), "x_n": x.strides[0], "wd": address(weights)}
    reads = [x, weights, *done.operands]
    if expand is not None:
        packed, _, _ = constant_rows(ctx, _weights(begin), work.dtype, spec.width(ctx.target))
        words["wx"] = address(packed)
        words |= {f"x{i}": address(view) for i, view in enumerate(expand.operands)}
        reads += [packed, *expand.operands]
    if work.outputs is not None:
        assert ctx.node is not None
        lanes = ctx.target.lanes(work.dtype)
        if spec.in_pairs(ctx.target):
            packed = _pairs(ctx, _weights(ctx.node), work.dtype, shape.project_vectors * lanes)
        else:
            packed, _, _ = constant_rows(ctx, _weights(ctx.node), work.dtype, shape.project_vectors * lanes)
        words["wp"] = address(packed)
        words |= {f"d{i}": address(view) for i, view in enumerate(filtered.operands)}
        reads += [packed, *filtered.operands]
    out_words(words, target)
    finish_words(words, done)
    images, writes = out.shape[0], [target]
    if spec.totals:
        bands = -(-work.out[0] // shape.band)
        parts = ctx.temporary(work.dtype, (images, bands, work.channels), label=f"sums of {done.result.name}")
        words |= {"totals": address(parts), "totals_n": parts.strides[0]}
        writes.append(parts)
        # As an image of as many pixels as there are bands.
        ctx.spatial_sums[done.result] = View(
            parts.buffer, (images, work.channels, bands, 1), (parts.strides[0], 1, parts.strides[1], 0)
        )
    ops = ", ".join(part.ops for part in (*inner, done))
    ctx.emit(
        spec, words, images * spec.tiles(ctx.target, 1), reads, writes, flops=images * _flops(work),
        in_place=in_place_pairs(done, target), ops=ops, tactic=chain.tactic,
    )  # fmt: skip
    if target is not out:
        copy(ctx, target, out)
    return True


def _pairs(ctx: Lowering, w: Value, element: DType, width: int) -> View:
    """The weights of a projection whose last vector two pixels share."""
    data = w.data
    assert data is not None
    lanes = ctx.target.lanes(element)

    def make() -> Array:
        matrix = data.numpy().reshape(data.shape[:2]).astype(element.numpy, copy=False).T
        return pack_pairs(matrix, width, lanes)

    buffer = ctx.weight(("pairs", data.identity(), element.name, width, lanes), make, element)
    return View(buffer, (buffer.elements,), (1,))


def _weights(node: Node) -> Value:
    weights = node.inputs[1]
    assert weights is not None
    return weights


def _flops(work: ChainWork) -> int:
    before, behind = work.image[0] * work.image[1], work.out[0] * work.out[1]
    products = (work.inputs or 0) * before + (work.outputs or 0) * behind + work.window.taps * behind
    return 2 * work.channels * products


def _finish(ctx: Lowering, item: Item, element: DType) -> Finish:
    """What an item does to its sums: the bias of its convolution, and its pointwise work."""
    node = _node(item)
    assert node is not None
    bias = node.input(2)
    extras: list[Extra] = [] if bias is None else [(vector(ctx, ctx.view(bias)), "column")]

    def add(tape: TapeBuilder, total: int, operands: Sequence[int]) -> int:
        for operand in operands:
            total = tape.add("add", element, total, tape.cast(operand, element))
        return total

    done = finish(ctx, node, item if isinstance(item, Group) else None, element, _CHANNEL, extras, add)
    views: list[View] = [vector_operand(ctx, v, kind) for v, kind in zip(done.operands, done.kinds, strict=True)]
    return Finish(done.epilogue, tuple(views), done.kinds, done.result, done.ops)
