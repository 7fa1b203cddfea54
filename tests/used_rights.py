"""Rights that were granted, rights that were used, and what was refused all the same, as the API server's audit log tells. Pure.

A right is a verb on a resource; a rule may keep it to objects of a name. Invariants: what was refused for want of a right counts as
used, so that it is never overlooked; an apply (PATCH) that made its object has used `create` as well; a refusal is excused by what
the log itself tells and by nothing else. Knows no cluster.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Rules = Iterable[Mapping[str, Any]]
"""As in a Role."""
_GRANTS = frozenset({"roles", "rolebindings", "clusterroles", "clusterrolebindings"})
_REFUSED = frozenset({401, 403, 422})
"""By nobody known, by RBAC or admission, by validation or an admission policy."""
_NEVER = "9999"
"""Later than every time of a log, which compare as text."""


@dataclass(frozen=True, order=True)
class Right:
    group: str
    resource: str
    """With its subresource: `pods`, `enginereplicas/status`."""
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


ASKED_BY_ADMISSION = {
    Right("enginehouse.dev", f"{kind}/finalizers", "update"): "whoever owns what it makes has it; there is no request of its own"
    for kind in ("inferenceengines", "enginereplicas")
}
"""Rights that the log does not show in use."""


@dataclass(frozen=True)
class Request:
    """One line of the audit log, of what has an object."""

    user: str
    right: Right
    namespace: str
    name: str
    """Empty where it was asked for all, or before the object had one."""
    code: int
    why: str = ""
    """Of a refusal."""
    asked_at: str = ""
    answered_at: str = ""


def requests(lines: Iterable[str | bytes]) -> Iterator[Request]:
    """Those for resources: anybody may ask what there is (discovery)."""
    for line in lines:
        event = json.loads(line)
        if (asked := event.get("objectRef")) is None or "resource" not in asked:
            continue
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource", ""))))
        answer = event.get("responseStatus", {})
        yield Request(
            user=event["user"].get("username", ""),
            right=Right(asked.get("apiGroup", ""), resource, event["verb"]),
            namespace=asked.get("namespace", ""),
            name=asked.get("name", ""),
            code=answer.get("code", 0),
            why=answer.get("message", ""),
            asked_at=event["requestReceivedTimestamp"],
            answered_at=event["stageTimestamp"],
        )


def granted(rules: Rules) -> dict[Right, frozenset[str] | None]:
    """The names that each right is kept to; None = all."""
    found: dict[Right, frozenset[str] | None] = {}
    for rule in rules:
        names = frozenset(rule["resourceNames"]) if rule.get("resourceNames") else None
        for right in (Right(g, r, v) for g in rule["apiGroups"] for r in rule["resources"] for v in rule["verbs"]):
            before = found.get(right, frozenset())
            found[right] = None if names is None or before is None else before | names
    return found


def not_granted(asked: Iterable[Request], rules: Rules) -> list[str]:
    """What was asked for without a right to it."""
    rights = granted(rules)
    return sorted(
        {
            f"{request.right} of {request.name or 'any name'} ({request.code})"
            for request in asked
            if request.right not in rights or not _covers(rights[request.right], request)
        }
    )


def refused(log: Collection[Request], *, of: Collection[str]) -> list[str]:
    """What users were refused, for whatever reason, but for want of what was taken away: their namespace, or a grant."""
    gone = _gone(log)
    return sorted(
        f"{request.right} of {request.namespace}/{request.name} ({request.code}): {request.why}"
        for request in log
        if request.user in of and request.code in _REFUSED and not _excused(request, gone=gone)
    )


def unused(asked: Iterable[Request], rules: Rules, *, exceptions: Mapping[Right, str]) -> list[str]:
    """Rights that nobody needed, and exceptions from that which are none (any more)."""
    used = {right for request in asked for right in _used(request)}
    rights = set(granted(rules))
    return sorted(
        [f"{right} is granted and was never used" for right in rights - used - exceptions.keys()]
        + [f"{right} is listed as unused, and was used" for right in exceptions.keys() & used]
        + [f"{right} is listed as unused, and is not granted" for right in exceptions.keys() - rights]
    )


_Gone = dict[tuple[str, str, str], list[tuple[str, str]]]
"""By resource, namespace and name: from when until when."""


def _gone(log: Iterable[Request]) -> _Gone:
    """When namespaces and grants were away."""
    found: _Gone = {}
    for request in log:
        key = (request.right.resource, request.namespace, request.name)
        if request.right.resource not in {*_GRANTS, "namespaces"}:
            continue
        spans = found.setdefault(key, [])
        if request.right.verb == "delete" and request.code < 300 and (not spans or spans[-1][1] != _NEVER):
            spans.append((request.asked_at, _NEVER))
        if request.code == 201 and spans:
            spans[-1] = (spans[-1][0], min(spans[-1][1], request.answered_at))
    return found


def _excused(request: Request, *, gone: _Gone) -> bool:
    if request.code == 422:
        return "due to an error in our request" in request.why  # a JSON patch's test: what it was made for is not so any more
    if request.code != 403:
        return False
    if "cannot find RESTMapping" in request.why:
        return True  # admission looks every ten seconds which kinds there are; whoever asks earlier asks again
    *_, home, account = ("", "", *request.user.split(":"))
    where = (home, request.namespace, "")
    return any(
        since <= request.answered_at and request.asked_at <= until
        for (resource, namespace, name), spans in gone.items()
        if (name == request.namespace if resource == "namespaces" else account in name and namespace in where)
        for since, until in spans
    )


def _covers(names: frozenset[str] | None, request: Request) -> bool:
    return names is None or request.name in names


def _used(request: Request) -> Iterator[Right]:
    yield request.right
    if (request.right.verb, request.code) == ("patch", 201):
        yield Right(request.right.group, request.right.resource, "create")
