"""Process-wide settings and facts, under the names of ONNX Runtime's module functions."""

from __future__ import annotations

import logging
import platform
import sys

from whet.errors import InvalidArgument
from whet.providers.catalog import get_available_providers
from whet.version import __version__

LOGGER = logging.getLogger("whet")

_SEVERITIES: dict[int, int] = {
    0: logging.DEBUG,
    1: logging.INFO,
    2: logging.WARNING,
    3: logging.ERROR,
    4: logging.CRITICAL,
}


def set_default_logger_severity(severity: int) -> None:
    """Log what is at least this severe: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal."""
    if severity not in _SEVERITIES:
        raise InvalidArgument("unknown logger severity", found=severity, expected="0 to 4")
    LOGGER.setLevel(_SEVERITIES[severity])


def set_default_logger_verbosity(verbosity: int) -> None:
    """Accepted for compatibility; Whet's log has one verbosity."""


def enable_telemetry_events() -> None:
    """Accepted for compatibility; Whet sends nothing anywhere."""


def disable_telemetry_events() -> None:
    """Accepted for compatibility; Whet sends nothing anywhere."""


def has_collective_ops() -> bool:
    """Whether operators that talk between processes are built in: no."""
    return False


def preload_dlls(cuda: bool = True, cudnn: bool = True, msvc: bool = True, directory: str | None = None) -> None:
    """Accepted for compatibility; a delegate loads the libraries that it needs when it is made."""


def print_debug_info() -> None:
    """Print what a report of a problem should hold: versions, machine, providers."""
    print(get_build_info())
    print(f"Providers: {', '.join(get_available_providers())}")


def get_device() -> str:
    """The kind of device that the default provider uses."""
    return "CPU"


def get_version_string() -> str:
    """The version of Whet."""
    return __version__


def get_build_info() -> str:
    """One line on this build and the Python under it."""
    return f"Whet {__version__}, Python {sys.version.split()[0]}, {platform.machine()} {platform.system()}"
