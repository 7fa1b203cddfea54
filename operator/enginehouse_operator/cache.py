"""What passes decide on: each engine's objects as the watches brought them and as our own writes left them.

Invariants: of two versions of an object the newer one is held, and what is gone does not come back, but a read outranks both; an
engine of which something may have been missed (a listing, a refusal, a changed spec, a pod that vanished, ten minutes) is not told
before it was read from the API server again.
Our own writes are held as soon as they are answered, so that no pass decides without them; those of others come with the watches.
Does not read (``read.py``), does not interpret: objects are plain dictionaries, less what nobody looks at.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from . import names
from .queue import Key

Raw = dict[str, Any]

TRUSTED: Final = timedelta(seconds=600)
"""A world is read again after so long: what no watch told is put right then."""
REMEMBERED: Final = 10_000
"""Deleted objects that are known to be gone, of all engines: a late answer about one must not bring it back."""

_CAUSES: Final = ("generation", "deletionTimestamp", "labels", "annotations")
"""Of an engine's metadata: what others change. Its status is the operator's own."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """Raw objects of one engine, each with its kind."""

    engine: Raw
    replicas: tuple[Raw, ...] = ()
    pods: tuple[Raw, ...] = ()
    """Without their specs."""
    others: tuple[Raw, ...] = ()
    """Services, disruption budget and rights: whatever has the names that they have, of any owner."""


class _Packed(msgspec.Struct, frozen=True):
    """An object as bytes, a tenth of the memory of its dictionaries. ``causes``: of an engine, what others change."""

    kind: str
    version: str
    is_leaving: bool
    causes: bytes
    content: bytes


class _Held:
    """One engine's objects by UID, and since when all of them are known."""

    def __init__(self) -> None:
        self.objects: dict[str, _Packed] = {}
        self.read_at: datetime | None = None
        self.heard: set[str] = set()
        """UIDs that were heard of since a read began."""
        self.is_doubted = False
        """Since a read began."""


class Cache:
    """Of one operator. Not safe for threads."""

    def __init__(self) -> None:
        self._held: dict[Key, _Held] = {}
        self._keys: dict[str, Key] = {}
        """Engine by UID of an object."""
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._listed: dict[str, set[str]] = {}
        """UIDs of the listing that a kind's last events came from."""

    def heard(self, event: str | None, raw: Raw) -> set[Key]:
        """An event of a watch (``None``: it was found by a listing); whose passes it wants, if it is news."""
        metadata, is_engine = raw["metadata"], raw["kind"] == names.ENGINE_KIND
        uid, key, was = metadata["uid"], _key(raw), self._keys.get(metadata["uid"])
        woken = self._doubted_by_listing(event, raw["kind"], uid)
        if was is not None and was != key:  # somebody has taken its label, or given it another
            self._drop(was, uid)
            self.doubt(was)
            woken.add(was)
        if key is None:
            return woken
        held = self._held.get(key)
        before = held.objects.get(uid) if held is not None else None
        if event == "DELETED":
            if before is not None and before.kind == "Pod" and not before.is_leaving:
                self.doubt(key)  # nobody announced it: its last row may have been written and not have come yet
            self.removed(key, uid)
            if is_engine:
                self._forget(key)
        elif held is not None and not _is_at_its_end(raw):
            if event is None or (is_engine and before is None):
                self.doubt(key)
            elif before is not None and before.version == metadata["resourceVersion"]:
                return woken  # an echo of our own write
            self._take(key, raw)
        return woken | {key}

    def wrote(self, key: Key, raw: Raw) -> None:
        """The answer to a write."""
        if key in self._held:
            self._take(key, raw)

    def removed(self, key: Key, uid: str) -> None:
        """It is gone for good, unless a later read finds it."""
        self._gone[uid] = None
        if len(self._gone) > REMEMBERED:
            self._gone.popitem(last=False)
        self._drop(key, uid)

    def doubt(self, key: Key) -> None:
        """Something may have been missed: the next pass reads."""
        held = self._held.get(key)
        if held is not None:
            held.read_at, held.is_doubted = None, True

    def world(self, key: Key, *, now: datetime) -> World | None:
        """None: it has to be read."""
        return _world(self._held[key]) if self.trusted_seconds(key, now=now) > 0.0 else None

    def trusted_seconds(self, key: Key, *, now: datetime) -> float:
        """For how long it need not be read again."""
        held = self._held.get(key)
        if held is None or held.read_at is None or held.read_at > now:  # or the clock was set back
            return 0.0
        return max(0.0, (TRUSTED - (now - held.read_at)).total_seconds())

    def knows(self, key: Key) -> bool:
        """Whether it was looked at before."""
        return key in self._held

    def begin_read(self, key: Key) -> None:
        """What is heard from now on is newer than what :meth:`hold` will be given, and what is doubted stays so."""
        held = self._held.setdefault(key, _Held())
        held.heard.clear()
        held.is_doubted = False

    def hold(self, key: Key, read: World | None, *, now: datetime) -> World | None:
        """What was read; the world as it is known then, None when there is no such engine."""
        held = self._held.get(key)
        if read is None or held is None:
            self._forget(key)
            return read
        all_read = (read.engine, *read.replicas, *read.pods, *read.others)
        found = {raw["metadata"]["uid"]: raw for raw in all_read if not _is_at_its_end(raw)}
        for uid in [uid for uid in held.objects if uid not in found and uid not in held.heard]:
            self._drop(key, uid)
        for uid, raw in found.items():
            if uid in held.heard:
                self._take(key, raw)
            else:  # nothing outranks a read but what came since it began
                self._gone.pop(uid, None)
                self._store(key, raw)
        held.heard.clear()
        held.read_at = None if held.is_doubted else now
        return _world(held)

    def _doubted_by_listing(self, event: str | None, kind: str, uid: str) -> set[Key]:
        """A listing names what there is. Whatever was held may have gone without a word, so all of it is read again."""
        listed = self._listed.setdefault(kind, set())
        if event is not None:
            listed.clear()
            return set()
        begins = not listed or uid in listed  # named again: another listing, without an event since the last one
        if begins:
            listed.clear()
        listed.add(uid)
        if not begins:
            return set()
        for key in self._held:
            self.doubt(key)
        return set(self._held)

    def _take(self, key: Key, raw: Raw) -> None:
        uid, held = raw["metadata"]["uid"], self._held[key]
        held.heard.add(uid)
        before = held.objects.get(uid)
        if uid not in self._gone and (before is None or _is_newer(raw, before.version)):
            if before is not None and before.causes != _causes(raw):
                self.doubt(key)  # somebody has changed the engine
            self._store(key, raw)

    def _store(self, key: Key, raw: Raw) -> None:
        uid = raw["metadata"]["uid"]
        self._held[key].objects[uid] = _packed(raw)
        self._keys[uid] = key

    def _drop(self, key: Key, uid: str) -> None:
        self._keys.pop(uid, None)
        held = self._held.get(key)
        if held is not None:
            held.objects.pop(uid, None)
            held.heard.add(uid)

    def _forget(self, key: Key) -> None:
        held = self._held.pop(key, None)
        for uid in held.objects if held is not None else ():
            self._keys.pop(uid, None)


def _key(raw: Raw) -> Key | None:
    """The engine that an object is about, by its name or label."""
    metadata = raw["metadata"]
    engine = metadata["name"] if raw["kind"] == names.ENGINE_KIND else (metadata.get("labels") or {}).get(names.LABEL_ENGINE)
    return None if engine is None else (metadata["namespace"], engine)


def _is_at_its_end(raw: Raw) -> bool:
    """A pod that is removed without grace is written once more before: whoever took that for a pod that drains would be wrong."""
    metadata = raw["metadata"]
    return metadata.get("deletionGracePeriodSeconds") == 0 and not metadata.get("finalizers")


def _causes(raw: Raw) -> bytes:
    found = [raw["metadata"].get(cause) for cause in _CAUSES] if raw["kind"] == names.ENGINE_KIND else []
    return msgspec.msgpack.encode(found, order="deterministic")


def _is_newer(raw: Raw, before: str) -> bool:
    """Kubernetes' own clients compare versions of one object as numbers, too. What is no number is news."""
    version = raw["metadata"].get("resourceVersion", "")
    return not (version.isdigit() and before.isdigit()) or int(version) >= int(before)


def _packed(raw: Raw) -> _Packed:
    metadata = raw["metadata"]
    return _Packed(
        raw["kind"],
        metadata.get("resourceVersion", ""),
        is_leaving="deletionTimestamp" in metadata,
        causes=_causes(raw),
        content=msgspec.msgpack.encode(_lean(raw)),
    )


def _lean(raw: Raw) -> Raw:
    """A thousand engines have two thousand pods. Of who manages a field, only when it was written is looked at."""
    kept = {field: value for field, value in raw.items() if field != "spec"} if raw["kind"] == "Pod" else raw
    managers = [{name: value for name, value in entry.items() if name != "fieldsV1"} for entry in _managers(raw)]
    return kept | {"metadata": raw["metadata"] | {"managedFields": managers}}


def _managers(raw: Raw) -> Iterable[Raw]:
    return raw["metadata"].get("managedFields") or () if raw["kind"] == names.REPLICA_KIND else ()


def _world(held: _Held) -> World | None:
    found: dict[str, list[Raw]] = {kind: [] for kind in (names.ENGINE_KIND, names.REPLICA_KIND, "Pod", "")}
    for packed in held.objects.values():
        found.get(packed.kind, found[""]).append(msgspec.msgpack.decode(packed.content))
    engines, replicas, pods, others = (tuple(objects) for objects in found.values())
    return World(engine=engines[0], replicas=replicas, pods=pods, others=others) if engines else None
