"""What an engine depends on, field by field, so that a refusal can name the one that differs."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import whet.compiler.samples
import whet.runtime
from whet.codegen.target import Target
from whet.compiler.link import generator_digest
from whet.engine.container import Fields
from whet.version import __version__


def machine_fields(target: Target) -> Fields:
    """The fields that must be those of the machine and the version that load it."""
    return (
        ("version", __version__),
        *target.tuning_fields(),
        ("kernels", generator_digest()),
        ("runtime", _runtime_digest()),
    )


@functools.cache
def _runtime_digest() -> str:
    """A digest of the code that gives tables their meaning."""
    digest = hashlib.sha256()
    # The proof that samples are apart is kept in an engine.
    for path in (*sorted(Path(whet.runtime.__file__).parent.glob("*.py")), Path(whet.compiler.samples.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()
