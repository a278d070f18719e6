"""Sizes of results that a few small inputs can make huge, known before the kernel allocates them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Measure = Callable[[Sequence[Any], Mapping[str, Any]], int]
"""Bytes of a node's largest result, from its inputs and attributes; 0 where the kernel will refuse the inputs."""

RESULT_BYTES: dict[str, Measure] = {}
