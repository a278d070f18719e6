"""The caller's list of providers, in one form."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from whet.errors import InvalidArgument

DEFAULT_PROVIDERS: tuple[str, ...] = ("CPUExecutionProvider",)


def normalize(providers: Any, provider_options: Any) -> list[tuple[str, dict[str, str]]]:
    """(name, options) pairs from what InferenceSession accepts.

    Raises InvalidArgument (a ValueError, as in ONNX Runtime) for anything else; warns of a duplicate and drops it.
    """
    if providers is None:
        providers = list(DEFAULT_PROVIDERS)
    if isinstance(providers, str) or not isinstance(providers, Sequence):
        raise InvalidArgument(
            "'providers' should be a sequence",
            found=repr(providers),
            expected="names or (name, options) pairs, or 'auto'",
        )
    if provider_options is not None:
        if len(providers) != len(provider_options):
            raise InvalidArgument("'providers' and 'provider_options' should be the same length if both are given")
        if not all(isinstance(p, str) for p in providers):
            raise InvalidArgument("Only string values for 'providers' are supported if 'provider_options' is given")
        providers = list(zip(providers, provider_options, strict=True))
    found: dict[str, dict[str, str]] = {}
    for entry in providers:
        name, options = (entry, {}) if isinstance(entry, str) else _pair(entry)
        if name in found:
            warnings.warn(f"Duplicate provider '{name}' encountered, ignoring.", UserWarning, stacklevel=4)
            continue
        found[name] = {str(k): str(v) for k, v in options.items()}
    return list(found.items())


def _pair(entry: Any) -> tuple[str, dict[Any, Any]]:
    if (
        isinstance(entry, (tuple, list))
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], dict)
    ):
        return entry[0], entry[1]
    raise InvalidArgument("'providers' values must be either strings or (string, dict) tuples", found=repr(entry))
