"""Graph optimization levels: literal ordered lists of passes, and the function that runs them."""

from __future__ import annotations

from collections.abc import Mapping

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import InvalidArgument, did_you_mean
from whet.graph import Model
from whet.ops.base import Infer
from whet.ops.infer import NO_CUSTOM
from whet.passes.base import PassDriver, PassReport, Pipeline, Repeat
from whet.passes.basic.dead_code import DeadCode
from whet.passes.basic.fold import ConstantFolding
from whet.passes.basic.identity import NoOpRemoval
from whet.passes.basic.propagate import ShapePropagation

BASIC: Pipeline = (
    # Before types are inferred: nothing need be known of what nobody reads.
    DeadCode(),
    ShapePropagation(),
    # First among the rewrites: what it computes are the constants that the others look for.
    ConstantFolding(),
    DeadCode(),
    Repeat((NoOpRemoval(), ConstantFolding(), DeadCode())),
    ShapePropagation(),
)
"""Rewrites that are exact and hold for every provider."""

LEVELS: Mapping[str, Pipeline] = {
    "disabled": (ShapePropagation(),),
    "basic": BASIC,
    "extended": BASIC,
    "all": BASIC,
}
"""The pipeline of each graph optimization level. At `all`, providers add their own passes after partitioning."""


def optimize(
    model: Model,
    level: str = "all",
    *,
    limits: Limits = DEFAULT_LIMITS,
    stop_after: int | None = None,
    check_each_patch: bool = False,
    custom: Mapping[str, Infer] = NO_CUSTOM,
) -> PassReport:
    """Run the passes of `level` over `model` in place and report what they did.

    `stop_after` bounds the number of patches (to bisect a wrong result); `custom` infers a user's own operators. Raises
    InvalidArgument for an unknown level and InvalidGraph where types cannot be right.
    """
    pipeline = LEVELS.get(level)
    if pipeline is None:
        raise InvalidArgument(
            "unknown graph optimization level",
            found=level,
            expected=", ".join(LEVELS),
            hint=did_you_mean(level, LEVELS),
        )
    if custom:
        pipeline = tuple(ShapePropagation(custom) if isinstance(p, ShapePropagation) else p for p in pipeline)
    driver = PassDriver(model, limits, stop_after=stop_after, check_each_patch=check_each_patch)
    return driver.run(pipeline)
