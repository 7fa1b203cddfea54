"""The leader's view of workers in other members: what their launchers report becomes what happened, and what was decided becomes
their orders. Pure.

Invariant: level-triggered both ways. A report says everything, and only what is new in it happens; orders are made from what is
so, the same while nothing changed. What becomes of a rank is decided by ``lifecycle.py``, which treats these workers like its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from enginehouse_engine.launcher import member_messages, messages, publications, termination
from enginehouse_engine.launcher.actions import Action, Report
from enginehouse_engine.launcher.lifecycle import Lifecycle
from enginehouse_engine.launcher.member_messages import Orders, RankOrder, WorkerState
from enginehouse_engine.launcher.process import WORKER, Process
from enginehouse_engine.launcher.termination import OUT_OF_MEMORY, Cause, Exit, cause_told, death_of
from enginehouse_engine.launcher.unit import Seen, Unit, UnitState
from enginehouse_engine.launcher.units import ranks_of


def reported(life: Lifecycle, member: int, report: member_messages.Report) -> list[Action]:
    """Let what is new in a report happen. Raises MessageError for a worker that does not live there.

    Of an incarnation that has left nothing is new.
    """
    actions = life.replica_ends() if report.leaving and _is_needed(life, member) else []
    workers = [(state, *found) for state in report.workers if (found := _find(life, member, state)) is not None]
    for state, process, unit in workers:
        if process not in unit.seen:
            actions += life.started(process, pid=state.pid)
        seen = unit.seen[process]
        seen.stopped = state.stopped
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
            unit.seen[process].verdict = cause_told(state.exit)
            actions += life.exited(process, exit=cause_told(state.exit).exit, out_of_memory=out_of_memory)
    return actions


def lost(life: Lifecycle, member: int, *, reason: str, silent: bool = False) -> list[Action]:
    """The connection to a member's launcher is gone: nobody tells of its workers any more, so they are as good as dead.

    ``silent``: nothing came from its pod any more, not even that it ends, so that its monitor cannot tell of them either.
    """
    text = f"the connection to the launcher of member {member} is gone: {reason}"
    kind = termination.LOST if silent else termination.EXCEPTION
    actions: list[Action] = []
    for unit in life.units:
        for process, seen in list(unit.seen.items()):
            if process.member == member and not seen.exited:
                seen.failed = messages.Failed(cause=kind, message=text)
                followed = life.exited(process, exit=Exit(), out_of_memory=False)
                actions += [replace(one, nobody_else_can=silent) if isinstance(one, Report) else one for one in followed]
    return actions + (life.refused(Cause(kind, text)) if _is_needed(life, member) else [])


def _is_needed(life: Lifecycle, member: int) -> bool:
    """Some rank has a part there, and shall keep it. For one that waits another member takes this one's place."""
    ranks = [unit for unit in ranks_of(life.units) if unit.state is not UnitState.PENDING and not unit.leaves]
    return any(process.member == member for unit in ranks for process in unit.processes)


def orders(life: Lifecycle, member: int, *, ray: str = "") -> Orders:
    """Everything that a member has to know now. ``ray``: where the head of the Ray cluster will be, once it runs."""
    state = life.state()
    words = {rank["rank"]: rank["state"] for rank in state["ranks"]}
    ranks = []
    for unit in life.units:
        mine = [process for process in unit.processes if process.member == member and process.role == WORKER]
        if member and mine:
            ranks.append(_order(life, unit, mine, word=words[mine[0].rank]))
    head_runs = life.ray is not None and bool(life.ray.seen)
    return Orders(state=state["state"], ranks=tuple(ranks), ray=ray if head_runs else "")


def _order(life: Lifecycle, unit: Unit, mine: Iterable[Process], *, word: str) -> RankOrder:
    seen = [unit.seen[process] for process in mine if process in unit.seen]
    end: Literal["", "stop", "kill"] = ""
    if (unit.over and not unit.is_retiring) or any(one.killed for one in seen):
        end = "kill"
    elif any(one.asked_to_stop for one in seen):
        end = "stop"
    return RankOrder(
        rank=unit.processes[0].rank or 0,
        incarnation=unit.incarnation,
        state=word,
        end=end,
        cause=death_of(unit.cause or life.cause) if end == "kill" else None,
        peers=publications.peers(unit, replica_uid=life.replica_uid),
    )


def _find(life: Lifecycle, member: int, state: WorkerState) -> tuple[Process, Unit] | None:
    unit = next((unit for unit in ranks_of(life.units) if (unit.rank, unit.incarnation) == (state.rank, state.incarnation)), None)
    if unit is None:
        return None
    for process in unit.processes:
        if (process.role, process.index, process.member) == (WORKER, state.index, member):
            return process, unit
    raise messages.MessageError(f"worker {state.index} of rank {state.rank} does not live in member {member}")


def _said(state: WorkerState, seen: Seen) -> Iterable[messages.FromProcess]:
    if state.stage != seen.stage:
        yield messages.Stage(state.stage)
    if state.record is not None and seen.record is None:
        yield messages.Published(state.record)
    if state.failed is not None and seen.failed is None:
        yield state.failed
