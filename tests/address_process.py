"""A process of an engine that only meets the others: it binds, publishes, connects to what it is told, and checks whom it reached.

    address_process.py launch FLAGS...                               the real launcher with such processes
    address_process.py ROLE SOCKET RANK INDEX INCARNATION            one of them

Everything is TCP with ports that the kernel picks, so that a port which one engine lets go is soon another one's. Each side of a
connection says who it is; whoever is not whom the record promised is a collision, and the word for it goes to standard error.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from enginehouse_engine.registration import Registration, register

LONGEST_BYTES = 4096


class Meeting:
    """One process: everything happens in one loop, so that two that connect to each other never wait for each other."""

    def __init__(self, registration: Registration, me: dict[str, Any]) -> None:
        self.registration = registration
        self.me = me
        self.loop = selectors.DefaultSelector()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self.listener.getsockname())
        self.known: dict[int, int] = {}
        self.front_ends: dict[int, str] = {}
        self.left = False
        self.loop.register(registration, selectors.EVENT_READ, self.hear)
        self.loop.register(self.listener, selectors.EVENT_READ, self.accept)

    def run(self) -> int:
        if self.me["role"] == "api-server":
            self.registration.send("bound", endpoint=self.address)
        else:
            self.registration.send("published", record={"queue": self.address})
        while not self.left:
            for key, _ in self.loop.select():
                key.data()
        self.registration.bye()
        return 0

    def hear(self) -> None:
        while (message := self.registration.receive()) is not None:
            match message["type"]:
                case "peers":
                    self.meet_peers(message)
                case "addresses":
                    self.meet_front_ends(message)
                case "drain":
                    self.registration.send("drained")
                case "stop":
                    self.left = True

    def meet_peers(self, message: dict[str, Any]) -> None:
        shared = {"replica": message["replicaUid"], "rank": message["rank"], "incarnation": message["incarnation"]}
        if shared != {key: self.me[key] for key in shared}:
            tell(f"COLLISION: {self.me} was given the peers of {shared}")
        for record in message["records"]:
            other = {**shared, "role": record["role"], "index": record["index"]}
            if other != self.me:
                self.connect(record["record"]["queue"], other)

    def meet_front_ends(self, message: dict[str, Any]) -> None:
        for one in message["frontEnds"]:
            if self.front_ends.get(one["index"]) != one["endpoint"]:
                self.front_ends[one["index"]] = one["endpoint"]
                other = {"replica": message["replicaUid"], "role": "api-server", "rank": None}
                self.connect(one["endpoint"], {**other, "index": one["index"], "incarnation": one["incarnation"]})

    def connect(self, address: str, wanted: dict[str, Any]) -> None:
        host, _, port = address.rpartition(":")
        try:
            connection = socket.create_connection((host, int(port)), timeout=20)
        except ConnectionRefusedError:
            # It has died; the launcher's word follows. Whoever has its port by now would have answered.
            tell(f"gone: {wanted}")
            return
        connection.sendall(json.dumps({"from": self.me, "to": wanted}).encode())
        self.expect(connection, lambda answer: self.met(answer, wanted))

    def met(self, answer: dict[str, Any], wanted: dict[str, Any]) -> None:
        if answer != wanted:
            tell(f"COLLISION: {self.me} wanted {wanted} and reached {answer}")
        else:
            tell(f"met: {wanted}")

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        self.expect(connection, lambda said: self.answer(connection, said))

    def answer(self, connection: socket.socket, said: dict[str, Any]) -> None:
        connection.sendall(json.dumps(self.me).encode())
        guest = said["from"]
        if said["to"] != self.me or guest["replica"] != self.me["replica"]:
            tell(f"COLLISION: {self.me} was reached by {said}")
        elif self.me["role"] == "api-server":
            if guest["incarnation"] < self.known.get(guest["rank"], 0):
                tell(f"COLLISION: {self.me} was reached by {guest}, which is over")
            self.known[guest["rank"]] = guest["incarnation"]
            fits = [
                {"rank": rank, "incarnation": known, "maxContextLength": 1, "kvBlocks": 1} for rank, known in self.known.items()
            ]
            self.registration.send("ready", ranks=fits, maxContextLength=1)

    def expect(self, connection: socket.socket, then: Callable[[dict[str, Any]], None]) -> None:
        """One message of the other side, which may be gone."""

        def arrived() -> None:
            self.loop.unregister(connection)
            with connection:
                try:
                    data = connection.recv(LONGEST_BYTES)
                except ConnectionResetError:
                    data = b""
                if data:
                    then(json.loads(data))

        self.loop.register(connection, selectors.EVENT_READ, arrived)


def tell(what: str) -> None:
    # One write, so that lines of several processes do not mix.
    os.write(2, f"{what}\n".encode())


def one_process() -> int:
    role, socket_path, rank_text, index, incarnation = sys.argv[1:]
    rank = None if rank_text == "None" else int(rank_text)
    identity = {"role": role, "rank": rank, "index": int(index), "incarnation": int(incarnation)}
    registration = register(socket_path, **identity, deadline_seconds=60)  # type: ignore[arg-type]  # the dictionary's values differ
    config = json.loads(Path(socket_path).with_name("config.json").read_bytes())
    return Meeting(registration, {"replica": config["replica_uid"], **identity}).run()


def launch() -> int:
    import logging

    from enginehouse_engine import options
    from enginehouse_engine.launcher import main as launcher
    from enginehouse_engine.launcher.command_lines import RunFiles
    from enginehouse_engine.launcher.process import Process

    logging.basicConfig(level=logging.INFO, format="launcher: %(message)s", stream=sys.stderr)

    def command_line(process: Process, files: RunFiles) -> list[str]:
        own = [process.role, str(files.launcher_socket), str(process.rank), str(process.index), str(process.incarnation)]
        return [sys.executable, "-S", __file__, *own]  # -S: what is installed is of no use here, and finding it takes time

    return launcher.launch(options.parse(sys.argv[2:]), command_line=command_line)


if __name__ == "__main__":
    sys.exit(launch() if sys.argv[1] == "launch" else one_process())
