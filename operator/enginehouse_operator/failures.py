"""A failure: the record that rows, endings, successors and ``status.lastFailure`` carry, and how each class of them is answered.

Invariant: a failure is identified by (replica UID, rank, incarnation); whoever reports it, and however often, it counts once. What
is special about a class stands in ``POLICIES`` and nowhere else; ``docs/reference/failures.md`` is made from it.
Does not carry the answer out (``budget.py``, ``endings.py``; in place the launcher).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from . import reasons

UNKNOWN: Final = "Unknown"
NODE_LOST: Final = "NodeLost"
LOST: Final = "Lost"
REMOVED: Final = "Removed"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """How the failures of a class are answered."""

    meaning: str
    counts: bool = True
    """In the budget of restarts."""
    delays: Literal["always", "early"] = "always"
    """The successor, by growing steps. Early: only when the replica was young, so that nothing can eat successors in a circle."""
    is_final: bool = False
    """Trying again cannot help: no successor until a person acts."""
    in_place: bool = False
    """The launcher may start the rank, or the API server, again in its pod. It decides: a contract test compares."""


POLICIES: Final[Mapping[str, Policy]] = {
    "Signal": Policy(meaning="A process was killed by a signal, or crashed.", in_place=True),
    "OutOfMemory": Policy(meaning="The kernel killed a process because the container's memory limit was reached.", in_place=True),
    "ExitCode": Policy(meaning="A process exited although nobody asked it to, be it with code 0.", in_place=True),
    "Exception": Policy(meaning="A process gave up because of an error that it tells.", in_place=True),
    "Hang": Policy(
        meaning="A process made no progress for `spec.hang.stallSeconds`, or was stopped for so long, and was killed.",
        in_place=True,
    ),
    "DeviceError": Policy(
        meaning="An accelerator, or the link between two, reported an error. Its process is of no more use, the next one in "
        "this pod might get the same device in the same state."
    ),
    "StartupTimeout": Policy(
        meaning="A process did not serve within `spec.startup.timeoutSeconds`; the message says what it waited for."
    ),
    reasons.INVALID_CONFIG: Policy(meaning="The engine refused its configuration.", is_final=True),
    reasons.MODEL_NOT_FOUND: Policy(meaning="The engine did not find the model.", is_final=True),
    reasons.CONTEXT_TOO_SMALL: Policy(meaning="The context length that fits is below `spec.context.minLength`.", is_final=True),
    "Evicted": Policy(meaning="The kubelet ended the pod because its node ran short of memory or disk."),
    NODE_LOST: Policy(
        meaning="The pod's node is gone, unreachable or not ready, and Kubernetes gave the pod up.", counts=False, delays="early"
    ),
    LOST: Policy(
        meaning="A pod that had reported is gone without a word: deleted by force, or together with its node; or it was silent to "
        "the leader of its replica for 15 seconds.",
        counts=False,
        delays="early",
    ),
    REMOVED: Policy(
        meaning="No failure: somebody deleted or evicted the pod (`kubectl delete`, `kubectl drain`, the eviction API, a node that "
        "shuts down). It drains.",
        counts=False,
        delays="early",
    ),
    UNKNOWN: Policy(meaning="Nobody could see the cause; also every class that this version does not know."),
}
"""By class."""


_Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
_Code = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
_Time = Annotated[datetime, Meta(tz=True)]


class Failure(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One death as the API carries it, within its schema. Times are UTC. Fields the reporter did not know are absent."""

    replica: str = ""
    replica_uid: str = msgspec.field(name="replicaUID", default="")
    revision: str = ""
    member: str = ""
    role: Annotated[str, Meta(max_length=64)] = ""
    rank: _Count | None = None
    index: _Count | None = None
    incarnation: _Count | None = None
    pid: _Count | None = None
    exit_code: _Code | None = None
    signal: _Code | None = None
    class_: Annotated[str, Meta(max_length=128)] = msgspec.field(name="class", default=UNKNOWN)
    message: Annotated[str, Meta(max_length=32768)] = ""
    evidence: Annotated[str, Meta(max_length=4096)] = ""
    detected_by: str = ""
    detected_time: _Time | None = None
    reported_time: _Time | None = None

    @property
    def policy(self) -> Policy:
        return POLICIES.get(self.class_, POLICIES[UNKNOWN])

    @property
    def identity(self) -> tuple[str, int | None, int | None, int | None]:
        """What makes two reports one failure. Processes of no rank are told apart by pid."""
        return (self.replica_uid, self.rank, self.incarnation, self.pid if self.rank is None else None)

    @property
    def _is_numbered(self) -> bool:
        """Of the others a pod has one."""
        return self.role == "api-server" and self.index is not None

    def __str__(self) -> str:
        """One line."""
        number = f"rank {self.rank}" if self.rank is not None else str(self.index) if self._is_numbered else ""
        who = " ".join(part for part in (self.role, number) if part)
        what = self.class_
        if self.signal is not None:
            what = f"signal {self.signal}" if self.class_ == "Signal" else f"{self.class_}, signal {self.signal}"
        elif self.exit_code is not None:
            what = f"{self.class_}, exit code {self.exit_code}"
        text = f"{who or 'a process'} of {self.member or self.replica}: {what}"
        # The last line of a traceback is the one that says what happened.
        said = self.message.strip().splitlines()
        return f"{text}: {said[-1].strip()}" if said else text


def seconds_between(earlier: datetime, later: datetime) -> float:
    return (later - earlier).total_seconds()
