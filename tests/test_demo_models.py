"""The shipped demo models: accuracy on the held-out digits, sizes, form, and where the digits come from."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from whet.demo import MODEL_NAMES, held_out_digits, model_path, training_record
from whet.errors import InvalidArgument

LEAST_ACCURACY = {"digits-cnn": 0.98, "digits-transformer": 0.96}
MOST_BYTES_TOGETHER = 300_000


def run(name: str, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model_path(name), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"image": images})[0]


def test_held_out_digits_are_normalized_images_of_every_class() -> None:
    images, labels = held_out_digits()
    assert images.shape == (450, 1, 8, 8)
    assert images.dtype == np.float32
    assert labels.shape == (450,)
    assert labels.dtype == np.int64
    assert (images.min(), images.max()) == (0.0, 1.0)
    assert np.array_equal(images * 16, np.rint(images * 16))
    # stratified: every class has its tenth, give or take what the data set itself varies
    counts = np.bincount(labels, minlength=10)
    assert counts.shape == (10,)
    assert counts.min() >= 43
    assert counts.max() <= 46
    assert len(np.unique(images.reshape(450, 64), axis=0)) == 450


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_accuracy_on_held_out_digits(name: str) -> None:
    images, labels = held_out_digits()
    measured = float(np.mean(run(name, images).argmax(axis=1) == labels))
    assert measured >= LEAST_ACCURACY[name]
    # the record rounds to four digits; one image of 450 is 0.0022
    assert measured == pytest.approx(training_record()["models"][name]["held_out_accuracy"], abs=6e-5)


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_answers_do_not_depend_on_the_batch(name: str) -> None:
    images, _ = held_out_digits()
    whole = run(name, images[:7])
    assert whole.shape == (7, 10)
    parts = np.concatenate([run(name, images[:1]), run(name, images[1:3]), run(name, images[3:7])])
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-4)
    assert np.ptp(whole, axis=0).min() > 0.5, "the logits hardly follow the image"


def test_models_are_small_together() -> None:
    assert sum(model_path(name).stat().st_size for name in MODEL_NAMES) < MOST_BYTES_TOGETHER


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_interface_and_contents(name: str) -> None:
    model = onnx.load(model_path(name), load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    [image], [logits] = model.graph.input, model.graph.output
    assert (image.name, dimensions(image)) == ("image", ["batch", 1, 8, 8])
    assert (logits.name, dimensions(logits)) == ("logits", ["batch", 10])
    assert image.type.tensor_type.elem_type == logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert all(i.data_location == onnx.TensorProto.DEFAULT for i in model.graph.initializer)
    # nothing of the machine that trained it, which the exporter writes down as stack traces
    assert b".py" not in model_path(name).read_bytes()


def dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_models_leave_the_passes_something_to_fuse() -> None:
    operators = {name: Counter(n.op_type for n in onnx.load(model_path(name)).graph.node) for name in MODEL_NAMES}
    assert operators["digits-cnn"]["Conv"] == operators["digits-cnn"]["BatchNormalization"] == 3
    transformer = operators["digits-transformer"]
    assert (transformer["Softmax"], transformer["Erf"], transformer["LayerNormalization"]) == (2, 2, 5)


def test_record_names_the_shipped_files() -> None:
    record = training_record()
    folder = model_path("digits-cnn").parent
    entries = [record["held_out"], *(record["models"][name] for name in MODEL_NAMES)]
    for entry in entries:
        content = (folder / entry["file"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry["bytes"], entry["sha256"]), entry["file"]
    assert sum(record["samples"].values()) == 1797


def test_held_out_digits_are_the_data_sets_own() -> None:
    datasets = pytest.importorskip(
        "sklearn.datasets", reason="scikit-learn, which ships the data set, is not installed"
    )
    digits = datasets.load_digits()
    with np.load(model_path("digits-cnn").parent / "digits-held-out.npz") as archive:
        rows = archive["rows"].astype(np.int64)
    assert len(np.unique(rows)) == len(rows)
    images, labels = held_out_digits()
    np.testing.assert_array_equal(images[:, 0] * 16, digits.images[rows])
    np.testing.assert_array_equal(labels, digits.target[rows])


def test_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"digits-cn.*digits-cnn, digits-transformer.*Did you mean 'digits-cnn'"):
        model_path("digits-cn")
