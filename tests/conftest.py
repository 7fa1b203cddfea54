"""Rules for every test: in CI only tests that need a GPU may skip, so that a missing part never looks like a passing one; and no
example of a property has a time limit of its own."""

from __future__ import annotations

import os

import hypothesis
import pytest

# How long an example takes is for benchmarks to say; a busy machine is no failure.
hypothesis.settings.register_profile("enginehouse", deadline=None)
hypothesis.settings.load_profile("enginehouse")

_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and "gpu" not in report.keywords:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") == "true" and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") == "true" and _skipped:
        terminalreporter.write_line(f"in CI only GPU tests may skip, skipped were: {', '.join(_skipped)}", red=True)
