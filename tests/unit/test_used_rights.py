"""The comparison of rights with the audit log, by hand-written lines of one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from used_rights import Request, Right, not_granted, requests, unused

POD = Right("", "pods", "get")
STATUS = Right("enginehouse.dev", "enginereplicas/status", "patch")
RULES = [
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
    {"apiGroups": ["enginehouse.dev"], "resources": ["enginereplicas/status"], "resourceNames": ["mine"], "verbs": ["patch"]},
]


def request(right: Right, name: str = "mine", code: int = 200) -> Request:
    return Request("user", right, "n", name, code)


def test_lines_of_the_log_are_requests_for_objects() -> None:
    asked = {"resource": "enginereplicas", "subresource": "status", "apiGroup": "enginehouse.dev", "namespace": "n", "name": "mine"}
    line: dict[str, Any] = {"user": {"username": "user"}, "verb": "patch", "responseStatus": {"code": 200}}
    lines = [json.dumps({**line, "objectRef": asked}), json.dumps({**line, "requestURI": "/apis"})]
    assert list(requests(lines)) == [request(STATUS)]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (request(POD), []),
        (request(STATUS), []),
        (request(STATUS, name="another", code=403), ["patch enginereplicas/status.enginehouse.dev of another (403)"]),
        (request(Right("", "pods", "list"), name="", code=403), ["list pods of any name (403)"]),
        (request(Right("apps", "pods", "get")), ["get pods.apps of mine (200)"]),
    ],
)
def test_what_is_asked_for_without_a_right_is_named(asked: Request, found: list[str]) -> None:
    assert not_granted([asked], RULES) == found


def test_a_right_that_nobody_used_is_named_and_so_is_an_exception_that_is_none() -> None:
    assert unused([request(POD), request(STATUS)], RULES, exceptions={}) == []
    assert unused([request(POD)], RULES, exceptions={}) == [
        "patch enginereplicas/status.enginehouse.dev is granted and was never used"
    ]
    assert unused([request(POD)], RULES, exceptions={STATUS: "why"}) == []
    assert unused([request(POD), request(STATUS)], RULES, exceptions={POD: "why"}) == ["get pods is listed as unused, and was used"]
    gone = Right("", "secrets", "get")
    assert unused([request(POD), request(STATUS)], RULES, exceptions={gone: "why"}) == [
        "get secrets is listed as unused, and is not granted"
    ]


def test_an_apply_that_made_its_object_has_used_two_rights() -> None:
    rules = [{"apiGroups": [""], "resources": ["services"], "verbs": ["create", "patch"]}]
    apply = Right("", "services", "patch")
    assert unused([request(apply, code=200)], rules, exceptions={}) == ["create services is granted and was never used"]
    assert unused([request(apply, code=201)], rules, exceptions={}) == []
