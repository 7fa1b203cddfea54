"""What a replica's rows say of a death: pure reading of EngineReplica objects, for the benchmarks that watch them."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def row(found: dict[str, Any], pod: str) -> dict[str, Any]:
    """Of one member; empty when there is none."""
    members = found.get("status", {}).get("members", [])
    return next((member for member in members if member["name"] == pod), {})


def rank_is(found: dict[str, Any], pod: str, *states: str, incarnation: int) -> bool:
    """Whether a rank of this member is in one of these states, in this incarnation."""
    return any(rank["incarnation"] == incarnation and rank["state"] in states for rank in row(found, pod).get("ranks", []))


def failure(found: dict[str, Any], pod: str, *, incarnation: int) -> dict[str, Any]:
    """The death of this incarnation, with its cause; empty as long as there is none."""
    failures = row(found, pod).get("failures", [])
    return next((one for one in failures if one.get("incarnation") == incarnation and one["role"] != "api-server"), {})


def noticed_at(failure: dict[str, Any]) -> float:
    """When the monitor noticed it, in seconds since the epoch."""
    return datetime.fromisoformat(failure["detectedTime"]).timestamp()
