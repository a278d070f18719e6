"""The machine that code is made for, as a value that is passed down; `host_target` is the only question to the host."""

from __future__ import annotations

import functools
import platform
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import llvmlite.binding as llvm

from whet.config import KIB, MIB
from whet.dtypes import BOOL, DType
from whet.errors import NotImplemented

Architecture = Literal["x86_64", "aarch64"]
System = Literal["linux", "macos", "windows"]

_X86_BASE = ("sse4.1", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "popcnt")
"""What every x86-64 target has; older CPUs are not served."""
_X86_512 = (*_X86_BASE, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_SYSTEMS = {
    "linux": "unknown-linux-gnu",
    "macos": "apple-macosx",
    "windows": "pc-windows-msvc",
}
_PLATFORMS: dict[str, System] = {"linux": "linux", "darwin": "macos", "win32": "windows"}


@dataclass(frozen=True, slots=True)
class Target:
    """A CPU and an operating system as far as they shape code. Sizes of caches in bytes per core (L3: shared), 0: none.

    `features` are LLVM's names with a sign ("+avx2", "-avx512f"), sorted. Objects are ELF on every system: code is
    loaded by LLVM's own run-time linker and not by the system's.
    """

    architecture: Architecture
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    system: System = "linux"
    pointer_bits: int = 64
    object_format: Literal["elf"] = "elf"

    @property
    def triple(self) -> str:
        """LLVM's name of architecture, system and object format."""
        return f"{self.architecture}-{_SYSTEMS[self.system]}" + ("" if self.system == "linux" else "-elf")

    def has(self, feature: str) -> bool:
        """Whether code may use `feature` (LLVM's name, without a sign)."""
        return f"+{feature}" in self.features

    def lanes(self, dtype: DType) -> int:
        """Elements of `dtype` in one vector register (bool: as many as bytes)."""
        return self.vector_bits // (8 if dtype is BOOL else dtype.bits)

    def runs_on(self, host: Target) -> bool:
        """Whether code for this target may be entered on `host`."""
        return (
            self.architecture == host.architecture
            and self.system == host.system
            and all(host.has(f[1:]) for f in self.features if f.startswith("+"))
        )

    def code_fields(self) -> tuple[tuple[str, str], ...]:
        """The fields that an object file depends on, as (name, text): this target's part of every cache key."""
        return (
            ("triple", self.triple),
            ("cpu", self.cpu),
            ("features", ",".join(self.features)),
        )

    def tuning_fields(self) -> tuple[tuple[str, str], ...]:
        """The fields that a measured choice depends on, as (name, text): the code's, the registers and the caches."""
        return (
            *self.code_fields(),
            ("vector", f"{self.vector_registers}x{self.vector_bits}"),
            ("caches", f"{self.l1_bytes},{self.l2_bytes},{self.l3_bytes}"),
        )


def _x86(cpu: str, features: tuple[str, ...], vector_bits: int, vector_registers: int) -> Target:
    signed = tuple(sorted(f"+{f}" for f in features))
    return Target("x86_64", cpu, signed, vector_bits, vector_registers, 32 * KIB, MIB, 32 * MIB)


AVX2 = _x86("x86-64-v3", _X86_BASE, 256, 16)
AVX512 = _x86("x86-64-v4", _X86_512, 512, 32)
AVX512_VNNI = _x86("x86-64-v4", (*_X86_512, "avx512vnni"), 512, 32)
AVX512_BF16 = _x86("x86-64-v4", (*_X86_512, "avx512vnni", "avx512bf16"), 512, 32)
NEON = Target("aarch64", "generic", ("+fp-armv8", "+neon"), 128, 32, 64 * KIB, MIB, 0)

PRESETS: dict[str, Target] = {
    "avx2": AVX2,
    "avx512": AVX512,
    "avx512-vnni": AVX512_VNNI,
    "avx512-bf16": AVX512_BF16,
    "neon": NEON,
}


@functools.cache
def host_target() -> Target:
    """The machine that this process runs on.

    Raises NotImplemented on an unknown system, and where the CPU is neither an x86-64 with AVX2, FMA and F16C nor an
    aarch64.
    """
    machine = platform.machine().lower()
    found = llvm.get_host_cpu_features()
    cpu = llvm.get_host_cpu_name()
    features = tuple(sorted(("+" if on else "-") + name for name, on in found.items()))
    system = _PLATFORMS.get(sys.platform)
    if system is None:
        raise NotImplemented("no compiled code for this system", found=sys.platform, expected=", ".join(_PLATFORMS))
    if machine in ("x86_64", "amd64"):
        if all(found.get(f, False) for f in _X86_512):
            base = AVX512
        elif all(found.get(f, False) for f in _X86_BASE):
            base = AVX2
        else:
            raise NotImplemented(
                "this CPU is too old for compiled code",
                found=cpu,
                expected="x86-64 with " + ", ".join(_X86_BASE),
                hint="Use providers=['ReferenceExecutionProvider'].",
            )
    elif machine in ("aarch64", "arm64"):
        base = NEON
    else:
        raise NotImplemented("no compiled code for this architecture", found=machine, expected="x86-64 or aarch64")
    l1, l2, l3 = _cache_bytes(Path("/sys/devices/system/cpu/cpu0/cache"))
    return replace(
        base,
        cpu=cpu,
        features=features or base.features,
        l1_bytes=l1 or base.l1_bytes,
        l2_bytes=l2 or base.l2_bytes,
        l3_bytes=l3,
        system=system,
    )


def _cache_bytes(folder: Path) -> tuple[int, int, int]:
    """Bytes of the data caches of level 1, 2 and 3 as Linux lists them in `folder`; 0 for what it does not list."""
    sizes = {1: 0, 2: 0, 3: 0}
    units = {"K": KIB, "M": MIB}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue  # a hypervisor may hide single files; the preset's size stands in
        if kind != "Instruction" and size[:-1].isdigit() and size[-1:] in units and level in ("1", "2", "3"):
            sizes[int(level)] = int(size[:-1]) * units[size[-1]]
    return sizes[1], sizes[2], sizes[3]
