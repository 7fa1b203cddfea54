"""An API server in memory, as far as one pass needs it: UIDs, versions, refusals, and a log of the requests that write.

A write that changes nothing leaves the version as it is, as on the real one. Not done here: schemas, admission, rights, watches and
garbage collection (tests/api has the real thing).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from enginehouse_operator.kubernetes_client import BY_KIND, ApiError, Conflict, Kind, NotFound

Raw = dict[str, Any]


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396; lists of a server-side apply are replaced too, which is near enough here."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    found = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), value)
    return found


class MemoryApi:
    """Stands in for KubernetesClient. ``refuse`` is asked before each write with (verb, kind, name) and may raise."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Raw] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.refuse: Callable[[str, str, str], ApiError | None] = lambda *_: None
        self.before_write: Callable[[str, str, str], None] = lambda *_: None
        self._numbers = 0

    def put(self, plural: str, manifest: Raw) -> Raw:
        """As somebody else would create it."""
        stored = copy.deepcopy(manifest)
        metadata = stored["metadata"]
        metadata |= {"namespace": "n", "uid": f"uid-{self._number()}", "generation": 1, "resourceVersion": str(self._number())}
        metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
        self.objects[plural, metadata["name"]] = stored
        return stored

    def of(self, plural: str) -> list[Raw]:
        return [raw for (kind, _), raw in self.objects.items() if kind == plural]

    def written(self) -> list[tuple[str, str, str]]:
        """The requests since the last call."""
        taken, self.requests = self.requests, []
        return taken

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        return copy.deepcopy(self.objects.get((kind.plural, name)))

    async def list(self, kind: Kind, namespace: str, *, selector: str = "", limit: int | None = None) -> list[Raw]:
        wanted = dict(part.split("=") for part in selector.split(",") if part)
        return [
            copy.deepcopy(raw)
            for raw in self.of(kind.plural)
            if all((raw["metadata"].get("labels") or {}).get(key) == value for key, value in wanted.items())
        ]

    async def create(self, manifest: Raw, *, dry_run: bool = False) -> Raw:
        plural, name = BY_KIND[manifest["kind"]].plural, manifest["metadata"]["name"]
        self._ask("dry-run" if dry_run else "create", plural, name)
        if (plural, name) in self.objects:
            raise Conflict(f"create {plural} {name}", status=409, reason="AlreadyExists")
        return manifest if dry_run else self.put(plural, manifest)

    async def apply(self, manifest: Raw) -> Raw:
        plural, name = BY_KIND[manifest["kind"]].plural, manifest["metadata"]["name"]
        self._ask("apply", plural, name)
        if (plural, name) not in self.objects:
            return self.put(plural, manifest)
        return self.change(plural, name, manifest)

    async def apply_status(self, kind: Kind, seen: Raw, status: Raw, *, version: str | None = None) -> Raw:
        name = seen["metadata"]["name"]
        self._ask("status", kind.plural, name)
        found = self.objects.get((kind.plural, name))
        if found is None:
            raise NotFound(f"{kind.plural} {name}", status=404)
        if version not in (None, found["metadata"]["resourceVersion"]):
            raise Conflict(f"{kind.plural} {name}", status=409)
        return self.change(kind.plural, name, {"status": status})

    async def merge(self, kind: Kind, namespace: str, name: str, *, uid: str, patch: Raw) -> Raw:
        self._ask("merge", kind.plural, name)
        found = self._found(kind.plural, name, uid)
        if patch.get("metadata", {}).get("resourceVersion", now := found["metadata"]["resourceVersion"]) != now:
            raise Conflict(f"{kind.plural} {name}", status=409)
        return self.change(kind.plural, name, patch)

    async def remove_from_status(self, kind: Kind, namespace: str, name: str, *, uid: str, path: str, known: dict[str, str]) -> Raw:
        self._ask("remove", kind.plural, name)
        found = self._found(kind.plural, name, uid)
        *_, where, place = path.split("/")
        kept = list(found["status"][where])
        if any(kept[int(place)].get(key) != value for key, value in known.items()):
            raise Conflict(f"{kind.plural} {name}", status=422)
        del kept[int(place)]
        return self.change(kind.plural, name, {"status": {where: kept}})

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        self._ask("delete", kind.plural, name)
        if self.objects.get((kind.plural, name), {}).get("metadata", {}).get("uid") == uid:  # else it is gone already
            del self.objects[kind.plural, name]

    def _ask(self, verb: str, plural: str, name: str) -> None:
        if plural != "events":
            self.requests.append((verb, plural, name))
        self.before_write(verb, plural, name)
        refused = self.refuse(verb, plural, name)
        if refused is not None:
            raise refused

    def _found(self, plural: str, name: str, uid: str) -> Raw:
        found = self.objects.get((plural, name))
        if found is None:
            raise NotFound(f"{plural} {name}", status=404)
        if found["metadata"]["uid"] != uid:
            raise Conflict(f"{plural} {name}", status=409)
        return found

    def change(self, plural: str, name: str, patch: Raw) -> Raw:
        """A merge; as it is then."""
        before = self.objects[plural, name]
        after = merged(before, patch)
        if after != before:
            after["metadata"]["resourceVersion"] = str(self._number())
            self.objects[plural, name] = after
        return after

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers
