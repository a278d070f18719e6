"""`whet run`."""

from __future__ import annotations

import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape

from whet.bench.feed_file import save_values
from whet.cli.inputs import ImageSettings, read_feed
from whet.cli.output import Output, atomic_path, check_target
from whet.cli.session import make_session, placement_document, session_options
from whet.errors import InvalidArgument


def run(
    out: Output, model: Path, inputs: list[str], dims: list[str], providers: list[str] | None, level: str, seed: int,
    batch: int | None, threads: int, output: Path | None, profile: Path | None, image: ImageSettings,
) -> None:  # fmt: skip
    """Run once; summarize the outputs, and save them when asked."""
    options = session_options(level, threads)
    if output is not None and output.suffix:
        if output.suffix != ".npz":
            raise InvalidArgument(
                "outputs are saved as one .npz file or into a folder", file=str(output), found=output.suffix
            )
        check_target(output)
    if profile is not None:
        check_target(profile)
        options.enable_profiling = True
        # Beside its target, so that it can take that name in one step.
        options.profile_file_prefix = str(profile.parent / ".whet-profile-")
    session = make_session(model, providers, options)
    try:
        feed, drawn = read_feed(session.interface, inputs, dims, seed, batch, image)
        started = time.perf_counter()
        results = session.run(None, feed)
        elapsed_ms = (time.perf_counter() - started) * 1e3
    except BaseException:
        if profile is not None:
            os.unlink(session.end_profiling())
        raise
    if profile is not None:
        os.replace(session.end_profiling(), profile)
    names = [a.name for a in session.get_outputs()]
    outputs = dict(zip(names, results, strict=True))
    if output is not None:
        _save(output, outputs)
    out.result(
        {
            "model": str(model),
            "random_inputs": drawn,
            "inputs": {name: _describe(value) for name, value in feed.items()},
            "outputs": {name: _describe(value) for name, value in outputs.items()},
            "run_ms": elapsed_ms,
            "placement": placement_document(session.placement),
            "saved": str(output) if output is not None else None,
        }
    )
    if drawn:
        out.text(f"random inputs (seed {seed}): {escape(', '.join(drawn))}")
    rows = []
    for name, value in outputs.items():
        d = _describe(value)
        rows.append((name, d["type"], d.get("min", ""), d.get("max", ""), d.get("mean", ""), d["first"]))
    out.table("Outputs", ("name", "type", "min", "max", "mean", "first elements"), rows, right=(2, 3, 4))
    out.text(f"{elapsed_ms:.2f} ms for this first run; {escape(session.placement.summary())}")
    if output is not None:
        out.text(f"saved to {escape(str(output))}")


def _describe(value: Any) -> dict[str, Any]:
    if isinstance(value, np.ndarray):
        d: dict[str, Any] = {"type": f"{value.dtype}[{','.join(map(str, value.shape))}]", "first": _first(value)}
        if value.size and value.dtype.kind not in "OUSc":
            numbers = value.astype(np.float64)
            finite = numbers[np.isfinite(numbers)]
            if finite.size:
                for name, statistic in (("min", finite.min()), ("max", finite.max()), ("mean", finite.mean())):
                    d[name] = f"{float(statistic):.6g}"
            if finite.size < numbers.size:
                d["not_finite"] = int(numbers.size - finite.size)
        return d
    if isinstance(value, list):
        return {"type": f"sequence of {len(value)}", "first": "; ".join(_describe(v)["first"] for v in value[:2])}
    if isinstance(value, dict):
        return {"type": f"map of {len(value)}", "first": ", ".join(f"{k}: {v}" for k, v in list(value.items())[:4])}
    return {"type": "nothing", "first": ""}


def _first(array: np.ndarray[Any, Any]) -> str:
    shown = [str(x) if array.dtype.kind in "OUSbiu" else f"{x:.6g}" for x in array.ravel()[:6].tolist()]
    return ", ".join(shown) + (", ..." if array.size > 6 else "")


def _save(path: Path, outputs: dict[str, Any]) -> None:
    if path.suffix:
        with atomic_path(path) as temporary:
            if all(isinstance(v, np.ndarray) and v.dtype.kind not in "OV" for v in outputs.values()):
                _save_arrays(temporary, outputs)
            else:
                save_values(temporary, outputs)
        return
    for name, value in outputs.items():
        if not isinstance(value, np.ndarray) or value.dtype.kind in "OV":
            raise InvalidArgument(
                "only numeric tensors can be saved as .npy", value=name, hint="Give -o a name that ends in .npz."
            )
    path.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for index, (name, value) in enumerate(outputs.items()):
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)[:100]
        # Two names may look alike once their odd characters are gone, or on a disk that ignores case.
        if not safe or safe.lower() in taken:
            safe = f"{safe}_{index}"
        taken.add(safe.lower())
        with atomic_path(path / f"{safe}.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, value)


def _save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """An .npz file. `np.savez` would take an output called `file` for its own argument."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, value in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, value, allow_pickle=False)
