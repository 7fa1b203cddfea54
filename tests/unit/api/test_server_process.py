"""The life of the server process: start, handshake, clients and cores that go away, drain, stop."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from enginehouse_engine.config import ParallelConfig
from enginehouse_engine.protocol import Outputs, Refused, RequestOutput, Submit, Welcome, encode

from .conftest import (
    ANSWER,
    ASK,
    DEADLINE_SECONDS,
    LIMIT,
    ApiServer,
    Core,
    engine_config,
    eventually,
    get,
    hello,
    post,
    read_until,
    request_bytes,
    says,
    says_and_goes_on,
    says_nothing,
)


@pytest.fixture(scope="module")
def choosy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server of two ranks that serves with incarnation 3 of rank 0; whoever else comes is refused and changes nothing."""
    with ApiServer(tmp_path_factory.mktemp("choosy"), engine_config(parallel=ParallelConfig(data=2))) as server:
        core = server.core(incarnation=3)
        assert isinstance(core.others.get(timeout=DEADLINE_SECONDS), Welcome)
        yield server


def test_it_registers_before_it_imports_and_serves_when_all_ranks_said_hello(fresh: ApiServer) -> None:
    register = fresh.launcher.messages.get(timeout=DEADLINE_SECONDS)
    assert (register["type"], register["role"], register["rank"], register["index"]) == ("register", "api-server", None, 0)
    assert fresh.launcher.messages.get(timeout=DEADLINE_SECONDS) == {"type": "stage", "stage": "import"}
    first = fresh.core()
    assert get(fresh, "/health").status_code == 200
    eventually(lambda: get(fresh, "/ready").json()["error"]["message"] == "waiting for engine cores of ranks 1", "rank 0")
    refused = post(fresh)
    assert (refused.status_code, refused.headers["retry-after"], refused.json()["error"]["type"]) == (503, "1", "server_error")
    assert first.submits.empty()
    fresh.core(rank=1, max_context_length=40, kv_blocks=9)
    ready = fresh.launcher.wait_for("ready")
    assert ready["maxContextLength"] == 40
    assert ready["ranks"] == [
        {"rank": 0, "incarnation": 1, "maxContextLength": LIMIT, "kvBlocks": 32, "blockSize": 16},
        {"rank": 1, "incarnation": 1, "maxContextLength": 40, "kvBlocks": 9, "blockSize": 16},
    ]
    assert get(fresh, "/ready").json() == {"status": "ready", "max_model_len": 40}
    assert first.others.get(timeout=DEADLINE_SECONDS) == Welcome(version=1, front_end=0)
    assert post(fresh, {**ASK, "max_tokens": 40}).json()["error"]["code"] == "context_length_exceeded"


def test_a_rank_that_comes_late_lowers_the_limit(fresh: ApiServer) -> None:
    cores = [fresh.core(), fresh.core(rank=1)]
    fresh.launcher.wait_for("ready")
    assert get(fresh, "/v1/models").json()["data"][0]["max_model_len"] == LIMIT
    fresh.core(rank=1, incarnation=2, max_context_length=20)
    eventually(lambda: get(fresh, "/v1/models").json()["data"][0]["max_model_len"] == 20, "the new limit")
    assert post(fresh, {**ASK, "max_tokens": 20}).status_code == 400
    assert post(fresh, {**ASK, "max_tokens": 19}).status_code == 200
    assert all(core.others.get(timeout=DEADLINE_SECONDS) for core in cores)


def test_requests_go_to_the_rank_with_the_least_to_do(fresh: ApiServer) -> None:
    cores = [fresh.core(), fresh.core(rank=1)]
    fresh.launcher.wait_for("ready")
    for core in cores:
        core.behaviour = says_nothing
    connections = [fresh.raw(request_bytes(ASK)) for _ in range(6)]
    eventually(lambda: [core.submits.qsize() for core in cores] == [3, 3], "three requests for each rank")
    for connection in connections:
        connection.close()
    eventually(lambda: [core.aborts.qsize() for core in cores] == [3, 3], "their aborts")


@pytest.mark.parametrize(
    ("changes", "identity", "words"),
    [
        ({"version": 2}, None, "speaks protocol version 1, the core 2"),
        ({"replica_uid": "uid-0"}, None, "belongs to replica uid-1, the core to uid-0"),
        ({"config_hash": "0"}, None, "the core's configuration 0 is not this API server's"),
        ({"rank": -1}, None, "ranks are numbered from 0, found -1"),
        ({"rank": 1}, "1-7", "does not say rank 1, incarnation 1"),
        ({"max_context_length": 0}, None, "must be at least 1"),
        ({"incarnation": 2}, None, "incarnation 2 of rank 0 is over: incarnation 3 has taken its place"),
        ({"incarnation": 3}, "0-3 ", "the socket's identity"),
    ],
)
def test_a_core_that_does_not_belong_here_is_told_why(
    choosy: ApiServer, changes: dict[str, Any], identity: str | None, words: str
) -> None:
    with Core(choosy._endpoint, hello(choosy.config, **changes), identity=identity) as stranger:
        refused = stranger.others.get(timeout=DEADLINE_SECONDS)
    assert isinstance(refused, Refused)
    assert words in refused.reason


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([b"", b"x"], "a message is exactly one frame, found 2"),
        ([b"\xc1"], "undecodable message of 1 bytes"),
        ([encode(Welcome(1, 0))], "undecodable message"),
    ],
)
def test_a_core_that_breaks_the_protocol_is_told_why_and_serves_no_more(fresh: ApiServer, frames: list[bytes], words: str) -> None:
    core, other = fresh.core(), fresh.core(rank=1)
    fresh.launcher.wait_for("ready")
    for each in (core, other):
        assert isinstance(each.others.get(timeout=DEADLINE_SECONDS), Welcome)
    core.send(*frames)
    refused = core.others.get(timeout=DEADLINE_SECONDS)
    assert isinstance(refused, Refused)
    assert words in refused.reason
    assert [post(fresh).status_code for _ in range(4)] == [200] * 4
    assert (core.submits.qsize(), other.submits.qsize()) == (0, 4)
    assert get(fresh, "/ready").status_code == 200


def test_a_second_hello_and_outputs_before_one_are_refused(fresh: ApiServer) -> None:
    core = fresh.core()
    assert isinstance(core.others.get(timeout=DEADLINE_SECONDS), Welcome)
    core.send(encode(hello(fresh.config)))
    refused = core.others.get(timeout=DEADLINE_SECONDS)
    assert isinstance(refused, Refused)
    assert refused.reason == "incarnation 1 of rank 0 has said hello before"
    with Core(fresh._endpoint, hello(fresh.config, version=9, rank=1)) as stranger:
        stranger.others.get(timeout=DEADLINE_SECONDS)
        stranger.send(encode(Outputs()))
        refused = stranger.others.get(timeout=DEADLINE_SECONDS)
    assert isinstance(refused, Refused)
    assert "the first message of a core is its hello" in refused.reason


def test_the_requests_of_a_lost_rank_fail_and_may_be_sent_again(fresh: ApiServer) -> None:
    cores = [fresh.core(), fresh.core(rank=1)]
    fresh.launcher.wait_for("ready")
    for core in cores:
        core.behaviour = says_nothing
    connections = [fresh.raw(request_bytes(ASK)) for _ in range(2)]
    eventually(lambda: [core.submits.qsize() for core in cores] == [1, 1], "a request for each rank")
    fresh.core(rank=1, incarnation=2)
    (failed,), _, _ = select.select(connections, [], [], DEADLINE_SECONDS)
    data = read_until(failed, b"}}")
    assert data.startswith(b"HTTP/1.1 503")
    assert b'"code":"engine_core_lost"' in data
    assert b"retry-after: 1" in data.lower()
    for connection in connections:
        connection.close()
    assert cores[0].aborts.get(timeout=DEADLINE_SECONDS) == cores[0].submits.get_nowait().request_id


def test_without_a_living_rank_requests_are_refused_and_ready_says_no(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        core = server.core()
        server.launcher.wait_for("ready")
        core.__exit__()

        # A socket that closed is known to be gone only after a moment.
        eventually(lambda: get(server, "/ready").status_code == 503 or _try(server) == 503, "the loss of the rank")
        assert get(server, "/ready").json()["error"]["message"] == "no engine core serves: rank 0 is gone"
        server.core(incarnation=2)
        eventually(lambda: get(server, "/ready").status_code == 200, "the successor")
        assert post(server).json()["choices"][0]["text"] == ANSWER[:10]


def _try(server: ApiServer) -> int:
    """Status of a request that waits at most a moment: a core that is not yet known to be gone never answers."""
    try:
        return httpx.post(server.url + "/v1/completions", json=ASK, timeout=0.2).status_code
    except httpx.ReadTimeout:
        return 0


def _aborted(server: ApiServer) -> float:
    """Answers whose client went away, so far."""
    text = get(server, "/metrics").text
    return float(text.partition('enginehouse_requests_total{api_server="0",finish_reason="abort"} ')[2].split()[0])


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_aborts_its_request(server: ApiServer, core: Core, stream: bool) -> None:
    core.behaviour = says_and_goes_on("begun")
    before = _aborted(server)
    connection = server.raw(request_bytes({**ASK, "stream": stream, "n": 2}))
    submits = [core.submits.get(timeout=DEADLINE_SECONDS) for _ in range(2)]
    if stream:
        read_until(connection, b'"text":"b"')
    assert core.aborts.empty()
    connection.close()
    aborted = {core.aborts.get(timeout=DEADLINE_SECONDS) for _ in range(2)}
    assert aborted == {submit.request_id for submit in submits}
    assert _aborted(server) == before + 2


def test_the_bytes_of_a_stream(server: ApiServer, core: Core) -> None:
    core.behaviour = says("Hé")
    response = httpx.post(server.url + "/v1/completions", json={**ASK, "stream": True}, timeout=DEADLINE_SECONDS)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert "content-length" not in response.headers
    text = response.text
    first = json.loads(text.partition("\n\n")[0].removeprefix("data: "))
    head = f'{{"id":"{first["id"]}","object":"text_completion","created":{first["created"]},"model":"sim","choices":[{{"index":0,'
    assert text == (
        f'data: {head}"text":"H","logprobs":null,"finish_reason":null}}]}}\n\n'
        f'data: {head}"text":"é","logprobs":null,"finish_reason":null}}]}}\n\n'
        f'data: {head}"text":"","logprobs":null,"finish_reason":"stop"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_an_error_after_the_first_byte_is_an_event_and_ends_the_stream(server: ApiServer, core: Core) -> None:
    def breaks(submit: Submit) -> Iterator[RequestOutput]:
        yield RequestOutput(submit.request_id, (72,))

    core.behaviour = breaks
    connection = server.raw(request_bytes({**ASK, "stream": True}))
    data = read_until(connection, b'"text":"H"')
    submit = core.submits.get(timeout=DEADLINE_SECONDS)
    core.send(encode(Outputs((RequestOutput(submit.request_id, finish_reason="error", error="the weights are gone"),))))
    data += read_until(connection, b"0\r\n\r\n")
    assert b'data: {"error":{"message":"the engine core could not go on with this request: the weights are gone"' in data
    assert b"[DONE]" not in data
    assert data.startswith(b"HTTP/1.1 200 OK")


def test_an_error_before_the_first_byte_is_an_http_error(server: ApiServer, core: Core) -> None:
    core.behaviour = lambda submit: [RequestOutput(submit.request_id, finish_reason="error", error="no")]
    for stream in (False, True):
        response = post(server, {**ASK, "stream": stream})
        assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")


def test_what_the_core_refuses_is_the_same_error_as_the_apis_own(server: ApiServer, core: Core) -> None:
    own = post(server, {**ASK, "max_tokens": LIMIT})
    core.behaviour = lambda submit: [RequestOutput(submit.request_id, (), "refused", error="too long", context_limit=LIMIT - 20)]
    late = post(server, {**ASK, "max_tokens": LIMIT - 1})
    assert own.status_code == late.status_code == 400
    own_error, late_error = own.json()["error"], late.json()["error"]
    assert (late_error["code"], late_error["param"], late_error["type"]) == (
        own_error["code"],
        own_error["param"],
        own_error["type"],
    )
    words = "maximum context length is 44 tokens. However, you requested 64 tokens (1 in the prompt, 63 in the completion)"
    assert words in late_error["message"]
    core.behaviour = lambda submit: [RequestOutput(submit.request_id, (), "refused", error="token id 9 is unknown")]
    assert (post(server).status_code, post(server).json()["error"]["message"]) == (400, "token id 9 is unknown")


def test_drain_finishes_what_is_under_way_and_refuses_what_is_new(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        core = server.core()
        server.launcher.wait_for("ready")
        core.behaviour = says_and_goes_on("be")
        connection = server.raw(request_bytes({**ASK, "stream": True}))
        read_until(connection, b'"text":"e"')
        submit = core.submits.get(timeout=DEADLINE_SECONDS)
        server.launcher.send(type="drain", timeoutSeconds=DEADLINE_SECONDS)
        eventually(lambda: post(server).status_code == 503, "new requests are refused")
        refused = post(server)
        assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
        assert refused.json()["error"]["code"] == "draining"
        assert get(server, "/ready").status_code == 503
        assert get(server, "/health").status_code == 200
        core.send(encode(Outputs((RequestOutput(submit.request_id, (33,), "length"),))))
        assert b"data: [DONE]" in read_until(connection, b"[DONE]\n\n")
        server.launcher.wait_for("drained")
        server.launcher.send(type="stop")
        assert server.process.wait(DEADLINE_SECONDS) == 0


def test_drain_goes_on_accepting_while_clients_learn_of_it(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        server.core()
        server.launcher.wait_for("ready")
        server.launcher.send(type="drain", timeoutSeconds=60, settleSeconds=60)
        eventually(lambda: get(server, "/ready").status_code == 503, "ready says no")
        accepted = post(server)
        assert (accepted.status_code, accepted.headers["connection"]) == (200, "close")


def test_what_is_not_finished_when_the_time_to_drain_is_over_ends_with_an_error(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        core = server.core()
        server.launcher.wait_for("ready")
        core.behaviour = says_nothing
        connection = server.raw(request_bytes(ASK))
        submit = core.submits.get(timeout=DEADLINE_SECONDS)
        server.launcher.send(type="drain", timeoutSeconds=0.05)
        assert b'"code":"draining"' in read_until(connection, b"}}")
        server.launcher.wait_for("drained")
        assert core.aborts.get(timeout=DEADLINE_SECONDS) == submit.request_id


def test_stop_ends_streams_with_an_error_and_the_process_with_bye(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        core = server.core()
        server.launcher.wait_for("ready")
        core.behaviour = says_and_goes_on("be")
        connection = server.raw(request_bytes({**ASK, "stream": True}))
        data = read_until(connection, b'"text":"e"')
        server.launcher.send(type="stop")
        data += read_until(connection, b'"code":"stopping"')
        assert b"[DONE]" not in data
        assert server.process.wait(DEADLINE_SECONDS) == 0
        assert os.read(server.launcher.descriptors[0], 100) == b"bye\n"
        assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith("api-")]


def test_without_its_launcher_it_exits_at_once(tmp_path: Path) -> None:
    with ApiServer(tmp_path, engine_config()) as server:
        server.core()
        server.launcher.wait_for("ready")
        assert server.launcher.connection is not None
        server.launcher.connection.shutdown(socket.SHUT_RDWR)
        assert server.process.wait(DEADLINE_SECONDS) == 1


def test_a_model_it_cannot_read_is_said_to_the_launcher(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with ApiServer(tmp_path, engine_config(model_path=str(tmp_path / "model"))) as server:
        failed = server.launcher.wait_for("failed")
        assert failed["class"] == "InvalidConfig"
        assert "has no tokenizer.json" in failed["message"]
        assert server.process.wait(DEADLINE_SECONDS) == 78


@pytest.mark.parametrize("secret", ["s3cret", "schlüsselà"])
def test_the_api_key_is_asked_for_where_it_matters(tmp_path: Path, secret: str) -> None:
    key = tmp_path / "key"
    key.write_text(f"{secret}\n")
    with ApiServer(tmp_path, engine_config(api_key_file=str(key))) as server:
        server.core()
        server.launcher.wait_for("ready")
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}, {"Authorization": "Bearer ü"}):
            headers = [(name, value.encode()) for name, value in given.items()]
            for path in ("/v1/models", "/v1/models/sim"):
                refused = httpx.get(server.url + path, headers=headers, timeout=DEADLINE_SECONDS)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
            assert httpx.post(server.url + "/v1/completions", json=ASK, headers=headers).status_code == 401
            assert httpx.post(server.url + "/v1/chat/completions", json=ASK, headers=headers).status_code == 401
        right = [("Authorization", f"Bearer {secret}".encode())]
        assert httpx.post(server.url + "/v1/completions", json=ASK, headers=right).status_code == 200
        assert httpx.get(server.url + "/v1/models", headers=right).status_code == 200
        assert [get(server, path).status_code for path in ("/health", "/ready", "/metrics")] == [200] * 3


def test_an_empty_key_file_is_refused_at_the_start(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("\n")
    with ApiServer(tmp_path, engine_config(api_key_file=str(key))) as server:
        assert "is empty" in server.launcher.wait_for("failed")["message"]
        assert server.process.wait(DEADLINE_SECONDS) == 78
