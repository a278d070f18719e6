"""`whet demo`: two small trained models on handwritten digits, live."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from whet.cli.optimize import optimize
from whet.cli.output import Output
from whet.demo import MODEL_NAMES, held_out_digits, model_path
from whet.runtime.values import Array
from whet.session.inference_session import InferenceSession

SHADES = " .:-=+*#%@"
SHOWN = 8
BATCH = 50


def demo(out: Output, output: Path | None, rounds: int) -> None:
    """Classify the held-out digits with each model, show the accuracy, then optimize each model."""
    images, labels = held_out_digits()
    accuracies: dict[str, float] = {}
    reports = {}
    for name in MODEL_NAMES:
        session = InferenceSession(str(model_path(name)))
        answers = np.empty(len(labels), np.int64)
        with out.progress(f"{name}: classifying {len(labels)} digits", total=len(labels)) as step:
            for start in range(0, len(labels), BATCH):
                logits = session.run(["logits"], {"image": images[start : start + BATCH]})[0]
                answers[start : start + BATCH] = logits.argmax(axis=1)
                right = int((answers[: start + BATCH] == labels[: start + BATCH]).sum())
                step.describe(f"{name}: {right}/{min(start + BATCH, len(labels))} right")
                for _ in range(BATCH):
                    step.advance()
        accuracies[name] = float((answers == labels).mean())
        out.text(f"[bold]{name}[/]: {accuracies[name]:.2%} of {len(labels)} held-out digits right")
        if name == MODEL_NAMES[0]:
            _draw(out, images[:SHOWN], answers[:SHOWN])
    with tempfile.TemporaryDirectory(prefix="whet-demo-") as temporary:
        folder = output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in MODEL_NAMES:
            out.text()
            reports[name] = optimize(
                _Quiet() if out.as_json else out, model_path(name), folder / f"{name}.whet.onnx", True, [], [], None,
                "all", 0, None, 0, 1e-4, rounds,
            )  # fmt: skip
    out.result({"digits": len(labels), "accuracy": accuracies, "optimize": reports})


class _Quiet(Output):
    """Prints nothing: the demo's own JSON document carries the reports."""

    def __init__(self) -> None:
        super().__init__(as_json=True)

    def result(self, document: dict[str, object]) -> None:
        return


def _draw(out: Output, images: Array, answers: Array) -> None:
    """A row of digits as characters, with the answer below each."""
    for y in range(images.shape[2]):
        cells = [
            "".join(SHADES[min(int(v * len(SHADES)), len(SHADES) - 1)] * 2 for v in image[0, y]) for image in images
        ]
        out.text("[dim]" + " ".join(cells).replace("[", "\\[") + "[/]")
    out.text(" ".join(str(a).center(images.shape[3] * 2) for a in answers))
