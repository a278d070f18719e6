"""The session and run configuration keys that are accepted. Literal tables; anything else is refused by name."""

from __future__ import annotations

from whet.errors import InvalidArgument, did_you_mean

SESSION_KEYS: dict[str, str] = {
    # Whet's own.
    "tune": "off, quick or full: how long to search for the fastest tactics",
    "precision": "float32 (default): the arithmetic that results are computed in",
    "goal": "latency (default) or throughput",
    "verify": "1: compare the optimized model with the unoptimized one at load, on random inputs",
    # ONNX Runtime's, with effect here.
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
    "tune": ("off", "quick", "full"),
    "goal": ("latency", "throughput"),
    "precision": ("float32",),
    "verify": ("0", "1"),
    "session.disable_cpu_ep_fallback": ("0", "1"),
    "session.record_ep_graph_assignment_info": ("0", "1"),
    "session.load_model_format": ("", "ONNX"),
    "session.save_model_format": ("", "ONNX"),
}


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
