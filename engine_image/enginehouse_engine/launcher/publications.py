"""What the engine's processes and the monitor are told about how things are: whole messages, made anew from what is so. Pure.

Invariants: nothing partial and nothing of another incarnation is ever told; the same while nothing changed, so that comparing with
what was told last is enough. Does not decide (``lifecycle.py``) and does not send (``docs/wire-protocol.md`` sections 2 and 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from enginehouse_engine.launcher.actions import Action, Send
from enginehouse_engine.launcher.process import ENGINE_CORE, Process
from enginehouse_engine.launcher.termination import Cause
from enginehouse_engine.launcher.unit import Unit

Message = dict[str, Any]


def addresses(servers: Iterable[Unit], *, replica_uid: str) -> Message:
    """For engine cores: the API servers that can be reached now."""
    bound = [(process, seen.endpoint) for server in servers if not server.over for process, seen in server.seen.items()]
    front_ends = [
        {"index": process.index, "incarnation": process.incarnation, "endpoint": endpoint}
        for process, endpoint in bound
        if endpoint
    ]
    return {"type": "addresses", "frontEnds": front_ends, "replicaUid": replica_uid}


def peers(rank: Unit, *, replica_uid: str) -> Message | None:
    """For the processes of a rank that has workers: everybody's record; None before the last has come."""
    known = [(process, rank.seen[process].record) for process in rank.processes if process in rank.seen]
    if len(rank.processes) < 2 or len(known) < len(rank.processes) or any(record is None for _, record in known):
        return None
    records = [{"role": process.role, "index": process.index, "record": record} for process, record in known]
    identity = {"replicaUid": replica_uid, "rank": rank.processes[0].rank, "incarnation": rank.incarnation}
    return {"type": "peers", **identity, "records": records}


def ranks(state: Message, *, max_context_length: int | None) -> Message:
    """For API servers: who serves, and as which incarnation; and the context length that none of them may exceed."""
    rows = [{key: rank[key] for key in ("rank", "incarnation", "state")} for rank in state["ranks"]]
    limit = {} if max_context_length is None else {"maxContextLength": max_context_length}
    return {"type": "ranks", "ranks": rows, **limit}


def state(member: str, ranks: Iterable[tuple[Unit, str]]) -> Message:
    """For the monitor: the pod's state in its word, and each rank's. A rank that is gone still limits what API servers accept."""
    rows = []
    for unit, word in ranks:
        fit = unit.fit
        shown = {"maxContextLength": fit.max_context_length, "kvBlocks": fit.kv_blocks} if fit else {}
        rows.append({"rank": unit.processes[0].rank or 0, "incarnation": unit.incarnation, "state": word, **shown})
    return {"type": "state", "state": member, "ranks": rows}


def exited(death: Cause, process: Process, *, planned: bool) -> Message:
    """For the monitor: a process is gone."""
    fields = death.fields()
    if planned:
        fields |= {"message": f"{process} {death.exit}"}
    return {"type": "exited", **fields, "index": process.index, "planned": planned}


def untold(units: Iterable[Unit], *, replica_uid: str, ranks: Message, with_addresses: bool) -> list[Action]:
    """Whatever a process that listens should know and was not told yet; from now on it is told."""
    units = list(units)
    reachable = addresses((unit for unit in units if unit.is_api_server), replica_uid=replica_uid)
    actions: list[Action] = []
    for unit in units:
        for process, seen in unit.seen.items():
            known: list[Message | None] = [ranks if unit.is_api_server else peers(unit, replica_uid=replica_uid)]
            if process.role == ENGINE_CORE and with_addresses:
                known.append(reachable)
            for message in known:
                if seen.listens and message is not None and seen.told.get(message["type"]) != message:
                    seen.told[message["type"]] = message
                    actions.append(Send(process, message))
    return actions
