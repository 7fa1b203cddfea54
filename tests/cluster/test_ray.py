"""Executor Ray on a real kubelet with real Ray: shapes, ranks that come and go under load, what cannot be placed, and deaths.

Three engines live side by side, each for several tests: stories are played once, and each test judges a part of them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest

import living_processes
import ray_engine
from cluster_history import History, conditions, failure_words
from example_model import example, volume
from kubectl_plugin import Plugin
from ray_engine import RayEngine
from request_load import Kind, Load, Outcome, Question
from small_model import VOCABULARY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

READY_SECONDS = 400.0
PLACE_LABEL = "enginehouse.dev/test-ray"
TOKENS = 32
REQUESTS_OF_A_PHASE = 12
"""While new ranks wait, while they serve, after they went: four for each client."""


def questions() -> list[Question]:
    """Without their answers."""
    draw = random.Random(6)
    prompts = [tuple(draw.randrange(VOCABULARY) for _ in range(length)) for length in (1, 7, 33, 90)]
    return [Question(prompt, "", TOKENS) for prompt in prompts]


def answers(engine: RayEngine) -> list[str]:
    """Asked of the leader's own address."""
    url = f"http://{engine.pods()[0]['status']['podIP']}:8000/v1/completions"
    found = []
    for question in questions():
        answer = httpx.post(url, json=question.body(stream=False), timeout=120)
        assert answer.status_code == 200, answer.text
        found.append(str(answer.json()["choices"][0]["text"]))
    return found


SHAPES: dict[str, dict[str, Any]] = {
    "one": {"executor": "InProcess"},
    "elastic": {"apiServers": 2, "restart": {"maxRestarts": 1}},
    "tensor2": {"parallelism": {"tensor": 2, "workersPerMember": 1}, "restart": {"maxRestarts": 0}},
    "pipeline2": {"parallelism": {"pipeline": 2, "workersPerMember": 1}, "restart": {"maxRestarts": 0}},
}


class Engines:
    """Each made when it is first asked for, one after the other: a start is what processors can take of Ray."""

    def __init__(self, installation: Any, history: History, model_claim: str) -> None:
        self._made: dict[str, RayEngine] = {}
        self._installation, self._history, self._model_claim = installation, history, model_claim

    def __getitem__(self, name: str) -> RayEngine:
        """Ready when it was made."""
        if name not in self._made:
            engine = self._made[name] = RayEngine(self._installation, self._history, name)
            more = SHAPES[name]
            if name == "elastic":
                more = {**more, "pod": {"nodeSelector": {PLACE_LABEL: self._history.namespace}}, "raising": True}
            engine.apply(ray_engine.manifest(name, self._model_claim, **more))
            engine.until("Ready", engine.settled, seconds=READY_SECONDS)
        return self._made[name]

    def made(self) -> list[RayEngine]:
        return list(self._made.values())


@pytest.fixture(scope="module")
def engines(installation: Any, history: History, model_claim: str) -> Iterator[Engines]:
    installation.kubectl("apply", "-f", "-", namespace=history.namespace, stdin=json.dumps(ray_engine.RAISING))
    offer_places(installation, history, there=True)
    yield Engines(installation, history, model_claim)
    offer_places(installation, history, there=False)


def offer_places(installation: Any, history: History, *, there: bool) -> None:
    """Whether nodes take pods of the elastic engine; those that they have stay."""
    value = f"={history.namespace}" if there else "-"
    installation.cluster.kubectl("label", "nodes", "--all", "--overwrite", f"{PLACE_LABEL}{value}")


@pytest.fixture(scope="module")
def right(engines: Engines) -> list[Question]:
    """With the answers of one process."""
    return [replace(question, answer=text) for question, text in zip(questions(), answers(engines["one"]), strict=True)]


def until_serving(engine: RayEngine, ranks: list[tuple[int, int]]) -> None:
    """Ranks with their incarnations, and nothing else."""
    wanted = [(rank, incarnation, "Serving") for rank, incarnation in ranks]

    def serve() -> bool:
        return engine.settled() and engine.rank_states() == wanted and len(engine.pods()) == len(ranks)

    engine.until(f"{wanted} alone", serve, seconds=READY_SECONDS)


@pytest.mark.parametrize("shape", ["tensor2", "pipeline2"])
def test_a_model_in_two_pods_says_what_it_says_in_one_process(engines: Engines, right: list[Question], shape: str) -> None:
    engine = engines[shape]
    assert answers(engine) == [question.answer for question in right]
    assert {name for name, _ in engine.names()} >= {"worker 0 of rank 0", "worker 1 of rank 0 in member 1"}


@dataclass
class Story:
    """What was there before ranks came and after they went, and what was seen meanwhile."""

    engine: RayEngine
    outcomes: list[Outcome] = field(default_factory=list)
    before: dict[str, Any] = field(default_factory=dict)
    grown: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)
    lacking: str = ""
    table: str = ""
    described: str = ""
    why: str = ""
    waited: list[tuple[int, int, str]] = field(default_factory=list)

    def look(self) -> dict[str, Any]:
        engine = self.engine
        (launcher,) = [process for process in engine.processes(engine.pods()[0]) if process.role == "launcher"]
        return {
            "pod": engine.pods()[0]["metadata"]["uid"],
            "processes": engine.names(),
            "in Ray": engine.in_ray(),
            "listening": living_processes.listening_ports(launcher),
            "shared memory": living_processes.shared_memory_bytes(launcher),
        }


@pytest.fixture(scope="module")
def story(
    installation: Any, history: History, engines: Engines, right: list[Question], tmp_path_factory: pytest.TempPathFactory
) -> Story:
    """1 -> 3 -> 1 ranks under load; for a while there is no place for the pods of the new ones."""
    engine = engines["elastic"]
    told = Story(engine)
    until_serving(engine, [(0, 1)])
    told.before = told.look()
    offer_places(installation, history, there=False)
    with installation.reached("elastic", namespace=history.namespace) as url, Load(url, clients=3, ask=right) as load:
        engine.scale(3)
        engine.until("a shortage is told", lambda: engine.condition("PlacementReady").get("reason") == "PlacementLacking")
        told.lacking = str(engine.condition("PlacementReady")["message"])
        told.table = engine.kubectl("get", "ie/elastic")
        told.described = engine.kubectl("describe", "ie/elastic")
        told.why = Plugin(installation.cluster, history.namespace, tmp_path_factory.mktemp("plugin")).why("elastic")
        told.waited = engine.rank_states()
        load.until_ended(REQUESTS_OF_A_PHASE)
        offer_places(installation, history, there=True)
        until_serving(engine, [(0, 1), (1, 1), (2, 1)])
        told.grown = told.look()
        load.until_ended(REQUESTS_OF_A_PHASE)
        engine.scale(1)
        until_serving(engine, [(0, 1)])
        load.until_ended(REQUESTS_OF_A_PHASE)
        load.stop()
        told.outcomes = load.taken()
    told.after = told.look()
    return told


def test_ranks_that_cannot_be_placed_wait_readably_and_serve_when_there_is_a_place(story: Story) -> None:
    assert "bundle 0 of rank 1 needs accelerator: 1, member 1 has not joined" in story.lacking
    assert "Unschedulable" in story.table, "what Kubernetes says of the pod goes before what Ray lacks for it"
    assert story.lacking in story.described
    assert "bundle 0 of rank 1 needs accelerator: 1" in story.why
    assert "-> Let the pods have what the bundle needs (spec.resources), or ask for fewer ranks" in story.why
    assert story.waited == [(0, 1, "Serving"), (1, 1, "Pending"), (2, 1, "Pending")]
    assert story.grown["pod"] == story.before["pod"]
    assert story.before["processes"].items() <= story.grown["processes"].items(), "nothing that was there was made again"
    assert len(story.engine.replicas()) == 1


def test_no_request_is_lost_while_ranks_come_and_go(story: Story) -> None:
    lost = [str(outcome) for outcome in story.outcomes if outcome.kind is not Kind.ANSWERED]
    assert not lost, f"of {len(story.outcomes)} requests, {len(lost)} were lost: {lost[:8]}"
    assert len(story.outcomes) >= 3 * REQUESTS_OF_A_PHASE


def test_of_ranks_that_went_nothing_is_left(story: Story) -> None:
    assert story.before["in Ray"] == ["elastic-r0-i1-core", "elastic-r0-i1-tp0-pp0", "group elastic-r0-i1"]
    assert story.grown["in Ray"] == sorted(name.replace("r0", f"r{rank}") for name in story.before["in Ray"] for rank in range(3))
    assert story.after["in Ray"] == story.before["in Ray"]
    assert story.after["processes"] == story.before["processes"]
    assert story.after["listening"] <= story.before["listening"]
    assert story.after["shared memory"] <= story.before["shared memory"]
    story.engine.until_here("nothing is left of pods that are gone", lambda: not story.engine.leftovers())


def test_a_core_that_is_killed_takes_its_actors_and_its_group_and_comes_back_alone(story: Story) -> None:
    engine = story.engine
    engine.kill("engine core of rank 0")
    engine.until("the next incarnation serves", lambda: engine.last_failure and until_words(engine, [(0, 2, "Serving")]))
    assert_told(engine, role="engine-core", rank=0, signal=9)
    assert engine.in_ray() == [name.replace("i1", "i2") for name in story.before["in Ray"]]
    assert not engine.ended_replicas()


def until_words(engine: RayEngine, words: list[tuple[int, int, str]]) -> bool:
    return engine.settled() and engine.rank_states() == words


def assert_told(engine: RayEngine, **cause: Any) -> None:
    told = engine.last_failure
    assert {"class": "Signal", "incarnation": 1, **cause}.items() <= told.items(), failure_words(told)


def until_stalled(engine: RayEngine) -> None:
    engine.until("Stalled, and its pods gone", lambda: engine.is_true("Stalled") and not engine.pods())
    assert conditions(engine.engine)["Stalled"]["reason"] == "RestartBudgetSpent"


def until_rank_1_alone_is_dead(story: Story, right: list[Question], *, incarnation: int) -> None:
    """Its actors and group are gone, and rank 0 answers."""
    engine = story.engine
    engine.until("rank 1 is dead", lambda: engine.rank_states() == [(0, 2, "Serving"), (1, incarnation, "Dead")])
    engine.until("the cause", lambda: (engine.last_failure.get("rank"), engine.last_failure.get("incarnation")) == (1, incarnation))
    engine.until("no successor: the budget is spent", lambda: engine.is_true("Stalled"))
    assert not engine.ended_replicas()
    assert answers(engine) == [question.answer for question in right]
    assert engine.in_ray() == sorted(name.replace("i1", "i2") for name in story.before["in Ray"])


def bring_rank_1_back(engine: RayEngine, *, incarnation: int) -> None:
    """A rank that is dead leaves when it is wanted no more, and begins anew when it is wanted again."""
    engine.scale(1)
    engine.until("rank 0 alone", lambda: engine.rank_states() == [(0, 2, "Serving")] and len(engine.pods()) == 1)
    engine.scale(2)
    wanted = [(0, 2, "Serving"), (1, incarnation, "Serving")]
    engine.until(f"{wanted}", lambda: engine.rank_states() == wanted, seconds=READY_SECONDS)


def test_a_worker_that_is_killed_in_another_pod_takes_its_rank_and_no_other(story: Story, right: list[Question]) -> None:
    engine = story.engine
    engine.scale(2)
    until_serving(engine, [(0, 2), (1, 2)])
    engine.kill("worker 0 of rank 1 in member 1", incarnation=2)
    until_rank_1_alone_is_dead(story, right, incarnation=2)
    assert_told(engine, role="worker", rank=1, incarnation=2, signal=9)


def test_an_actor_that_raises_takes_its_rank_and_says_what_it_raised(story: Story, right: list[Question]) -> None:
    engine = story.engine
    bring_rank_1_back(engine, incarnation=3)
    engine.have_raise("worker 0 of rank 1 in member 1", incarnation=3)
    until_rank_1_alone_is_dead(story, right, incarnation=3)
    # The worker tells its core before it exits, so that either of them may be the first whose end is seen: both say what it was.
    assert_told(engine, **{"class": "Exception"}, rank=1, incarnation=3)
    assert "ValueError: told to raise" in engine.last_failure["message"]


def test_a_node_that_is_gone_without_a_word_ends_its_replica_once_and_is_named(story: Story, right: list[Question]) -> None:
    engine = story.engine
    bring_rank_1_back(engine, incarnation=4)
    engine.take_from_the_network(engine.pods()[1])

    # It costs nothing of the budget, which is spent.
    engine.until(
        "a successor serves, and its predecessor's pods are gone", lambda: engine.has_succeeded(pods=2), seconds=READY_SECONDS
    )
    assert_told(engine, **{"class": "Lost"}, role="worker", rank=1, incarnation=4)
    assert len(engine.ended_replicas()) == 1
    assert answers(engine) == [question.answer for question in right]


def test_a_worker_pod_that_is_deleted_ends_its_replica_once_and_a_raylet_that_is_killed_the_next(
    engines: Engines, right: list[Question]
) -> None:
    engine = engines["tensor2"]
    first = engine.pods()
    engine.delete_pod(first[1])

    engine.until(
        "a successor serves, and its predecessor's pods are gone", lambda: engine.has_succeeded(pods=2), seconds=READY_SECONDS
    )
    assert len(engine.ended_replicas()) == 1
    assert answers(engine) == [question.answer for question in right]
    engine.kill("Ray's raylet in member 1")
    until_stalled(engine)
    raylet = {"role": "raylet", "class": "Signal", "signal": 9, "incarnation": 1}
    assert [told for told in engine.failures() if raylet.items() <= told.items()], "its own death is told"
    # Its actors go with it, and whichever of them is seen first says that it was the raylet.
    assert_told(engine, signal=9)
    assert "Ray's raylet in member 1 was killed by SIGKILL" in engine.last_failure["message"]
    assert (len(engine.replicas()), len(engine.ended_replicas())) == (2, 2)


def test_a_head_that_is_killed_ends_its_replica_once_and_is_named(engines: Engines) -> None:
    engine = engines["pipeline2"]
    engine.kill("Ray's gcs_server")
    until_stalled(engine)
    assert_told(engine, role="gcs-server", signal=9)
    assert (len(engine.replicas()), len(engine.ended_replicas())) == (1, 1)


def test_after_delete_nothing_is_left_not_even_a_secret(engines: Engines) -> None:
    made = engines.made()
    assert any(engine.secrets() for engine in made)
    for engine in made:
        engine.delete()
    for engine in made:
        engine.until("no pod is left", lambda engine=engine: not engine.pods())
        engine.until_here("no secret is left", lambda engine=engine: not engine.secrets())
        engine.until_here("nothing is left of pods that are gone", lambda engine=engine: not engine.leftovers())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_starts_with_two_ranks_and_two_api_servers_come_up_and_answer(
    installation: Any, history: History, model_claim: str, right: list[Question]
) -> None:
    for turn in range(20):
        engine = RayEngine(installation, history, f"pair-{turn}")
        engine.apply(ray_engine.manifest(engine.name, model_claim, parallelism={"data": 2, "workersPerMember": 2}, apiServers=2))
        engine.until("Ready", engine.settled, seconds=READY_SECONDS)
        assert answers(engine) == [question.answer for question in right]
        assert not engine.failures()
        engine.delete()
        engine.until("no pod is left", lambda engine=engine: not engine.pods())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ranks_come_and_go_twenty_times_without_a_lost_request_and_nothing_piles_up(
    installation: Any, history: History, model_claim: str, right: list[Question]
) -> None:
    engine = RayEngine(installation, history, "again")
    engine.apply(ray_engine.manifest(engine.name, model_claim, apiServers=2))
    until_serving(engine, [(0, 1)])
    before = Story(engine).look()
    with installation.reached(engine.name, namespace=history.namespace) as url, Load(url, clients=3, ask=right) as load:
        for turn in range(1, 21):
            engine.scale(3)
            until_serving(engine, [(0, 1), (1, turn), (2, turn)])
            engine.scale(1)
            until_serving(engine, [(0, 1)])
            assert not [str(outcome) for outcome in load.taken() if outcome.kind is not Kind.ANSWERED], f"turn {turn}"
            engine.until_here("nothing is left of pods that are gone", lambda: not engine.leftovers())
        load.stop()
    after = Story(engine).look()
    assert {key: after[key] for key in ("pod", "processes", "in Ray")} == {
        key: before[key] for key in ("pod", "processes", "in Ray")
    }
    assert after["listening"] <= before["listening"]
    assert after["shared memory"] <= before["shared memory"]
    engine.delete()


@pytest.mark.slow
def test_the_example_answers_a_chat(installation: Any, history: History) -> None:
    engine = RayEngine(installation, history, "ray")
    for manifest in (*volume(history.namespace), example("ray")):
        engine.apply(manifest)
    engine.until("Ready", engine.settled, seconds=READY_SECONDS)
    question = {"model": "smollm2", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16, "temperature": 0}
    url = f"http://{engine.pods()[0]['status']['podIP']}:8000/v1/chat/completions"
    answer = httpx.post(url, json=question, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"].strip()
    assert engine.rank_states() == [(0, 1, "Serving"), (1, 1, "Serving")]
    engine.delete()
