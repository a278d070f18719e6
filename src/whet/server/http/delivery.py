"""What the other side of a connection has taken of what was written to it, and whether it is still there.

A transport knows what waits in it; the kernel's buffer, and with TLS all that is encrypted already, is behind it. So on
Linux the kernel is asked. Elsewhere the transport's own figure has to do.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from typing import Any

if sys.platform != "win32":
    from fcntl import ioctl

_UNSENT = 0x5411  # SIOCOUTQ: bytes that were written to a socket and not confirmed yet
# In tcp_info: what was confirmed since the connection began.
_ACKED_AT, _INFO_BYTES = 120, 128
_HANGS_UP: int = getattr(select, "POLLRDHUP", 0)


def taken(transport: Any) -> int | None:
    """A number that grows as the other side takes what was written; None where it has everything."""
    waits: int = transport.get_write_buffer_size()
    if sys.platform.startswith("linux"):
        try:
            found = _taken(transport.get_extra_info("socket"))
        except (OSError, AttributeError, ValueError):
            pass  # a connection that is gone, or a kernel that does not tell
        else:
            return 0 if found is None and waits else found
    return -waits if waits else None


def is_gone(transport: Any) -> bool:
    """Whether the other side sends nothing more, however much of it is not read yet. False where nobody knows."""
    if not _HANGS_UP:
        return False
    try:
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), _HANGS_UP)
        return bool(poll.poll(0))
    except (OSError, AttributeError, ValueError):
        return False


def _taken(connection: Any) -> int | None:
    if not struct.unpack("i", ioctl(connection.fileno(), _UNSENT, bytes(4)))[0]:
        return None
    information = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    return int(struct.unpack_from("=Q", information, _ACKED_AT)[0]) if len(information) >= _INFO_BYTES else 0
