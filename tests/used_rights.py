"""Rights that were granted beside rights that were used, as the API server's audit log tells. Pure.

A right is a verb on a resource; a rule may keep it to objects of a name. Invariants: what was refused for want of a right counts as
used, so that it is never overlooked; an apply (PATCH) that made its object has used `create` as well. Knows no cluster.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Rules = Iterable[Mapping[str, Any]]
"""As in a Role."""


@dataclass(frozen=True, order=True)
class Right:
    group: str
    resource: str
    """With its subresource: `pods`, `enginereplicas/status`."""
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


@dataclass(frozen=True)
class Request:
    """One line of the audit log, of what has an object."""

    user: str
    right: Right
    namespace: str
    name: str
    """Empty where it was asked for all, or before the object had one."""
    code: int


def requests(lines: Iterable[str | bytes]) -> Iterator[Request]:
    """Those for resources: anybody may ask what there is (discovery)."""
    for line in lines:
        event = json.loads(line)
        if (asked := event.get("objectRef")) is None or "resource" not in asked:
            continue
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource", ""))))
        yield Request(
            user=event["user"]["username"],
            right=Right(asked.get("apiGroup", ""), resource, event["verb"]),
            namespace=asked.get("namespace", ""),
            name=asked.get("name", ""),
            code=event.get("responseStatus", {}).get("code", 0),
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


def unused(asked: Iterable[Request], rules: Rules, *, exceptions: Mapping[Right, str]) -> list[str]:
    """Rights that nobody needed, and exceptions from that which are none (any more)."""
    used = {right for request in asked for right in _used(request)}
    rights = set(granted(rules))
    return sorted(
        [f"{right} is granted and was never used" for right in rights - used - exceptions.keys()]
        + [f"{right} is listed as unused, and was used" for right in exceptions.keys() & used]
        + [f"{right} is listed as unused, and is not granted" for right in exceptions.keys() - rights]
    )


def _covers(names: frozenset[str] | None, request: Request) -> bool:
    return names is None or request.name in names


def _used(request: Request) -> Iterator[Right]:
    yield request.right
    if (request.right.verb, request.code) == ("patch", 201):
        yield Right(request.right.group, request.right.resource, "create")
