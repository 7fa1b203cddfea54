"""The engine planner: how many replicas, from which spec, which to end, when the next may start.

Invariants: at most one live replica per index; a planned end never takes the number of serving replicas below
``replicas - rollout.maxUnavailable`` (or of those that serve already); the plan of a settled world is empty.
Who goes first when there are too many: an index that waits for a successor, then replicas that do not serve, then those with a
unit that does not, then those of an older spec, then the highest index. A replica that lost some of its units (ranks, API servers)
serves on, smaller, and ends when its successor may come and enough others serve. An ended replica stays until its index has a
successor, whose spec takes over its epoch + 1 and its failures; so its name is given twice only if somebody deletes that one.
Does not make members (``plan_replica.py``), does not act, knows no clock but ``now``.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

import msgspec

from . import budget, names, reasons
from .api import End, EngineCopy, EngineSpec
from .budget import Verdict
from .endings import cause_due, dated, ending_of, is_over
from .failures import Failure, seconds_between
from .plan_elastic import next_replacement, resize
from .seen import Engine, Replica
from .steps import AnyStep, CreateReplica, DeleteReplica, EndReplica


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One index of the engine, with everything that holds or held it."""

    index: int
    live: Replica | None
    ended: tuple[Replica, ...]
    """By epoch; being deleted counts as ended."""

    @property
    def newest_epoch(self) -> int:
        return max([replica.spec.epoch for replica in self.ended] + ([self.live.spec.epoch] if self.live else []), default=0)


class EnginePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do now, when to look again, and which indices wait for what."""

    steps: tuple[AnyStep, ...] = ()
    look_again_seconds: float | None = None
    waiting: tuple[Verdict, ...] = ()
    """Of indices whose successor is delayed or refused."""
    outdated: int = 0
    """Live replicas made from another spec."""


def plan_engine(engine: Engine, spec: EngineSpec, replicas: Iterable[Replica], *, hold: bool = False, now: datetime) -> EnginePlan:
    """Decide. ``hold``: what the spec asks for cannot be made at present, so nothing is created and nothing is replaced."""
    slots, steps = _slots(replicas, now)
    copy = spec.copy()
    kept, surplus = _choose(slots, copy, spec.desired_replicas)
    steps += _end_surplus(surplus, spec, now)
    live = [slot.live for slot in kept if slot.live is not None]
    outdated = [replica for replica in live if not is_up_to_date(replica, copy)]
    asked = [resize(replica, copy.parallelism.data, generation=engine.generation) for replica in live if replica not in outdated]
    resized = [step for step in asked if step is not None]
    created, waiting = _create(engine, kept, spec, copy, now)
    broken, delayed = _broken(engine, kept, spec, copy, now)
    # What ends a replica may lie in a rank that is to go: that is seen after its row.
    broken = [step for step in broken if step.name not in {resizing.name for resizing in resized}]
    waiting += delayed
    steps += resized
    if not hold:
        endings = [_end(replica, reasons.ROLLOUT, "the spec it was made from changed", now) for replica in outdated]
        steps += [*_replace(kept, endings + broken, spec), *created]
    steps += _delete_succeeded(slots)
    moments = [verdict.not_before for verdict in waiting]
    moments += [moment for replica in live for moment in (cause_due(replica), next_replacement(replica))]
    # A cause that was waited for in vain: what follows from that is in the plan already.
    delays = [seconds_between(now, moment) for moment in moments if moment is not None and moment > now]
    return EnginePlan(
        steps=tuple(steps), look_again_seconds=min(delays, default=None), waiting=tuple(waiting), outdated=len(outdated)
    )


def is_up_to_date(replica: Replica, copy: EngineCopy) -> bool:
    """Both read through today's schema. A replica that cannot be read is left alone."""
    return replica.copy is None or replica.copy.lasting == copy.lasting


def _slots(replicas: Iterable[Replica], now: datetime) -> tuple[list[Slot], list[AnyStep]]:
    by_index: dict[int, list[Replica]] = {}
    for replica in replicas:
        by_index.setdefault(replica.spec.index, []).append(replica)
    slots, steps = [], list[AnyStep]()
    for index, holders in sorted(by_index.items()):
        holders.sort(key=lambda replica: replica.spec.epoch)
        live = [replica for replica in holders if replica.is_live]
        steps += [_end(older, reasons.SUPERSEDED, f"{live[-1].name} holds index {index}", now) for older in live[:-1]]
        ended = tuple(replica for replica in holders if not replica.is_live)
        slots.append(Slot(index=index, live=live[-1] if live else None, ended=ended))
    return slots, steps


def _choose(slots: list[Slot], copy: EngineCopy, desired: int) -> tuple[list[Slot], list[Slot]]:
    """The slots to keep, new ones included, and those that are too many."""

    def rank(slot: Slot) -> tuple[bool, bool, bool, bool, int]:
        live = slot.live
        if live is None:
            return (True, True, True, True, slot.index)
        return (False, not live.is_serving, not live.is_ready, not is_up_to_date(live, copy), slot.index)

    ordered = sorted(slots, key=rank)
    kept, surplus = ordered[:desired], ordered[desired:]
    taken, index = {slot.index for slot in slots}, 0
    while len(kept) < desired:
        if index not in taken:
            kept.append(Slot(index=index, live=None, ended=()))
        index += 1
    return sorted(kept, key=lambda slot: slot.index), surplus


def _end_surplus(surplus: list[Slot], spec: EngineSpec, now: datetime) -> list[AnyStep]:
    reason = reasons.SUSPENDED if spec.suspend else reasons.SCALE_DOWN
    words = "spec.suspend is true" if spec.suspend else f"spec.replicas is {spec.replicas}"
    return [_end(slot.live, reason, words, now) for slot in surplus if slot.live is not None]


def _broken(
    engine: Engine, kept: list[Slot], spec: EngineSpec, copy: EngineCopy, now: datetime
) -> tuple[list[EndReplica], list[Verdict]]:
    """Ends of replicas that lost some of their units and whose successor may come, and why the others have to wait."""
    endings, waiting = [], []
    for slot in kept:
        live = slot.live
        ending = ending_of(live, now=now) if live is not None else None
        if live is None or live.copy is None or ending is None or is_over(live, ending) or not is_up_to_date(live, copy):
            continue
        step = dated(live, ending).step(live, deadline=now + timedelta(seconds=live.copy.drain.timeout_seconds), now=now)
        ended = msgspec.structs.replace(live, spec=msgspec.structs.replace(live.spec, end=step.end))
        judged = budget.verdict(ended, policy=spec.restart, same_revision=True, resume_after=engine.resume_after)
        if judged.not_before is None or judged.not_before > now:
            waiting.append(judged)
        else:
            endings.append(step)
    return endings, waiting


def _replace(kept: list[Slot], endings: list[EndReplica], spec: EngineSpec) -> list[EndReplica]:
    """Which of these ends come now: of replicas that do not serve all, of the others as many as leave enough that do."""
    live = {slot.live.name: slot.live for slot in kept if slot.live is not None}
    at_once = [step for step in endings if not live[step.name].is_serving]
    in_turn = [step for step in endings if live[step.name].is_serving]
    in_turn.sort(key=lambda step: (live[step.name].is_ready, -live[step.name].spec.index))
    serving = sum(replica.is_serving for replica in live.values())
    may_end = max(0, serving - (spec.desired_replicas - spec.rollout.max_unavailable))
    return at_once + in_turn[:may_end]


def _create(
    engine: Engine, kept: list[Slot], spec: EngineSpec, copy: EngineCopy, now: datetime
) -> tuple[list[AnyStep], list[Verdict]]:
    steps, waiting = list[AnyStep](), []
    for slot in kept:
        if slot.live is not None:
            continue
        epoch = slot.newest_epoch + 1
        name = names.replica_name(engine.name, engine_uid=engine.uid, index=slot.index, epoch=epoch)
        last = slot.ended[-1] if slot.ended else None
        reason, failures = reasons.SCALE_UP, tuple[Failure, ...]()
        words = f"replica {name} is made for index {slot.index}"
        if last is not None:
            reason = reasons.SUCCESSOR
            words = f"replica {name} takes the place of {last.name}"
            if last.spec.end is not None:  # else it was deleted by somebody: nothing to judge it by
                judged = budget.verdict(
                    last, policy=spec.restart, same_revision=is_up_to_date(last, copy), resume_after=engine.resume_after
                )
                if judged.not_before is None or judged.not_before > now:
                    waiting.append(judged)
                    continue
                words, failures = f"{words}, which ended: {last.spec.end.reason}", judged.failures
        steps.append(
            CreateReplica(name=name, reason=reason, message=words, index=slot.index, epoch=epoch, copy=copy, failures=failures)
        )
    return steps, waiting


def _delete_succeeded(slots: list[Slot]) -> list[AnyStep]:
    """Ended replicas without pods whose index has a later holder."""
    return [
        DeleteReplica(
            name=old.name, uid=old.uid, reason=reasons.SUCCEEDED, message=f"index {slot.index} has a successor of {old.name}"
        )
        for slot in slots
        for old in slot.ended
        if old.is_gone and not old.is_deleting and old.spec.epoch < slot.newest_epoch
    ]


def _end(replica: Replica, reason: str, words: str, now: datetime) -> EndReplica:
    drain = 0 if replica.copy is None else replica.copy.drain.timeout_seconds
    return EndReplica(
        name=replica.name,
        uid=replica.uid,
        reason=reason,
        message=f"replica {replica.name} ends: {words}",
        end=End(reason=reason, deadline=now + timedelta(seconds=drain)),
    )
