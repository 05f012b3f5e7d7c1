"""systemd's notification socket."""

from __future__ import annotations

import contextlib
import os
import socket


class Notifier:
    """Reports the daemon's state to systemd, if systemd wants it (sd_notify(3))."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def say(self, text: str) -> None:
        """Sends `text`, which may hold a path that is not UTF-8. Does nothing when systemd does not listen."""
        if self._address:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller, contextlib.suppress(OSError):
                teller.sendto(text.encode("utf-8", "backslashreplace"), self._address)
