"""Silero's voice activity detector, over a whole recording with its state carried, as its users run it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

import whet
from tests.session_models import Array
from tests.shared_models import TRAINED, needs_trained, speech

WINDOW, CONTEXT = 512, 64
"""Samples of one step at 16 kHz, and of the step before that it sees again."""


def probabilities(lib: Any, samples: Array, **arguments: Any) -> Array:
    """The speech probability of each window."""
    session = lib.InferenceSession(str(TRAINED / "silero_vad.onnx"), providers=["CPUExecutionProvider"], **arguments)
    state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros((1, CONTEXT), np.float32)
    found = []
    for start in range(0, len(samples) - WINDOW + 1, WINDOW):
        window = np.concatenate([context, samples[None, start : start + WINDOW]], axis=1)
        feed = {"input": window, "state": state, "sr": np.array(16000, np.int64)}
        probability, state = session.run(None, feed)
        context = window[:, -CONTEXT:]
        found.append(probability.item())
    return np.array(found)


@needs_trained
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_the_probabilities_are_those_of_onnxruntime(level: str) -> None:
    samples = speech()
    options = whet.SessionOptions()
    options.graph_optimization_level = whet.GraphOptimizationLevel[level]
    theirs = probabilities(onnxruntime, samples)
    ours = probabilities(whet, samples, sess_options=options)
    assert len(theirs) == len(samples) // WINDOW
    assert theirs.min() < 0.05 < 0.95 < theirs.max()
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
