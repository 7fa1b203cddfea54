"""Starts operators quickly: imports everything once, then forks a real operator process per line of its input.

Input, one JSON object per line: {"arguments": [...], "log": path, "dieAfter": k or null}. Output: the pid, then later its exit.
The dying is made here, around the client's one sending method, so that the product has no switch for it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import Any

from enginehouse_operator import __main__ as operator
from enginehouse_operator import kubernetes_client

DIED_ON_PURPOSE = 99


def is_write(method: str, path: str, query: Any) -> bool:
    """What changes the world, the operator's own Lease aside."""
    return method != "GET" and "/leases" not in path and "dryRun" not in dict(query or {})


def die_after(writes: int) -> None:
    """Exit at once, as by SIGKILL, when so many writes were acknowledged."""
    send = kubernetes_client.KubernetesClient._send
    done = 0

    async def counting(self: Any, method: str, path: str, query: Any = (), **rest: Any) -> Any:
        nonlocal done
        answer = await send(self, method, path, query, **rest)
        if is_write(method, path, query):
            done += 1
            if done >= writes:
                os._exit(DIED_ON_PURPOSE)
        return answer

    kubernetes_client.KubernetesClient._send = counting


def child(order: dict[str, Any]) -> None:
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    if order["dieAfter"] is not None:
        die_after(order["dieAfter"])
    os._exit(operator.main(order["arguments"]))


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        print(json.dumps({"pid": pid, "exit": os.waitstatus_to_exitcode(status)}), flush=True)


def main() -> None:
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.siginterrupt(signal.SIGCHLD, False)
    print(json.dumps({"ready": True}), flush=True)
    buffer = b""
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            reap()
        if 0 in ready:
            chunk = os.read(0, 65536)
            if not chunk:
                return
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    child(order)
                print(json.dumps({"started": pid}), flush=True)


if __name__ == "__main__":
    main()
    sys.exit(0)
