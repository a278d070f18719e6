"""Fill the graphs of benchmarks/networks with weights: the same ones on every machine.

usage: python benchmarks/networks.py [--list] OUT_FOLDER [NAME ...]        (all of them, 3.2 GB, when none is named)

A graph keeps its small constants; each large weight is an empty tensor whose mean and standard deviation stand in the
model's metadata under "fill:<initializer>". Weights of convolutions are scaled to their fan-in instead, and their
biases shrunk, so that the signal reaches the output: answers depend on the input, and a wrong kernel shows. Times are
those of the trained network, for they do not depend on the weights' values; what the answers mean is lost.
"""

from __future__ import annotations

import argparse
import zlib
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx

FOLDER = Path(__file__).parent / "networks"
GAIN, GATED_GAIN, GATES = 1.8, 2.2, 10
"""Of convolutions, and of those in networks of SiLU and squeeze-excite, which shrink the signal more. A graph whose
metadata holds "fill-gain" says its own."""


def names() -> list[str]:
    """The networks that there are."""
    return sorted(path.stem for path in FOLDER.glob("*.onnx"))


def filled(folder: Path, name: str) -> Path:
    """The complete model in `folder`, written where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.onnx"
    if not target.exists():
        unfinished = folder / f"{name}.unfinished"
        fill(FOLDER / f"{name}.onnx", unfinished)
        unfinished.replace(target)
    return target


def fill(source: Path, target: Path) -> None:
    """Write the model `source` with weights to `target`."""
    model = onnx.load(source)
    rules = {p.key.removeprefix("fill:"): p.value for p in model.metadata_props if p.key.startswith("fill:")}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    weights = {node.input[1] for node in convolutions}
    biases = {node.input[2] for node in convolutions if len(node.input) > 2}
    usual = GATED_GAIN if sum(node.op_type == "Sigmoid" for node in model.graph.node) > GATES else GAIN
    gain = next((float(p.value) for p in model.metadata_props if p.key == "fill-gain"), usual)
    for tensor in model.graph.initializer:
        values = _values(tensor, rules, weights, biases, gain)
        if values is not None:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    others = [entry for entry in model.metadata_props if not entry.key.startswith(("fill:", "fill-"))]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    onnx.save(model, target)


def _values(tensor: Any, rules: dict[str, str], weights: set[str], biases: set[str], gain: float) -> Any:
    """The numbers of an initializer, or None where it keeps its own."""
    shape = tuple(tensor.dims)
    known = None if tensor.name in rules else onnx.numpy_helper.to_array(tensor)
    if tensor.name in biases:
        return np.zeros(shape) if known is None else 0.1 * known
    if tensor.name not in rules and tensor.name not in weights:
        return None
    if known is None:
        known = np.random.default_rng(zlib.crc32(tensor.name.encode())).standard_normal(shape, dtype=np.float32)
    if tensor.name in weights:
        return known * (np.float64(gain / prod(shape[1:])) ** 0.5 / (known.std() + 1e-12))
    mean, deviation = map(float, rules[tensor.name].split(","))
    return known * deviation + mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the networks")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    known = names()
    unknown = sorted(set(arguments.names) - set(known))
    if unknown or (arguments.folder is None and not arguments.list):
        parser.error(f"there are: {', '.join(known)}" if unknown else "name a folder for the models")
    if arguments.list:
        print("\n".join(known))
        return
    for name in arguments.names or known:
        print(filled(arguments.folder, name), flush=True)


if __name__ == "__main__":
    main()
