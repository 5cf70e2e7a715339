"""What two nodes of a run tell each other: lines of JSON over a connection, when nothing is timed."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any

ALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 6}  # s, s, asked in vain


class Line:
    """A connection to another node.

    Args:
        connection: that is open.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.heard = connection, b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ALIVE.items():
            connection.setsockopt(socket.IPPROTO_TCP, option, value)

    def fileno(self) -> int:
        """The descriptor."""
        return self.connection.fileno()

    def send(self, **told: Any) -> None:
        """Tell something; that nobody hears it, is found out when hearing."""
        with suppress(OSError):
            self.connection.sendall(json.dumps(told).encode() + b"\n")

    def receive(self, patience_s: float | None = None) -> dict[str, Any]:
        """What was told next.

        Raises:
            OSError: it has gone, or tells nothing for so long.
            ValueError: it tells no JSON.
        """
        self.connection.settimeout(patience_s)
        while b"\n" not in self.heard:
            found = self.connection.recv(2**16)
            if not found:
                raise ConnectionResetError("it has gone")
            self.heard += found
        line, _, self.heard = self.heard.partition(b"\n")
        return dict(json.loads(line))
