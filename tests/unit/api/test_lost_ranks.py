"""Ranks that die, return or come late, and requests that would wait for too long, as the clients and the launcher see them."""

from __future__ import annotations

import select
import socket
from pathlib import Path

from enginehouse_engine.protocol import Outputs, RequestOutput, StepStats, encode

from .conftest import (
    ANSWER,
    ASK,
    DEADLINE_SECONDS,
    LIMIT,
    ApiServer,
    engine_config,
    eventually,
    get,
    post,
    read_until,
    request_bytes,
    says,
    says_and_goes_on,
    says_nothing,
)


def _tell(server: ApiServer, *states: tuple[int, str]) -> None:
    """The launcher's word on all ranks: incarnation and state."""
    ranks = [
        {"rank": rank, "incarnation": incarnation, "state": state, "added": 1} for rank, (incarnation, state) in enumerate(states)
    ]
    server.launcher.send(type="ranks", ranks=ranks, added=[])


def test_the_launchers_word_that_a_rank_died_fails_its_requests_and_leaves_the_others_alone(fresh: ApiServer) -> None:
    lost, other = fresh.core(), fresh.core(rank=1)
    fresh.launcher.wait_for("ready")
    for core in (lost, other):
        core.behaviour = says_and_goes_on("be")
    _tell(fresh, (1, "Serving"), (1, "Serving"))
    streams = [fresh.raw(request_bytes({**ASK, "stream": True})) for _ in range(2)]
    for stream in streams:
        read_until(stream, b'"text":"e"')
    lost.behaviour = other.behaviour = says_nothing
    whole = [fresh.raw(request_bytes(ASK)) for _ in range(2)]
    eventually(lambda: [core.submits.qsize() for core in (lost, other)] == [2, 2], "two requests for each rank")
    _tell(fresh, (1, "Restarting"), (1, "Serving"))
    eventually(lambda: len(select.select(streams + whole, [], [], 0)[0]) == 2, "the two that were lost")
    ready, _, _ = select.select(streams + whole, [], [], 0)
    for connection in ready:
        data = read_until(connection, b'"code":"engine_core_lost"')
        assert (b"Retry-After: 1" in data.title()) == (connection in whole)
        assert b"[DONE]" not in data
    assert [get(fresh, "/ready").status_code, other.aborts.empty()] == [200, True]
    assert [rank["rank"] for rank in fresh.launcher.wait_for("ready")["ranks"]] == [1]
    _tell(fresh, (2, "Restarting"), (1, "Serving"))
    successor = fresh.core(incarnation=2)
    ranks = fresh.launcher.wait_for("ready")["ranks"]
    assert [(rank["rank"], rank["incarnation"]) for rank in ranks] == [(0, 2), (1, 1)]
    _tell(fresh, (2, "Serving"), (1, "Serving"))
    assert post(fresh).status_code == 200
    assert successor.submits.qsize() == 1
    assert other.submits.qsize() == 2


def test_a_rank_that_leaves_gets_nothing_new_and_has_drained_when_its_last_answer_has_ended(fresh: ApiServer) -> None:
    leaving, other = fresh.core(), fresh.core(rank=1)
    fresh.launcher.wait_for("ready")
    leaving.behaviour = other.behaviour = says_and_goes_on("be")
    _tell(fresh, (1, "Serving"), (1, "Serving"))
    streams = [fresh.raw(request_bytes({**ASK, "stream": True})) for _ in range(2)]
    for stream in streams:
        read_until(stream, b'"text":"e"')
    _tell(fresh, (1, "Draining"), (1, "Serving"))
    other.behaviour = says(ANSWER)
    assert [post(fresh).status_code for _ in range(3)] == [200, 200, 200]
    assert (leaving.submits.qsize(), other.submits.qsize()) == (1, 4)
    assert fresh.launcher.messages.empty()
    submit = leaving.submits.get()
    leaving.send(encode(Outputs((RequestOutput(submit.request_id, (ord("!"),), "length"),))))
    assert fresh.launcher.wait_for("rankDrained") == {"type": "rankDrained", "rank": 0, "incarnation": 1}
    # The client may get its last bytes after the launcher was told.
    whole, _, _ = select.select(streams, [], [], DEADLINE_SECONDS)
    assert len(whole) == 1
    read_until(whole[0], b"[DONE]")
    fresh.launcher.send(type="ranks", ranks=[{"rank": 1, "incarnation": 1, "state": "Serving"}])
    assert [rank["rank"] for rank in fresh.launcher.wait_for("ready")["ranks"]] == [1]
    assert get(fresh, "/ready").status_code == 200


def _one_stream_at_a_rank_that_leaves(server: ApiServer) -> tuple[socket.socket, int]:
    """Begun, and the rank that it is at."""
    cores = server.core(), server.core(rank=1)
    server.launcher.wait_for("ready")
    for core in cores:
        core.behaviour = says_and_goes_on("be")
    stream = server.raw(request_bytes({**ASK, "stream": True}))
    read_until(stream, b'"text":"e"')
    leaving = 0 if cores[0].submits.qsize() else 1
    _tell(server, *((1, "Draining" if rank == leaving else "Serving") for rank in (0, 1)))
    return stream, leaving


def test_a_client_that_goes_away_lets_its_rank_leave(fresh: ApiServer) -> None:
    stream, leaving = _one_stream_at_a_rank_that_leaves(fresh)
    stream.close()
    assert fresh.launcher.wait_for("rankDrained")["rank"] == leaving


def test_requests_of_a_rank_that_is_gone_from_the_list_fail_with_an_error_that_clients_may_retry(fresh: ApiServer) -> None:
    stream, leaving = _one_stream_at_a_rank_that_leaves(fresh)
    fresh.launcher.send(type="ranks", ranks=[{"rank": 1 - leaving, "incarnation": 1, "state": "Serving"}])
    read_until(stream, b'"code":"engine_core_lost"')


def test_ready_says_which_rank_is_what_when_nobody_serves(fresh: ApiServer) -> None:
    fresh.core(), fresh.core(rank=1)
    fresh.launcher.wait_for("ready")
    _tell(fresh, (1, "Dead"), (2, "Restarting"))
    eventually(lambda: get(fresh, "/ready").status_code == 503, "ready says no")
    assert get(fresh, "/ready").json()["error"]["message"] == "no engine core serves: rank 0 is Dead, rank 1 is Restarting"
    refused = post(fresh)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_a_server_that_comes_late_waits_for_the_ranks_that_serve_and_no_others(fresh: ApiServer) -> None:
    fresh.core(rank=1)
    eventually(lambda: "ranks 0" in get(fresh, "/ready").json()["error"]["message"], "rank 1")
    _tell(fresh, (1, "Dead"), (1, "Serving"))
    assert [rank["rank"] for rank in fresh.launcher.wait_for("ready")["ranks"]] == [1]
    assert post(fresh).status_code == 200


def test_a_server_that_comes_late_accepts_no_more_than_the_others(fresh: ApiServer) -> None:
    fresh.core(), fresh.core(rank=1)
    assert fresh.launcher.wait_for("ready")["maxContextLength"] == LIMIT
    fresh.launcher.send(type="ranks", ranks=[], maxContextLength=LIMIT - 1)
    assert fresh.launcher.wait_for("ready")["maxContextLength"] == LIMIT - 1
    assert post(fresh, {**ASK, "max_tokens": LIMIT - 1}).status_code == 400
    assert post(fresh, {**ASK, "max_tokens": LIMIT - 2}).status_code == 200


def test_a_word_that_is_none_changes_nothing(fresh: ApiServer) -> None:
    fresh.core(), fresh.core(rank=1)
    fresh.launcher.wait_for("ready")
    fresh.launcher.send(type="ranks", ranks=[{"rank": "x"}])
    eventually(lambda: "ranks are [{rank, incarnation, state}]" in fresh.log_text(), "its refusal")
    assert post(fresh).status_code == 200


def test_who_would_wait_for_too_long_is_told_to_come_again(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        core = server.core(max_batch=1)
        server.launcher.wait_for("ready")
        core.behaviour = says_nothing
        waiting = [server.raw(request_bytes(ASK)) for _ in range(5)]
        eventually(lambda: core.submits.qsize() == 5, "one that runs and four that wait")
        refused = post(server)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert get(server, "/ready").status_code == 200
        waiting.pop().close()
        eventually(lambda: core.aborts.qsize() == 1, "the abort of one")
        core.behaviour = says(ANSWER)
        assert post(server).status_code == 200
        core.send(encode(Outputs((), StepStats(running=1, waiting=4))))
        eventually(lambda: post(server).status_code == 429, "the work of other servers counts too")
