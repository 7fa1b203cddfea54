"""The comparison of rights with the audit log, by hand-written lines of one."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from used_rights import Request, Right, not_granted, refused, requests, unused

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
    line: dict[str, Any] = {"user": {"username": "user"}, "verb": "patch", "responseStatus": {"code": 422, "message": "no"}}
    line |= {"requestReceivedTimestamp": "1", "stageTimestamp": "2"}
    lines = [json.dumps({**line, "objectRef": asked}), json.dumps({**line, "requestURI": "/apis"})]
    assert list(requests(lines)) == [Request("user", STATUS, "n", "mine", 422, why="no", asked_at="1", answered_at="2")]
    nobody = json.dumps({**line, "objectRef": asked, "user": {}})
    assert [found.user for found in requests([nobody])] == [""], "whose token was no good"


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


MONITOR = "system:serviceaccount:n:mine"


def at(
    time: int, *, right: Right = STATUS, name: str = "mine", code: int = 403, user: str = MONITOR, namespace: str = "n"
) -> Request:
    return Request(user, right, namespace, name, code, why="no", asked_at=str(time), answered_at=str(time))


@pytest.mark.parametrize("code", [401, 403, 422])
def test_what_was_refused_is_named_also_where_it_was_granted(code: int) -> None:
    log = [at(1, code=200), at(2, code=code), at(3, code=code, user="somebody"), at(4, code=409)]
    assert refused(log, of={MONITOR}) == [f"patch enginereplicas/status.enginehouse.dev of n/mine ({code}): no"]


@pytest.mark.parametrize(
    "lost",
    [
        at(2, right=Right("", "namespaces", "delete"), namespace="n", name="n", code=200, user="admin"),
        at(2, right=Right("rbac.authorization.k8s.io", "roles", "delete"), code=200, user="admin"),
        at(2, right=Right("rbac.authorization.k8s.io", "clusterrolebindings", "delete"), name="n-mine", namespace="", code=200),
    ],
)
def test_a_refusal_is_excused_after_the_namespace_or_a_grant_went(lost: Request) -> None:
    log = [lost, at(3)]
    assert refused(log, of={MONITOR}) == []
    assert len(refused([at(1), *log], of={MONITOR})) == 1, "before"
    assert len(refused([lost, at(3, code=422)], of={MONITOR})) == 1, "an admission policy refuses as ever"
    elsewhere = replace(lost, namespace=lost.namespace and "o", name="other" if lost.namespace == "" else "mine")
    assert len(refused([elsewhere, at(3)], of={MONITOR})) == 1


def test_a_definition_that_admission_has_not_read_yet_excuses_a_refusal() -> None:
    young = replace(at(1), why="forbidden: cannot set blockOwnerDeletion in this case because cannot find RESTMapping for ...")
    assert refused([young], of={MONITOR}) == []


def test_a_grant_that_came_back_excuses_nothing_more() -> None:
    roles = "rbac.authorization.k8s.io", "roles"
    log = [at(2, right=Right(*roles, "delete"), code=200), at(4, right=Right(*roles, "create"), code=201), at(5)]
    assert len(refused(log, of={MONITOR})) == 1
    again = at(6, right=Right(*roles, "delete"), code=200)
    assert len(refused([*log, again, at(7)], of={MONITOR})) == 1
