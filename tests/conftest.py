"""Rules for every test: in CI only tests that need a GPU may skip, so that a missing part never looks like a passing one; no
example of a property has a time limit of its own; tests that share a cluster, or a file's processes, run in one process; and
one option says the Kubernetes of the API tests.
"""

from __future__ import annotations

import os
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from localkube.binaries import KUBERNETES, KUBERNETES_VERSIONS

# How long an example takes is for benchmarks to say; a busy machine is no failure.
hypothesis.settings.register_profile("enginehouse", deadline=None)
hypothesis.settings.load_profile("enginehouse")

_TOGETHER = {"cluster": "cluster", "api": "api", "charts": "api"}
"""Folders of tests whose sessions share what takes long to start. They are also what takes longest."""

_skipped: list[str] = []


class Together(LoadScopeScheduling):
    """Hands whole files to the processes of a run, and what shares a cluster to one of them."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _TOGETHER.get(file.split("/")[1], file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Instead of the groups of xdist, which pytest 9.2 does not let it hand over."""
    # In the order of the folders: what shares a cluster begins at once, and short files are left for the end. By itself xdist
    # begins with the files of most tests.
    config.option.loadscopereorder = False
    return Together(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seconds", type=float, default=600.0, help="how long the soak of make proof kills processes")
    parser.addoption("--kubernetes", choices=KUBERNETES_VERSIONS, default=KUBERNETES, help="whose API server the API tests start")


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--soak-seconds"))


@pytest.fixture(scope="session")
def kubernetes_version(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--kubernetes"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail") and "gpu" not in report.keywords:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if os.environ.get("CI") == "true" and _skipped and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if os.environ.get("CI") == "true" and _skipped:
        terminalreporter.write_line(f"in CI only GPU tests may skip, skipped were: {', '.join(_skipped)}", red=True)
