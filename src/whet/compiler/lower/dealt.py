"""How a step's tiles are dealt out to threads: the next step reads what its own thread has written, where it can.

What another core has written, or read since, is slow to get and slow to write again: a thread that keeps to some
channels of an image finds them in its own cache.
"""

from __future__ import annotations

from whet.compiler.lowering import Lowering
from whet.compiler.step import Step
from whet.compiler.views import View
from whet.kernels.chain import Chain
from whet.kernels.gemm import Gemm

LEAST_PARTS = 2
"""Of a thread: with fewer, its share of the channels is hardly what it has written."""


def dealt_by_columns(ctx: Lowering, view: View, parts: int) -> bool:
    """Whether a step over all pixels of a view whose channels it takes in so many `parts` suits threads that have
    written some channels of all pixels each, rather than all channels of some pixels."""
    if parts < LEAST_PARTS * ctx.env.threads:
        return False
    for row in reversed(ctx.rows):
        if isinstance(row, Step) and view.buffer in row.writes:
            spec = row.spec
            if isinstance(spec, Gemm):
                return spec.n is not None and not spec.batch and spec.n > spec.width(ctx.target) * spec.panels
            return isinstance(spec, Chain) and spec.channels > spec.width(ctx.target) * spec.shape.panels
    return False
