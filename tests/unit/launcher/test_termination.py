"""Cause, exit code and termination message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine.launcher.messages import Failed
from enginehouse_engine.launcher.process import ENGINE_CORE, Process
from enginehouse_engine.launcher.termination import Cause, Exit, cause_of, exit_code, termination_message, write_termination_log

CORE = Process(role=ENGINE_CORE, rank=2, index=0, incarnation=3)
SAID = Failed(cause="Exception", message="ValueError: no")


@pytest.mark.parametrize(
    ("exit", "failed", "out_of_memory", "kind", "code"),
    [
        (Exit(signal=9), None, False, "Signal", 137),
        (Exit(signal=9), None, True, "OutOfMemory", 137),
        (Exit(signal=11), None, True, "Signal", 139),
        (Exit(signal=9), SAID, False, "Signal", 137),
        (Exit(exit_code=1), SAID, False, "Exception", 1),
        (Exit(exit_code=78), SAID, False, "Exception", 1),
        (Exit(exit_code=78), None, False, "InvalidConfig", 78),
        (Exit(exit_code=78), Failed(cause="ContextTooSmall", message="m"), False, "ContextTooSmall", 78),
        (Exit(exit_code=0), None, False, "ExitCode", 1),
        (Exit(exit_code=200), None, False, "ExitCode", 1),
    ],
)
def test_the_exit_code_follows_the_cause(exit: Exit, failed: Failed | None, out_of_memory: bool, kind: str, code: int) -> None:
    cause = cause_of(CORE, pid=5, exit=exit, failed=failed, out_of_memory=out_of_memory)
    assert (cause.kind, exit_code(cause)) == (kind, code)


def test_no_cause_is_zero() -> None:
    assert exit_code(None) == 0


def test_the_message_has_the_fields_of_the_contract() -> None:
    cause = cause_of(CORE, pid=5, exit=Exit(signal=11), failed=None, out_of_memory=False)
    assert json.loads(termination_message(cause)) == {
        "class": "Signal",
        "message": "engine core of rank 2 was killed by SIGSEGV",
        "role": "engine-core",
        "rank": 2,
        "incarnation": 3,
        "pid": 5,
        "exitCode": None,
        "signal": 11,
    }


@given(st.text(max_size=9000))
def test_the_message_always_fits_and_keeps_its_end(text: str) -> None:
    data = termination_message(Cause("Exception", text), limit_bytes=1000)
    assert len(data) <= 1000
    message = json.loads(data)["message"]
    assert message == text or text.endswith(message.removeprefix("…"))


@given(st.text(max_size=5000), st.text(max_size=4096))
def test_the_kubelets_limit_holds_with_evidence_which_gives_way_to_the_message(text: str, evidence: str) -> None:
    data = termination_message(Cause("Exception", text, evidence=evidence))
    assert len(data) <= 4096
    found = json.loads(data)
    assert evidence.endswith(found.get("evidence", "").removeprefix("…"))
    if found["message"] != text:
        assert found.get("evidence", "") in ("", "…")


def test_a_cause_without_evidence_says_nothing_of_it() -> None:
    assert "evidence" not in Cause("Exception", "m").fields()
    assert Cause("Exception", "m", evidence="worker 0 was at a.py:1 f").fields()["evidence"] == "worker 0 was at a.py:1 f"


def test_the_log_is_written_only_where_the_kubelet_made_it(tmp_path: Path) -> None:
    cause = Cause("StartupTimeout", "late")
    write_termination_log(cause, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    present = tmp_path / "present"
    present.write_text("something longer than the message that was there before" * 9)
    write_termination_log(cause, present)
    assert json.loads(present.read_text())["class"] == "StartupTimeout"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the kernel's full disk")
def test_a_disk_that_is_full_is_said_and_changes_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    write_termination_log(Cause("StartupTimeout", "late"), Path("/dev/full"))
    assert "No space left on device" in caplog.text
