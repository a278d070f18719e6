"""Closing a port without losing anyone.

A client whose connection the kernel completed may have sent its request before the server takes the connection, and
a port that closes resets what nobody took. So a port is closed in two steps: new connections are kept out, what waits
is taken; then it is closed. Only Linux can keep connections out of an open port; elsewhere this module does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import sys

TURN_S = 0.01
HANDSHAKE_S = 0.05
"""Time for the last packet of a handshake whose first one was let in."""
TAKE_S = 2.0
"""What waits is taken within this time, or the server is too busy to take it at all."""

_ATTACH_FILTER = 26
_TCP_FLAGS, _SYN, _ACK = 13, 0x02, 0x10
# A program of the kernel's packet filter: drop what has SYN and not ACK among its TCP flags, pass everything else.
_KEEP_OUT: tuple[tuple[int, int, int, int], ...] = (
    (0x30, 0, 0, _TCP_FLAGS),  # load the byte
    (0x54, 0, 0, _SYN | _ACK),  # and
    (0x15, 0, 1, _SYN),  # skip the next unless equal
    (0x06, 0, 0, 0),  # drop
    (0x06, 0, 0, 0xFFFFFFFF),  # pass
)
# tcpi_state ... are 8 bytes, then words of 4; in a socket that listens, the fifth is the number that waits.
_INFO_BYTES, _WAITING_AT = 104, 8 + 4 * 4


async def keep_out(port: int) -> None:
    """Let no new connections come to a port of this process; return when those that were there have been taken."""
    if not sys.platform.startswith("linux"):
        return
    held: list[socket.socket] = []
    try:
        held = _listening(port)
        for one in held:
            _attach(one)
        await asyncio.sleep(HANDSHAKE_S if held else 0.0)
        end = asyncio.get_running_loop().time() + TAKE_S
        while any(_waiting(one) for one in held) and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(TURN_S)
    except OSError:
        pass  # a kernel that cannot do this: the port is closed in one step
    finally:
        for one in held:
            one.close()


def _listening(port: int) -> list[socket.socket]:
    """Duplicates of this process's sockets that listen on a port. Whoever made them need not tell."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            number = os.dup(int(name))
        except OSError:
            continue  # closed meanwhile
        try:
            one = socket.socket(fileno=number)
        except OSError:
            os.close(number)
            continue
        is_ours = False
        with contextlib.suppress(OSError):
            is_ours = (
                one.family in (socket.AF_INET, socket.AF_INET6)
                and bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
                and one.getsockname()[1] == port
            )
        if is_ours:
            found.append(one)
        else:
            one.close()
    return found


def _attach(listening: socket.socket) -> None:
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in _KEEP_OUT))
    given = struct.pack("H6xQ" if struct.calcsize("P") == 8 else "H2xI", len(_KEEP_OUT), ctypes.addressof(program))
    listening.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, given)


def _waiting(listening: socket.socket) -> int:
    """Connections that are complete and that nobody has taken."""
    information = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    return int(struct.unpack_from("=I", information, _WAITING_AT)[0])
