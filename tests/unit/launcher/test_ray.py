"""The real launcher with real Ray, as one pod and as several: what it answers, who is blamed, and that nothing is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import small_model
from pods import Network, Pod

pytestmark = pytest.mark.timeout(900)  # Ray's programs take long to import where many tests run
PROMPT = [1, 2, 3, 4, 5]
TOKENS = 24

IN_PROOF = pytest.mark.slow
"""Each takes half a minute: `make test` has one of a kind."""

StartPods = Callable[..., list[Pod]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    folder.mkdir()
    small_model.make(folder)
    return folder


@pytest.fixture(scope="module")
def answer(model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of one process."""
    network = Network(1)
    pod = Pod(
        network,
        0,
        tmp_path_factory.mktemp("alone") / "log",
        "--executor=InProcess",
        f"--model={model}",
        "--dtype=float32",
        "--port=0",
        "--memory-limit-bytes=3000000000",
    )
    try:
        return str(pod.ask(PROMPT, tokens=TOKENS)["choices"][0]["text"])
    finally:
        pod.close()
        network.close()


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[StartPods]:
    """Members of one replica."""
    pods: list[Pod] = []
    networks: list[Network] = []

    def start(members: int, *flags: str) -> list[Pod]:
        network = Network(members)
        networks.append(network)
        token = tmp_path / "token"
        token.write_text("0123456789abcdef" * 4)
        shape = (
            [f"--members={members}", f"--leader={network.address(0)}", "--replica-uid=replica", f"--ray-token-file={token}"]
            if members > 1
            else []
        )
        for number in range(members):
            common = ["--executor=Ray", f"--model={model}", "--dtype=float32", "--port=0", "--memory-limit-bytes=4000000000"]
            own = [f"--member={number}"] if members > 1 else []
            pods.append(Pod(network, number, tmp_path / f"{number}.log", *common, *shape, *own, *flags))
        return pods

    yield start
    for pod in pods:
        pod.close()
    for network in networks:
        network.close()


def _left(*pods: Pod) -> list[str]:
    """Files that launchers, and Ray below them, have made."""
    return [file for pod in pods for file in os.listdir(pod.temporary)]


def test_it_answers_as_one_process_does_and_ends_in_order_with_nothing_left(start: StartPods, answer: str) -> None:
    (pod,) = start(1, "--tensor-parallel=2")
    assert pod.ask(PROMPT, tokens=TOKENS)["choices"][0]["text"] == answer
    pod.terminate()
    assert pod.exit_code() == 0, pod.text()
    assert _left(pod) == []


@pytest.mark.parametrize(
    "victim",
    [
        "Ray's raylet",
        pytest.param("Ray's gcs_server", marks=IN_PROOF),
        pytest.param("actor manager", marks=IN_PROOF),
    ],
)
def test_whatever_of_ray_dies_ends_the_engine_and_is_named(start: StartPods, victim: str) -> None:
    (pod,) = start(1)
    pod.until("^ready: ")
    pod.signal(victim, signal.SIGKILL)
    assert pod.exit_code() == 137, pod.text()
    assert f"the engine ends: Signal: {victim} was killed by SIGKILL" in pod.text()
    assert _left(pod) == []


@pytest.mark.parametrize("victim", ["worker 0 of rank 1", pytest.param("engine core of rank 1", marks=IN_PROOF)])
def test_a_rank_whose_actor_is_killed_comes_back_and_when_it_dies_again_the_other_serves_on(
    start: StartPods, answer: str, victim: str
) -> None:
    (pod,) = start(1, "--data-parallel=2")
    pod.until("^ready: ")
    pod.signal(victim, signal.SIGKILL)
    pod.until(f"{victim} was killed by SIGKILL")
    pod.until("rank 1 serves(.|\n)*rank 1 serves")
    for _ in range(4):
        assert pod.ask(PROMPT, tokens=TOKENS)["choices"][0]["text"] == answer
    pod.signal(victim, signal.SIGKILL, incarnation=2)
    pod.until(f"({victim} was killed by SIGKILL(.|\n)*){{2}}")
    assert pod.ask(PROMPT, tokens=TOKENS)["choices"][0]["text"] == answer
    pod.terminate()
    assert pod.exit_code() == 0, pod.text()


@pytest.mark.parametrize("shape", ["--tensor-parallel=2", pytest.param("--pipeline-parallel=2", marks=IN_PROOF)])
def test_a_rank_across_two_members_answers_as_one_process_does(start: StartPods, answer: str, shape: str) -> None:
    leader, other = start(2, shape, "--workers-per-member=1")
    assert leader.ask(PROMPT, tokens=TOKENS)["choices"][0]["text"] == answer
    assert "started worker 1 of rank 0 in member 1" in other.text()
    leader.terminate()
    assert [pod.exit_code() for pod in (leader, other)] == [0, 0], leader.text() + other.text()
    assert _left(leader, other) == []


@pytest.mark.parametrize(
    ("victim", "named"),
    [
        pytest.param("worker 0 of rank 1 in member 1", "worker 0 of rank 1 in member 1 was killed by SIGKILL", marks=IN_PROOF),
        ("Ray's raylet in member 1", "Ray's raylet in member 1 was killed by SIGKILL"),
    ],
)
def test_a_death_in_another_member_ends_what_is_there_and_the_leader_serves_on(
    start: StartPods, answer: str, victim: str, named: str
) -> None:
    leader, other = start(2, "--data-parallel=2", "--workers-per-member=1")
    leader.until("^ready: ")
    other.signal(victim, signal.SIGKILL)
    assert other.exit_code() == 137, other.text()
    assert f"the engine ends: Signal: {named}" in other.text()
    leader.until("engine core of rank 1 (was killed|exited)")  # it may find its worker gone before its launcher is told
    assert leader.ask(PROMPT, tokens=TOKENS)["choices"][0]["text"] == answer
    leader.terminate()
    assert leader.exit_code() == 0, leader.text()
