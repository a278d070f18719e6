"""The session and run configuration keys that are accepted. Literal tables; anything else is refused by name."""

from __future__ import annotations

import math
from pathlib import Path

from whet.config import Limits
from whet.errors import InvalidArgument, did_you_mean
from whet.tuning.settings import NO_TUNING, Mode, Tuning, default_folder

SESSION_KEYS: dict[str, str] = {
    # Whet's own.
    "cpu.tactic.conv": "do every convolution in this one way, for tests and measurements; an error where it cannot",
    "cpu.tactic.chain": "one kernel for a depthwise convolution and its 1x1 neighbours: on, off, auto (where faster)",
    "engine.model": "the model that an engine must have been made of; an engine of another one is refused",
    "goal": "latency (default) or throughput: what a provider that has the choice is set up for",
    "limits.cse_bytes": "largest constant that is compared with others to merge equal ones",
    "limits.fold_bytes": "largest constant that folding may make",
    "limits.fold_seconds": "time that constant folding may take on one model",
    "limits.model_bytes": "largest model file without its weights",
    "limits.name_bytes": "longest name in a model",
    "limits.nesting": "depth of subgraphs and of local functions that call each other",
    "limits.nodes": "most nodes of a model",
    "limits.pass_rounds": "most repetitions of a group of passes",
    "limits.rank": "most dimensions of a tensor",
    "limits.tensor_bytes": "largest tensor that a node may make",
    "shapes.max": "largest shapes to make ready at once: INPUT:1x3x224x224,OTHER:8; more profiles after a ;",
    "shapes.min": "smallest shapes of that range; any, if left out",
    "shapes.opt": "the shapes of that range that are met most; the largest, if left out",
    "tune": "off (default): measure nothing; quick or full: time tactics that the timing cache does not know yet",
    "tune.budget": "seconds that tuning may take for each program; 3 for quick, as many as it takes for full",
    "tune.cache": "folder of the timing cache, whose choices every session takes, or none: choose by the cost model",
    # ONNX Runtime's, with effect here.
    "session.model_external_initializers_file_folder_path": "folder of a model's external data, for models from bytes",
    "session.disable_cpu_ep_fallback": "1: refuse a model of which any node lands on the reference provider",
    "session.record_ep_graph_assignment_info": "1: keep what get_provider_graph_assignment_info returns",
    "optimization.constant_folding_max_output_size_in_bytes": "largest constant that folding may make",
    "optimization.disable_specified_optimizers": "names of passes to leave out, separated by ;",
    "session.optimized_model_external_initializers_file_name": "weights of the saved model go into this file",
    "session.optimized_model_external_initializers_min_size_in_bytes": "smallest tensor that goes there",
}
"""Keys that change what a session does, each with its meaning."""

INERT_SESSION_KEYS: frozenset[str] = frozenset(
    {
        "ep.context_embed_mode",
        "ep.context_enable",
        "ep.context_file_path",
        "ep.context_model_external_initializers_file_name",
        "memory.enable_memory_arena_shrinkage",
        "mlas.disable_kleidiai",
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "mlas.qnbit.force_fp32",
        "mlas.use_lut_gemm",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "optimization.minimal_build_optimizations",
        "session.allow_released_opsets_only",
        "session.collect_node_memory_stats_to_file",
        "session.debug_layout_transformation",
        "session.disable_aot_function_inlining",
        "session.disable_double_qdq_remover",
        "session.disable_model_compile",
        "session.disable_prepacking",
        "session.disable_qdq_constant_folding",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.graph_optimizations_loop_level",
        "session.inter_op.allow_spinning",
        "session.inter_op.spin_backoff_max",
        "session.inter_op.spin_duration_us",
        "session.intra_op.allow_spinning",
        "session.intra_op.spin_backoff_max",
        "session.intra_op.spin_duration_us",
        "session.intra_op_thread_affinities",
        "session.load_model_format",
        "session.node_partition_config_file",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdq_matmulnbits_block_size",
        "session.qdqisint8allowed",
        "session.save_external_prepacked_constant_initializers",
        "session.save_model_format",
        "session.set_denormal_as_zero",
        "session.strict_shape_type_inference",
        "session.use_device_allocator_for_initializers",
        "session.use_env_allocators",
        "session.use_memory_mapped_ort_model",
        "session.use_ort_model_bytes_directly",
        "session.use_ort_model_bytes_for_initializers",
        "session.x64quantprecision",
    }
)
"""Keys of ONNX Runtime that existing programs set and that change nothing here; `whet info --options` lists them."""

NO_CACHE = "none"
MODES: tuple[Mode, ...] = ("off", "quick", "full")

RUN_KEYS: dict[str, str] = {
    "deadline_ms": "stop the run after this many milliseconds",
}
INERT_RUN_KEYS: frozenset[str] = frozenset(
    {
        "disable_synchronize_execution_providers",
        "ep.dynamic.workload_type",
        "gpu_graph_id",
        "memory.enable_memory_arena_shrinkage",
        "qnn.htp_perf_mode",
        "qnn.htp_perf_mode_post_run",
        "qnn.lora_config",
        "qnn.rpc_control_latency",
    }
)

_CHOICES: dict[str, tuple[str, ...]] = {
    "cpu.tactic.conv": (
        "pointwise", "depthwise", "grouped", "im2col", "padded", "direct", "winograd4", "winograd2", "winograd4-few",
        "winograd4-stride2", "winograd2-stride2", "winograd-line8", "winograd-line6",
    ),
    "cpu.tactic.chain": ("auto", "on", "off"),
    "goal": ("latency", "throughput"),
    "tune": ("off", "quick", "full"),
    "session.disable_cpu_ep_fallback": ("0", "1"),
    "session.record_ep_graph_assignment_info": ("0", "1"),
    "session.load_model_format": ("", "ONNX"),
    "session.save_model_format": ("", "ONNX"),
}  # fmt: skip
_WHOLE = frozenset(
    {
        "optimization.constant_folding_max_output_size_in_bytes",
        "session.optimized_model_external_initializers_min_size_in_bytes",
        *(key for key in SESSION_KEYS if key.startswith("limits.") and key != "limits.fold_seconds"),
    }
)
_SECONDS_OR_MS = frozenset({"limits.fold_seconds", "deadline_ms", "tune.budget"})


def check_session_key(key: str, value: str) -> None:
    """Raise InvalidArgument for an unknown key (with the nearest known one) or a value that the key does not take."""
    _check(key, value, {*SESSION_KEYS, *INERT_SESSION_KEYS}, "session configuration key")


def check_run_key(key: str, value: str) -> None:
    """Like `check_session_key`, for the keys of one run."""
    _check(key, value, {*RUN_KEYS, *INERT_RUN_KEYS}, "run configuration key")


def _check(key: str, value: str, known: set[str], what: str) -> None:
    if not isinstance(key, str) or not isinstance(value, str):
        raise InvalidArgument(f"a {what} and its value are strings", value=str(key), found=type(value).__name__)
    if key not in known:
        hint = did_you_mean(key, known) or "SessionOptions and `whet info --options` list the known keys."
        raise InvalidArgument(f"unknown {what}", value=key, hint=hint)
    choices = _CHOICES.get(key)
    if choices is not None and value not in choices:
        raise InvalidArgument(
            f"a value that the {what} does not take", value=key, found=value, expected=" or ".join(map(repr, choices))
        )
    if key in _WHOLE and not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise InvalidArgument(f"the {what} takes a whole number", value=key, found=value, expected="at least 0")
    if key in _SECONDS_OR_MS and not _is_duration(value):
        raise InvalidArgument(f"the {what} takes a number", value=key, found=value, expected="a finite number >= 0")


def _is_duration(text: str) -> bool:
    try:
        number = float(text)
    except ValueError:
        return False
    return math.isfinite(number) and number >= 0


def forced_tactics(config: dict[str, str]) -> dict[str, str]:
    """Tactics that checked session keys force, by family of operators."""
    prefix = "cpu.tactic."
    return {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}


def tuning(config: dict[str, str], deterministic: bool) -> Tuning:
    """How checked session keys ask for tactics to be measured.

    `deterministic`: choose by the cost model alone. Raises InvalidArgument where the keys contradict each other.
    """
    mode: Mode = next((m for m in MODES if m == config.get("tune")), "off")
    folder = config.get("tune.cache")
    if mode != "off" and (deterministic or folder == NO_CACHE):
        raise InvalidArgument(
            "nothing can be tuned without a timing cache", value="tune", found=mode,
            expected="off with use_deterministic_compute" if deterministic else f"off with tune.cache={NO_CACHE}",
        )  # fmt: skip
    if deterministic or folder == NO_CACHE:
        return NO_TUNING
    if folder == "":
        raise InvalidArgument("the timing cache has no folder", value="tune.cache", expected=f"a path, or {NO_CACHE}")
    budget = config.get("tune.budget")
    return Tuning(
        mode, None if budget is None else float(budget), default_folder() if folder is None else Path(folder)
    )  # fmt: skip


def tactic_families() -> dict[str, tuple[str, ...]]:
    """What session keys may force, by family of operators."""
    prefix = "cpu.tactic."
    return {key.removeprefix(prefix): values for key, values in _CHOICES.items() if key.startswith(prefix)}


def limit_changes(config: dict[str, str]) -> dict[str, float]:
    """The fields of `Limits` that checked session keys set."""
    changes: dict[str, float] = {}
    folding = config.get("optimization.constant_folding_max_output_size_in_bytes")
    if folding is not None:
        changes["fold_bytes"] = int(folding)
    for field in Limits.__dataclass_fields__:
        text = config.get(f"limits.{field}")
        if text is not None:
            changes[field] = float(text) if field == "fold_seconds" else int(text)
    return changes
