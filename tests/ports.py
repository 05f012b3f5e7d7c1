"""Ports for servers that a test starts."""

from __future__ import annotations

import contextlib
import random
import socket

# SeaweedFS takes a second port for its own protocol.
SECOND = 10_000


def free_port() -> int:
    """A port that is free, and the one SECOND above it too. Both lie below those that a kernel gives to connections, so
    no connection takes them before the server is started.
    """
    while True:
        port = random.randrange(11_000, 21_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + SECOND))
            return port
