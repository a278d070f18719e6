"""Feeds from files: .npy, .npz, serialized TensorProto (.pb), images; or random."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from whet.bench.feed_file import TREE, load_values
from whet.errors import InvalidArgument, NoSuchFile, did_you_mean
from whet.formats.onnx import read_tensor
from whet.graph import Expr, TensorType, Value
from whet.session.prepare import Interface
from whet.session.random_inputs import random_inputs

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})


def read_feed(
    interface: Interface, given: Sequence[str], dims: Sequence[str], seed: int, batch: int | None, image: ImageSettings
) -> tuple[dict[str, Any], list[str]]:
    """The feed for a model, and the names of the inputs that were drawn at random.

    `given` holds `name=file` or `file` (for the first input, or an .npz with one array per input name); `dims` holds
    `name=size` for free dimensions. Raises InvalidArgument or NoSuchFile naming the input and the file.
    """
    feed: dict[str, Any] = {}
    inputs = {v.name: v for v in (*interface.inputs, *interface.overridable)}
    for entry in given:
        name, separator, file = entry.partition("=")
        if not separator:
            name, file = "", entry
        path = Path(file)
        if not path.is_file():
            raise NoSuchFile("the input file does not exist", file=file, value=name or None)
        if path.suffix == ".npz":
            for key, value in _read_archive(path).items():
                feed[_known(key, inputs)] = value
            continue
        target = _known(name, inputs) if name else next((n for n in inputs if n not in feed), "")
        if not target:
            raise InvalidArgument("there are more files than inputs", file=file, expected=", ".join(inputs))
        feed[target] = _read_one(path, inputs[target], image)
    missing = [v for v in interface.inputs if v.name not in feed]
    sizes = parse_dims(dims, interface)
    if missing:
        feed.update(random_inputs(missing, sizes, seed, batch))
    return feed, [v.name for v in missing]


def parse_dims(dims: Sequence[str], interface: Interface) -> dict[str, int]:
    """`name=size` entries as a dict. Raises InvalidArgument for anything else, and for a name that no input has."""
    found = {}
    known = dict.fromkeys(
        n for v in interface.inputs for d in v.shape or () if isinstance(d, Expr) for n in sorted(d.names())
    )
    for entry in dims:
        name, separator, size = entry.rpartition("=")
        if not separator or not (size.isascii() and size.isdigit()):
            raise InvalidArgument("a dimension is given as name=size", found=entry, expected="for instance batch=8")
        if name not in known:
            raise InvalidArgument(
                "no input of the model has a free dimension of this name",
                value=name,
                expected=", ".join(known) or "none",
                hint=did_you_mean(name, known),
            )
        found[name] = int(size)
    return found


class ImageSettings:
    """How a picture becomes a tensor: (pixel / 255 * scale - mean) / std, per channel where three are given."""

    def __init__(self, mean: str = "0", std: str = "1", scale: float = 1.0) -> None:
        self.mean = _floats("mean", mean)
        self.std = _floats("std", std)
        self.scale = scale
        if np.any(self.std == 0):
            raise InvalidArgument("the standard deviation of an image must not be zero", found=std)


def _floats(name: str, text: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    try:
        values = np.array([float(part) for part in text.split(",")], np.float64)
    except ValueError:
        raise InvalidArgument(f"--image-{name} takes one number, or one per channel", found=text) from None
    return values.reshape(-1, 1, 1)


def _known(name: str, inputs: dict[str, Value]) -> str:
    if name not in inputs:
        hint = did_you_mean(name, inputs) or f"The inputs are: {', '.join(inputs)}."
        raise InvalidArgument("the model has no such input", value=name, hint=hint)
    return name


def _read_one(path: Path, value: Value, image: ImageSettings) -> Any:
    if path.suffix == ".npy":
        return _read_array(path, value.name)
    if path.suffix == ".pb":
        return read_tensor(path.read_bytes(), str(path)).numpy()
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _read_image(path, value, image)
    raise InvalidArgument(
        "this kind of file cannot be read as an input",
        file=str(path),
        value=value.name,
        found=path.suffix or "no suffix",
        expected=".npy, .npz, .pb or an image",
    )


def _read_array(path: Path, name: str) -> Any:
    with _numpy_errors(path, name), open(path, "rb") as file:
        array = np.load(file, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            array.close()
            raise ValueError("an archive, whose name must end in .npz")
    return array


def _read_archive(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file by name, or the values that `whet run -o` put there."""
    # Opened here: numpy leaves a file open that is no archive.
    with _numpy_errors(path, ""), open(path, "rb") as file:
        stored = np.load(file, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise ValueError("a single array, whose name must end in .npy")
        with stored:
            return load_values(path) if TREE in stored.files else {key: stored[key] for key in stored.files}


@contextmanager
def _numpy_errors(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InvalidArgument(
            "the file holds no numpy arrays that can be read", file=str(path), value=name or None, found=str(error)
        ) from error


def _read_image(path: Path, value: Value, settings: ImageSettings) -> Any:
    from PIL import Image, UnidentifiedImageError

    declared = value.type
    if (
        not isinstance(declared, TensorType)
        or declared.dtype is None
        or declared.shape is None
        or len(declared.shape) != 4
    ):
        raise InvalidArgument(
            "an image fits only an input of rank 4", file=str(path), value=value.name, found=str(declared)
        )
    shape = [d if isinstance(d, int) else None for d in declared.shape]
    channels_last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    channels, height, width = (shape[3], shape[1], shape[2]) if channels_last else (shape[1], shape[2], shape[3])
    try:
        with Image.open(path) as opened:
            picture = opened.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InvalidArgument("the file is no image that can be read", file=str(path), found=str(error)) from error
    picture = picture.resize((width or picture.width, height or picture.height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture)
    if not declared.dtype.is_float:
        array = pixels if pixels.ndim == 3 else pixels[:, :, None]
        array = array if channels_last else array.transpose(2, 0, 1)
        return np.ascontiguousarray(array[None]).astype(declared.dtype.numpy)
    planes = np.atleast_3d(pixels.astype(np.float64) / 255 * settings.scale).transpose(2, 0, 1)
    planes = (planes - settings.mean) / settings.std
    planes = planes.transpose(1, 2, 0) if channels_last else planes
    return np.ascontiguousarray(planes[None]).astype(declared.dtype.numpy)
