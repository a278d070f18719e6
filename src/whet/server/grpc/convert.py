"""The service's messages become requests, and responses messages."""

from __future__ import annotations

from typing import Any

import numpy as np

from whet.errors import InvalidArgument
from whet.server.datatypes import BYTES, Datatype, datatype
from whet.server.parameters import apply_parameters, tensor_parameters
from whet.server.protocol.messages import message
from whet.server.request import (
    NO_PARAMETERS,
    Array,
    InferRequest,
    InferResponse,
    InputTensor,
    Parameters,
    RequestedOutput,
)
from whet.server.tensor_bytes import check_shape, elements, from_bytes, to_bytes

ModelInferResponse = message("inference.ModelInferResponse")

LONGEST_S = 1e8
"""A deadline that is further away is none."""

# The field of InferTensorContents that holds a type's elements. FP16 and BF16 only travel as raw bytes.
CONTENTS: dict[str, str] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


# What the elements of each field are, so that numpy need not guess: 64-bit numbers would become floats.
FIELD_TYPES: dict[str, type[np.generic]] = {
    "bool_contents": np.bool_,
    "int_contents": np.int64,
    "int64_contents": np.int64,
    "uint_contents": np.uint64,
    "uint64_contents": np.uint64,
    "fp32_contents": np.float32,
    "fp64_contents": np.float64,
}


def read_request(proto: Any, received_ns: int, remaining_s: float | None = None) -> InferRequest:
    """The request of a ModelInferRequest; `remaining_s` is what the client's deadline leaves, None for none.

    Raises InvalidArgument naming the tensor or parameter that does not fit.
    """
    raw = proto.raw_input_contents
    if raw and len(raw) != len(proto.inputs):
        raise InvalidArgument(
            "raw_input_contents holds every input or none", found=f"{len(raw)} of {len(proto.inputs)} inputs"
        )
    inputs = []
    for index, entry in enumerate(proto.inputs):
        name = entry.name
        kind = datatype(entry.datatype, name)
        shape = check_shape(entry.shape, name)
        if entry.parameters:
            tensor_parameters(parameters(entry.parameters), name)
        if raw:
            if entry.HasField("contents"):
                raise InvalidArgument("an input has contents and raw contents", value=name)
            array = from_bytes(raw[index], kind, shape, name)
        else:
            array = _from_contents(entry.contents, kind, shape, name)
        inputs.append(InputTensor(name, kind, array))
    request = InferRequest(
        proto.model_name, inputs, proto.model_version, proto.id, _outputs(proto.outputs), parameters(proto.parameters),
        received_ns=received_ns,
    )  # fmt: skip
    if remaining_s is not None and remaining_s < LONGEST_S:
        request.deadline_ns = received_ns + int(remaining_s * 1e9)
    apply_parameters(request)
    return request


def _outputs(given: Any) -> tuple[RequestedOutput, ...]:
    if not given:
        return ()
    outputs = []
    for entry in given:
        wanted = parameters(entry.parameters)
        tensor_parameters(wanted, entry.name)
        classes = wanted.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InvalidArgument("`classification` is a number of classes", value=entry.name, found=classes)
        outputs.append(RequestedOutput(entry.name, classes))
    return tuple(outputs)


def parameters(given: Any) -> Parameters:
    """A message's parameters as Python values. Raises InvalidArgument for one that has no value."""
    if not given:
        return NO_PARAMETERS
    found = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidArgument("the parameter has no value", value=name)
        found[name] = getattr(parameter, choice)
    return found


def _from_contents(contents: Any, kind: Datatype, shape: tuple[int, ...], name: str) -> Array:
    field = CONTENTS.get(kind.name)
    if field is None:
        raise InvalidArgument(f"{kind.name} travels as raw_input_contents only", value=name)
    given = getattr(contents, field)
    count = elements(shape)
    if len(given) != count:
        found = f"{len(given)} elements in {field}"
        raise InvalidArgument(
            "the data does not fill the shape", value=name, found=found, expected=f"{count} for {list(shape)}"
        )
    if kind is BYTES:
        out = np.empty(count, object)
        out[:] = list(given)
        return out.reshape(shape)
    wide = np.fromiter(given, FIELD_TYPES[field], count)
    array = wide.astype(kind.dtype.numpy)
    if array.dtype.kind in "iu" and not np.array_equal(array, wide):
        raise InvalidArgument("an element does not fit the datatype", value=name, expected=kind.name)
    return array.reshape(shape)


def write_response(response: InferResponse) -> Any:
    """The ModelInferResponse of a response; tensors are raw bytes."""
    proto = ModelInferResponse(model_name=response.model, model_version=response.version, id=response.id)
    for name, value in response.parameters.items():
        set_parameter(proto.parameters[name], value)
    for tensor in response.outputs:
        entry = proto.outputs.add()
        entry.name, entry.datatype = tensor.name, tensor.datatype.name
        entry.shape.extend(tensor.array.shape)
        proto.raw_output_contents.append(to_bytes(tensor))
    return proto


def set_parameter(target: Any, value: Any) -> None:
    """Store a Python value in an InferParameter."""
    if isinstance(value, bool):
        target.bool_param = value
    elif isinstance(value, int):
        target.int64_param = value
    elif isinstance(value, float):
        target.double_param = value
    else:
        target.string_param = str(value)
