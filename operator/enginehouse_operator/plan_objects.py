"""Services, rights and the disruption budget: which have to be applied, because they are missing or not as wanted.

Invariant: an object of somebody else is never touched, whatever its name. The plan is empty when everything is as wanted.
Does not render them (``wanted/``) and does not act.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import reasons
from .observe import owned
from .pod_state import Problem
from .steps import ApplyObject
from .wanted.metadata import covers

Raw = Mapping[str, Any]


def plan_objects(
    wanted: Iterable[dict[str, Any]], seen: Iterable[Raw], *, owner_uid: str
) -> tuple[tuple[ApplyObject, ...], tuple[Problem, ...]]:
    """Steps, and names that are taken. ``seen``: whatever has those names, of any owner."""
    found = {(raw["kind"], raw["metadata"]["name"]): raw for raw in seen}
    steps, problems = [], []
    for manifest in wanted:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        present = found.get((kind, name))
        if present is not None and not owned([present], owner_uid):
            problems.append(
                Problem(
                    reason=reasons.NAME_TAKEN,
                    message=f"{kind} {name} exists and belongs to somebody else: delete it, or give the engine another name",
                )
            )
        elif present is None or not covers(present, manifest):
            steps.append(
                ApplyObject(name=name, reason=reasons.APPLIED, message=f"{kind} {name} is made as wanted", manifest=manifest)
            )
    return tuple(steps), tuple(problems)
