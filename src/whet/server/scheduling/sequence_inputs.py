"""What a model of sequences gets besides a request's own inputs: controls, and the state that it left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from whet.errors import InvalidArgument, NoSuchFile, did_you_mean
from whet.server.auto_config import tensor_datatype
from whet.server.datatypes import BYTES, Datatype
from whet.server.errors import Unsupported
from whet.server.model_config import ControlInput, ModelConfig, StateConfig
from whet.server.request import Array
from whet.session.feeds import NodeArg

State = dict[str, Array]
"""The next values of the state inputs."""


class SequenceInputs:
    """Fills controls and states for one model. Raises InvalidArgument where its configuration does not fit the model.

    START is true in a sequence's first request, END in its last, READY always (no run has rows for a sequence that asks
    nothing), CORRID is the sequence's id. A state begins as its file, or as zeros; free extents of zeros are 1.
    """

    def __init__(self, config: ModelConfig, inputs: Sequence[NodeArg], outputs: Sequence[NodeArg]) -> None:
        assert config.sequence_batching is not None
        self._model = config.name
        self._batched = config.max_batch_rows > 0
        by_name = {a.name: a for a in inputs}
        outputs_by_name = {a.name: a for a in outputs}
        self._controls: list[tuple[ControlInput, tuple[int, ...], Array, Array]] = []
        for control in config.sequence_batching.controls:
            shape = self._control_shape(control, self._found(control.name, by_name, control.datatype, "input"))
            dtype = control.datatype.dtype.numpy
            false, true = (np.full(shape, v).astype(dtype) for v in (control.false_value, control.true_value))
            self._controls.append((control, shape, false, true))
        self.states = config.sequence_batching.states
        self._first: State = {}
        for state in self.states:
            self._found(state.input, by_name, state.datatype, "input")
            self._found(state.output, outputs_by_name, state.datatype, "output")
            self._first[state.input] = self._initial(state)

    def first_state(self) -> State:
        """The state of a sequence that begins."""
        return dict(self._first)

    def controls(self, sequence: int | str, start: bool, end: bool) -> dict[str, Array]:
        """The control inputs of one request. Raises InvalidArgument for an id that the model's type cannot hold."""
        feed = {}
        for control, shape, false, true in self._controls:
            match control.kind:
                case "CORRID":
                    feed[control.name] = self._id(control, shape, sequence)
                case "START":
                    feed[control.name] = true if start else false
                case "END":
                    feed[control.name] = true if end else false
                case "READY":
                    feed[control.name] = true
        return feed

    def _id(self, control: ControlInput, shape: tuple[int, ...], sequence: int | str) -> Array:
        if control.datatype is BYTES:
            out = np.empty(shape, object)
            out.reshape(-1)[:] = str(sequence)
            return out
        dtype = control.datatype.dtype.numpy
        if isinstance(sequence, str) or not sequence <= np.iinfo(dtype).max:
            raise InvalidArgument(
                f"model {self._model!r} cannot take this sequence id", value=control.name, found=sequence,
                expected=control.datatype.name,
            )  # fmt: skip
        return np.full(shape, sequence, dtype)

    def _found(self, name: str, args: Mapping[str, NodeArg], datatype: Datatype, kind: str) -> NodeArg:
        arg = args.get(name)
        if arg is None:
            hint = did_you_mean(name, args)
            raise InvalidArgument(
                f"model {self._model!r} has no such {kind}, which sequence_batching names", value=name, hint=hint
            )
        found = tensor_datatype(arg, self._model)
        if found is not datatype:
            raise InvalidArgument(
                f"model {self._model!r}: sequence_batching gives an {kind} another type than the model has", value=name,
                found=datatype.config_name, expected=found.config_name,
            )  # fmt: skip
        return arg

    def _control_shape(self, control: ControlInput, arg: NodeArg) -> tuple[int, ...]:
        if any(isinstance(d, int) and d != 1 for d in arg.shape):
            raise InvalidArgument(
                f"model {self._model!r}: a control input has one element for each row", value=control.name,
                found=arg.shape, expected=["n", 1] if self._batched else [1],
            )  # fmt: skip
        if control.kind == "CORRID" and control.datatype is not BYTES and control.datatype.dtype.numpy.kind not in "iu":
            raise InvalidArgument(
                f"model {self._model!r}: a sequence's id is a whole number or a string", value=control.name,
                found=control.datatype.config_name,
            )  # fmt: skip
        return (1,) * len(arg.shape)

    def _initial(self, state: StateConfig) -> Array:
        dtype = state.datatype.dtype.numpy
        if state.initial_file is not None:
            array = self._from_file(state, Path(state.initial_file))
        else:
            shape = tuple(1 if d == -1 else d for d in state.dims)
            array = np.full(shape, "", object) if state.datatype is BYTES else np.zeros(shape, dtype)
        return array[None] if self._batched else array

    def _from_file(self, state: StateConfig, file: Path) -> Array:
        if state.datatype is BYTES:
            raise Unsupported("this server does not read first states of strings", file=str(file), value=state.input)
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise NoSuchFile("the first state cannot be read", file=str(file), found=error.strerror) from error
        dtype = state.datatype.dtype.numpy
        known = int(np.prod([d for d in state.dims if d != -1])) * dtype.itemsize
        free = state.dims.count(-1)
        fits = len(raw) == known if not free else free == 1 and known > 0 and len(raw) % known == 0
        if not fits:
            raise InvalidArgument(
                f"model {self._model!r}: the first state's file has the wrong size", file=str(file), value=state.input,
                found=f"{len(raw)} bytes", expected=f"{known} bytes for {state.datatype.name} {list(state.dims)}",
            )  # fmt: skip
        return np.frombuffer(raw, dtype).reshape(state.dims)
