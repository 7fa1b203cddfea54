"""Role x phase x fault on a real kubelet: a process of an engine dies, and what has to follow is counted.

Six engines at a time, in one namespace; one test for each case. ``pytest -k NAME`` plays that case alone (``docs/localkube.md``).
The cases: ``tests/kill_cases.py``.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import combinations, product
from typing import Any

import pytest

import kill_cases
import living_processes
from cluster_history import History, Object, conditions, failure_words, rows
from kill_cases import Case
from killed_engine import READY_SECONDS, TWO_MEMBERS, KilledEngine, real, simulated
from kubectl_plugin import Plugin
from living_processes import PodProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

AT_ONCE = 6
QUICK = kill_cases.quick()
CASES = [*QUICK, *(case for case in kill_cases.everything() if case not in QUICK)]


def test_every_pair_of_role_phase_and_fault_is_played() -> None:
    values = {"role": kill_cases.ROLES, "phase": kill_cases.PHASES, "fault": kill_cases.FAULTS}
    for one, other in combinations(values, 2):
        assert {(getattr(case, one), getattr(case, other)) for case in QUICK} == set(product(values[one], values[other]))
    assert sum(case.real for case in QUICK) == 6


class Played:
    """One case, from its engine's birth to what came of the death."""

    def __init__(self, case: Case, engine: KilledEngine, model_claim: str, plugin: Plugin) -> None:
        self.case = case
        self.engine = engine
        self.model_claim = model_claim
        self.plugin = plugin
        self.victim: PodProcess | None = None
        self.before: set[PodProcess] = set()
        self.after: set[PodProcess] = set()
        self.shared_memory_bytes: list[int] = []
        self.status = 0
        self.end: Object = {}
        self.logs = ""
        self.why = ""

    def play(self) -> Played:
        """Whatever goes wrong, the engine is taken away."""
        try:
            self.engine.apply(self._manifest())
            if self.case.is_starting:
                self._kill_at_the_start()
            elif self.case.phase == "serving":
                self._kill_while_it_serves()
            else:
                self._kill_while_it_drains()
            self.end = self.engine.engine
        finally:
            self.logs = self.engine.logs()
            self.engine.delete()
        return self

    def _manifest(self) -> Object:
        case = self.case
        # A start that fails is not tried again: Stalled at once.
        restart = {"maxRestarts": 0 if case.is_starting else 1}
        spec: dict[str, Any] = {"restart": restart, "hang": {"stallSeconds": case.stall_seconds}}
        if case.real:
            return real(case.name, self.model_claim, **spec)
        shape = TWO_MEMBERS if case.has_two_members else {}
        return simulated(case.name, drills=(case.drill,) if case.drill else (), **shape, **spec)

    def _kill_at_the_start(self) -> None:
        case, engine = self.case, self.engine
        if case.real:
            self.victim = engine.until_here(f"{case.role} is there", lambda: engine.find(case.role))
            self._strike()
        elif case.fault in kill_cases.SIGNALS:
            held = f"drill: hold in phase {case.phase}"
            engine.until_here(f"{case.role} holds", lambda: engine.has_said(held, role=case.role))
            self.victim = engine.the(case.role)
            self._strike()
        engine.until("Stalled, and its pods gone", lambda: engine.is_true("Stalled") and not engine.pods())
        if case.fault == "sigstop":
            self.why = self.plugin.why(case.name)

    def _kill_while_it_serves(self) -> None:
        case, engine = self.case, self.engine
        engine.until_ready()
        self._note(self.before)
        self.victim = engine.the(case.role)
        self._strike()
        if case.is_answered_in_place:
            engine.until_here(f"{case.role} again", lambda: engine.find(case.role, incarnation=2))
            engine.until("the failure told, and Ready", lambda: engine.last_failure and self._serves_again(), seconds=READY_SECONDS)
        else:
            self._until_succeeded()
        self.status = engine.answer()
        self._note(self.after)

    def _serves_again(self) -> bool:
        words = self.engine.rank_words()
        incarnation = 1 if self.case.role == "api-server" else 2
        return self.engine.settled() and words == [(0, incarnation, "Serving")]

    def _kill_while_it_drains(self) -> None:
        case, engine = self.case, self.engine
        engine.until_ready()
        leader = engine.pods()[0]
        engine.look()
        engine.delete_pod(leader)
        if case.drill is None:
            self.victim = engine.the(case.role)
            pod = engine.pod_of(self.victim)
            engine.until("Draining", lambda: any(row["uid"] == pod and row.get("state") == "Draining" for row in self._rows()))
            self._strike()
        self._until_succeeded()
        self.status = engine.answer()

    def _rows(self) -> list[Object]:
        return [row for replica in self.engine.history.now("ier", self.case.name) for row in rows(replica)]

    def _strike(self) -> None:
        case, victim = self.case, self.victim
        assert victim is not None
        if case.fault in kill_cases.SIGNALS:
            victim.signal(kill_cases.SIGNALS[case.fault])
        elif case.real:
            living_processes.end_for_memory(self.engine.installation.cluster, self.engine.pod_of(victim), victim)
        else:
            victim.signal(signal.SIGUSR1)

    def _until_succeeded(self) -> None:
        engine = self.engine
        members = 2 if self.case.has_two_members else 1

        def succeeded() -> bool:
            return len(engine.replicas()) > 1 and len(engine.pods()) == members and engine.settled()

        engine.until("a successor serves, and its predecessor's pods are gone", succeeded, seconds=READY_SECONDS)

    def _note(self, processes: set[PodProcess]) -> None:
        processes.update(process for found in self.engine.look().values() for process in found)
        if self.case.is_answered_in_place:
            (launcher,) = (process for process in processes if process.role == "launcher")
            self.shared_memory_bytes.append(living_processes.shared_memory_bytes(launcher))


@pytest.fixture(scope="module")
def played(
    request: pytest.FixtureRequest, installation: Any, history: History, model_claim: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Case, Future[Played]]]:
    """All cases that this run has tests for, under way."""
    items = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    chosen = [item.callspec.params["case"] for item in items]
    plugin = Plugin(installation.cluster, history.namespace, tmp_path_factory.mktemp("plugin"))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        plays = [Played(case, KilledEngine(installation, history, case.name), model_claim, plugin) for case in chosen]
        yield {play.case: pool.submit(play.play) for play in plays}
        pool.shutdown(cancel_futures=True)


CASE_PARAMETERS = [pytest.param(case, id=case.name, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize("case", CASE_PARAMETERS)
def test_a_death_is_told_as_what_it_is_and_answered_once(case: Case, played: dict[Case, Future[Played]]) -> None:
    play = played[case].result()
    engine = play.engine
    print(engine.story, play.logs, sep="\n")

    # Of a process that the kernel kills for memory the death may come late, and it may have killed others meanwhile.
    out_of_memory = case.fault == "out-of-memory"
    told = engine.failures() if case.phase == "drain" or out_of_memory else [play.end["status"]["lastFailure"]]
    assert [failure for failure in told if case.cause.items() <= failure.items()], [failure_words(failure) for failure in told]

    assert len(engine.replicas()) == case.replicas
    assert len(engine.ended_replicas()) == (1 if case.is_starting else case.replicas - 1)
    if case.is_starting:
        assert conditions(play.end)["Stalled"]["reason"] == "RestartBudgetSpent"
        assert not engine.is_true("Available")
        if case.fault == "sigstop":
            assert all(
                words in play.why for words in ("RestartBudgetSpent", "resume-after", "Hang", "raise spec.hang.stallSeconds")
            )
    else:
        assert play.status == 200
    if case.is_answered_in_place:
        gone, come = play.before - play.after, play.after - play.before
        unit = {"api-server"} if case.role == "api-server" else {"engine-core", *(["worker"] if case.real else [])}
        if out_of_memory:  # whoever else went, went for the same cause
            unit |= {failure["role"] for failure in told if failure["class"] == "OutOfMemory"}
        assert {process.role for process in gone} == {process.role for process in come} == unit
        assert {process.incarnation for process in come} == {2}
        assert len(come) == len(unit)
        before, after = play.shared_memory_bytes
        assert after <= before
    engine.until_here("nothing is left of pods that are gone", lambda: not engine.leftovers())
