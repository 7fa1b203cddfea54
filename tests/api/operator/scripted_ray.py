"""What a leader's launcher and its actor manager would tell of ranks that come and go, by script.

The one job: the next state of ranks and placement, from how many are wanted and which members have joined. The invariant kept: a
rank begins to serve only when all its members are there; one that comes again has the next incarnation. Not done here: rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Pod = dict[str, Any]
Ranks = dict[int, tuple[str, int]]
"""State and incarnation."""


def flags_of(pod: Pod) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in pod["spec"]["containers"][0]["args"])


def leads_ray(pod: Pod) -> bool:
    flags = flags_of(pod)
    return (flags.get("--executor"), flags.get("--member")) == ("Ray", "0")


class ScriptedRay:
    """One leader. ``has_room`` says whether Ray finds a place for a rank, ``has_drained`` whether one that is to go is empty."""

    def __init__(self, leader: Pod) -> None:
        flags = flags_of(leader)
        self._of_rank = int(flags["--tensor-parallel"]) * int(flags["--pipeline-parallel"])
        self._each = int(flags["--workers-per-member"])
        self.ranks: Ranks = {}
        self._lives: dict[int, int] = {}

    def members_of(self, rank: int) -> set[int]:
        return {worker // self._each for worker in range(rank * self._of_rank, (rank + 1) * self._of_rank)}

    def move(
        self, data: int, *, joined: set[int], has_room: Callable[[int], bool], has_drained: Callable[[int], bool]
    ) -> dict[str, Any]:
        """The ranks and the placement of the leader's row, after one more thing has happened to each rank."""
        for rank in range(data):
            state, life = self.ranks.get(rank) or ("Pending", self._next_life(rank))
            if state == "Pending" and self.members_of(rank) <= joined and has_room(rank):
                state = "Serving"
            self.ranks[rank] = (state, life)
        for rank in [rank for rank in self.ranks if rank >= data]:
            state, life = self.ranks[rank]
            if state == "Serving":
                self.ranks[rank] = ("Draining", life)
            elif state == "Pending" or has_drained(rank):
                del self.ranks[rank]
        ranks = [
            {"rank": rank, "incarnation": life, "state": state, **({} if state == "Pending" else {"maxContextLength": 8192})}
            for rank, (state, life) in sorted(self.ranks.items())
        ]
        return {"ranks": ranks, "placement": [self._group(rank, joined) for rank in sorted(self.ranks)]}

    def _next_life(self, rank: int) -> int:
        self._lives[rank] = self._lives.get(rank, 0) + 1
        return self._lives[rank]

    def _group(self, rank: int, joined: set[int]) -> dict[str, Any]:
        if self.ranks[rank][0] != "Pending":
            bundles: list[dict[str, Any]] = [{"index": index, "state": "Placed"} for index in range(self._of_rank)]
            return {"rank": rank, "strategy": "Pack", "state": "Placed", "bundles": bundles}
        absent = sorted(self.members_of(rank) - joined)
        why = f"member {absent[0]} has not joined" if absent else "no node has it"
        bundles = [{"index": index, "state": "Pending"} for index in range(self._of_rank)]
        bundles[-1]["lacking"] = f"needs accelerator: 1, {why}"
        return {"rank": rank, "strategy": "Pack", "state": "Pending" if absent else "Lacking", "bundles": bundles}
