"""A TCP port of this host that nobody listens on, for programs that cannot be asked to choose one and say which.

Invariant: none; whoever is quicker may take it. A program that can choose its own (port 0) is given that.
"""

from __future__ import annotations

import socket


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
