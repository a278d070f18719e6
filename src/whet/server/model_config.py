"""A model's configuration as frozen records. It is made from config.pbtxt, from the model itself, or from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from whet.server.datatypes import Datatype

DEFAULT_MAX_BATCH_ROWS = 32
"""Most rows of a batch for a model that can be batched and has no configuration that says how many."""


@dataclass(frozen=True, slots=True)
class TensorConfig:
    """An input or output. `dims` leaves out the batch's extent where the model is batched; -1 is any extent.

    `reshape`: the dims that the model itself wants, where they differ. `labels`: the classes' names, for the
    classification extension, from `label_file`. `is_optional`: the request may leave it out.
    """

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()
    is_optional: bool = False
    label_file: str = ""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """What happens to requests that wait. `max_size` 0: as many as come; `default_timeout_us` 0: as long as it takes.

    `delay_expired`: a request whose time in the queue is over moves to the end of its level instead of being refused.
    """

    max_size: int = 0
    default_timeout_us: int = 0
    allow_timeout_override: bool = False
    delay_expired: bool = False


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """How requests are joined. `max_queue_delay_us` None: learned from measured latency; 0: they never wait for others.

    A configuration that gives no max_queue_delay_microseconds has it learned (with Triton it is 0); one that gives a 0
    means it.
    """

    preferred_rows: tuple[int, ...] = ()
    max_queue_delay_us: int | None = None
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: Mapping[int, QueuePolicy] = field(default_factory=dict)


ControlKind = Literal["START", "READY", "END", "CORRID"]


@dataclass(frozen=True, slots=True)
class ControlInput:
    """An input that the server fills to tell a model where a sequence stands.

    `false_value` and `true_value` for START, READY and END; a CORRID gets the sequence's id as `datatype`.
    """

    name: str
    kind: ControlKind
    datatype: Datatype
    false_value: float = 0.0
    true_value: float = 1.0


@dataclass(frozen=True, slots=True)
class StateConfig:
    """A tensor that the server carries from one request of a sequence to the next: `output` becomes `input`.

    `dims` without the batch's extent. `initial`: the first value's file, or None for zeros.
    """

    input: str
    output: str
    datatype: Datatype
    dims: tuple[int, ...]
    initial_file: str | None = None


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Requests of one sequence go, in order, to one slot (`direct`), or are joined with other sequences' (`oldest`)."""

    strategy: Literal["direct", "oldest"] = "direct"
    max_sequence_idle_us: int = 1_000_000
    max_candidate_sequences: int = 0
    max_queue_delay_us: int = 0
    preferred_rows: tuple[int, ...] = ()
    controls: tuple[ControlInput, ...] = ()
    states: tuple[StateConfig, ...] = ()


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """A model of an ensemble: its inputs and outputs, each mapped to the name of a tensor of the ensemble."""

    model: str
    version: str
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class WarmupInput:
    """An input of a warm-up request: zeros, random values, or a file of the version-independent `warmup` folder."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    source: Literal["zero", "random", "file"] = "zero"
    file: str = ""


@dataclass(frozen=True, slots=True)
class Warmup:
    """A request that is run before a model is said to be ready. `rows` 0 for models without batches."""

    name: str
    rows: int
    count: int
    inputs: tuple[WarmupInput, ...]


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions of a model are served: the newest `latest`, the `specific` ones, or `all`."""

    latest: int = 1
    specific: tuple[int, ...] = ()
    all: bool = False


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Resources that a run of an instance holds (name to count) and its weight among the instances that wait."""

    resources: Mapping[str, int] = field(default_factory=dict)
    priority: int = 1


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything that a server is told of a model. `max_batch_rows` 0: the model is not batched.

    `instances`: runs at one time. `threads` 0: a fair part of the server's budget. `providers` empty: the CPU's.
    """

    name: str
    inputs: tuple[TensorConfig, ...]
    outputs: tuple[TensorConfig, ...]
    max_batch_rows: int = 0
    model_file: str = "model.onnx"
    platform: str = "onnxruntime_onnx"
    backend: str = "onnxruntime"
    version_policy: VersionPolicy = VersionPolicy()
    instances: int = 1
    threads: int = 0
    providers: tuple[str, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    sequence_batching: SequenceBatching | None = None
    ensemble: tuple[EnsembleStep, ...] = ()
    warmups: tuple[Warmup, ...] = ()
    response_cache: bool = False
    rate_limit: RateLimit | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ensemble(self) -> bool:
        return bool(self.ensemble)
