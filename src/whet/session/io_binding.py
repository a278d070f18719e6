"""IOBinding: inputs and outputs bound ahead of a run."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from whet import dtypes
from whet.errors import InvalidArgument, NotImplemented, did_you_mean
from whet.runtime.values import CPU, Buffer, RuntimeValue, Tensor
from whet.session.device import OrtDevice
from whet.session.feeds import NodeArg
from whet.session.ortvalue import OrtValue, OrtValueVector, _dtype_from, to_python, to_tensor


class BindableSession(Protocol):
    """What a binding asks of its session."""

    def get_inputs(self) -> list[NodeArg]: ...

    def get_outputs(self) -> list[NodeArg]: ...

    def get_overridable_initializers(self) -> list[NodeArg]: ...


class IOBinding:
    """What a run reads and where its results go. Results are copied into bound buffers, which must fit exactly."""

    def __init__(self, session: BindableSession) -> None:
        self._session = session
        self._input_names = tuple(a.name for a in (*session.get_inputs(), *session.get_overridable_initializers()))
        self._output_names = tuple(a.name for a in session.get_outputs())
        self._inputs: dict[str, RuntimeValue] = {}
        self._targets: dict[str, Tensor | None] = {}
        self._results: list[OrtValue] = []

    # Inputs

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Read this array in the next runs."""
        self._check(name, self._input_names, "input")
        self._inputs[name] = to_tensor(arr_on_cpu, name)

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        """Read the memory at `buffer_ptr` (CPU, C order, `shape` of `element_type`), which the caller keeps alive."""
        self._check(name, self._input_names, "input")
        self._inputs[name] = _borrow(name, device_type, element_type, shape, buffer_ptr, read_only=True)

    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None:
        """Read this OrtValue in the next runs."""
        self._check(name, self._input_names, "input")
        self._inputs[name] = ortvalue._value

    # Outputs

    def bind_output(
        self, name: str, device_type: str = "cpu", device_id: int = 0, element_type: Any = None,
        shape: Sequence[int] | None = None, buffer_ptr: int | None = None,
    ) -> None:  # fmt: skip
        """Ask for this output: in new memory, or at `buffer_ptr` (with `element_type` and `shape`)."""
        self._check(name, self._output_names, "output")
        if buffer_ptr is None:
            if OrtDevice(device_type.lower()).device_type() != 0:
                raise _other_device(name, device_type)
            self._targets[name] = None
            return
        if element_type is None or shape is None:
            raise InvalidArgument("a bound buffer needs element_type and shape", value=name)
        self._targets[name] = _borrow(name, device_type, element_type, shape, buffer_ptr, read_only=False)

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        """Write this output into the OrtValue's memory. Raises InvalidArgument for read-only memory."""
        self._check(name, self._output_names, "output")
        target = ortvalue._tensor()
        if not target.numpy().flags.writeable:
            raise InvalidArgument("an output is bound to read-only memory", value=name, found=target)
        self._targets[name] = target

    def get_outputs(self) -> list[OrtValue]:
        """The results of the last run, in the order in which the outputs were bound."""
        return list(self._results)

    def get_outputs_as_ortvaluevector(self) -> OrtValueVector:
        """The same, as ONNX Runtime's vector class."""
        return OrtValueVector(self._results)

    def copy_outputs_to_cpu(self) -> list[Any]:
        """The results of the last run as arrays of their own."""
        return [v.numpy().copy() if v.is_tensor() else to_python(v._value) for v in self._results]

    # The rest of the interface

    def synchronize_inputs(self) -> None:
        """Nothing is pending on the CPU."""

    def synchronize_outputs(self) -> None:
        """Nothing is pending on the CPU."""

    def clear_binding_inputs(self) -> None:
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        self._targets.clear()
        self._results.clear()

    # For the session

    def feed(self) -> dict[str, OrtValue]:
        """The bound inputs."""
        return {name: OrtValue(value) for name, value in self._inputs.items()}

    def output_names(self) -> list[str]:
        """The bound outputs. Raises InvalidArgument when there is none."""
        if not self._targets:
            raise InvalidArgument("no output is bound", hint="Call bind_output or bind_ortvalue_output first.")
        return list(self._targets)

    def accept(self, results: Sequence[RuntimeValue]) -> None:
        """Take a run's results, copying them into bound buffers. Raises InvalidArgument where one does not fit."""
        for (name, target), result in zip(self._targets.items(), results, strict=True):
            if target is not None:
                fit(name, target, result)
        accepted = []
        for target, result in zip(self._targets.values(), results, strict=True):
            if target is not None and isinstance(result, Tensor):
                np.copyto(target.numpy(), result.numpy())
            accepted.append(OrtValue(result if target is None else target))
        self._results = accepted

    def _check(self, name: str, known: tuple[str, ...], what: str) -> None:
        if name not in known:
            hint = did_you_mean(name, known) or f"The {what}s are: {', '.join(known)}."
            raise InvalidArgument(f"the model has no such {what}", value=name, hint=hint)


def fit(name: str, target: Tensor, result: RuntimeValue) -> None:
    """Raise InvalidArgument unless the result of the output `name` has the type and shape of `target`."""
    if not isinstance(result, Tensor) or result.dtype is not target.dtype or result.shape != target.shape:
        raise InvalidArgument("the result does not fit the bound output", value=name, found=result, expected=target)


def _borrow(
    name: str, device_type: str, element_type: Any, shape: Sequence[int], address: int, *, read_only: bool
) -> Tensor:
    if OrtDevice(device_type.lower()).device_type() != 0:
        raise _other_device(name, device_type)
    dtype = _dtype_from(element_type)
    if dtype is dtypes.STRING or dtype.is_packed:
        raise NotImplemented(
            "this element type cannot be bound by address", value=name, found=dtype, hint="Bind an OrtValue."
        )
    extents = tuple(operator.index(d) for d in shape)
    if any(d < 0 for d in extents):
        raise InvalidArgument("a bound buffer has a negative extent", value=name, found=list(extents))
    nbytes = math.prod(extents) * dtype.numpy.itemsize
    if address == 0 and nbytes:
        raise InvalidArgument("a bound buffer has a null address", value=name)
    if address % dtype.numpy.alignment:
        raise InvalidArgument(
            "a bound buffer is misaligned", value=name, found=hex(address),
            expected=f"a multiple of {dtype.numpy.alignment}",
        )  # fmt: skip
    return Tensor(Buffer(CPU, int(address), nbytes, None, read_only), dtype, extents, None)


def _other_device(name: str, device_type: str) -> NotImplemented:
    return NotImplemented("this device cannot be bound", value=name, found=device_type, expected="cpu")
