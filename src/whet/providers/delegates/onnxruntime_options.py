"""The options of the `onnxruntime` delegate: which exist, and how they reach ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from whet.errors import InvalidArgument, did_you_mean
from whet.providers.base import Level

CPU = "CPUExecutionProvider"

LEVELS: dict[Level, str] = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def _flag(text: str) -> bool:
    return {"0": False, "1": True, "false": False, "true": True}[text.lower()]


SESSION_OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "intra_op_num_threads": (_count, "a number of threads"),
    "inter_op_num_threads": (_count, "a number of threads"),
    "enable_cpu_mem_arena": (_flag, "0 or 1"),
    "enable_mem_pattern": (_flag, "0 or 1"),
    "enable_mem_reuse": (_flag, "0 or 1"),
    "use_deterministic_compute": (_flag, "0 or 1"),
}
"""Attributes of ONNX Runtime's SessionOptions that are provider options here: how to read each, and what it takes."""

SESSION_KEYS: frozenset[str] = frozenset(
    {
        "ep.context_embed_mode",
        "ep.context_enable",
        "ep.context_file_path",
        "mlas.disable_kleidiai",
        "mlas.enable_gemm_fastmath_arm64_bfloat16",
        "mlas.qnbit.force_fp32",
        "mlas.use_lut_gemm",
        "optimization.disable_specified_optimizers",
        "optimization.enable_cast_chain_elimination",
        "optimization.enable_gelu_approximation",
        "session.debug_layout_transformation",
        "session.disable_aot_function_inlining",
        "session.disable_double_qdq_remover",
        "session.disable_prepacking",
        "session.disable_qdq_constant_folding",
        "session.disable_quant_qdq",
        "session.dynamic_block_base",
        "session.enable_dq_matmulnbits_fusion",
        "session.enable_quant_qdq_cleanup",
        "session.force_spinning_stop",
        "session.inter_op.allow_spinning",
        "session.intra_op.allow_spinning",
        "session.intra_op_thread_affinities",
        "session.qdq_matmulnbits_accuracy_level",
        "session.qdq_matmulnbits_block_size",
        "session.qdqisint8allowed",
        "session.set_denormal_as_zero",
        "session.use_device_allocator_for_initializers",
        "session.x64quantprecision",
    }
)
"""Configuration keys of an ONNX Runtime session that mean something for a delegated part."""

CPU_PROVIDER_OPTIONS: frozenset[str] = frozenset({"use_arena"})


class DelegateOptions:
    """Options sorted by where they go: session attributes, session keys, and the provider's own."""

    def __init__(self, options: Mapping[str, str], provider: str) -> None:
        self.given = {str(k): str(v) for k, v in options.items()}
        self.attributes: dict[str, Any] = {}
        self.keys: dict[str, str] = {}
        self.provider: dict[str, str] = {}
        for name, text in self.given.items():
            if name in SESSION_OPTIONS:
                read, expected = SESSION_OPTIONS[name]
                try:
                    self.attributes[name] = read(text)
                except (ValueError, KeyError):
                    raise InvalidArgument(
                        "an option of the onnxruntime delegate has a value that it does not take",
                        value=name, found=text, expected=expected,
                    ) from None  # fmt: skip
            elif name in SESSION_KEYS:
                self.keys[name] = text
            elif provider != CPU and "." not in name:
                # Only ONNX Runtime knows the options of its other providers; it checks them when a session is made.
                self.provider[name] = text
            elif name not in CPU_PROVIDER_OPTIONS:
                known = {*SESSION_OPTIONS, *SESSION_KEYS, *CPU_PROVIDER_OPTIONS}
                raise InvalidArgument(
                    "unknown option of the onnxruntime delegate",
                    value=name,
                    hint=did_you_mean(name, known) or f"Known: {', '.join(sorted(known))}.",
                )
            elif name == "use_arena":
                self.attributes["enable_cpu_mem_arena"] = text == "1"

    def apply(self, session_options: Any) -> None:
        """Set the session attributes and keys on ONNX Runtime's SessionOptions."""
        for name, value in self.attributes.items():
            setattr(session_options, name, value)
        for key, text in self.keys.items():
            session_options.add_session_config_entry(key, text)
