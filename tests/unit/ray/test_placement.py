"""Which bundle is whose, and what the words are when there is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse_engine.ray import placement
from enginehouse_engine.ray.manager_messages import WantedRank
from enginehouse_engine.ray.placement import Node, PlacementRefused


def wanted(*members: int, bundles: tuple[int, ...] = ()) -> WantedRank:
    return WantedRank(rank=1, incarnation=1, members=members, bundles=bundles)


def node(member: int | None, *, total: int = 2, free: int | None = None) -> Node:
    amounts = {"accelerator": float(total if free is None else free)}
    return Node(
        id=f"n{member}", name=f"pod-{member}", member=member, total={"accelerator": float(total)} if total else {}, free=amounts
    )


def placed(*nodes: str) -> dict[int, str]:
    return dict(enumerate(nodes))


NODES = [node(0), node(1), node(2)]


@pytest.mark.parametrize(
    ("rank", "where", "bundles"),
    [
        pytest.param(wanted(0, 0), placed("n0", "n0"), (0, 1), id="one member"),
        pytest.param(wanted(0, 0, 1, 1), placed("n1", "n0", "n1", "n0"), (1, 3, 0, 2), id="the driver's node first"),
        pytest.param(wanted(1, 1, 2, 2), placed("n2", "n1", "n2", "n1"), (1, 3, 0, 2), id="then by member"),
        pytest.param(wanted(0, 1), placed("n1", "n0", "n0", "n1"), (1, 0), id="spare bundles are left over"),
        pytest.param(wanted(0, 0, bundles=(1, 0)), placed("n0", "n0"), (1, 0), id="as told"),
        pytest.param(
            wanted(0, 1, bundles=(3, 0)), placed("n1", "n1", "n0", "n0"), (3, 0), id="as told, in any order, with spare ones"
        ),
        pytest.param(wanted(), {}, (), id="none"),
    ],
)
def test_every_worker_gets_a_bundle_in_its_member(rank: WantedRank, where: dict[int, str], bundles: tuple[int, ...]) -> None:
    assert placement.positions(rank, placed=where, nodes=NODES, driver="n0") == bundles


@pytest.mark.parametrize(
    ("rank", "where", "message"),
    [
        pytest.param(
            wanted(0, 0, bundles=(1, 1)),
            placed("n0", "n0"),
            "rank 1 is told bundle indices 1, 1, 1 more than once: each worker needs its own",
            id="duplicates",
        ),
        pytest.param(
            wanted(0, 0, bundles=(0, 1, 2)),
            placed("n0", "n0", "n0"),
            "rank 1 has 2 workers and is told 3 bundle indices (0, 1, 2): give one for each",
            id="too many",
        ),
        pytest.param(
            wanted(0, 0, bundles=(1,)),
            placed("n0", "n0"),
            "rank 1 has 2 workers and is told 1 bundle indices (1): give one for each",
            id="too few",
        ),
        pytest.param(
            wanted(0, bundles=(-1,)), placed("n0"), "rank 1 is told bundle indices -1: they count from 0", id="below zero"
        ),
        pytest.param(
            wanted(0, bundles=(2,)), placed("n0", "n0"), "rank 1 is told bundle 2, its group has 2, counted from 0", id="unknown"
        ),
        pytest.param(wanted(0, 0), placed("n0"), "rank 1 has 2 workers, its placement group 1 bundles", id="too small a group"),
        pytest.param(
            wanted(0, 1),
            placed("n0", "n0"),
            "worker 1 of rank 1 belongs in member 1, its bundle 1 is in member 0: members need as many accelerators as they have "
            "workers, and nobody else may take them",
            id="another member",
        ),
        pytest.param(
            wanted(0, 1, bundles=(0, 1)),
            placed("n1", "n0"),
            "worker 0 of rank 1 belongs in member 0, its bundle 0 is in member 1: members need as many accelerators as they have "
            "workers, and nobody else may take them",
            id="told another member's",
        ),
        pytest.param(
            wanted(0),
            placed("nNone"),
            "worker 0 of rank 1 belongs in member 0, its bundle 0 is in a node without a member's number: members need as many "
            "accelerators as they have workers, and nobody else may take them",
            id="no member's",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_words(rank: WantedRank, where: dict[int, str], message: str) -> None:
    with pytest.raises(PlacementRefused) as refused:
        placement.positions(rank, placed=where, nodes=[*NODES, node(None)], driver="n0")
    assert str(refused.value) == message


@given(
    members=st.lists(st.integers(0, 3), min_size=1, max_size=8).map(sorted),
    spare=st.lists(st.integers(0, 3), max_size=4),
    shuffle=st.randoms(use_true_random=False),
    driver=st.integers(0, 3),
)
def test_whatever_ray_chose_nobody_shares_a_bundle_and_all_are_where_they_belong(
    members: list[int], spare: list[int], shuffle: object, driver: int
) -> None:
    where = [f"n{member}" for member in [*members, *spare]]
    shuffle.shuffle(where)  # type: ignore[attr-defined]  # a random.Random, which hypothesis has no type for
    rank = wanted(*members)
    found = placement.positions(rank, placed=placed(*where), nodes=[node(number) for number in range(4)], driver=f"n{driver}")
    assert len(set(found)) == len(members)
    assert [where[index] for index in found] == [f"n{member}" for member in members]
    # Told what it would have chosen itself, it chooses the same.
    told = wanted(*members, bundles=found)
    assert placement.positions(told, placed=placed(*where), nodes=[node(number) for number in range(4)], driver="n0") == found


@pytest.mark.parametrize(
    ("rank", "nodes", "lacking"),
    [
        pytest.param(wanted(0, 0), [node(0)], ["", ""], id="there is room"),
        pytest.param(
            wanted(2, 2), [node(0)], ["needs accelerator: 1, member 2 has not joined"] * 2, id="a member that has not joined"
        ),
        pytest.param(
            wanted(0, 0, 2, 3),
            [node(0), node(1)],
            ["", "", *["needs accelerator: 1, members 2, 3 have not joined"] * 2],
            id="some have joined",
        ),
        pytest.param(wanted(1), [node(0), node(1, total=0)], ["needs accelerator: 1, no node has it"], id="nobody has it"),
        pytest.param(
            wanted(0, 0), [node(0, free=1)], ["", "needs accelerator: 1, member 0 has 2, 1 free"], id="taken by somebody else"
        ),
        pytest.param(
            wanted(0, 1),
            [node(0, total=1, free=0), node(1, total=1, free=0)],
            ["needs accelerator: 1, members 0, 1 have 2, none free"] * 2,
            id="all taken",
        ),
    ],
)
def test_each_bundle_says_what_it_lacks(rank: WantedRank, nodes: list[Node], lacking: list[str]) -> None:
    assert list(placement.lacking(rank, resource="accelerator", nodes=nodes)) == lacking


def test_a_group_has_a_bundle_for_each_worker_and_only_goes_to_its_members() -> None:
    assert placement.bundle_count(wanted(3, 3, 2)) == 3
    assert placement.bundle_count(wanted(0, bundles=(4,))) == 5
    assert placement.label_selector(wanted(3, 3, 2)) == {"enginehouse.dev/member": "in(2,3)"}
    assert placement.label_selector(wanted(0)) == {"enginehouse.dev/member": "in(0)"}
