"""Attention, rotary embeddings and embedding sums written out in parts, in several exporters' styles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .arithmetic import add, tame, unary
from .builder import FLOAT, INT64, Builder, Value
from .layers import matmul, softmax
from .movement import concat, reshape, shape_tensor, slice_axis, split, transpose, unsqueeze
from .recipes import NoFitError, Recipe, layer_norm


def _projection(r: Recipe, x: Value, width: int, bias: bool) -> Value:
    depth = x.shape[-1][0]
    made = r.seen(matmul(r.b, x, r.b.weights([depth, width], 1.0 / math.sqrt(depth))))
    return r.add(made, r.b.weights([width], 0.5)) if bias else made


def _to_heads(r: Recipe, x: Value, heads: int, size: int, computed: bool) -> Value:
    """[batch, tokens, heads * size] to [batch, tokens, heads, size]."""
    target = [x.shape[0], x.shape[1], r.b.static_dim(heads), r.b.static_dim(size)]
    if not r.b.fits(target):
        raise NoFitError
    if computed:
        shape = shape_tensor(r.b, target, x)
        if shape is not None:
            return r.seen(r.b.emit("Reshape", [x, shape], target, like=x))
    return r.seen(reshape(r.b, x, target))


def attention(r: Recipe, x: Value) -> Value:
    """Multi-head attention over [batch, tokens, width], with grouped heads, masks and scales in several places."""
    if x.rank != 3 or not x.static(2):
        raise NoFitError
    b = r.b
    heads, size = b.choose([(1, 4), (2, 2), (2, 4), (4, 2), (3, 2)])
    groups = b.choose([heads, heads, heads, 1, heads // 2 or 1])
    if heads % groups:
        groups = 1
    bias, computed = b.chance(0.7), b.chance(0.4)
    width = heads * size
    if groups == heads and b.chance(0.25):
        joined = _projection(r, x, 3 * width, bias)
        query, key, value = split(b, joined, 2, None, 3)
    else:
        query = _projection(r, x, width, bias)
        key, value = (_projection(r, x, groups * size, bias) for _ in range(2))
    query = _to_heads(r, query, heads, size, computed)
    key, value = (_to_heads(r, operand, groups, size, computed) for operand in (key, value))
    query = r.seen(transpose(b, query, [0, 2, 1, 3]))
    if b.chance(0.5):
        key = r.seen(transpose(b, key, [0, 2, 3, 1]))
    else:
        key = r.seen(transpose(b, r.seen(transpose(b, key, [0, 2, 1, 3])), [0, 1, 3, 2]))
    value = r.seen(transpose(b, value, [0, 2, 1, 3]))
    if groups != heads and (groups > 1 or b.chance(0.5)):
        key, value = (_repeated(r, operand, heads // groups) for operand in (key, value))
    scores = _scores(r, query, key, size)
    scores = _masked(r, scores)
    weights = r.seen(softmax(b, scores, 3))
    context = r.seen(matmul(b, weights, value))
    context = replace(context, low=value.low, high=value.high)
    context = r.seen(transpose(b, context, [0, 2, 1, 3]))
    flat = r.seen(reshape(b, context, [x.shape[0], x.shape[1], b.static_dim(width)]))
    result = _projection(r, flat, x.shape[2][0], bias)
    return r.add(result, x) if b.chance(0.6) else result


def _repeated(r: Recipe, x: Value, count: int) -> Value:
    """Each head of [batch, groups, rows, columns] `count` times, as models with grouped heads write it."""
    b = r.b
    if b.opset < 8:
        raise NoFitError
    batch, groups, rows, columns = x.shape
    wide = (batch, groups, b.static_dim(count), rows, columns)
    if not b.fits(wide):
        raise NoFitError
    apart = r.seen(unsqueeze(b, x, [2]))
    expanded = r.seen(b.emit("Expand", [apart, b.ints([1, 1, count, 1, 1])], wide, like=apart))
    return r.seen(reshape(b, expanded, [batch, b.static_dim(groups[0] * count), rows, columns]))


def _scores(r: Recipe, query: Value, key: Value, size: int) -> Value:
    root = math.sqrt(size)
    way = r.b.random.randrange(4)
    if way == 0:
        return r.div(r.seen(matmul(r.b, query, key)), r.number(root))
    if way == 1:
        return r.mul(r.seen(matmul(r.b, query, key)), r.number(1.0 / root))
    if way == 2:
        return r.seen(matmul(r.b, r.mul(query, r.number(1.0 / root)), key))
    half = 1.0 / math.sqrt(root)
    return r.seen(matmul(r.b, r.mul(query, r.number(half)), r.mul(key, r.number(half))))


def _masked(r: Recipe, scores: Value) -> Value:
    b = r.b
    way = b.random.randrange(5)
    if way == 0:
        return scores
    if way == 4 and scores.static(2) and scores.static(3) and b.opset >= 9:
        mask = np.tril(np.ones((scores.shape[2][0], scores.shape[3][0]), np.bool_))
        shaped = mask.reshape(b.choose([mask.shape, (1, 1, *mask.shape)]))
        hidden = b.constant(np.asarray(b.choose([-100.0, -1e4]), np.float32), plain=True)
        made = b.emit(
            "Where", [b.constant(shaped), scores, hidden], scores.shape, dtype=FLOAT, low=-1e4, high=scores.high
        )
        return replace(r.seen(made), low=min(scores.low, -100.0))
    if way == 1 and scores.is_static:
        tokens = scores.shape[-1][0]
        mask = np.triu(np.full((scores.shape[-2][0], tokens), -100.0, np.float32), 1)
        shaped = mask.reshape(b.choose([mask.shape, (1, 1, *mask.shape)]))
        made = add(b, scores, b.constant(shaped))
        return scores if made is None else made
    if way == 2:
        mask_value = b.pick(lambda v: v.dtype == FLOAT and b.broadcast(v.shape, scores.shape) == scores.shape)
        return scores if mask_value is None else r.add(scores, tame(b, mask_value, 10.0))
    if b.opset >= 14:
        low = -10.0 - scores.bound
        return b.emit("Trilu", [scores], scores.shape, low=low, high=max(scores.high, 0.0), upper=0)
    return scores


def rotary(r: Recipe, x: Value) -> Value:
    """x * cos + concat(-x2, x1) * sin over the last axis, cut by Slice or Split; interleaved in a near miss."""
    b = r.b
    if x.rank < 2 or not x.static(x.rank - 1) or x.shape[-1][0] % 2:
        raise NoFitError
    last, size = x.rank - 1, x.shape[-1][0]
    half = size // 2
    if b.chance(0.5):
        first, second = slice_axis(b, x, last, 0, half), slice_axis(b, x, last, half, 2**63 - 1)
    else:
        first, second = split(b, x, last, None, 2)
    turned = r.seen(concat(b, [r.unary("Neg", second), first], last))
    rows = x.shape[-2][0] if x.static(x.rank - 2) else 1
    angles = np.outer(np.arange(rows), 1.0 / 10.0 ** (np.arange(half) / half))
    angles = np.concatenate([angles, angles], axis=1).astype(np.float32)
    cosine, sine = b.constant(np.cos(angles)), b.constant(np.sin(angles))
    return r.add(r.mul(x, cosine), r.mul(turned, sine))


def embedding(r: Recipe, x: Value) -> Value:
    """Word and position embeddings gathered by indices, added and normalized; `x` only sets the style."""
    b = r.b
    indices = b.pick(lambda v: v.dtype == INT64 and v.rank == 2 and v.low >= 0 and v.high < 16)
    if indices is None or not indices.static(1):
        raise NoFitError
    width, tokens = b.choose([4, 6, 8]), indices.shape[1][0]
    shape = [*indices.shape, b.static_dim(width)]
    if not b.fits(shape):
        raise NoFitError
    words = r.seen(b.emit("Gather", [b.weights([16, width], 1.0), indices], shape, dtype=FLOAT, low=-1.0, high=1.0))
    total = r.add(words, b.weights([b.choose([1, tokens]), width], 1.0))
    return layer_norm(r, total)


def transformer_feed_forward(r: Recipe, x: Value) -> Value:
    """MatMul, bias, activation, MatMul, bias, residual, norm."""
    if x.rank < 2 or not x.static(x.rank - 1):
        raise NoFitError
    hidden = _projection(r, x, r.b.choose([4, 8]), True)
    hidden = r.unary(r.b.choose(["Relu", "Tanh"]), tame(r.b, hidden, 10.0))
    result = r.add(_projection(r, hidden, x.shape[-1][0], True), x)
    return layer_norm(r, tame(r.b, result, 10.0))


def scaled_product(r: Recipe, x: Value) -> Value:
    """MatMul with a transposed operand and a scale, before or after."""
    if x.rank < 2:
        raise NoFitError
    order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    turned = r.seen(transpose(r.b, r.operand(x), order))
    if r.b.chance(0.5):
        turned = r.mul(turned, r.number(0.25))
    made = r.seen(matmul(r.b, x, turned))
    return r.mul(made, r.number(0.125)) if r.b.chance(0.5) else made


def mask_from_lengths(r: Recipe, x: Value) -> Value:
    """(1 - mask) * -10 added to scores, the mask unsqueezed as BERT's exporter does."""
    b = r.b
    mask = b.pick(lambda v: v.dtype == INT64 and v.rank == 2 and v.low >= 0 and v.high <= 15)
    if mask is None:
        raise NoFitError
    wide = unsqueeze(b, unsqueeze(b, mask, [1]), [2])
    numbers = b.emit("Cast", [wide], wide.shape, dtype=FLOAT, low=mask.low, high=mask.high, grain=1.0, to=FLOAT)
    inverted = r.sub(b.scalar(1.0), numbers)
    scaled = r.mul(inverted, r.number(-2.0))
    return r.seen(softmax(b, scaled, 3))


ATTENTION_RECIPES = (
    attention, attention, attention, rotary, rotary, embedding, transformer_feed_forward, scaled_product,
    mask_from_lengths,
)  # fmt: skip


def random_attention(b: Builder) -> Value | None:
    recipe = b.choose(ATTENTION_RECIPES)
    ranks = {attention: [3], rotary: [2, 3, 4], transformer_feed_forward: [2, 3]}.get(recipe, range(2, 5))
    x = b.pick_float(ranks)
    if x is None:
        return None
    try:
        return b.keep(tame(b, recipe(Recipe(b), tame(b, x, 8.0))))
    except NoFitError:
        return None


def double_activation(b: Builder) -> Value | None:
    """The same activation applied twice from one value: a common subexpression."""
    x = b.pick_float()
    if x is None:
        return None
    x = tame(b, x)
    op = b.choose(["Tanh", "Sigmoid", "Relu"])
    total = add(b, unary(b, op, x), unary(b, op, x))
    return None if total is None else b.keep(total)
