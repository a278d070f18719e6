"""Level `extended`: the semantic fusions, which raise parts of a graph to the standard operator that they compute."""

from __future__ import annotations

from whet.passes.base import Pass

EXTENDED_PASSES: tuple[Pass, ...] = ()
"""The fusions in the order in which they run."""
