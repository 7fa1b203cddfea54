"""The leader's view of workers in other members: what their launchers report becomes what happened, and what was decided becomes
their orders. Pure.

Invariant: level-triggered both ways. A report says everything, and only what is new in it happens; orders are made from what is
so, the same while nothing changed. What becomes of a rank is decided by ``lifecycle.py``, which treats these workers like its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from enginehouse_engine.launcher import messages, publications, termination
from enginehouse_engine.launcher.actions import Action
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.member_messages import Orders, RankOrder, Report, WorkerState, death_of
from enginehouse_engine.launcher.process import WORKER, Process
from enginehouse_engine.launcher.termination import OUT_OF_MEMORY, Cause, Exit
from enginehouse_engine.launcher.unit import Seen, Unit


def reported(life: Lifecycle, member: int, report: Report) -> list[Action]:
    """Let what is new in a report happen. Raises MessageError for a worker that does not live there."""
    actions = life.member_leaves() if report.leaving else []
    workers = [(state, *_find(life, member, state)) for state in report.workers]
    for state, process, unit in workers:
        if process not in unit.seen:
            actions += life.started(process, pid=state.pid)
        seen = unit.seen[process]
        if state.registered and not seen.registered:
            actions += life.registered(process)
        actions += [action for message in _said(state, seen) for action in life.said(process, message)]
    # Who died first is known before anybody is found to be gone: the others were killed because of it.
    for state, process, _ in workers:
        if state.died:
            actions += life.pipe_closed(process, bye=False)
    for state, process, unit in workers:
        if state.exit is not None and not unit.seen[process].exited:
            out_of_memory = state.exit.kind == OUT_OF_MEMORY
            actions += life.exited(process, exit=state.exit.exit, out_of_memory=out_of_memory)
    return actions


def lost(life: Lifecycle, member: int, *, reason: str) -> list[Action]:
    """The connection to a member's launcher is gone: nobody tells of its workers any more, so they are as good as dead."""
    text = f"the connection to the launcher of member {member} is gone: {reason}"
    actions: list[Action] = []
    for unit in life.units:
        for process, seen in list(unit.seen.items()):
            if process.member == member and not seen.exited:
                seen.failed = messages.Failed(cause=termination.EXCEPTION, message=text)
                actions += life.exited(process, exit=Exit(), out_of_memory=False)
    return actions + life.refused(Cause(termination.EXCEPTION, text))


def orders(life: Lifecycle, member: int) -> Orders:
    """Everything that a member has to know now."""
    state = life.state()
    words = {rank["rank"]: rank["state"] for rank in state["ranks"]}
    ranks = []
    for unit in life.units:
        mine = [process for process in unit.processes if process.member == member and process.role == WORKER]
        if member and mine:
            ranks.append(_order(life, unit, mine, word=words[mine[0].rank]))
    return Orders(state=state["state"], ranks=tuple(ranks))


def _order(life: Lifecycle, unit: Unit, mine: Iterable[Process], *, word: str) -> RankOrder:
    seen = [unit.seen[process] for process in mine if process in unit.seen]
    end: Literal["", "stop", "kill"] = ""
    if unit.over or any(one.killed for one in seen):
        end = "kill"
    elif any(one.asked_to_stop for one in seen):
        end = "stop"
    return RankOrder(
        rank=unit.processes[0].rank or 0,
        state=word,
        end=end,
        cause=death_of(unit.cause or life.cause) if end == "kill" else None,
        peers=publications.peers(unit, replica_uid=life.replica_uid),
    )


def _find(life: Lifecycle, member: int, state: WorkerState) -> tuple[Process, Unit]:
    for unit in life.units:
        for process in unit.processes:
            if (process.role, process.rank, process.index) == (WORKER, state.rank, state.index) and process.member == member:
                return process, unit
    raise messages.MessageError(f"worker {state.index} of rank {state.rank} does not live in member {member}")


def _said(state: WorkerState, seen: Seen) -> Iterable[messages.FromProcess]:
    if state.stage != seen.stage:
        yield messages.Stage(state.stage)
    if state.record is not None and seen.record is None:
        yield messages.Published(state.record)
    if state.failed is not None and seen.failed is None:
        yield state.failed
