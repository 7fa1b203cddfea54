"""Whatever is sent, the answer is the API's: OpenAI's error shape, the right status, never an internal error."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import ApiServer, Core, read_until, says

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "sim", "messages": MESSAGES}
TEXT: dict[str, Any] = {"model": "sim", "prompt": "x"}


def _error(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("POST", "/v1/completions/", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
    ],
)
def test_unknown_paths_and_methods(http: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert _error(response)["code"] == code
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "body", "param", "words"),
    [
        ("completions", {"prompt": "x"}, "model", "missing required field `model`"),
        ("completions", {**TEXT, "temprature": 1}, "temprature", "unknown field `temprature`"),
        ("completions", {**TEXT, "max_tokens": "5"}, "max_tokens", "Expected `int | null`, got `str`"),
        ("completions", {**TEXT, "max_tokens": -1}, "max_tokens", ">= 0"),
        ("completions", {**TEXT, "max_tokens": 0}, "max_tokens", "or 0 with 'echo': true"),
        ("completions", {**TEXT, "prompt_logprobs": 1}, "prompt_logprobs", "unknown field `prompt_logprobs`"),
        ("completions", {**TEXT, "temperature": 2.1}, "temperature", "<= 2.0"),
        ("completions", {**TEXT, "top_p": 0}, "top_p", "> 0.0"),
        ("completions", {**TEXT, "n": 129}, "n", "<= 128"),
        ("completions", {**TEXT, "stop": [""]}, "stop[0]", ">= 1"),
        ("completions", {**TEXT, "stop": ["x" * 1025]}, "stop[0]", "<= 1024"),
        ("completions", {**TEXT, "stop": ["x"] * 17}, "stop", "<= 16"),
        ("chat/completions", {**CHAT, "stop": "x" * 1025}, "stop", "<= 1024"),
        ("completions", {**TEXT, "suffix": "y"}, "suffix", "'suffix' is not supported"),
        ("completions", {**TEXT, "best_of": 3}, "best_of", "can only equal 'n'"),
        ("completions", {**TEXT, "prompt": ""}, "prompt", "the prompt is empty"),
        ("completions", {**TEXT, "prompt": []}, "prompt", "and not empty"),
        ("completions", {**TEXT, "prompt": ["a", 1]}, "prompt", "a list of texts"),
        ("completions", {**TEXT, "prompt": [[]]}, "prompt", "the prompt is empty"),
        ("completions", {**TEXT, "prompt": [257]}, "prompt", "token id 257 is not in the model's vocabulary of 257"),
        ("completions", {**TEXT, "logit_bias": {"x": 1}}, "logit_bias", "are token ids"),
        ("completions", {**TEXT, "logit_bias": {"999": 1}}, "logit_bias", "token id 999"),
        ("completions", {**TEXT, "stop_token_ids": [400]}, "stop_token_ids", "token id 400"),
        ("completions", {**TEXT, "min_tokens": 17}, "min_tokens", "more than the 16 tokens"),
        ("completions", {**TEXT, "stream_options": {"include_usage": True}}, "stream_options", "'stream': true"),
        ("completions", {**TEXT, "prompt": ["x"] * 20, "n": 128}, "prompt", "at most 2048 answers"),
        ("chat/completions", {"model": "sim", "messages": []}, "messages", "length >= 1"),
        ("chat/completions", {**CHAT, "tools": [{"type": "function"}]}, "tools", "'tools' is not supported"),
        ("chat/completions", {**CHAT, "tool_choice": "required"}, "tool_choice", "is not supported"),
        ("chat/completions", {**CHAT, "response_format": {"type": "json_object"}}, "response_format", "is not supported"),
        ("chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs", "'logprobs': true"),
        ("chat/completions", {**CHAT, "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "old name"),
        ("chat/completions", {**CHAT, "messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "the role"),
        ("chat/completions", {**CHAT, "messages": [{"role": "user"}]}, "messages[0].content", "has no content"),
        (
            "chat/completions",
            {**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "a part of type 'image_url'; supported: text",
        ),
    ],
)
def test_a_request_that_cannot_be_obeyed_names_the_parameter(
    http: httpx.Client, core: Core, path: str, body: dict[str, Any], param: str, words: str
) -> None:
    response = http.post(f"/v1/{path}", json=body)
    error = _error(response)
    assert response.status_code == 400
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert words in error["message"]
    assert core.submits.empty()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "sim", "prompt": "\\ud800"}'])
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_what_is_no_request_is_refused(http: httpx.Client, path: str, body: bytes) -> None:
    response = http.post(f"/v1/{path}", content=body)
    assert response.status_code == 400
    assert _error(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize("head", [b"\0", b"GET http://x HTTP/1.1", b"GET /\xff HTTP/1.1"], ids=["no line", "no path", "no ASCII"])
def test_what_is_no_http_is_refused_in_a_word(server: ApiServer, head: bytes) -> None:
    with server.raw(head + b"\r\nHost: x\r\n\r\n") as connection:
        assert read_until(connection, b"Invalid HTTP request received.").startswith(b"HTTP/1.1 400 ")
        assert connection.recv(1) == b""
    assert "Traceback" not in server.log_text()


def test_a_body_that_is_too_large_is_not_read(http: httpx.Client, server: ApiServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{"
    with server.raw(head) as connection:
        data = connection.recv(65536)
        assert data.startswith(b"HTTP/1.1 413")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with server.raw(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n") as connection:
        try:
            for _ in range(400):
                connection.sendall(chunk)
        except (BrokenPipeError, ConnectionResetError):
            pass
        else:
            assert connection.recv(65536).startswith(b"HTTP/1.1 413")
    assert http.get("/health").status_code == 200


def test_a_text_that_cannot_fit_is_refused(http: httpx.Client, core: Core) -> None:
    text = "x" * 1_000_000
    for path, field in (("completions", {"prompt": text}), ("chat/completions", {"messages": [{"role": "user", "content": text}]})):
        response = http.post(f"/v1/{path}", json={"model": "sim", **field})
        assert (response.status_code, _error(response)["code"]) == (400, "context_length_exceeded")
        assert "at least" in _error(response)["message"]
    assert core.submits.empty()


def test_a_head_without_end_is_not_collected(http: httpx.Client, server: ApiServer) -> None:
    with server.raw(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Endless: ") as connection, pytest.raises(ConnectionError):
        connection.sendall(b"a" * (400 * 0x10000))
    assert http.get("/health", headers={"X-Long": "a" * 30_000}).status_code == 200


@pytest.mark.parametrize("line", [b"X-Endless: ", b""], ids=["one", "many"])
def test_trailers_without_end_are_not_collected(http: httpx.Client, server: ApiServer, line: bytes) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    piece = b"a" * 0x10000 if line else (b"X-Short: " + b"a" * 0x4000 + b"\r\n") * 4
    with server.raw(head + line) as connection, pytest.raises(ConnectionError):
        connection.sendall(piece * 400)
    with server.raw(head + b"X-Short: a\r\n\r\n") as connection:
        assert read_until(connection, b"}").startswith(b"HTTP/1.1 400 "), "as a body that is empty"


def test_ignored_and_harmless_parameters_change_nothing(http: httpx.Client) -> None:
    ignored = {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "safety_identifier": "s"}
    harmless = {"tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "n": None, "stop": None, "seed": None}
    assert http.post("/v1/chat/completions", json={**CHAT, **ignored, **harmless}).status_code == 200
    assert http.post("/v1/completions", json={**TEXT, **ignored, "suffix": "", "best_of": 1}).status_code == 200


def test_text_parts_and_developer_messages_are_understood(http: httpx.Client, core: Core) -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "n"},
        {"role": "assistant", "content": "c", "refusal": None},
    ]
    assert http.post("/v1/chat/completions", json={**CHAT, "messages": messages}).status_code == 200
    assert bytes(core.submits.get_nowait().prompt[::4]) == b"system: be kind\nuser: ab\nassistant: c\nassistant:"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_FIELDS = {
    "prompt": st.just("x") | st.lists(st.integers(0, 300), max_size=4) | _JSON,
    "messages": st.just(MESSAGES)
    | st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": st.text(max_size=9) | _JSON}
        ),
        max_size=3,
    )
    | _JSON,
    "stream": st.booleans() | _JSON,
    "stream_options": st.fixed_dictionaries({"include_usage": st.booleans()}) | _JSON,
    "max_tokens": st.integers(-1, 70) | _JSON,
    "max_completion_tokens": st.integers(-1, 70) | _JSON,
    "n": st.integers(0, 3) | _JSON,
    "temperature": st.floats(-1, 3) | _JSON,
    "top_p": st.floats(-1, 2) | _JSON,
    "logit_bias": st.dictionaries(st.integers(-1, 300).map(str) | st.text(max_size=3), st.floats(-110, 110), max_size=3) | _JSON,
    "seed": st.integers(-(2**65), 2**65) | _JSON,
    "stop": st.text(max_size=4) | st.lists(st.text(max_size=4), max_size=3) | _JSON,
    "echo": st.booleans(),
    "logprobs": st.integers(-1, 25) | st.booleans() | _JSON,
    "top_logprobs": st.integers(-1, 25) | _JSON,
    "min_tokens": st.integers(-1, 70),
    "top_k": _JSON,
    "tools": _JSON,
    "response_format": _JSON,
}
_BODIES = st.fixed_dictionaries({"model": st.just("sim")}, optional=_FIELDS) | st.dictionaries(
    st.text(max_size=6), _JSON, max_size=4
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["completions", "chat/completions"]), needed=st.booleans(), body=_BODIES)
def test_no_body_makes_it_stumble(http: httpx.Client, core: Core, path: str, needed: bool, body: dict[str, Any]) -> None:
    core.behaviour = says("fuzz é")
    if needed:
        body = {**(TEXT if path == "completions" else CHAT), **body}
    response = http.post(f"/v1/{path}", content=json.dumps(body))
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        _error(response)
    elif body.get("stream"):
        assert response.text.endswith("data: [DONE]\n\n")
    else:
        assert response.json()["choices"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=60), path=st.sampled_from(["completions", "chat/completions"]))
def test_no_bytes_make_it_stumble(http: httpx.Client, body: bytes, path: str) -> None:
    assert http.post(f"/v1/{path}", content=body).status_code == 400
