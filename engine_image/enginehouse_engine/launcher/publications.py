"""What the engine's processes and the monitor are told about how things are: whole messages, made anew from what is so. Pure.

Invariants: nothing partial and nothing of another incarnation is ever told; the same while nothing changed, so that comparing with
what was told last is enough. Does not decide (``lifecycle.py``) and does not send (``docs/wire-protocol.md`` sections 2 and 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from enginehouse_engine.launcher import termination
from enginehouse_engine.launcher.actions import Action, Send
from enginehouse_engine.launcher.process import ENGINE_CORE, Process
from enginehouse_engine.launcher.termination import Cause
from enginehouse_engine.launcher.unit import Unit
from enginehouse_engine.ray.manager_messages import RankPlacement

Message = dict[str, Any]

_LONGEST_EXITED_BYTES: Final = 48 * 1024
"""A datagram takes 64 KiB."""


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


def ranks(units: Iterable[tuple[Unit, str]], *, max_context_length: int | None) -> Message:
    """For API servers: who serves, and as which incarnation; and the context length that none of them may exceed.

    One that leaves is over for them before it is gone.
    """
    present = [(unit, word) for unit, word in units if not (unit.leaves and unit.over)]
    rows = [{"rank": unit.rank, "incarnation": unit.incarnation, "state": word} for unit, word in present]
    limit = {} if max_context_length is None else {"maxContextLength": max_context_length}
    return {"type": "ranks", "ranks": rows, **limit}


def state(member: str, units: Iterable[tuple[Unit, str]], *, max_context_length: int | None) -> Message:
    """For the monitor: the pod's state in its word, and each unit's.

    A rank that died or left still limits what API servers accept: ``max_context_length`` is the limit of those that left.
    """
    ranks, servers = [], []
    for unit, word in units:
        row = {"incarnation": unit.incarnation, "state": word}
        if unit.is_api_server:
            servers.append({"index": unit.processes[0].index, **row})
            continue
        fit = unit.fit
        length = min(fit.max_context_length, max_context_length or fit.max_context_length) if fit else 0
        shown = {"maxContextLength": length, "kvBlocks": fit.kv_blocks} if fit else {}
        ranks.append({"rank": unit.rank, **row, **shown})
    return {"type": "state", "state": member, "ranks": ranks, "apiServers": servers}


def placement(ranks: Iterable[RankPlacement]) -> list[Message]:
    """For the row: of each rank its newest incarnation, since one may still be on its way out while the next one waits."""
    newest = {rank.rank: rank for rank in sorted(ranks, key=lambda rank: (rank.rank, rank.incarnation))}
    return [
        {
            "rank": rank.rank,
            "strategy": rank.strategy,
            "state": rank.state,
            "bundles": [msgspec.structs.asdict(bundle) for bundle in rank.bundles],
        }
        for rank in newest.values()
    ]


def exited(death: Cause, process: Process, *, planned: bool) -> Message:
    """For the monitor: a process is gone."""
    fields = death.fields()
    if planned:
        fields = dataclasses.replace(death, message=f"{process} {death.exit}", evidence="").fields()
    message = {"type": "exited", **fields, "index": process.index, "planned": planned}
    return termination.shortened(message, limit_bytes=_LONGEST_EXITED_BYTES)


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
