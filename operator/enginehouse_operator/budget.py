"""May an index have a successor, and when: the one budget of restarts, per index.

Invariant: the verdict depends on recorded failures alone, never on how long one waited: failures are counted inside the window
that ends with the newest one, so a spent budget stays spent until a person acts. The first successor comes at once, the next
ones after 10 s, 20 s, 40 s ... at most 300 s.
Does not make the successor (``plan_engine.py``).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import msgspec

from . import names, reasons
from .api import Restart
from .endings import died_of
from .failures import Failure, seconds_between
from .seen import Replica

FIRST_DELAY_SECONDS: Final = 10.0
LONGEST_DELAY_SECONDS: Final = 300.0
EARLY_SECONDS: Final = 600.0
"""Whose class delays early ones only: a replica that ends before this age delays its successor like a failure."""
MOST_CARRIED: Final = 128
"""Failures that one successor's spec may hold: the schema's limit."""
CARRIED_CHARACTERS: Final = 512
"""Of each one's message: all of them have to fit into one object of the API, of at most 1.5 MB."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an ended replica gets a successor."""

    not_before: datetime | None
    """None: never, until a person acts."""
    failures: tuple[Failure, ...]
    """What the successor carries."""
    reason: str
    message: str


def verdict(ended: Replica, *, policy: Restart, same_revision: bool, resume_after: datetime | None) -> Verdict:
    """Judge the newest replica of an index, which has ended. Does not look at the clock: ``not_before`` may lie in the past."""
    end = ended.spec.end
    if end is None:
        raise ValueError(f"replica {ended.name} has not ended")
    counted = count(ended, policy=policy, resume_after=resume_after) if same_revision else ()
    own = next((failure for failure in counted if failure == died_of(ended)), None)
    carried = tuple(msgspec.structs.replace(record, message=record.message[:CARRIED_CHARACTERS], evidence="") for record in counted)
    if own is not None and own.policy.is_final:
        return Verdict(not_before=None, failures=carried, reason=own.class_, message=f"{ended.name}: {own.message or own.class_}")
    spent = sum(failure.policy.counts for failure in counted)
    if own is not None and own.policy.counts and spent > policy.max_restarts:
        return Verdict(
            not_before=None,
            failures=carried,
            reason=reasons.RESTART_BUDGET_SPENT,
            message=(
                f"index {ended.spec.index} failed {spent} times within {policy.window_seconds} s, more than "
                f"spec.restart.maxRestarts = {policy.max_restarts}: change the spec, or annotate the engine with "
                f"{names.ANNOTATION_RESUME_AFTER}=<the present time, RFC 3339>; the last failure: {own}"
            ),
        )
    in_place = {failure.identity for failure in ended.restarted_in_place}  # the first successor comes at once also after these
    delay = delay_seconds(sum(failure.identity not in in_place for failure in counted)) if own is not None else 0.0
    earliest = end_time(ended) + timedelta(seconds=delay) if own is not None else ended.created
    when = f"{delay:.0f} s after the end of {ended.name}"
    if resume_after is not None and resume_after > earliest:
        earliest, when = (
            resume_after,
            f"at {resume_after:%Y-%m-%dT%H:%M:%SZ}, as the annotation {names.ANNOTATION_RESUME_AFTER} says",
        )
    return Verdict(
        not_before=earliest,
        failures=carried,
        reason=reasons.RESTART_DELAYED,
        message=f"index {ended.spec.index} gets a successor {when}: {own or end.reason}",
    )


def delay_seconds(failures: int) -> float:
    """Between an end and the successor, when so many failures count (the last one included)."""
    if failures <= 1:
        return 0.0
    return min(FIRST_DELAY_SECONDS * 2.0 ** min(failures - 2, 16), LONGEST_DELAY_SECONDS)


def count(ended: Replica, *, policy: Restart, resume_after: datetime | None) -> tuple[Failure, ...]:
    """The failures that count against an ended replica's index: distinct, inside the window, not forgiven, oldest first.

    Of its own: one for each restart in place, and one for its death, however many ranks died of it.
    """
    until = end_time(ended)
    records = {failure.identity: failure for failure in ended.spec.failures}
    records |= {failure.identity: failure for failure in ended.restarted_in_place}
    own = died_of(ended)
    if own is not None and (own.policy.delays == "always" or seconds_between(ended.created, until) < EARLY_SECONDS):
        records[own.identity] = own
    since = until - timedelta(seconds=policy.window_seconds)
    if resume_after is not None:
        since = max(since, resume_after)
    inside = [record for record in records.values() if (record.detected_time or until) > since]
    return tuple(sorted(inside, key=lambda record: record.detected_time or until)[-MOST_CARRIED:])


def end_time(ended: Replica) -> datetime:
    """When the replica died, else the deadline of a planned end."""
    end, failure = ended.spec.end, died_of(ended)
    if end is None:
        raise ValueError(f"replica {ended.name} has not ended")
    return failure.detected_time if failure is not None and failure.detected_time is not None else end.deadline
