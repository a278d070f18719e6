"""IOBinding: inputs and outputs bound ahead of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from whet.errors import InvalidArgument, NotImplemented, did_you_mean
from whet.runtime.values import RuntimeValue, Tensor
from whet.session.ortvalue import OrtValue, _dtype_from, to_python, to_tensor


class IOBinding:
    """What a run reads and where its results go. Results are copied into bound buffers, which must fit exactly."""

    def __init__(self, input_names: Sequence[str], output_names: Sequence[str]) -> None:
        self._input_names = tuple(input_names)
        self._output_names = tuple(output_names)
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
            if device_type.lower() != "cpu":
                raise _other_device(name, device_type)
            self._targets[name] = None
            return
        if element_type is None or shape is None:
            raise InvalidArgument("a bound buffer needs element_type and shape", value=name)
        self._targets[name] = _borrow(name, device_type, element_type, shape, buffer_ptr, read_only=False)

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        """Write this output into the OrtValue's memory."""
        self._check(name, self._output_names, "output")
        self._targets[name] = ortvalue._tensor()

    def get_outputs(self) -> list[OrtValue]:
        """The results of the last run, in the order in which the outputs were bound."""
        return list(self._results)

    def get_outputs_as_ortvaluevector(self) -> list[OrtValue]:
        return list(self._results)

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
        self._results = []
        for (name, target), result in zip(self._targets.items(), results, strict=True):
            if target is None:
                self._results.append(OrtValue(result))
                continue
            if not isinstance(result, Tensor) or result.dtype is not target.dtype or result.shape != target.shape:
                raise InvalidArgument(
                    "the result does not fit the bound output", value=name, found=result, expected=target
                )
            np.copyto(target.numpy(), result.numpy())
            self._results.append(OrtValue(target))

    def _check(self, name: str, known: tuple[str, ...], what: str) -> None:
        if name not in known:
            hint = did_you_mean(name, known) or f"The {what}s are: {', '.join(known)}."
            raise InvalidArgument(f"the model has no such {what}", value=name, hint=hint)


def _borrow(
    name: str, device_type: str, element_type: Any, shape: Sequence[int], address: int, *, read_only: bool
) -> Tensor:
    if device_type.lower() != "cpu":
        raise _other_device(name, device_type)
    from whet.runtime.values import CPU, Buffer

    dtype = _dtype_from(element_type)
    extents = tuple(int(d) for d in shape)
    nbytes = int(np.prod(extents, dtype=np.int64)) * dtype.numpy.itemsize
    if address == 0 and nbytes:
        raise InvalidArgument("a bound buffer has a null address", value=name)
    return Tensor(Buffer(CPU, int(address), nbytes, None, read_only), dtype, extents, None)


def _other_device(name: str, device_type: str) -> NotImplemented:
    return NotImplemented("this device cannot be bound", value=name, found=device_type, expected="cpu")
