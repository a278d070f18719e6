"""The process-wide seed of random operators, as `set_seed` of ONNX Runtime sets it."""

from __future__ import annotations

from whet.errors import InvalidArgument

_state: dict[str, int | None] = {"seed": None}


def set_seed(seed: int) -> None:
    """Seed every random operator that has no seed of its own; the same seed gives the same answers."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidArgument("a seed is an integer", found=seed)
    _state["seed"] = seed


def current_seed() -> int | None:
    """The seed set last, or None."""
    return _state["seed"]
