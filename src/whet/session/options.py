"""SessionOptions, RunOptions and their enumerations, with the names and defaults of ONNX Runtime."""

from __future__ import annotations

import enum
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from whet.errors import InvalidArgument, NotImplemented, did_you_mean
from whet.ops.custom import CustomOp
from whet.providers.base import Level
from whet.runtime.cancel import CancelToken
from whet.session.config_keys import check_run_key, check_session_key
from whet.session.ortvalue import OrtValue
from whet.tuning.settings import Progress


class GraphOptimizationLevel(enum.IntEnum):
    """How far the graph is optimized."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(enum.IntEnum):
    """Accepted for compatibility; operators of one run follow each other, each using all its threads."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class ExecutionOrder(enum.IntEnum):
    """Accepted for compatibility; the order is the plan's."""

    DEFAULT = 0
    PRIORITY_BASED = 1
    MEMORY_EFFICIENT = 2


LEVELS: dict[GraphOptimizationLevel, Level] = {
    GraphOptimizationLevel.ORT_DISABLE_ALL: "disabled",
    GraphOptimizationLevel.ORT_ENABLE_BASIC: "basic",
    GraphOptimizationLevel.ORT_ENABLE_EXTENDED: "extended",
    GraphOptimizationLevel.ORT_ENABLE_LAYOUT: "all",
    GraphOptimizationLevel.ORT_ENABLE_ALL: "all",
}


class OptionNotSet(InvalidArgument, RuntimeError):
    """A configuration key was asked for that has not been set (ONNX Runtime raises a RuntimeError here)."""


class _CheckedAttributes:
    """Refuses an attribute that the class does not have, and a value of another kind: neither may pass silently."""

    _fields: Mapping[str, type] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
            return
        kind = self._fields.get(name)
        if kind is None:
            hint = did_you_mean(name, self._fields) or f"It has {', '.join(sorted(self._fields))}."
            raise AttributeError(f"{type(self).__name__} has no option {name!r}. {hint}")
        object.__setattr__(self, name, _coerced(name, value, kind))


def _coerced(name: str, value: Any, kind: type) -> Any:
    """`value` as an option of this kind; whole numbers stand for booleans and members of enumerations too."""
    try:
        if kind is str:
            return os.fsdecode(os.fspath(value))
        number = operator.index(value) if not isinstance(value, np.bool_) else int(value)
        if kind is bool and number not in (0, 1):
            raise ValueError
        return kind(number)
    except (TypeError, ValueError):
        expected = ", ".join(f"{m.name} ({m.value})" for m in kind) if issubclass(kind, enum.Enum) else kind.__name__
        raise InvalidArgument(
            "an option has the wrong type or value", value=name, found=repr(value), expected=expected
        ) from None


class SessionOptions(_CheckedAttributes):
    """How a session loads, optimizes and runs its model. A session reads them once, when it is made."""

    _fields: Mapping[str, type] = {
        "enable_cpu_mem_arena": bool,
        "enable_mem_pattern": bool,
        "enable_mem_reuse": bool,
        "enable_profiling": bool,
        "execution_mode": ExecutionMode,
        "execution_order": ExecutionOrder,
        "graph_optimization_level": GraphOptimizationLevel,
        "inter_op_num_threads": int,
        "intra_op_num_threads": int,
        "log_severity_level": int,
        "log_verbosity_level": int,
        "logid": str,
        "optimized_model_filepath": str,
        "profile_file_prefix": str,
        "use_deterministic_compute": bool,
        "use_per_session_threads": bool,
    }

    INERT: tuple[str, ...] = (
        "enable_cpu_mem_arena", "enable_mem_pattern", "enable_mem_reuse", "execution_mode", "execution_order",
        "inter_op_num_threads", "log_severity_level", "log_verbosity_level", "logid", "use_per_session_threads",
    )  # fmt: skip
    """Options that are accepted and change nothing."""

    def __init__(self) -> None:
        self.enable_cpu_mem_arena = True
        self.enable_mem_pattern = True
        self.enable_mem_reuse = True
        self.enable_profiling = False
        self.execution_mode: ExecutionMode = ExecutionMode.ORT_SEQUENTIAL
        self.execution_order: ExecutionOrder = ExecutionOrder.DEFAULT
        self.graph_optimization_level: GraphOptimizationLevel = GraphOptimizationLevel.ORT_ENABLE_ALL
        self.inter_op_num_threads = 0
        self.intra_op_num_threads = 0
        self.log_severity_level = -1
        self.log_verbosity_level = 0
        self.logid = ""
        self.optimized_model_filepath: str = ""
        self.profile_file_prefix = "whet_profile_"
        self.use_deterministic_compute = False
        self.use_per_session_threads = True
        self._config: dict[str, str] = {}
        self._dims_by_name: dict[str, int] = {}
        self._dims_by_denotation: dict[str, int] = {}
        self._initializers: dict[str, OrtValue] = {}
        self._files: dict[str, memoryview] = {}
        self._custom_ops: list[CustomOp] = []
        self._custom_op_libraries: list[str] = []
        self._providers: list[tuple[str, dict[str, str]]] = []
        self._tuning_report: Callable[[Progress], None] | None = None

    @property
    def level(self) -> Level:
        """The graph optimization level by its name."""
        return LEVELS[self.graph_optimization_level]

    def snapshot(self) -> SessionOptions:
        """A copy that later changes to this object do not reach."""
        copy = SessionOptions()
        for name, value in vars(self).items():
            setattr(copy, name, value.copy() if isinstance(value, (dict, list)) else value)
        return copy

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Set a configuration key. Raises InvalidArgument for one that nobody knows, naming the nearest."""
        check_session_key(key, value)
        self._config[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """The value set for `key`. Raises OptionNotSet when none is."""
        if key not in self._config:
            raise OptionNotSet("this session configuration key has not been set", value=key)
        return self._config[key]

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Give the free dimension called `name` a fixed size in elements."""
        self._dims_by_name[name] = _extent(name, size)

    def add_free_dimension_override_by_denotation(self, denotation: str, size: int) -> None:
        """Give every input dimension with this denotation a fixed size in elements."""
        self._dims_by_denotation[denotation] = _extent(denotation, size)

    def add_initializer(self, name: str, ortvalue: OrtValue) -> None:
        """Use this tensor for the initializer called `name`; its memory is borrowed, not copied."""
        self._initializers[name] = _tensor_value(name, ortvalue)

    def add_external_initializers(self, names: Sequence[str], ortvalues: Sequence[OrtValue]) -> None:
        """Use these tensors for initializers; external data that the model keeps for them is not read."""
        if len(names) != len(ortvalues):
            raise InvalidArgument("names and values differ in number", found=f"{len(names)} and {len(ortvalues)}")
        for name, value in zip(names, ortvalues, strict=True):
            self.add_initializer(name, value)

    def add_external_initializers_from_files_in_memory(
        self, names: Sequence[str], buffers: Sequence[Any], lengths: Sequence[int]
    ) -> None:
        """Read external data from these buffers (`lengths` in bytes) in place of the files called `names`."""
        if not len(names) == len(buffers) == len(lengths):
            found = f"{len(names)}, {len(buffers)} and {len(lengths)}"
            raise InvalidArgument("names, buffers and lengths differ in number", found=found)
        for name, buffer, length in zip(names, buffers, lengths, strict=True):
            data = memoryview(buffer).cast("B")
            if not 0 <= length <= len(data):
                raise InvalidArgument("a buffer is too short", value=name, found=len(data), expected=f"{length} bytes")
            self._files[name] = data[:length]

    def register_custom_ops_library(self, path: str | os.PathLike[str]) -> None:
        """Load a library of C++ operators: for the `onnxruntime` delegate, which alone can run them."""
        self._custom_op_libraries.append(os.fspath(path))

    def register_custom_op(self, op: CustomOp) -> None:
        """Add an operator written in Python (see `whet.CustomOp`)."""
        self._custom_ops.append(op)

    def add_provider(self, name: str, options: dict[str, str] | None = None) -> None:
        """Append an execution provider, used when the session is given none."""
        self._providers.append((name, {str(k): str(v) for k, v in (options or {}).items()}))

    def has_providers(self) -> bool:
        """Whether `add_provider` has been called."""
        return bool(self._providers)


class RunOptions(_CheckedAttributes):
    """Options of one run. Setting `terminate` from another thread stops runs that use this object."""

    _fields: Mapping[str, type] = {
        "log_severity_level": int,
        "log_verbosity_level": int,
        "logid": str,
        "only_execute_path_to_fetches": bool,
        "terminate": bool,
    }

    INERT: tuple[str, ...] = ("log_severity_level", "log_verbosity_level", "logid", "only_execute_path_to_fetches")
    """Options that are accepted and change nothing."""

    log_severity_level = -1
    log_verbosity_level = 0
    logid = ""
    only_execute_path_to_fetches = False

    def __init__(self) -> None:
        self._cancel = CancelToken()
        self._config: dict[str, str] = {}

    @property
    def terminate(self) -> bool:
        """Whether runs with this object stop at the next node."""
        return self._cancel.is_set()

    @terminate.setter
    def terminate(self, value: bool) -> None:
        if value:
            self._cancel.set()
        else:
            self._cancel.clear()

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Set a configuration key of this run. Raises InvalidArgument for an unknown one."""
        check_run_key(key, value)
        self._config[key] = value

    def get_run_config_entry(self, key: str) -> str:
        """The value set for `key`. Raises OptionNotSet when none is."""
        if key not in self._config:
            raise OptionNotSet("this run configuration key has not been set", value=key)
        return self._config[key]

    def add_active_adapter(self, adapter: object) -> None:
        """Adapters (LoRA) are not supported: raises NotImplemented."""
        raise NotImplemented("LoRA adapters are not supported", found=type(adapter).__name__)


def _extent(name: str, size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 0:
        raise InvalidArgument("a free dimension's override is a non-negative integer", value=name, found=size)
    return int(size)


def _tensor_value(name: str, value: Any) -> OrtValue:
    if not isinstance(value, OrtValue) or not value.is_tensor():
        found = value.data_type() if isinstance(value, OrtValue) else type(value).__name__
        raise InvalidArgument("an initializer is an OrtValue that holds a tensor", value=name, found=found)
    return value
