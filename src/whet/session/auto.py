"""providers="auto": measure the installed providers on this model and this machine, keep the fastest right one."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ml_dtypes
import numpy as np

from whet.errors import EPFail, Terminated, WhetError
from whet.graph import Dim, Expr, Model, TensorType, Value
from whet.providers import catalog
from whet.providers.partition import Placement
from whet.providers.reference.random import draws
from whet.session.options import GraphOptimizationLevel, RunOptions, SessionOptions
from whet.session.prepare import Interface
from whet.session.random_inputs import random_inputs

Verdict = Literal["chosen", "right", "wrong", "failed"]

TOLERANCE = 1e-4
"""Largest error that counts as right, as a fraction of each output's own range."""
ROUNDING_SCALE = 1e5
"""How many roundings a range counts for at least: within TOLERANCE, ten roundings are right."""
REFERENCE_SECONDS = 5.0
"""A reference run that takes longer than this is stopped; candidates are then compared with each other."""
CANDIDATE_SECONDS = 60.0
"""A candidate whose first run takes longer than this has failed."""
MEASURE_SECONDS = 0.5
"""Time given to the timed runs of a candidate."""
EXTENTS = (1, 16, 512)
"""Sizes of free dimensions, tried in turn until the reference runs the model."""
LEAST_RUNS = 5
MOST_RUNS = 100


@dataclass(frozen=True, slots=True)
class AutoRow:
    """One candidate: the median of its timed runs, its largest error, and what became of it.

    `max_error` is a fraction of the output's range (None when there was nothing to compare with, or no run);
    `error` is what went wrong, for `failed` and `wrong`.
    """

    name: str
    median_ms: float | None
    max_error: float | None
    verdict: Verdict
    error: str | None = None


@dataclass(frozen=True, slots=True)
class AutoReport:
    """What `providers="auto"` measured. `compared_with` names what the answers were checked against."""

    rows: tuple[AutoRow, ...]
    compared_with: str

    @property
    def chosen(self) -> str:
        """The name of the candidate that was kept."""
        return next(row.name for row in self.rows if row.verdict == "chosen")


@dataclass(slots=True)
class _Measured:
    name: str
    outputs: list[Any]
    median_ms: float


class Candidate(Protocol):
    """What is measured of a session."""

    @property
    def interface(self) -> Interface: ...

    @property
    def optimized_model(self) -> Model: ...

    @property
    def placement(self) -> Placement: ...

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: RunOptions | None = None
    ) -> list[Any]: ...


MakeSession = Callable[[SessionOptions, list[str]], Candidate]


def choose_providers(options: SessionOptions, make_session: MakeSession) -> tuple[list[str], AutoReport]:
    """The providers for a session with `options`, and the measurements behind that choice.

    `make_session` makes a session of the model for other options and providers.

    Every installed candidate runs the model on the same random inputs (free dimensions are small unless `options`
    override them). Its answers must match those of the reference provider on the unoptimized model. Raises EPFail, with
    every candidate's error, when none can run the model or none is right.
    """
    candidates = [e.name for e in catalog.CATALOG if e.name != catalog.REFERENCE and catalog.is_installed(e)]
    expected, feed, compared_with = _reference(options, make_session)
    measured: list[_Measured] = []
    failed: dict[str, str] = {}
    for name in candidates:
        try:
            measured.append(_measure(name, make_session(_options(options), [name]), feed))
        except WhetError as error:
            failed[name] = str(error)
    errors: dict[str, float | None]
    if expected is not None:
        errors = {m.name: _error(m.outputs, expected) for m in measured}
    elif compared_with.startswith("nothing"):
        errors = {m.name: None for m in measured}
    else:
        errors = _mutual_errors(measured)
    right = [m for m in measured if (errors[m.name] or 0.0) <= TOLERANCE]
    rows = _rows(candidates, measured, failed, errors, min(right, key=lambda m: m.median_ms, default=None))
    if not right:
        raise EPFail(
            "no installed execution provider runs this model rightly",
            found="; ".join(f"{row.name}: {row.error}" for row in rows),
            hint="Name providers to use one of them all the same.",
        )
    report = AutoReport(rows, compared_with)
    return [report.chosen], report


def _rows(
    candidates: Sequence[str],
    measured: Sequence[_Measured],
    failed: Mapping[str, str],
    errors: Mapping[str, float | None],
    best: _Measured | None,
) -> tuple[AutoRow, ...]:
    by_name = {m.name: m for m in measured}
    rows = []
    for name in candidates:
        if name in failed:
            rows.append(AutoRow(name, None, None, "failed", failed[name]))
            continue
        error = errors[name]
        if (error or 0.0) > TOLERANCE:
            text = f"its answers differ by {error:.3g} of the output's range; at most {TOLERANCE:g} is right"
            rows.append(AutoRow(name, by_name[name].median_ms, error, "wrong", text))
        else:
            chosen = best is not None and best.name == name
            rows.append(AutoRow(name, by_name[name].median_ms, error, "chosen" if chosen else "right"))
    return tuple(rows)


def _reference(options: SessionOptions, make_session: MakeSession) -> tuple[list[Any] | None, dict[str, Any], str]:
    """The reference's answers on the unoptimized model (or None), the inputs, and what to compare with."""
    plain = make_session(_options(options, GraphOptimizationLevel.ORT_DISABLE_ALL), [catalog.REFERENCE])
    inputs = plain.interface.inputs
    has_free = any(not isinstance(d, int) for v in inputs for d in v.shape or ())
    nodes = plain.optimized_model.graph.all_nodes()
    random = any(draws(node) for node in nodes)
    for extent in EXTENTS:
        feed = random_inputs([_sized(value, extent) for value in inputs])
        try:
            outputs = plain.run(None, feed, _limited(REFERENCE_SECONDS))
        except Terminated:
            return None, feed, "each other: the reference takes too long"
        except WhetError as error:
            # Some models need more than one sample, say to pad or to frame it.
            if extent != EXTENTS[-1] and has_free:
                continue
            raise EPFail(
                "no random inputs were found that this model runs on, so providers cannot be measured",
                found=str(error),
                hint="Name the providers, or fix its free dimensions (add_free_dimension_override_by_name).",
            ) from error
        if random:
            return None, feed, "nothing: the model draws random numbers"
        return outputs, feed, catalog.REFERENCE
    raise AssertionError("EXTENTS is not empty")


def _sized(value: Value, extent: int) -> Value:
    """The input with every free dimension at one size."""
    if not isinstance(value.type, TensorType) or value.type.shape is None:
        return value
    shape: list[Dim] = []
    for dim in value.type.shape:
        fixed = dim.substitute(dict.fromkeys(dim.names(), extent)) if isinstance(dim, Expr) else dim
        shape.append(extent if fixed is None else fixed)
    return Value(value.name, TensorType(value.type.dtype, tuple(shape)))


def _limited(seconds: float) -> RunOptions:
    limited = RunOptions()
    limited.add_run_config_entry("deadline_ms", str(int(seconds * 1000)))
    return limited


def _options(options: SessionOptions, level: GraphOptimizationLevel | None = None) -> SessionOptions:
    """The caller's options for a session that only measures: it writes no files."""
    own = copy.copy(options)
    own.enable_profiling = False
    own.optimized_model_filepath = ""
    if level is not None:
        own.graph_optimization_level = level
    return own


def _measure(name: str, session: Candidate, feed: Mapping[str, Any]) -> _Measured:
    placed = session.placement.by_provider
    # Of a model of which it runs nothing, only the reference provider's time would be measured.
    if placed and name not in placed and name != catalog.CPU:
        raise EPFail("the provider runs none of the model's nodes", found=session.placement.summary())
    outputs = session.run(None, feed, _limited(CANDIDATE_SECONDS))
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and time.perf_counter() - started < MEASURE_SECONDS):
        before = time.perf_counter()
        session.run(None, feed)
        times.append((time.perf_counter() - before) * 1e3)
        # A model of minutes is not run five times over.
        if time.perf_counter() - started > 10 * MEASURE_SECONDS:
            break
    return _Measured(name, outputs, statistics.median(times))


def _mutual_errors(measured: Sequence[_Measured]) -> dict[str, float | None]:
    """For each candidate the distance to its nearest other one: two that agree are taken to be right."""
    return {
        m.name: min((_error(m.outputs, other.outputs) for other in measured if other is not m), default=None)
        for m in measured
    }


def _error(found: Any, expected: Any) -> float:
    """The largest difference, as a fraction of the range of `expected`; infinite where types or shapes differ."""
    if isinstance(expected, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(expected):
            return math.inf
        return max((_error(f, e) for f, e in zip(found, expected, strict=True)), default=0.0)
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return math.inf
        return max((_error(found[k], expected[k]) for k in expected), default=0.0)
    if expected is None or found is None:
        return 0.0 if found is expected else math.inf
    f, e = np.asarray(found), np.asarray(expected)
    if f.shape != e.shape or f.dtype != e.dtype:
        return math.inf
    if e.dtype.kind not in "fcV" or e.dtype.names is not None:
        return 0.0 if bool((f == e).all()) else math.inf
    epsilon = float(ml_dtypes.finfo(f.real.dtype).eps)  # type: ignore[no-untyped-call]
    wide = np.complex128 if e.dtype.kind == "c" else np.float64
    f, e = f.astype(wide), e.astype(wide)
    same = (f == e) | (np.isnan(f) & np.isnan(e))
    if bool(same.all()):
        return 0.0
    if not bool(np.isfinite(f[~same]).all() and np.isfinite(e[~same]).all()):
        return math.inf
    finite = e[np.isfinite(e)]
    if not finite.size:
        return math.inf
    magnitude = float(np.abs(finite).max())
    span = float(max(np.ptp(finite.real), np.ptp(finite.imag)))
    # A constant has no range of its own, and no output is right beyond the rounding of its element type.
    extent = max(span or magnitude, magnitude * ROUNDING_SCALE * epsilon)
    return float(np.abs(f[~same] - e[~same]).max()) / extent if extent else math.inf
