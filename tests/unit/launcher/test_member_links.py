"""Where the leader's door is."""

from __future__ import annotations

import socket

import pytest

from enginehouse_engine.launcher.member_links import own_name

LEADER = "chat-0-leader.chat-members.default.svc"


def test_a_leader_with_addresses_of_both_families_is_found_by_the_one_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert own_name(LEADER) == "127.0.0.1"


def test_a_leader_without_an_ipv4_address_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def has_none(host: str) -> str:
        raise socket.gaierror(f"{host} has none")

    monkeypatch.setattr(socket, "gethostname", lambda: "chat-0-leader")
    monkeypatch.setattr(socket, "gethostbyname", has_none)
    assert own_name(LEADER) == "chat-0-leader"


def test_an_address_is_taken_as_it_is() -> None:
    assert own_name("10.77.0.1") == "10.77.0.1"
