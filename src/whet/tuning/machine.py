"""What timings depend on besides the work: the machine, and the version of everything that makes code."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import whet.compiler
from whet.codegen.target import Target
from whet.compiler.link import generator_digest
from whet.version import __version__

Fields = tuple[tuple[str, str], ...]

_CPUINFO = Path("/proc/cpuinfo")


def machine_fields(target: Target, cores: int) -> Fields:
    """The fields that a timing depends on, as (name, text)."""
    return (
        *target.tuning_fields(),
        ("model", cpu_model()),
        ("cores", str(cores)),
        ("version", __version__),
        ("generator", _digest()),
    )


@functools.cache
def cpu_model(source: Path = _CPUINFO) -> str:
    """The CPU's own name, where the system tells it: two models of one family differ in clock and memory."""
    try:
        lines = source.read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


@functools.cache
def _digest() -> str:
    """A digest of what makes kernels, and of what makes steps of them."""
    digest = hashlib.sha256(generator_digest().encode())
    root = Path(whet.compiler.__file__).parent
    for folder in ("lower", "tactics"):
        for path in sorted((root / folder).glob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
