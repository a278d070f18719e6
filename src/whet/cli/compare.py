"""`whet compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape

from whet.cli.inputs import ImageSettings, read_feed
from whet.cli.output import Output
from whet.cli.session import LEVEL_OPTIONS, make_session, session_options
from whet.errors import InvalidArgument
from whet.providers.base import Level
from whet.providers.reference.random import draws
from whet.session.prepare import LoadSettings
from whet.session.provider_list import normalize
from whet.verify.compare import Difference, compare_all
from whet.verify.levels import bisect_nodes, bisect_patches, providers_of, reference_outputs


def compare(
    out: Output, first: Path, second: Path | None, inputs: list[str], dims: list[str], providers: list[str] | None,
    against: list[str] | None, level: str, seed: int, batch: int | None, tolerance: float, bisect: bool,
) -> bool:  # fmt: skip
    """Compare outputs; returns whether they agree within the tolerance."""
    if bisect and second is not None:
        raise InvalidArgument("--bisect works on one model: two graphs have no nodes in common")
    if bisect and against:
        raise InvalidArgument("--bisect compares with the unoptimized graph in float64: leave --against out")
    session = make_session(first, providers, session_options(level))
    feed, drawn = read_feed(session.interface, inputs, dims, seed, batch, ImageSettings())
    actual = session.run(None, feed)
    names = [a.name for a in session.get_outputs()]
    expected, label = _expected(second or first, against, level, feed, second is not None, names)
    random = next((node for node in session.optimized_model.graph.all_nodes() if draws(node)), None)
    if random is not None:
        out.warn(f"{random.label} draws random numbers: the answers differ by chance")
    if len(names) != len(expected):
        raise InvalidArgument("the models have different numbers of outputs", found=len(names), expected=len(expected))
    differences = compare_all(names, actual, expected, same_type=second is not None or bool(against))
    same = all(d.within(tolerance) for d in differences)
    document: dict[str, Any] = {
        "first": str(first),
        "second": str(second) if second else None,
        "against": label,
        "tolerance": tolerance,
        "random_inputs": drawn,
        "outputs": [_row(d, tolerance) for d in differences],
        "same": same,
    }
    out.text(f"{escape(str(first))} at level {level} against {escape(label)}")
    rows = [
        (d.name, f"{d.max_abs:.3g}", f"{d.value_range:.3g}", f"{d.error:.3g}", d.problem or _verdict(d, tolerance))
        for d in differences
    ]
    out.table("", ("output", "largest difference", "range", "of range", ""), rows, right=(1, 2, 3))
    if bisect and not same:
        document["bisect"] = _bisect(out, first, feed, providers, level, tolerance)
    out.result(document)
    return same


def _expected(
    model: Path, against: list[str] | None, level: str, feed: dict[str, Any], other_model: bool, names: list[str]
) -> tuple[list[Any], str]:
    """The outputs to compare with, in the order of `names` where the models name them alike, and what they are."""
    if against or other_model:
        session = make_session(model, against, session_options(level))
        alike = {a.name for a in session.get_outputs()} == set(names)
        return session.run(names if alike else None, feed), f"{model} on {', '.join(session.get_providers())}"
    return reference_outputs(str(model), feed, float64=True), "the unoptimized graph in float64"


def _bisect(
    out: Output, model: Path, feed: dict[str, Any], providers: list[str] | None, level: str, tolerance: float
) -> dict[str, Any]:
    assert level in LEVEL_OPTIONS
    name: Level = level  # type: ignore[assignment]
    with out.progress("bisecting the passes"):
        patch = bisect_patches(str(model), feed, name, tolerance=tolerance)
    if patch is not None:
        made = escape(", ".join(patch.nodes) or "no new node")
        out.text(f"[bold]pass {escape(patch.rewrite)}[/], patch {patch.patch}: {made}")
        out.text(f"after it {escape(patch.difference.name)} differs by {patch.difference.error:.3g} of its range")
        return {
            "pass": patch.rewrite,
            "patch": patch.patch,
            "nodes": list(patch.nodes),
            **_row(patch.difference, tolerance),
        }
    out.text("the passes keep the answers: looking for the node")
    with out.progress("comparing every value"):
        actual = providers_of(normalize(providers, None))
        node = bisect_nodes(str(model), feed, actual, level=name, tolerance=tolerance, settings=LoadSettings())
    if node is None:
        out.text("no single value differs by more than the tolerance: rounding adds up over the model")
        return {"pass": None, "node": None}
    out.text(
        f"[bold]node {escape(node.node)}[/]: {escape(node.value)} differs by {node.difference.error:.3g} of its range"
    )
    return {"pass": None, "node": node.node, **_row(node.difference, tolerance)}


def _row(difference: Difference, tolerance: float) -> dict[str, Any]:
    return {
        "output": difference.name,
        "max_abs": difference.max_abs,
        "range": difference.value_range,
        "error": difference.error,
        "problem": difference.problem,
        "same": difference.within(tolerance),
    }


def _verdict(difference: Difference, tolerance: float) -> str:
    return "same" if difference.within(tolerance) else "DIFFERENT"
