"""Ranks that come to and leave a Ray replica, each with a member of its own, while the leader serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

import small_model
from monitored_engine import Row
from pods import DEADLINE_SECONDS, Network, Pod

pytestmark = pytest.mark.timeout(900)  # Ray's programs take long to import where many tests run
PROMPT = [1, 2, 3, 4, 5]
FIRST = (0, 1, "Serving")


def until(wanted: Callable[[], bool], row: Row, pod: Pod) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not wanted():
        assert time.monotonic() < deadline, f"{row.states[-1:]} {pod.text()}"
        assert pod.process.poll() is None, pod.text()
        time.sleep(0.02)


def test_a_rank_waits_for_its_member_serves_leaves_and_comes_back_while_the_other_serves(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    small_model.make(model)
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4)
    network, row = Network(2), Row(tmp_path / "monitor")
    pods: list[Pod] = []

    def start(number: int, *flags: str) -> Pod:
        common = ["--executor=Ray", f"--model={model}", "--dtype=float32", "--port=0", "--memory-limit-bytes=4000000000"]
        same = [f"--leader={network.address(0)}", "--replica-uid=replica", f"--ray-token-file={token}", "--workers-per-member=1"]
        pods.append(Pod(network, number, tmp_path / f"{len(pods)}.log", *common, *same, *flags))
        return pods[-1]

    try:
        leader = start(0, f"--monitor-socket={tmp_path}/monitor")
        until(lambda: row.ranks() == [FIRST], row, leader)
        answer = leader.ask(PROMPT, tokens=8)["choices"][0]["text"]

        def answers(times: int) -> set[str]:
            return {leader.ask(PROMPT, tokens=8)["choices"][0]["text"] for _ in range(times)}

        for incarnation in (1, 2):
            row.resize(2)
            waits = {"index": 0, "state": "Pending", "node": "", "lacking": "needs accelerator: 1, member 1 has not joined"}
            group = {"rank": 1, "strategy": "Pack", "state": "Pending", "bundles": [waits]}
            until(lambda group=group: row.states[-1]["placement"][1:] == [group], row, leader)  # type: ignore[misc]  # its own
            assert row.ranks() == [FIRST, (1, incarnation, "Pending")]
            assert answers(1) == {answer}
            member = start(1, "--members=2", "--member=1", "--data-parallel=2")
            served = [FIRST, (1, incarnation, "Serving")]
            until(lambda served=served: row.ranks() == served, row, leader)  # type: ignore[misc]  # its own
            assert answers(4) == {answer}
            row.resize(1)
            until(lambda: row.ranks() == [FIRST], row, leader)
            assert [rank["rank"] for rank in row.states[-1]["placement"]] == [0]
            assert member.process.poll() is None, "until its pod is ended"
            member.terminate()
            assert member.exit_code() == 0, member.text()
        assert answers(1) == {answer}
        assert [report for report in row.exits if not report["planned"]] == []
        leader.terminate()
        assert leader.exit_code() == 0, leader.text()
    finally:
        for pod in pods:
            pod.close()
        row.close()
        network.close()
