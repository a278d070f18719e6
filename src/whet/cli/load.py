"""`whet load`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from rich.markup import escape

from whet.cli.output import Output, atomic_path, check_target, jsonable
from whet.errors import InvalidArgument
from whet.loadgen.plan import Arrivals, ModelLoad, Pace, Plan, Protocol, Target, Windows, parse_address
from whet.loadgen.report import COLUMNS, document, latency_document, milliseconds, row
from whet.loadgen.run import Result, make_mix, run

PORTS = {"http": 8000, "grpc": 8001}
OPEN_CONNECTIONS = 64
LATE_S = 0.002

Number = TypeVar("Number", int, float)


def load(
    out: Output, server: str, models: Sequence[str], protocol: Protocol, encoding: Literal["json", "binary"],
    connections: str, rates: str | None, arrivals: Arrivals, inputs: Sequence[str], shapes: Sequence[str], batch: int,
    warm_up_s: float, window_s: float, stability_percent: float, most_windows: int, timeout_s: float, processes: int,
    seed: int, output: Path | None,
) -> bool:  # fmt: skip
    """Measure every combination that was asked for. True when all requests were answered."""
    if output is not None:
        check_target(output)
    target = Target(*parse_address(server, PORTS[protocol]), protocol, encoding == "binary" or protocol == "grpc")
    mix_models = parse_models(models, inputs, shapes, batch, seed)
    many = numbers(connections, int, "--connections")
    paces = [Pace(count) for count in many]
    if rates is not None:
        # One connection would turn an open loop into a closed one.
        many = [OPEN_CONNECTIONS] if connections == "1" else many
        paces = [Pace(count, rate, arrivals) for count in many for rate in numbers(rates, float, "--rate")]
    windows = Windows(warm_up_s, window_s, most=most_windows, stability=stability_percent / 100)
    plans = [Plan(target, pace, windows, timeout_s, processes, seed) for pace in paces]
    for plan in plans:
        plan.check()
    names = [model.name for model in mix_models]
    mix = make_mix(target, mix_models, timeout_s)
    results = []
    with out.progress("load", len(plans) * most_windows) as step:
        for number, plan in enumerate(plans):
            pace = f"{plan.pace.connections} connections" + (f", {plan.pace.rate:g}/s" if plan.pace.rate else "")
            step.set(number * most_windows, pace)
            results.append(
                run(plan, mix, names, lambda rate, _, pace=pace: step.advance(f"{pace}: {rate:,.0f} requests/s"))  # type: ignore[misc]
            )
    found = {"server": server, "models": {m.name: m.weight for m in mix_models}, "batch": batch}
    found["results"] = [document(result) for result in results]
    _show(out, f"{', '.join(names)} at {server}, {protocol}, {'binary' if target.binary else 'JSON'}", results)
    out.result(found)
    if output is not None:
        with atomic_path(output) as temporary:
            temporary.write_text(json.dumps(jsonable(found), indent=1) + "\n")
    return not any(result.error_count for result in results)


def numbers(text: str, kind: Callable[[str], Number], option: str) -> list[Number]:
    """The numbers of `1,8,32`. Raises InvalidArgument."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidArgument(f"{option} takes numbers", found=text, expected="one, or several like 1,8,32") from error


def parse_models(
    models: Sequence[str], inputs: Sequence[str], shapes: Sequence[str], batch: int, seed: int
) -> list[ModelLoad]:
    """The mix that the options describe. Raises InvalidArgument."""
    weights: dict[str, float] = {}
    for text in models:
        name, equals, weight = text.partition("=")
        try:
            weights[name] = float(weight) if equals else 1.0
        except ValueError as error:
            raise InvalidArgument("a weight is no number", found=text, expected="NAME=WEIGHT") from error
        if not 0 < weights[name] < float("inf"):
            raise InvalidArgument("a weight is out of range", found=text, expected="more than 0")
    source = dict.fromkeys(weights, "random")
    for text in inputs:
        name, equals, where = text.partition("=")
        if equals and name in source:
            source[name] = where
        elif equals:
            raise InvalidArgument("--input names a model that is not in the mix", found=name, expected=list(weights))
        else:
            source = dict.fromkeys(weights, text)
    given: dict[str, tuple[int, ...]] = {}
    for text in shapes:
        name, _, extents = text.rpartition("=")
        try:
            given[name] = tuple(int(e) for e in extents.replace(",", "x").split("x"))
        except ValueError as error:
            raise InvalidArgument("a shape is wrong", found=text, expected="INPUT=1x3x224x224") from error
        if not name or min(given[name]) < 0:
            raise InvalidArgument("a shape is wrong", found=text, expected="INPUT=1x3x224x224")
    return [ModelLoad(name, weight, batch, source[name], given, seed=seed) for name, weight in weights.items()]


def _show(out: Output, title: str, results: Sequence[Result]) -> None:
    out.table(title, COLUMNS, [row(r) for r in results], right=range(len(COLUMNS)))
    out.text("Latencies in ms" + (", from the intended start." if results[0].plan.pace.rate else "."))
    for result in results:
        where = f"{result.plan.pace.connections} connections"
        if len(result.by_model) > 1:
            for name, latency in result.by_model.items():
                text = latency_document(latency)
                out.text(
                    f"{where}, {escape(name)}: {text['count']} requests, p50 {text['p50_ms']}, p99 {text['p99_ms']}"
                )
        for kind, count in result.errors.items():
            out.text(f"[red]{where}: {count} x {escape(kind)}[/]: {escape(result.details[kind])}")
        if result.plan.pace.rate is not None and result.backlog > result.plan.pace.connections:
            out.warn(f"{where}: {result.backlog} requests still waited at the end: the rate is more than is answered")
        if result.late.percentile(99) > LATE_S:
            out.warn(
                f"{where}: this tool itself started requests late (p99 {milliseconds(result.late.percentile(99))} ms): "
                "give it more processes, or a core of its own"
            )
