"""How this launcher stands in its replica: as the leader, which decides, or as another member, which holds a part of it.

Invariant: what happens in other members comes to the life of this one, and what this life decides goes to them, by the links alone.
A replica of one member has a leader to whom nobody comes.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from enginehouse_engine.launcher import member_messages, remote_workers, termination
from enginehouse_engine.launcher.actions import Action
from enginehouse_engine.launcher.engine_config import workers_each, workers_per_rank
from enginehouse_engine.launcher.event_loop import EventLoop
from enginehouse_engine.launcher.leader_link import LeaderLink
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.member_lifecycle import MemberLifecycle
from enginehouse_engine.launcher.member_links import MemberLinks
from enginehouse_engine.launcher.rank_set import RankSet
from enginehouse_engine.launcher.ray_node import HEAD_PORT
from enginehouse_engine.launcher.ray_unit import ray_unit
from enginehouse_engine.launcher.termination import Cause
from enginehouse_engine.launcher.units import engine_units, member_units
from enginehouse_engine.options import Options

Do = Callable[[list[Action]], None]


def as_leader(
    options: Options, *, loop: EventLoop, started: float, do: Do, door: socket.socket | None
) -> tuple[Lifecycle, MemberLinks]:
    """All units are the leader's to decide on, wherever they live."""
    units = engine_units(api_servers=options.api_servers, **_shape(options))
    life = Lifecycle(units=units, **_common(options, started))
    ray = f"{door.getsockname()[0]}:{HEAD_PORT}" if door else ""
    links = MemberLinks(
        door,
        loop,
        expected=member_messages.hello(options),
        heard=lambda member, report: do(remote_workers.reported(life, member, report)),
        lost=lambda member, reason, silent: do(remote_workers.lost(life, member, reason=reason, silent=silent)),
        orders=lambda member: remote_workers.orders(life, member, ray=ray),
    )
    return life, links


def as_member(
    options: Options, *, loop: EventLoop, started: float, do: Do, let_in: Callable[[str], None]
) -> tuple[MemberLifecycle, LeaderLink]:
    """``let_in`` is told this member's address when the leader has taken it: its workers may start."""
    name = f"member {options.member} of {options.members}"
    units = member_units(member=options.member, **_shape(options))
    life = MemberLifecycle(units=units, leader=options.leader, name=name, number=options.member, **_common(options, started))

    def heard(message: member_messages.FromLeader) -> None:
        if isinstance(message, member_messages.Refused):
            text = f"the leader at {options.leader} refused {name}: {message.reason}"
            do(life.refused(Cause(termination.INVALID_CONFIG, text)))
            return
        is_first = not life.has_joined
        do(life.ordered(message))
        if is_first:
            let_in(link.address)

    link = LeaderLink(
        options.leader,
        loop,
        hello=member_messages.hello(options),
        report=life.report,
        heard=heard,
        lost=lambda reason: do(life.leader_gone(reason)),
    )
    return life, link


def _shape(options: Options) -> dict[str, int]:
    return {
        "ranks": options.parallel.data,
        "workers": workers_per_rank(options),
        "workers_each": workers_each(options),
    }


def _common(options: Options, started: float) -> dict[str, Any]:
    return {
        "ranks": RankSet(
            options.parallel.data,
            workers=workers_per_rank(options),
            workers_each=workers_each(options),
            needs_places=options.executor == "Ray" and not options.member,
        ),
        "replica_uid": options.replica_uid,
        "startup_timeout_seconds": options.startup_timeout_seconds,
        "drain_timeout_seconds": options.drain_timeout_seconds,
        "hang_stall_seconds": options.hang_stall_seconds,
        "now": started,
        "monitor": str(options.monitor_socket or ""),
        "ray": ray_unit(options.member) if options.executor == "Ray" else None,
    }
