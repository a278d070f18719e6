"""`whet info`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from whet.cli.output import Output, format_bytes
from whet.cli.session import make_session, placement_document, placement_rows, session_options
from whet.errors import NotImplemented
from whet.graph import Model
from whet.session.config_keys import INERT_RUN_KEYS, INERT_SESSION_KEYS, RUN_KEYS, SESSION_KEYS
from whet.session.feeds import NodeArg, node_arg
from whet.session.options import RunOptions, SessionOptions
from whet.session.prepare import LoadSettings, load


def show_model(out: Output, model: Path, providers: list[str] | None, level: str) -> None:
    """Print what a model is and where its nodes would run."""
    loaded = load(str(model), LoadSettings(level="disabled"))
    placement, problem, memory = None, None, None
    try:
        session = make_session(model, providers, session_options(level))
        placement, rewritten, memory = session.placement, session.optimized_model, session.memory
    except NotImplemented as error:
        # A node that nobody runs must not hide what the model is.
        problem, rewritten = error, load(str(model), LoadSettings(level=session_options(level).level)).model
    graph = loaded.model.graph
    inputs, overridable, outputs = (
        [node_arg(v) for v in values]
        for values in (loaded.interface.inputs, loaded.interface.overridable, loaded.interface.outputs)
    )
    operators = Counter(node.op for node in graph.all_nodes())
    optimized = Counter(node.op for node in rewritten.graph.all_nodes())
    weights, weight_bytes = _weights(loaded.model)
    imports = loaded.model.opset_imports
    out.result(
        {
            "model": str(model),
            "file_bytes": model.stat().st_size,
            "producer": loaded.model.producer_name,
            "graph": graph.name,
            "ir_version": loaded.model.ir_version,
            "opsets": {domain or "ai.onnx": version for domain, version in imports.items()},
            "metadata": loaded.model.metadata,
            "inputs": [_argument(a) for a in inputs],
            "overridable_initializers": [_argument(a) for a in overridable],
            "outputs": [_argument(a) for a in outputs],
            "nodes": sum(operators.values()),
            "operators": dict(operators.most_common()),
            "weights": weights,
            "weight_bytes": weight_bytes,
            "level": level,
            "optimized_nodes": sum(optimized.values()),
            "optimized_operators": dict(optimized.most_common()),
            "placement": placement_document(placement) if placement is not None else None,
            "memory": None if memory is None else {**asdict(memory), "total": memory.total},
            "problem": str(problem) if problem is not None else None,
        }
    )
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(imports.items()))
    out.text(f"[bold]{escape(str(model))}[/]  {format_bytes(model.stat().st_size)}")
    out.text(
        f"producer {escape(loaded.model.producer_name or '?')}, IR {loaded.model.ir_version}, opset {escape(opsets)}"
    )
    out.text(f"{sum(operators.values())} nodes, {weights} weights in {format_bytes(weight_bytes)}")
    rows = [("input", a.name, a.type, _shape(a)) for a in inputs]
    rows += [("output", a.name, a.type, _shape(a)) for a in outputs]
    out.table("", ("", "name", "type", "shape"), rows)
    if overridable:
        out.text(f"{len(overridable)} initializers can be overridden by feeding them")
    counts = [
        (op, operators.get(op, 0) or "", optimized.get(op, 0) or "")
        for op in dict.fromkeys([*(o for o, _ in operators.most_common()), *(o for o, _ in optimized.most_common())])
    ]
    counts.append(("all", sum(operators.values()), sum(optimized.values())))
    out.table("Operators", ("operator", "in the file", f"at level {level}"), counts, right=(1, 2))
    if placement is not None:
        out.table("Placement", ("provider", "nodes", ""), placement_rows(placement), right=(1,))
        out.text(escape(placement.summary()))
        if memory is not None and memory.total:
            out.text(
                f"memory: weights {format_bytes(memory.weights)}, code {format_bytes(memory.code)}, tables "
                f"{format_bytes(memory.tables)}, arena {format_bytes(memory.arena) if memory.arena else 'by shape'}, "
                f"run contexts {format_bytes(memory.contexts)}"
            )
    else:
        out.warn(f"this model does not run here: {problem}")


def show_options(out: Output) -> None:
    """Print the session options and configuration keys, and which of them change nothing."""
    options = sorted(SessionOptions._fields)
    out.result(
        {
            "session_options": {name: name not in SessionOptions.INERT for name in options},
            "run_options": {name: name not in RunOptions.INERT for name in sorted(RunOptions._fields)},
            "session_keys": SESSION_KEYS,
            "session_keys_without_effect": sorted(INERT_SESSION_KEYS),
            "run_keys": RUN_KEYS,
            "run_keys_without_effect": sorted(INERT_RUN_KEYS),
        }
    )
    inert = [(name,) for name in options if name in SessionOptions.INERT]
    out.table("Session options", ("option",), [(n,) for n in options if n not in SessionOptions.INERT])
    out.table("Session options accepted without effect", ("option",), inert)
    out.table("Run options accepted without effect", ("option",), [(name,) for name in RunOptions.INERT])
    out.table("Session keys", ("key", "meaning"), list(SESSION_KEYS.items()))
    out.table("Run keys", ("key", "meaning"), list(RUN_KEYS.items()))
    silent = sorted(INERT_SESSION_KEYS | INERT_RUN_KEYS)
    out.table("Keys accepted without effect", ("key",), [(key,) for key in silent])


def _weights(model: Model) -> tuple[int, int]:
    constants = {id(v.data): v.data for g in model.graph.all_graphs() for v in g.constants() if v.data is not None}
    return len(constants), sum(data.nbytes for data in constants.values())


def _argument(argument: NodeArg) -> dict[str, object]:
    return {"name": argument.name, "type": argument.type, "shape": argument.shape}


def _shape(argument: NodeArg) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in argument.shape) + "]"
