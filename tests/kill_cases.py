"""The kill matrix as values: who dies, in which phase of its life, of what, in which engine, and what has to follow. Pure.

Of role, phase and fault every pair of values is among the cases of ``make test``: each phase meets each fault once, and the
roles go round. Of those that faults from outside can bring about, every other case is played on a real engine. The rest of the
product is for ``make proof``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Final

ROLES: Final = ("api-server", "engine-core", "worker")
PHASES: Final = ("import", "load", "handshake", "serving", "drain")
FAULTS: Final = ("sigkill", "sigsegv", "exit-0", "exit-1", "out-of-memory", "sigstop")

SIGNALS: Final = {"sigkill": 9, "sigsegv": 11, "sigstop": 19}
STALL_SECONDS: Final = 3
"""After which a stopped process is taken for dead."""
NO_STALL_SECONDS: Final = 120
"""Where nobody is stopped: taking memory until the kernel ends it keeps a process from answering for seconds, too."""

_REAL_PHASES: Final = ("import", "serving", "drain")
"""Those of a real engine that can be told from outside."""
_REAL_FAULTS: Final = ("sigkill", "sigsegv", "out-of-memory", "sigstop")


@dataclass(frozen=True)
class Case:
    """One death. ``real``: of an engine that runs a model, else of executor Simulated."""

    role: str
    phase: str
    fault: str
    real: bool = False

    @property
    def name(self) -> str:
        """Also of its engine."""
        return f"{'real-' if self.real else ''}{self.role}-{self.phase}-{self.fault}"

    @property
    def has_two_members(self) -> bool:
        """A simulated engine has workers only in this way."""
        return self.role == "worker" and not self.real

    @property
    def is_starting(self) -> bool:
        return self.phase in ("import", "load", "handshake")

    @property
    def is_answered_in_place(self) -> bool:
        """Its pod serves again without the operator."""
        return self.phase == "serving" and not self.has_two_members

    @property
    def drill(self) -> str | None:
        """What the engine is told to do to itself, if it is not all done from outside."""
        if self.real:
            return None
        if self.fault in SIGNALS:
            return f"{self.role}:{self.phase}:hold" if self.is_starting else None
        return f"{self.role}:{self.phase}:{'allocate' if self.fault == 'out-of-memory' else self.fault}"

    @property
    def stall_seconds(self) -> int:
        """Of its engine."""
        return STALL_SECONDS if self.fault == "sigstop" else NO_STALL_SECONDS

    @property
    def cause(self) -> dict[str, Any]:
        """What the objects have to say of it."""
        match self.fault:
            case "exit-0" | "exit-1":
                how: dict[str, Any] = {"class": "ExitCode", "exitCode": int(self.fault[-1])}
            case "out-of-memory":
                how = {"class": "OutOfMemory", "signal": 9}
            case "sigstop":
                how = {"class": "Hang", "signal": 9}
            case _:
                how = {"class": "Signal", "signal": SIGNALS[self.fault]}
        rank = {} if self.role == "api-server" else {"rank": 0}
        return {"role": self.role, "incarnation": 1, **rank, **how}

    @property
    def replicas(self) -> int:
        """That there have been at the end; all but the last one have ended."""
        return 1 if self.is_starting or self.is_answered_in_place else 2

    def __str__(self) -> str:
        return self.name


def quick() -> list[Case]:
    """Every pair of values, for ``make test``."""
    cases = []
    for (p, phase), (f, fault) in product(enumerate(PHASES), enumerate(FAULTS)):
        case = Case(ROLES[(p + f + 1) % len(ROLES)], phase, fault)
        real = Case(case.role, phase, fault, real=True)
        cases.append(real if real in _possible_on_a_real_engine() and (p + f) % 2 else case)
    return cases


def everything() -> list[Case]:
    """The whole product, on both kinds of engine."""
    return [Case(*values) for values in product(ROLES, PHASES, FAULTS)] + _possible_on_a_real_engine()


def _possible_on_a_real_engine() -> list[Case]:
    cases = [Case(*values, real=True) for values in product(ROLES, _REAL_PHASES, _REAL_FAULTS)]
    # The kernel takes the largest, and that is who runs the model, once it is there.
    return [case for case in cases if case.fault != "out-of-memory" or (case.role == "worker" and case.phase != "import")]
