"""The function types of the operator tables, and facts that hold for whole operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from whet.graph import Node, Type
from whet.graph.dims import Known

Kernel = Callable[[Sequence[Any], Mapping[str, Any], int], Sequence[Any]]
"""`kernel(inputs, attributes, output_count)`: numpy in, numpy out.

Inputs left out are None (or the sequence is shorter). Attributes are Python values, tensors arrays; one that the node
does not carry is missing, and the kernel applies the operator's default. Float results keep the inputs' float type,
so that a model widened to float64 is computed in float64 throughout. Sequences are lists, absent optionals None.
"""

Infer = Callable[[Node], Sequence[Type | None]]
"""`infer(node)`: the type of each output from the input values' types, constants and symbolic values.

Raises InvalidGraph (without a node; the caller adds it) when the inputs cannot be right.
"""

Propagate = Callable[[Node], tuple[Known | None, ...] | None]
"""`propagate(node)`: the elements of the first output, a small integer scalar or vector, as symbolic dimensions."""

NON_DETERMINISTIC: frozenset[str] = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
"""Operators that are never folded and never merged as common subexpressions (so is Dropout in training mode)."""
