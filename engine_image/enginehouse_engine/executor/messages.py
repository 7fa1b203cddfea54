"""What an engine core and its workers say to each other over the message queue; one call, one correlation id.

Invariant: arrays in decoded messages own their memory (``message_queue/codec.py``). Does not send anything.
"""

from __future__ import annotations

from typing import Any

import msgspec

from enginehouse_engine.executor.contract import StepInput, StepOutput, WorkerProfile


class Step(msgspec.Struct, frozen=True, tag="step"):
    """Compute this. Only the worker that chooses answers."""

    step: StepInput


class Call(msgspec.Struct, frozen=True, tag="call"):
    """Call a method. Every worker answers."""

    method: str
    arguments: tuple[Any, ...]


class Stepped(msgspec.Struct, frozen=True, tag="stepped"):
    output: StepOutput


class Profiled(msgspec.Struct, frozen=True, tag="profiled"):
    profile: WorkerProfile


class Returned(msgspec.Struct, frozen=True, tag="returned"):
    """What any other method returned: what msgspec and arrays can express."""

    value: Any


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker's last words: it exits."""

    kind: str
    """``class`` of the wire protocol."""
    message: str
    """With the traceback."""


ToWorker = Step | Call
FromWorker = Stepped | Profiled | Returned | Failed


def answer(value: Any) -> FromWorker:
    """The message for what a method returned."""
    match value:
        case StepOutput():
            return Stepped(value)
        case WorkerProfile():
            return Profiled(value)
        case _:
            return Returned(value)
