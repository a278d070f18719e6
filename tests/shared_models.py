"""The models that lie beside the repository, where they do: real trained ones, and benchmark networks to fill."""

from __future__ import annotations

import importlib.util
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
ZOO = SHARED / "zoo"
TRAINED = SHARED / "models"
ABSENT = "the shared models are not beside this clone"

needs_zoo = pytest.mark.skipif(not (ZOO / "fill.py").is_file(), reason=ABSENT)
needs_trained = pytest.mark.skipif(not TRAINED.is_dir(), reason=ABSENT)

Feed = dict[str, Any]


def fill(name: str, folder: Path) -> Path:
    """The benchmark network `name` with its reproducible weights, written into `folder`."""
    spec = importlib.util.spec_from_file_location("zoo_fill", ZOO / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    target = folder / f"{name}.onnx"
    module.fill(ZOO / f"{name}.onnx", target)
    return target


def _rng() -> np.random.Generator:
    return np.random.default_rng(20)


def _image(size: int) -> Callable[[], Feed]:
    # Pixels in 0..1: on white noise of unit variance the deep gated networks amplify float32's own rounding.
    return lambda: {"input": _rng().random((1, 3, size, size), dtype=np.float32)}


def _tokens(length: int, vocabulary: int, mask: bool) -> Callable[[], Feed]:
    def make() -> Feed:
        feed: Feed = {"input_ids": _rng().integers(0, vocabulary, (1, length), dtype=np.int64)}
        if mask:
            attention = np.ones((1, length), np.int64)
            attention[:, -length // 4 :] = 0
            feed["attention_mask"] = attention
        return feed

    return make


def _unet() -> Feed:
    rng = _rng()
    return {
        "sample": rng.standard_normal((1, 4, 32, 24)).astype(np.float32),
        "timestep": np.array([37], np.int64),
        "encoder_hidden_states": rng.standard_normal((1, 77, 768)).astype(np.float32),
    }


def _whisper() -> Feed:
    return {"input_features": _rng().standard_normal((1, 80, 3000)).astype(np.float32)}


ZOO_FEEDS: dict[str, Callable[[], Feed]] = {
    "bert_base": _tokens(128, 30000, True),
    "efficientnet_b0": _image(224),
    "efficientnet_b4": _image(320),
    "gpt2": _tokens(256, 50000, False),
    "minilm": _tokens(96, 30000, True),
    "mobilenetv2_100": _image(224),
    "resnet50": _image(224),
    "unet_half": _unet,
    "vit_base_patch16_224": _image(224),
    "whisper_small_encoder": _whisper,
}
"""For each benchmark network, an input that moves its output."""


def face_feed() -> Feed:
    """A photograph, as the face detector takes it."""
    from PIL import Image

    with Image.open(TRAINED / "data" / "people_1.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((320, 240)), np.float32)
    return {"input": ((pixels - 127) / 128).transpose(2, 0, 1)[None].copy()}


def magika_feed() -> Feed:
    """Two rows of bytes: text and a gradient."""
    rows = np.full((2, 2048), 256, np.int32)
    text = b"def main():\n    return 42\n" * 30
    rows[0, : len(text)] = list(text)
    rows[1] = np.arange(2048) % 256
    return {"bytes": rows}


def speech() -> np.ndarray[Any, np.dtype[np.float32]]:
    """The speech sample: 16 kHz, mono, -1 to 1."""
    with wave.open(str(TRAINED / "data" / "speech_16k.wav")) as file:
        assert file.getframerate() == 16000
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return samples.astype(np.float32) / 32768


def silero_feed() -> Feed:
    """One window of speech, with its context and a fresh state."""
    window = speech()[30000 : 30000 + 576]
    return {"input": window[None].copy(), "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000, np.int64)}


TRAINED_FEEDS: dict[str, Callable[[], Feed]] = {
    "face_rfb_320": face_feed,
    "magika_standard_v3_3": magika_feed,
    "silero_vad": silero_feed,
}
