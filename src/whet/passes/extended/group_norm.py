"""Group, instance and batch normalization from parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whet.graph import Node, Value
from whet.passes.base import PassContext, producer
from whet.passes.extended.norm_parts import (
    channels,
    filled,
    norm_type,
    normalized,
    over_root,
    per_channel,
    reduced_axes,
)
from whet.passes.pattern import Match, MatchFailure, Op, PatternPass, Scalar, Var, is_constant

x = Var("x")
GROUPED = Op("Reshape", (x, Var("grouped_shape")), name="group")
SPLIT_NORM = Op("InstanceNormalization", (GROUPED, Var("scale", is_constant), Var("bias", is_constant)), name="norm")


class FuseGroupNorm(PatternPass):
    """Channels reshaped into groups, each normalized, reshaped back (Wu and He, 2018).

    The groups are normalized by InstanceNormalization (torch's exporters) or by arithmetic; a scale and a bias for
    each channel that follow are absorbed by a later pass.
    """

    name = "group-norm"
    pattern = Op("Reshape", (SPLIT_NORM, Var("back_shape"))) | Op("Reshape", (normalized(GROUPED), Var("back_shape")))
    roots = pattern.roots()

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        data, grouped = found.value("x"), found.node("group").output
        dtype, count, groups = norm_type(data), channels(data), _groups(found)
        for problem in (dtype, count, groups, _shape_restored(found)):
            if isinstance(problem, MatchFailure):
                return problem
        assert isinstance(count, int)
        assert isinstance(groups, int)
        assert not isinstance(dtype, MatchFailure)
        if groups <= 0 or count % groups:
            return MatchFailure(f"{count} channels do not divide into {groups} groups")
        name = found.root.output.name
        if "norm" in found.bound:
            epsilon = found.node("norm").float_attr("epsilon", 1e-5)
            vectors = [found.value(key).array for key in ("scale", "bias")]
            if any(v is None or v.shape != (groups,) for v in vectors):
                return MatchFailure(f"scale or bias of {found.node('norm').label} is not one number a group")
            scale, bias = (
                Value.constant(context.model.names.fresh(f"{name}_{key}"), np.repeat(v, count // groups))
                for key, v in zip(("scale", "bias"), vectors, strict=True)
                if v is not None
            )
        else:
            axes, rank = reduced_axes(found, grouped), len(grouped.shape or ())
            if isinstance(axes, MatchFailure):
                return axes
            if rank < 3 or axes != tuple(range(2, rank)):
                return MatchFailure(f"axes {list(axes)} of {grouped.name} are not those after batch and group")
            epsilon = found.number("epsilon")
            scale = filled(context, f"{name}_scale", (count,), dtype, 1.0)
            bias = filled(context, f"{name}_bias", (count,), dtype, 0.0)
        attributes = {"epsilon": epsilon, "num_groups": groups, "stash_type": 1}
        return (Node("GroupNormalization", [data, scale, bias], [Value("")], attributes),)


class FuseInstanceNorm(PatternPass):
    """(x - mean(x)) / sqrt(variance(x) + epsilon) over all spatial axes of an image (Ulyanov et al., 2016)."""

    name = "instance-norm"
    pattern = normalized(x)
    roots = pattern.roots()

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        data = found.value("x")
        dtype, count, axes = norm_type(data), channels(data), reduced_axes(found, data)
        if isinstance(dtype, MatchFailure):
            return dtype
        if isinstance(axes, MatchFailure):
            return axes
        # One spatial axis is layer normalization's business: the formulas agree, and (batch, length, width) is common.
        if len(axes) < 2 or axes != tuple(range(2, len(data.shape or ()))):
            return MatchFailure(f"axes {list(axes)} of {data.name} are not its spatial ones", near=False)
        if isinstance(count, MatchFailure):
            return count
        name = found.root.output.name
        scale = filled(context, f"{name}_scale", (count,), dtype, 1.0)
        bias = filled(context, f"{name}_bias", (count,), dtype, 0.0)
        attributes = {"epsilon": found.number("epsilon")}
        return (Node("InstanceNormalization", [data, scale, bias], [Value("")], attributes),)


MEAN, SCALE, BIAS = Var("mean", is_constant), Var("scale", is_constant), Var("bias", is_constant)
CONSTANT_VARIANCE = Var("variance", is_constant) + Scalar("epsilon")


class FuseBatchNorm(PatternPass):
    """(x - mean) / sqrt(variance + epsilon) * scale + bias with constants for each channel (Ioffe and Szegedy, 2015).

    Where folding has already made one number of scale and root, variance is 1 and epsilon 0.
    """

    name = "batch-norm"
    common_shape = True
    pattern = (
        over_root((x - MEAN) * SCALE, CONSTANT_VARIANCE) + BIAS
        | (x - MEAN) * SCALE + BIAS
        | (x - MEAN) / Var("divisor", is_constant) * SCALE + BIAS
    )
    roots = pattern.roots()

    def replace(self, found: Match, context: PassContext) -> Sequence[Node] | MatchFailure:
        data = found.value("x")
        dtype, count = norm_type(data), channels(data)
        if isinstance(dtype, MatchFailure):
            return dtype
        if isinstance(count, MatchFailure):
            return count
        rank = len(data.shape or ())
        vectors = {}
        for key in ("scale", "bias", "mean", "variance", "divisor"):
            if key not in found.bound:
                continue
            vector = per_channel(found.value(key), rank, count)
            if vector is None:
                return MatchFailure(f"{key} ({found.value(key).name}) is not one constant a channel of {data.name}")
            vectors[key] = np.ascontiguousarray(vector)
        if not any(found.value(key).data.size > 1 for key in vectors):  # type: ignore[union-attr]
            return MatchFailure("the parameters are the same for all channels", near=False)
        if "divisor" in vectors:
            vectors["scale"] = vectors["scale"] / vectors.pop("divisor")
        vectors.setdefault("variance", np.ones(count, dtype.numpy))
        name = found.root.output.name
        parameters = [
            Value.constant(context.model.names.fresh(f"{name}_{key}"), vectors[key])
            for key in ("scale", "bias", "mean", "variance")
        ]
        epsilon = found.number("epsilon") if "epsilon" in found.bound else 0.0
        return (Node("BatchNormalization", [data, *parameters], [Value("")], {"epsilon": epsilon}),)


def _groups(found: Match) -> int | MatchFailure:
    """The group count, when the first reshape keeps the batch dimension and splits the channels."""
    data, node = found.value("x"), found.node("group")
    target, grouped = found.value("grouped_shape").array, node.output
    if target is None or target.size < 3:
        return MatchFailure(f"{node.label} has no constant shape of at least three dimensions")
    batch = data.shape[0] if data.shape else None
    copied = target[0] == 0 and not node.int_attr("allowzero", 0)
    same = batch is not None and (target[0] == batch or (grouped.shape is not None and grouped.shape[0] == batch))
    if not copied and not same:
        return MatchFailure(f"{node.label} is not known to keep the batch dimension")
    groups = int(target[1])
    return groups if groups > 0 else MatchFailure(f"{node.label} does not say how many groups")


def _shape_restored(found: Match) -> MatchFailure | None:
    """Whether the last reshape is known to restore the shape of `x`."""
    data, result, back = found.value("x"), found.root.output, found.value("back_shape")
    shape_node = producer(back, "Shape")
    if shape_node is not None and shape_node.inputs[0] is data and not shape_node.attributes:
        return None
    if data.shape is not None and None not in data.shape and result.shape == data.shape:
        return None
    return MatchFailure(f"{result.name} is not known to have the shape of {data.name}")
