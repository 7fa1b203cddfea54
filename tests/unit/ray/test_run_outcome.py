"""What each end of an actor's call means, with Ray's own exceptions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import exceptions

from enginehouse_engine.ray.manager_messages import How
from enginehouse_engine.ray.run_outcome import LONGEST_MESSAGE, how_it_ended, message_of


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def raised(cause: Exception) -> BaseException:
    """As the caller of an actor gets it."""
    error = exceptions.RayTaskError("run", "Traceback: \x1b[36mcause\x1b[39m", cause)
    return error.as_instanceof_cause()


LOST = [
    exceptions.ActorDiedError(),
    exceptions.ActorUnavailableError("The actor is temporarily unavailable", b"\1" * 16),
    exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
    exceptions.NodeDiedError("gone"),
    exceptions.WorkerCrashedError(),
    exceptions.RaySystemError("who knows"),
    RuntimeError("of no kind that is known"),
    KeyboardInterrupt(),
    Unspeakable(),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_whoever_is_lost_has_crashed(error: BaseException) -> None:
    assert how_it_ended(error, running=True, asked=False) is How.CRASHED


@pytest.mark.parametrize("error", [raised(ValueError("x")), raised(OSError("x")), exceptions.UnserializableException("x")])
def test_an_ordinary_exception_is_not_a_crash(error: BaseException) -> None:
    assert how_it_ended(error, running=True, asked=False) is How.RAISED


def test_an_exit_with_code_zero_is_a_return() -> None:
    text = "Worker exit type: INTENDED_USER_EXIT Worker exit detail: Worker exits with an exit code 0."
    assert how_it_ended(RuntimeError(text), running=True, asked=False) is How.RETURNED
    assert how_it_ended(None, running=True, asked=False) is How.RETURNED


@pytest.mark.parametrize("error", [*LOST, raised(ValueError("x")), None])
def test_before_it_ran_it_was_not_started_and_what_was_asked_for_is_nothing(error: BaseException | None) -> None:
    assert how_it_ended(error, running=False, asked=False) is How.NOT_STARTED
    assert how_it_ended(error, running=True, asked=True) is None
    assert how_it_ended(error, running=False, asked=True) is None


@given(st.text(max_size=3 * LONGEST_MESSAGE))
def test_a_message_says_the_last_of_what_is_known(text: str) -> None:
    message = message_of(RuntimeError(text))
    assert len(message) <= LONGEST_MESSAGE
    assert "RuntimeError: " in message or len(text) > LONGEST_MESSAGE - 20


def test_a_message_is_without_colours_and_survives_who_cannot_speak() -> None:
    assert "\x1b" not in message_of(raised(ValueError("x")))
    assert "cause" in message_of(raised(ValueError("x")))
    assert message_of(Unspeakable()) == "Unspeakable: (it cannot be shown)"
