"""What the end of an actor's call means: a crash, an exception, a clean return, or what was asked for. Pure.

Ray says it by the class of an exception, and has many: a lost actor alone is told as three. Classes are told by their names, so
that any version's exceptions can be judged, and so that this needs no Ray.

Invariant: whatever a call ends with, known or not, has one meaning; only a removal that was asked for means nothing.
"""

from __future__ import annotations

import re
from typing import Final

from enginehouse_engine.ray.manager_messages import How

LONGEST_MESSAGE: Final = 4096

_RAISED: Final = frozenset({"RayTaskError", "UnserializableException"})
"""What came out of our own code in the actor; the second when it cannot be read here."""
_CLEAN_EXIT: Final = "INTENDED_USER_EXIT"
"""Ray's word for a process that ended itself with exit code 0."""
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


def how_it_ended(error: BaseException | None, *, running: bool, asked: bool) -> How | None:
    """None = it is as wanted: its removal had been ``asked`` for.

    ``error`` is what the call ended with, None = a value; ``running`` whether the actor had been told to run.
    """
    if asked:
        return None
    if not running:
        return How.NOT_STARTED
    if error is None or _CLEAN_EXIT in str_of(error):
        return How.RETURNED
    names = {kind.__name__ for kind in type(error).__mro__}
    return How.RAISED if names & _RAISED else How.CRASHED


def message_of(error: BaseException | None) -> str:
    """For people: what Ray knows, at most 4,096 characters of it, the last ones."""
    if error is None:
        return "it returned"
    return _COLOURS.sub("", f"{type(error).__name__}: {str_of(error)}")[-LONGEST_MESSAGE:]


def str_of(error: BaseException) -> str:
    """Also of an exception that fails to say what it is."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - whatever its own code raises: the end that it tells of must not be lost
        return "(it cannot be shown)"
