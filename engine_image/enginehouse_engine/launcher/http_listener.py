"""The listening socket of the OpenAI API: bound once, before anything is started, and shared by all API servers.

Invariant: whoever binds picks the port; nobody asks for a free one and binds it later.
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from enginehouse_engine.launcher.termination import EXCEPTION, INVALID_CONFIG, Cause

_BACKLOG: Final = 2048


class BindError(Exception):
    """The address cannot be had; ``cause`` says why and whether another time may help."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause.message)
        self.cause = cause


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 lets the kernel choose. Raises BindError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise BindError(Cause(INVALID_CONFIG, f"--host {host} is no address of this machine: {error}")) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            text = f"port {port} on {host} is in use by another process; stop it, or choose another with --port (0 = any free one)"
            raise BindError(Cause(EXCEPTION, text)) from error
        raise BindError(Cause(INVALID_CONFIG, f"cannot listen on {host} port {port}: {error}")) from error
    return listener


def url(listener: socket.socket, *, scheme: str) -> str:
    """Where clients of this machine reach it."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if listener.family == socket.AF_INET else "::1"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
