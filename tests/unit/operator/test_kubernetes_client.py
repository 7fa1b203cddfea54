"""What the API server's answers mean to the operator."""

from __future__ import annotations

import json

import pytest

from enginehouse_operator import kubernetes_client as client

WEBHOOK = 'Internal error occurred: failed calling webhook "pods.policy.example": connection refused'


@pytest.mark.parametrize(
    ("status", "message", "error"),
    [
        (403, "no", client.Forbidden),
        (422, "no", client.Invalid),
        (409, "no", client.Conflict),
        (404, "no", client.NotFound),
        (410, "the continue token has expired", client.Unavailable),
        (500, "etcdserver: request timed out", client.Unavailable),
        # Said once more in an hour it is still there: a person has to see it in a condition.
        (500, WEBHOOK, client.Forbidden),
    ],
)
def test_an_answer_that_is_no_success_becomes_an_error_of_its_class(
    status: int, message: str, error: type[client.ApiError]
) -> None:
    body = json.dumps({"kind": "Status", "reason": "R", "message": message}).encode()
    with pytest.raises(error) as raised:
        client._result("POST /pods", status, body)
    assert type(raised.value) is error
    assert raised.value.message == message


@pytest.mark.parametrize("content", [b"<html>", b"[]", b"\xff"])
def test_an_answer_that_is_no_object_is_an_error_in_words(content: bytes) -> None:
    with pytest.raises(client.Unavailable):
        client._result("GET /pods", 502, content)
