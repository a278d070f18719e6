"""Raises attention from its parts - two products, scale, masks, softmax - to the Attention operator (opset 25)."""

from __future__ import annotations

from dataclasses import dataclass

from whet.graph import Attribute, Node, Patch, Value
from whet.graph.dims import Dim, Shape, product
from whet.graph.types import TensorType
from whet.passes.base import NodePass, PassContext, only_reader
from whet.passes.extended.attention_masks import combine, split_causal
from whet.passes.extended.attention_scores import Contraction, Mismatch, Scores, read_product, read_scores
from whet.passes.extended.attention_sources import Cache, find_cache, find_packed, reaches, split_packed, ungroup
from whet.passes.extended.attention_views import (
    HEADS_INNER,
    Builder,
    View,
    dtype_of,
    finite_positive,
    lift,
    peel,
    same,
    same_dims,
)


@dataclass(slots=True)
class _Parts:
    """An attention that has been understood: operands of rank 4 (or 3: one head), and what is done to the scores."""

    query: View
    key: View
    value: View
    scale: float
    scores: Scores
    shape: Shape
    """(batch, heads, queries, keys) of the scores."""
    lifted: bool = False
    """The graph has batch and heads merged into one axis; the operands here have them apart."""
    cache: Cache | None = None


class FuseAttention(NodePass):
    """softmax(scale * Q K' + mask) V as Attention.

    The result differs from the parts' by rounding, and where every key of a query is masked by -inf: the parts then
    give NaN, Attention gives zeros (and so do parts that replace NaN by zero, as torch's newer exporter writes them).
    A boolean or -inf mask stays one; a finite one is handed on as it is.
    """

    name = "attention"
    roots = frozenset({"MatMul", "Einsum"})

    def rewrite(self, node: Node, context: PassContext) -> Patch | None:
        output = read_product(node)
        if output is None or output.left_view.perm != tuple(range(len(output.left_view.perm))):
            return None
        try:
            scores = read_scores(output.left)
        except Mismatch as mismatch:
            if mismatch.near:
                context.refuse(self.name, node, str(mismatch))
            return None
        if scores.product.graph is not node.graph:
            context.refuse(self.name, node, "the scores are computed outside of this subgraph")
            return None
        reason = ""
        for lift_heads, cached in _FORMS:
            try:
                parts = _understand(node, output, scores, lift_heads=lift_heads, cached=cached)
                return _Assembly(node, output, parts, context).patch()
            except Mismatch as mismatch:
                reason = reason or str(mismatch)
        context.refuse(self.name, node, reason)
        return None


_FORMS = ((True, True), (True, False), (False, False))
"""Whether merged heads are split, and a cache taken in: the first form that fits."""


def _understand(node: Node, output: Contraction, scores: Scores, *, lift_heads: bool, cached: bool) -> _Parts:
    """Find the form of the operands and check that their extents agree. Raises Mismatch."""
    query, key = peel(scores.query), peel(scores.key)
    value = peel(output.right.swapped(), scales=False)
    if dtype_of(query.base) is None or any(dtype_of(v.base) is not dtype_of(query.base) for v in (key, value)):
        raise Mismatch("query, key and value have different types")
    if len({len(query.perm), len(key.perm), len(value.perm)}) != 1:
        raise Mismatch("query, key and value have different ranks")
    lifted = len(query.perm) == 3 and lift_heads
    if lifted:
        query, key, value = (_lift(view, scales=view is not value) for view in (query, key, value))
    elif any(mask.rank != len(query.perm) for mask in scores.masks):
        raise Mismatch("the heads are merged with the batch in a way that is not understood")
    scale = scores.scale * query.factor * key.factor
    if not finite_positive(scale):
        raise Mismatch(f"the scale {scale:g} is not positive")
    cache = None
    if len(query.perm) == 4:
        key, value = ungroup(key), ungroup(value)
        cache = find_cache(key, value, node.graph) if cached else None
    batch, heads, kv_heads = _dim(query, 0), _heads(query), _heads(key)
    keys = _dim(key, -2)
    if cache is not None:
        key, value = (_behind_cache(view) for view in (key, value))
    for name, view in (("key", key), ("value", value)):
        if not same(_dim(view, 0), batch):
            raise Mismatch(f"the {name} is not known to have the query's batch")
    if not same(_heads(value), kv_heads):
        raise Mismatch("key and value are not known to have the same heads")
    divides = isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads > 0 and heads % kv_heads == 0
    if not divides and not same(heads, kv_heads):
        raise Mismatch("the query's heads are not known to be a multiple of the key's")
    return _Parts(query, key, value, scale, scores, (batch, heads, _dim(query, -2), keys), lifted, cache)


def _lift(view: View, *, scales: bool) -> View:
    found = lift(view)
    if found is None:
        raise Mismatch("the heads are merged with the batch in a way that is not understood")
    return peel(found, scales=scales)


def _behind_cache(view: View) -> View:
    concat = view.base.producer
    assert concat is not None
    new = concat.inputs[1]
    assert new is not None
    return peel(View(new, view.perm), scales=False)


def _next(value: Value, op: str) -> Node | None:
    """The one reader of a result, in the same graph, that may be joined with what makes the result."""
    node = only_reader(value, op)
    made_by = value.producer
    inside = node is not None and made_by is not None and node.graph is made_by.graph
    return node if inside and value.quantization is None else None


def _dim(view: View, axis: int) -> Dim:
    shape = view.shape
    return None if shape is None else shape[axis]


def _heads(view: View) -> Dim:
    return _dim(view, 1) if len(view.perm) == 4 else 1


class _Assembly:
    """Builds the patch: operands in the form that needs the fewest transposes, the operator, what follows it."""

    def __init__(self, node: Node, output: Contraction, parts: _Parts, context: PassContext) -> None:
        self.node = node
        self.output = output
        self.parts = parts
        self.builder = Builder()

    def patch(self) -> Patch:
        """The patch. Raises Mismatch."""
        parts, builder = self.parts, self.builder
        result, anchor, perm = self._split_result()
        flat = self._is_flat(perm)
        causal, masks = False, parts.scores.masks
        if parts.cache is None:
            causal, masks = split_causal(masks, parts.shape[2], parts.shape[3])
        mask = combine(masks, parts.shape, parts.lifted, parts.query.base, builder)
        if flat:
            query, key, value = self._flat_operands()
        else:
            query, key, value = (builder.transpose(v.base, v.perm) for v in (parts.query, parts.key, parts.value))
        inputs: list[Value | None] = [query, key, value, mask]
        attributes = self._attributes(flat, causal)
        outputs = [Value("", TensorType(dtype_of(query), self._result_shape(flat)))]
        replaced: dict[Value, Value] = {}
        if parts.cache is not None:
            inputs += [parts.cache.past_key, parts.cache.past_value]
            self._take_over_cache(parts.cache, inputs, outputs, replaced)
        while inputs[-1] is None:
            inputs.pop()
        builder.nodes.append(Node("Attention", inputs, outputs, attributes))
        if flat:
            result, anchor, new = self._merge_result(result, anchor, outputs[0])
        else:
            new = builder.transpose(outputs[0], perm)
        replaced[result] = new
        return Patch(anchor, builder.nodes, replaced)

    def _split_result(self) -> tuple[Value, Node, tuple[int, ...]]:
        """The value to replace, its node, and how it orders the axes (batch, heads, queries, columns)."""
        node, perm = self.node, self.output.perm
        if self.parts.lifted:
            split = _next(node.output, "Reshape")
            wanted = (*self.parts.shape[:3], _dim(self.parts.value, -1))
            shape = split.output.shape if split is not None else None
            if split is None or shape is None or not same_dims(shape, wanted):
                raise Mismatch("the result's heads are not split from the batch again")
            node, perm = split, (0, 1, 2, 3)
        return node.output, node, perm

    def _is_flat(self, perm: tuple[int, ...]) -> bool:
        """Whether operands and result are (batch, rows, heads * columns): then heads need not be transposed."""
        parts = self.parts
        if len(parts.query.perm) == 3:
            return True
        result, _, order = self._split_result()
        transpose = _next(result, "Transpose")
        if order != HEADS_INNER and (
            order != (0, 1, 2, 3) or transpose is None or transpose.ints_attr("perm") != HEADS_INNER
        ):
            return False
        views = (parts.query, parts.key, parts.value)
        static = all(isinstance(_dim(v, a), int) for v in views for a in (1, -1))
        if parts.cache is not None or not static:
            return False
        return all(v.perm == HEADS_INNER for v in views) or find_packed(views) is not None

    def _flat_operands(self) -> tuple[Value, ...]:
        views, builder = (self.parts.query, self.parts.key, self.parts.value), self.builder
        if len(views[0].perm) == 3:
            return tuple(builder.transpose(v.base, v.perm) for v in views)
        packed = None if views[0].perm == HEADS_INNER else find_packed(views)
        if packed is not None:
            return split_packed(packed, builder)
        return tuple(builder.merge_last_two(v.base) for v in views)

    def _attributes(self, flat: bool, causal: bool) -> dict[str, Attribute]:
        parts = self.parts
        attributes: dict[str, Attribute] = {"scale": parts.scale}
        if flat:
            heads, kv_heads = _heads(parts.query), _heads(parts.key)
            assert isinstance(heads, int)
            assert isinstance(kv_heads, int)
            attributes.update(q_num_heads=heads, kv_num_heads=kv_heads)
        if causal:
            attributes["is_causal"] = 1
        if parts.scores.softcap:
            attributes["softcap"] = parts.scores.softcap
        if parts.scores.softmax_dtype is not None:
            attributes["softmax_precision"] = parts.scores.softmax_dtype.onnx_code
        return attributes

    def _result_shape(self, flat: bool) -> Shape:
        batch, heads, queries, _ = self.parts.shape
        size = _dim(self.parts.value, -1)
        return (batch, queries, product((heads, size))) if flat else (batch, heads, queries, size)

    def _take_over_cache(
        self, cache: Cache, inputs: list[Value | None], outputs: list[Value], replaced: dict[Value, Value]
    ) -> None:
        """Let the operator make the present keys and values, for all who read them."""
        pairs = ((cache.present_key, "key"), (cache.present_value, "value"))
        concats = frozenset(v.producer for v, _ in pairs if v.producer is not None)
        if reaches(inputs, concats):
            raise Mismatch("the cache is read before the attention")
        for present, _ in pairs:
            output = Value("", present.type)
            outputs.append(output)
            if present.graph_outputs or any(not self._is_inside(reader) for reader in present.uses):
                replaced[present] = output

    def _is_inside(self, reader: Node) -> bool:
        """Whether a reader of the present keys or values feeds this attention only, and goes with it."""
        stack, seen = [reader], {self.node}
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if any(v.graph_outputs for v in node.outputs) or not any(v.uses for v in node.outputs):
                return False
            if node.op == "Softmax":
                continue
            stack += [r for v in node.outputs for r in v.uses]
        return True

    def _merge_result(self, result: Value, anchor: Node, flat: Value) -> tuple[Value, Node, Value]:
        """What the flat result replaces: the transposed and merged one where both follow, else it is split again."""
        if len(self.parts.query.perm) == 3:
            return result, anchor, flat
        transpose = _next(result, "Transpose")
        if self.output.perm != HEADS_INNER:
            assert transpose is not None
            result, anchor = transpose.output, transpose
        merge = _next(result, "Reshape")
        shape = merge.output.shape if merge is not None else None
        if merge is not None and shape is not None and flat.shape is not None:
            if same_dims(shape, flat.shape):
                return merge.output, merge, flat
            if len(shape) <= 2 and merge.inputs[1] is not None:
                again = self.builder.add("Reshape", [flat, merge.inputs[1]], flat, shape)
                return merge.output, merge, again
        heads, size = self.parts.shape[1], _dim(self.parts.value, -1)
        assert isinstance(heads, int)
        assert isinstance(size, int)
        split = self.builder.add("Reshape", [flat, self.builder.ints([0, 0, heads, size])], flat, result.shape)
        return result, anchor, split
