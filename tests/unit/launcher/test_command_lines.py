"""What the launcher's children are started with."""

from __future__ import annotations

import pytest

from enginehouse_engine.launcher.command_lines import environment
from enginehouse_engine.launcher.process import API_SERVER, ENGINE_CORE, WORKER, Process


@pytest.mark.parametrize(("role", "huge"), [(ENGINE_CORE, True), (WORKER, True), (API_SERVER, False)])
def test_processes_that_hold_weights_ask_for_huge_pages(role: str, huge: bool) -> None:
    found = environment(Process(role=role, rank=0, index=0, incarnation=1), {"HOME": "/"})
    assert found["HOME"] == "/"
    assert ("glibc.malloc.hugetlb=1" in found.get("GLIBC_TUNABLES", "")) == huge


def test_tunables_of_the_user_are_left_alone() -> None:
    process = Process(role=ENGINE_CORE, rank=0, index=0, incarnation=1)
    assert environment(process, {"GLIBC_TUNABLES": "theirs"}) == {"GLIBC_TUNABLES": "theirs"}
