"""One fuzz case: load a mutant, run it, and say whether that ended as it may."""

from __future__ import annotations

import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import whet
from whet.errors import WhetError

from . import model_bytes, model_graphs
from .seeds import feeds_for

KINDS: dict[str, Callable[[int], bytes]] = {"bytes": model_bytes.mutate, "graphs": model_graphs.mutate}

RUN_SECONDS = 3.0  # then the run is asked to terminate, as a mutated Loop may turn for ever


@dataclass(frozen=True)
class Outcome:
    """`status` is "ran", "loaded" (no feeds were made), "refused" (a typed error) or "wrong"; `detail` says more."""

    kind: str
    seed: int
    status: str
    detail: str


def run_case(kind: str, seed: int) -> Outcome:
    """Loads and runs the mutant; never raises."""
    content = KINDS[kind](seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a warning is a fair answer to a strange model
            status, detail = _load_and_run(content, seed)
    except WhetError as error:
        status, detail = _judge(error)
    except BaseException:
        status, detail = "wrong", traceback.format_exc()
    return Outcome(kind, seed, status, detail)


def _load_and_run(content: bytes, seed: int) -> tuple[str, str]:
    options = whet.SessionOptions()
    levels = whet.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if seed % 4 else levels.ORT_DISABLE_ALL
    session = whet.InferenceSession(content, options, providers=["ReferenceExecutionProvider"])
    feeds = feeds_for(session.get_inputs(), seed)
    if feeds is None:
        return "loaded", ""
    run_options = whet.RunOptions()
    timer = threading.Timer(RUN_SECONDS, setattr, (run_options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        with np.errstate(all="ignore"):
            outputs = session.run(None, feeds, run_options)
    finally:
        timer.cancel()
    if len(outputs) != len(session.get_outputs()):
        return "wrong", f"{len(outputs)} outputs instead of {len(session.get_outputs())}"
    strange = [type(output).__name__ for output in outputs if not isinstance(output, np.ndarray | list | dict | None)]
    return ("wrong", f"outputs of type {strange}") if strange else ("ran", "")


def _judge(error: WhetError) -> tuple[str, str]:
    """A typed error is right if it says something; its text must be printable and bounded."""
    text = str(error)
    if not text.strip() or len(text) > 10_000:
        return "wrong", f"a {type(error).__name__} with {len(text)} characters of text"
    return "refused", f"{type(error).__name__}: {text}"
