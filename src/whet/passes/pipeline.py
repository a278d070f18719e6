"""Graph optimization levels: literal ordered lists of passes, and the function that runs them."""

from __future__ import annotations

from collections.abc import Mapping

from whet.config import DEFAULT_LIMITS, Limits
from whet.errors import InvalidArgument, did_you_mean
from whet.graph import Model
from whet.ops.base import Infer
from whet.ops.infer import NO_CUSTOM
from whet.passes.base import Pass, PassDriver, PassReport, Pipeline, Repeat
from whet.passes.basic.branches import BranchInlining
from whet.passes.basic.conv_fold import BatchNormFolding, ScaleFolding
from whet.passes.basic.cse import CommonSubexpressions, ConstantMerging
from whet.passes.basic.dead_code import DeadCode
from whet.passes.basic.fold import ConstantFolding
from whet.passes.basic.identity import NoOpRemoval
from whet.passes.basic.matmul_fold import MatMulAddToGemm, TransposeIntoGemm
from whet.passes.basic.pad_fold import PadFolding
from whet.passes.basic.pairs import RedundantPairs
from whet.passes.basic.propagate import ShapePropagation
from whet.passes.basic.shape_arithmetic import ShapeArithmetic
from whet.passes.basic.targets import ConstantTargets
from whet.passes.basic.type_check import TypeCheck
from whet.passes.extended import EXTENDED_PASSES

CLEANUP: tuple[Pass, ...] = (ConstantMerging(), CommonSubexpressions(), NoOpRemoval(), ConstantFolding(), DeadCode())
"""What tidies up after other rewrites."""

BASIC: Pipeline = (
    # Before types are inferred: nothing need be known of what nobody reads.
    DeadCode(),
    ShapePropagation(),
    # Before any rewrite: they may rely on an operand's type.
    TypeCheck(),
    # First among the rewrites: what it computes are the constants that the others look for.
    ConstantFolding(),
    # After folding, which makes conditions known, and before all that stops at the border of a subgraph.
    BranchInlining(),
    # Most of what an exporter writes is shape arithmetic that folding has just freed: later passes see a third of it.
    DeadCode(),
    Repeat(
        (
            BranchInlining(),
            # Identities hide producers from every pattern, so they go before the patterns.
            NoOpRemoval(),
            RedundantPairs(),
            # After the pairs, which bring a Reshape nearer to the value whose extents it copies.
            ConstantTargets(),
            # Equal constants first: nodes are equal only when they read the very same values.
            ConstantMerging(),
            CommonSubexpressions(),
            # Pads join their convolution before its other neighbours do: they look at the convolution's only reader.
            PadFolding(),
            BatchNormFolding(),
            ScaleFolding(),
            TransposeIntoGemm(),
            MatMulAddToGemm(),
            ConstantFolding(),
            DeadCode(),
        )
    ),
    # Once, when no shape arithmetic folds any more: what is left is rewritten as a whole.
    ShapeArithmetic(),
    DeadCode(),
    # Types that rewrites have made better known than the passes between them needed.
    ShapePropagation(),
)
"""Rewrites that are exact (or round once, where weights are folded) and hold for every provider."""

EXTENDED: Pipeline = (
    *BASIC,
    *EXTENDED_PASSES,
    # Fusions leave constants, views and parts behind.
    ShapePropagation(),
    Repeat(CLEANUP),
)
"""The basic level, then the semantic fusions."""

LEVELS: Mapping[str, Pipeline] = {
    "disabled": (ShapePropagation(), TypeCheck()),
    "basic": BASIC,
    "extended": EXTENDED,
    "all": EXTENDED,
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
    disabled: frozenset[str] = frozenset(),
) -> PassReport:
    """Run the passes of `level` over `model` in place and report what they did.

    `stop_after` bounds the number of patches (to bisect a wrong result); `custom` infers a user's own operators;
    `disabled` names passes to leave out. Raises InvalidArgument for an unknown level or pass name and InvalidGraph
    where types cannot be right.
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
    if disabled:
        pipeline = without(pipeline, disabled)
    driver = PassDriver(model, limits, stop_after=stop_after, check_each_patch=check_each_patch)
    return driver.run(pipeline)


def without(pipeline: Pipeline, disabled: frozenset[str]) -> Pipeline:
    """The pipeline less the passes named in `disabled`. Raises InvalidArgument for a name that no pass has."""
    known = {p.name for level in LEVELS.values() for entry in level for p in _passes(entry)}
    for name in disabled:
        if name not in known:
            raise InvalidArgument("no pass has this name", found=name, hint=did_you_mean(name, known))
    kept: list[Pass | Repeat] = []
    for entry in pipeline:
        if isinstance(entry, Repeat):
            kept.append(Repeat(tuple(p for p in entry.passes if p.name not in disabled)))
        elif entry.name not in disabled:
            kept.append(entry)
    return kept


def _passes(entry: Pass | Repeat) -> tuple[Pass, ...]:
    return entry.passes if isinstance(entry, Repeat) else (entry,)
