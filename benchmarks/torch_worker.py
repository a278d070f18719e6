"""torch.compile (Inductor, frozen weights, float32) as an engine of `zoo.py`, in an environment of its own.

usage: PYTHON benchmarks/torch_worker.py MODEL FEED RESULTS THREADS        (the protocol of whet.bench.worker)

The environment is that of `export_networks.py`, with transformers==5.24.0, and a C++ compiler. The network is made from
timm's or transformers' code by the name of MODEL, with random weights: its times can be compared, its answers cannot.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP_RUNS = 3
_KEPT: list[Any] = []


def timm_network(name: str) -> Any:
    import timm

    return timm.create_model(name, pretrained=False)


def bert(name: str) -> Any:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(return_dict=False), add_pooling_layer=False)


NETWORKS: dict[str, Callable[[str], Any]] = {
    "resnet50": timm_network,
    "vit_base_patch16_224": timm_network,
    "resnet18": timm_network,
    "mobilenetv3_large_100": timm_network,
    "convnext_tiny": timm_network,
    "regnety_004": timm_network,
    "regnety_008": timm_network,
    "bert_base": bert,
}
"""How each is made, by the model's name."""


def load(model: str, feed_path: str, threads: int) -> Callable[[], Any]:
    import numpy as np
    import torch

    # torchvision's wheel is built for another torch. It is only imported, by timm, transformers and Inductor.
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEPT.append(library)  # what goes away takes its operators with it
    import torch._inductor.config

    if threads:
        torch.set_num_threads(threads)
    torch._inductor.config.freezing = True
    name = Path(model).stem
    network = NETWORKS[name](name).eval()
    with np.load(feed_path) as stored:
        tree = json.loads(bytes(stored["__tree__"]).decode())
        feed = {key: torch.from_numpy(stored[entry["key"]]) for key, entry in tree.items()}
    given: tuple[Any, ...] = ()
    if NETWORKS[name] is timm_network:
        given, feed = tuple(feed.values()), {}
    compiled = torch.compile(network)

    def run() -> Any:
        with torch.inference_mode():
            return compiled(*given, **feed)

    return run


def precision() -> str:
    """What products are computed in: Inductor may use narrower numbers only where this says so."""
    import torch

    settings = (torch.get_float32_matmul_precision(), torch.get_default_dtype())
    return "float32" if settings == ("highest", torch.float32) else f"{settings}"


def main() -> int:
    model, feed_path, _, threads = sys.argv[1:]
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        import torch

        torch.manual_seed(0)
        started = time.perf_counter()
        run = load(model, feed_path, int(threads))
        loaded = time.perf_counter()
        run()
        first = time.perf_counter()
        for _ in range(WARM_UP_RUNS):
            run()
        facts = {"version": str(torch.__version__), "precision": precision()}
    except Exception as error:  # reported to the parent, which names the engine
        say({"error": f"{type(error).__name__}: {error}"})
        return 1
    say({"load_s": loaded - started, "first_run_s": first - loaded, **facts})
    for line in sys.stdin:
        timings = []
        for _ in range(int(json.loads(line)["runs"])):
            begin = time.perf_counter()
            run()
            timings.append(time.perf_counter() - begin)
        say({"timings_s": timings})
    return 0


if __name__ == "__main__":
    sys.exit(main())
