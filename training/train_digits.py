"""Trains the demo's two digit classifiers, exports them to ONNX and records how accurate they are.

    pip install -r training/requirements.txt
    python training/train_digits.py                  # writes src/whet/demo/data

The data are scikit-learn's 1,797 handwritten digits. A stratified quarter is held out: it is touched once, after both
models are exported, to measure them. Epochs are chosen on a validation split of the remaining three quarters.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxscript
import onnxscript.optimizer
import sklearn
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

DATA_FOLDER = Path(__file__).resolve().parent.parent / "src" / "whet" / "demo" / "data"
FULL_INK = 16
CLASSES = 10
SIDE = 8
OPSET = 18  # Gelu is still written as its parts here, which gives Whet's fusions work to show


@dataclass(frozen=True)
class Split:
    """How the samples are divided; the seeds make every run draw the same ones."""

    held_out_fraction: float = 0.25
    held_out_seed: int = 1797
    validation_fraction: float = 0.15
    validation_seed: int = 8


@dataclass(frozen=True)
class Recipe:
    """The settings of one training run."""

    seed: int
    epochs: int
    batch_size: int
    peak_learning_rate: float
    weight_decay: float
    label_smoothing: float


@dataclass(frozen=True)
class Samples:
    """Images float32 [n, 1, 8, 8] in 0..1, labels int64 [n], and each one's row in scikit-learn's table."""

    images: Tensor
    labels: Tensor
    rows: np.ndarray


class DigitsCNN(nn.Module):
    """Three convolutions, each with batch normalization and ReLU, the last one beside a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.convolution2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.convolution3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(32)
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(32 * (SIDE // 4) ** 2, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.convolution1(image)))
        x = functional.relu(self.norm2(self.convolution2(x)))
        x = functional.max_pool2d(x, 2)
        x = functional.relu(self.norm3(self.convolution3(x)) + x)
        x = functional.max_pool2d(x, 2)
        return self.classifier(self.dropout(torch.flatten(x, 1)))


class TransformerBlock(nn.Module):
    """One pre-norm encoder block: multi-head self-attention, then an MLP with Gelu."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, hidden)
        self.contract = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(0.1)

    def split_heads(self, x: Tensor) -> Tensor:
        # -1 stands for the batch, so that the exported Reshape needs no shape arithmetic.
        return x.reshape(-1, SIDE, self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.attention_norm(tokens)
        context = functional.scaled_dot_product_attention(
            self.split_heads(self.query(x)), self.split_heads(self.key(x)), self.split_heads(self.value(x))
        )
        context = context.transpose(1, 2).reshape(-1, SIDE, x.shape[-1])
        tokens = tokens + self.dropout(self.projection(context))
        x = self.contract(functional.gelu(self.expand(self.mlp_norm(tokens))))
        return tokens + self.dropout(x)


class DigitsTransformer(nn.Module):
    """A transformer encoder whose tokens are the eight rows of the image, each with a learned position."""

    def __init__(self, width: int = 48, heads: int = 4, hidden: int = 96, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Linear(SIDE, width)
        self.position = nn.Parameter(torch.randn(1, SIDE, width) * 0.1)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, hidden) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.embedding(image.squeeze(1)) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.classifier(self.norm(tokens).mean(dim=1))


@dataclass(frozen=True)
class Demo:
    """One shipped model: its class, how it is trained, and whether the exporter's own rewrites run on it."""

    model_class: type[nn.Module]
    recipe: Recipe
    exporter_rewrites: bool


MODELS = {
    # The exporter's rewrites would fold the batch normalizations into the convolutions: Whet's own work to show.
    "digits-cnn": Demo(
        DigitsCNN,
        Recipe(seed=11, epochs=80, batch_size=64, peak_learning_rate=4e-3, weight_decay=1e-3, label_smoothing=0.05),
        exporter_rewrites=False,
    ),
    "digits-transformer": Demo(
        DigitsTransformer,
        Recipe(seed=12, epochs=250, batch_size=64, peak_learning_rate=2e-3, weight_decay=1e-2, label_smoothing=0.05),
        exporter_rewrites=True,
    ),
}


def split_samples(split: Split) -> tuple[Samples, Samples, Samples]:
    """Training, validation and held-out samples; every class has its share in each."""
    digits = load_digits()
    images = torch.from_numpy(digits.images.astype(np.float32)[:, np.newaxis] / FULL_INK)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    every_row = np.arange(len(digits.target))
    known, held_out = train_test_split(
        every_row, test_size=split.held_out_fraction, random_state=split.held_out_seed, stratify=digits.target
    )
    training, validation = train_test_split(
        known,
        test_size=split.validation_fraction,
        random_state=split.validation_seed,
        stratify=digits.target[known],
    )
    training, validation, held_out = np.sort(training), np.sort(validation), np.sort(held_out)
    parts = [Samples(images[rows], labels[rows], rows) for rows in (training, validation, held_out)]
    return parts[0], parts[1], parts[2]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image [n, 1, 8, 8] moved by up to one pixel, turned by up to 10 degrees and scaled by up to 10%."""
    count = len(images)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * limit

    angle = uniform(np.deg2rad(10))
    scale = 1 + uniform(0.1)
    pixel = 2 / SIDE  # affine_grid's coordinates span -1..1
    shift_x, shift_y = uniform(pixel), uniform(pixel)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack(
        [torch.stack([cosine, -sine, shift_x], dim=1), torch.stack([sine, cosine, shift_y], dim=1)], dim=1
    )
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def train(model: nn.Module, recipe: Recipe, training: Samples, validation: Samples) -> int:
    """Trains `model` in place and leaves it with the weights of its best validation epoch, whose number it returns."""
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.peak_learning_rate, weight_decay=recipe.weight_decay)
    batches = -(-len(training.labels) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=recipe.peak_learning_rate, epochs=recipe.epochs, steps_per_epoch=batches
    )
    best_loss, best_epoch, best_weights = float("inf"), 0, copy.deepcopy(model.state_dict())
    for epoch in range(1, recipe.epochs + 1):
        model.train()
        for batch in torch.randperm(len(training.labels), generator=generator).split(recipe.batch_size):
            logits = model(augment(training.images[batch], generator))
            loss = functional.cross_entropy(logits, training.labels[batch], label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.no_grad():
            # With the same smoothing as in training: without it the least confident epochs, not the best, would win.
            validation_loss = functional.cross_entropy(
                model(validation.images), validation.labels, label_smoothing=recipe.label_smoothing
            ).item()
        if validation_loss < best_loss:
            best_loss, best_epoch, best_weights = validation_loss, epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    model.eval()
    return best_epoch


def export(model: nn.Module, name: str, path: Path, exporter_rewrites: bool) -> None:
    """Writes `model` to `path` with a free dimension `batch` and the weights inside the file."""
    program = torch.onnx.export(
        model,
        (torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        optimize=False,
        verbose=False,
    )
    if program is None:
        raise RuntimeError(f"{name}: the exporter returned no program")
    if exporter_rewrites:
        program.optimize()
    else:
        onnxscript.optimizer.fold_constants(program.model)
        onnxscript.optimizer.remove_unused_nodes(program.model)
    proto = program.model_proto
    strip_debugging_notes(proto)
    proto.graph.name = name
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString(deterministic=True))


def strip_debugging_notes(proto: onnx.ModelProto) -> None:
    """Removes what the exporter notes about the Python source, which names folders of the training machine."""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.doc_string = proto.graph.doc_string = ""
    for part in (*proto.graph.node, *proto.graph.initializer, *proto.graph.value_info):
        part.doc_string = ""
        del part.metadata_props[:]
    for part in (*proto.graph.input, *proto.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def run_exported(path: Path, samples: Samples) -> np.ndarray:
    """The exported model's logits [n, 10] on `samples`, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": samples.images.numpy()})[0]


def accuracy(logits: np.ndarray, labels: Tensor) -> float:
    return float(np.mean(logits.argmax(axis=1) == labels.numpy()))


def save_held_out(held_out: Samples, path: Path) -> None:
    np.savez_compressed(
        path,
        images=np.rint(held_out.images.numpy()[:, 0] * FULL_INK).astype(np.uint8),
        labels=held_out.labels.numpy().astype(np.uint8),
        rows=held_out.rows.astype(np.uint16),
    )


def file_record(path: Path) -> dict[str, object]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATA_FOLDER, help="folder for the models, images and record")
    parser.add_argument("--validation-only", action="store_true", help="stop before the held-out samples are used")
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    split = Split()
    training, validation, held_out = split_samples(split)
    records: dict[str, dict[str, object]] = {}
    for name, demo in MODELS.items():
        torch.manual_seed(demo.recipe.seed)
        model = demo.model_class()
        best_epoch = train(model, demo.recipe, training, validation)
        path = output / f"{name}.onnx"
        export(model, name, path, demo.exporter_rewrites)
        with torch.no_grad():
            difference = np.abs(model(validation.images).numpy() - run_exported(path, validation)).max()
        records[name] = {
            **file_record(path),
            "parameters": sum(p.numel() for p in model.parameters()),
            "recipe": asdict(demo.recipe),
            "best_validation_epoch": best_epoch,
            "validation_accuracy": round(accuracy(run_exported(path, validation), validation.labels), 4),
            "largest_logit_difference_from_torch": float(f"{difference:.1e}"),
        }
        print(name, json.dumps(records[name]), flush=True)
    if arguments.validation_only:
        return

    held_out_path = output / "digits-held-out.npz"
    save_held_out(held_out, held_out_path)
    for name in MODELS:
        logits = run_exported(output / f"{name}.onnx", held_out)
        records[name]["held_out_accuracy"] = round(accuracy(logits, held_out.labels), 4)
        print(name, "held-out accuracy", records[name]["held_out_accuracy"])
    record = {
        "script": "training/train_digits.py",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "scikit-learn": sklearn.__version__,
            "numpy": np.__version__,
            "onnx": onnx.__version__,
            "onnxscript": onnxscript.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "split": asdict(split),
        "samples": {
            "training": len(training.labels),
            "validation": len(validation.labels),
            "held_out": len(held_out.labels),
        },
        "held_out": file_record(held_out_path),
        "models": records,
    }
    (output / "digits-training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
