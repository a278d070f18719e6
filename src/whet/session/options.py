"""SessionOptions, RunOptions and their enumerations, with the names and defaults of ONNX Runtime."""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Sequence
from typing import Any

from whet.errors import InvalidArgument, NotImplemented, did_you_mean
from whet.ops.custom import CustomOp
from whet.providers.base import Level
from whet.session.config_keys import check_run_key, check_session_key
from whet.session.ortvalue import OrtValue


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


class _CheckedAttributes:
    """Refuses assignment to an attribute that the class does not have: a misspelt option must not pass silently."""

    _fields: frozenset[str] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._fields and not name.startswith("_"):
            hint = did_you_mean(name, self._fields) or f"It has {', '.join(sorted(self._fields))}."
            raise AttributeError(f"{type(self).__name__} has no option {name!r}. {hint}")
        object.__setattr__(self, name, value)


class SessionOptions(_CheckedAttributes):
    """How a session loads, optimizes and runs its model. Times are in seconds, sizes in bytes, where not named else."""

    _fields = frozenset(
        {
            "enable_cpu_mem_arena", "enable_mem_pattern", "enable_mem_reuse", "enable_profiling", "execution_mode",
            "execution_order", "graph_optimization_level", "inter_op_num_threads", "intra_op_num_threads",
            "log_severity_level", "log_verbosity_level", "logid", "optimized_model_filepath", "profile_file_prefix",
            "use_deterministic_compute", "use_per_session_threads",
        }
    )  # fmt: skip

    INERT: tuple[str, ...] = (
        "enable_cpu_mem_arena", "enable_mem_pattern", "enable_mem_reuse", "execution_mode", "execution_order",
        "inter_op_num_threads", "log_verbosity_level", "use_per_session_threads",
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
        self._custom_ops: list[CustomOp] = []
        self._custom_op_libraries: list[str] = []
        self._providers: list[tuple[str, dict[str, str]]] = []

    @property
    def level(self) -> Level:
        """The graph optimization level by its name."""
        try:
            return LEVELS[GraphOptimizationLevel(self.graph_optimization_level)]
        except ValueError:
            raise InvalidArgument(
                "unknown graph optimization level",
                found=self.graph_optimization_level,
                expected=", ".join(f"{m.name} ({m.value})" for m in GraphOptimizationLevel),
            ) from None

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Set a configuration key. Raises InvalidArgument for one that nobody knows, naming the nearest."""
        check_session_key(key, value)
        self._config[key] = value

    def get_session_config_entry(self, key: str) -> str:
        """The value set for `key`. Raises InvalidArgument when none is."""
        if key not in self._config:
            raise InvalidArgument("this session configuration key has not been set", value=key)
        return self._config[key]

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Give the free dimension called `name` a fixed size in elements."""
        self._dims_by_name[name] = _extent(name, size)

    def add_free_dimension_override_by_denotation(self, denotation: str, size: int) -> None:
        """Give every input dimension with this denotation a fixed size in elements."""
        self._dims_by_denotation[denotation] = _extent(denotation, size)

    def add_initializer(self, name: str, ortvalue: OrtValue) -> None:
        """Use this tensor for the initializer called `name`."""
        self._initializers[name] = ortvalue

    def add_external_initializers(self, names: Sequence[str], ortvalues: Sequence[OrtValue]) -> None:
        """Use these tensors for initializers whose data lies outside of the model file."""
        if len(names) != len(ortvalues):
            raise InvalidArgument("names and values differ in number", found=f"{len(names)} and {len(ortvalues)}")
        self._initializers.update(zip(names, ortvalues, strict=True))

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

    _fields = frozenset(
        {"log_severity_level", "log_verbosity_level", "logid", "only_execute_path_to_fetches", "terminate"}
    )

    def __init__(self) -> None:
        self.log_severity_level = -1
        self.log_verbosity_level = 0
        self.logid = ""
        self.only_execute_path_to_fetches = False
        self._cancel = threading.Event()
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
        """The value set for `key`. Raises InvalidArgument when none is."""
        if key not in self._config:
            raise InvalidArgument("this run configuration key has not been set", value=key)
        return self._config[key]

    def add_active_adapter(self, adapter: object) -> None:
        """Adapters (LoRA) are not supported: raises NotImplemented."""
        raise NotImplemented("LoRA adapters are not supported", found=type(adapter).__name__)


def _extent(name: str, size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise InvalidArgument("a free dimension's override is a non-negative integer", value=name, found=size)
    return size
