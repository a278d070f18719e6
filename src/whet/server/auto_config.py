"""The configuration that a model has without a file: read from its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

from whet import dtypes
from whet.server.datatypes import BY_DTYPE, Datatype
from whet.server.errors import Unsupported
from whet.server.model_config import DEFAULT_MAX_BATCH_ROWS, DynamicBatching, ModelConfig, TensorConfig
from whet.session.feeds import NodeArg


def tensor_datatype(arg: NodeArg, model: str) -> Datatype:
    """The protocol's type of a model's input or output. Raises Unsupported for what the protocol cannot carry."""
    inner = arg.type.removeprefix("tensor(").removesuffix(")")
    dtype = dtypes.BY_ORT_NAME.get(inner) if arg.type.startswith("tensor(") else None
    found = BY_DTYPE.get(dtype) if dtype is not None else None
    if found is None:
        raise Unsupported(
            "the protocol has no type for this input or output", file=model, value=arg.name, found=arg.type,
            expected="a tensor of " + ", ".join(str(d) for d in BY_DTYPE),
        )  # fmt: skip
    return found


def batch_symbol(inputs: Sequence[NodeArg], outputs: Sequence[NodeArg]) -> str | None:
    """The name of the free dimension that leads every input and every output, which is what makes a model batchable."""
    names = {arg.shape[0] if arg.shape else None for arg in (*inputs, *outputs)}
    name = names.pop() if len(names) == 1 else None
    return name if isinstance(name, str) else None


def model_config(
    name: str, inputs: Sequence[NodeArg], outputs: Sequence[NodeArg], max_batch_rows: int = DEFAULT_MAX_BATCH_ROWS
) -> ModelConfig:
    """The configuration of a model that has none. It is batched where one free dimension leads all its tensors."""
    batched = batch_symbol(inputs, outputs) is not None and max_batch_rows > 0
    skip = 1 if batched else 0

    def tensors(args: Sequence[NodeArg]) -> tuple[TensorConfig, ...]:
        return tuple(
            TensorConfig(
                arg.name,
                tensor_datatype(arg, name),
                tuple(d if isinstance(d, int) else -1 for d in arg.shape[skip:]),
            )
            for arg in args
        )

    return ModelConfig(
        name=name,
        inputs=tensors(inputs),
        outputs=tensors(outputs),
        max_batch_rows=max_batch_rows if batched else 0,
        dynamic_batching=DynamicBatching() if batched else None,
    )
