"""The table of kernel families: every generator in `whet.kernels`, how its specs are drawn, and its calls."""

from __future__ import annotations

from . import folds, indexing, layers, moves, norms, pointwise, products
from .call import Family

FAMILIES: tuple[Family, ...] = (
    Family("pointwise", pointwise.pointwise_spec, pointwise.pointwise_call, weight=4),
    Family("copy", moves.copy_spec, moves.copy_call, weight=3),
    Family("fill", moves.fill_spec, moves.fill_call, weight=0.25),
    Family("periodic", moves.periodic_spec, moves.periodic_call),
    Family("reverse", moves.reverse_spec, moves.reverse_call, weight=0.25),
    Family("nearest", moves.nearest_spec, moves.nearest_call, weight=2),
    Family("store", moves.store_spec, moves.store_call, weight=0.25),
    Family("gather", indexing.gather_spec, indexing.gather_call),
    Family("gather elements", indexing.gather_elements_spec, indexing.gather_elements_call, weight=0.25),
    Family("gather nd", indexing.gather_nd_spec, indexing.gather_nd_call),
    Family("scatter elements", indexing.scatter_elements_spec, indexing.scatter_elements_call, weight=2, cost=3),
    Family("scatter nd", indexing.scatter_nd_spec, indexing.scatter_nd_call, weight=2),
    Family("lookup", indexing.lookup_spec, indexing.lookup_call),
    Family("one hot", indexing.one_hot_spec, indexing.one_hot_call),
    Family("trilu", indexing.trilu_spec, indexing.trilu_call),
    Family("range", indexing.range_spec, indexing.range_call, weight=0.25),
    Family("eye", indexing.eye_spec, indexing.eye_call, weight=0.25),
    Family("non-zero count", indexing.count_spec, indexing.count_call, weight=0.25),
    Family("non-zero positions", indexing.positions_spec, indexing.positions_call),
    Family("rotary", indexing.rotary_spec, indexing.rotary_call),
    Family("reduce", folds.reduce_spec, folds.reduce_call, weight=4),
    Family("arg reduce", folds.arg_spec, folds.arg_call, weight=2),
    Family("softmax", folds.softmax_spec, folds.softmax_call, weight=2),
    Family("scan", folds.scan_spec, folds.scan_call),
    Family("top k", folds.topk_spec, folds.topk_call),
    Family("check", folds.check_spec, folds.check_call, weight=0.25),
    Family("check numbers", folds.finite_spec, folds.finite_call, weight=0.25),
    Family("require non-zero", folds.zero_spec, folds.zero_call, weight=0.25),
    Family("layer norm", norms.layer_spec, norms.layer_call, weight=2),
    Family("group norm parts", norms.parts_spec, norms.parts_call),
    Family("group norm combine", norms.combine_spec, norms.combine_call),
    Family("group norm apply", norms.apply_spec, norms.apply_call),
    Family("lrn", norms.lrn_spec, norms.lrn_call),
    Family("pool", norms.pool_spec, norms.pool_call, weight=2),
    Family("weighted sum", norms.sum_spec, norms.sum_call, weight=2),
    Family("resize table", norms.table_spec, norms.table_call),
    Family("gemm", products.gemm_spec, products.gemm_call, weight=4),
    Family("pack b", products.pack_spec, products.pack_call),
    Family("conv", products.conv_spec, products.conv_call, weight=3, cost=2),
    Family("im2col", products.im2col_spec, products.conv_call, weight=3, cost=2),
    Family("depthwise", products.depthwise_spec, products.depthwise_call, weight=2),
    Family("attention", layers.attention_spec, layers.attention_call, weight=2, cost=3),
    Family("rnn", layers.rnn_spec, layers.rnn_call, weight=2, cost=3),
    Family("forest", layers.forest_spec, layers.forest_call),
)

BY_NAME = {family.name: family for family in FAMILIES}
