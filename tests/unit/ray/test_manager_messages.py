"""What the actor manager says fits into a datagram, however many ranks and bundles there are."""

from __future__ import annotations

import json

import msgspec

from enginehouse_engine import registration
from enginehouse_engine.ray.manager_messages import MOST_PLACEMENT_BYTES, Bundle, RankPlacement, shortened

ALL_MEMBERS = "needs accelerator: 1, members " + ", ".join(map(str, range(64))) + " have not joined"


def of_rank(rank: int, *bundles: Bundle) -> RankPlacement:
    return RankPlacement(rank=rank, incarnation=10**6, strategy="Spread", state="Lacking", bundles=bundles)


def placed(index: int) -> Bundle:
    return Bundle(index, "Placed", node="n" * 63)


def test_what_fits_is_said_whole() -> None:
    ranks = tuple(of_rank(rank, *map(placed, range(2))) for rank in range(64))
    assert shortened(ranks) == ranks


def test_of_more_than_fits_each_rank_keeps_the_first_bundle_that_lacks_something() -> None:
    lacks = Bundle(60, "Pending", node="n" * 63, lacking=ALL_MEMBERS)
    ranks = tuple(of_rank(rank, *map(placed, range(60)), *([lacks] * 4 if rank else [])) for rank in range(64))
    short = shortened(ranks)
    assert [rank.bundles for rank in short] == [(placed(0),), *[(lacks,)] * 63]
    size = len(json.dumps(msgspec.to_builtins(short)).encode())
    assert size <= MOST_PLACEMENT_BYTES < registration.MAX_MESSAGE_BYTES
