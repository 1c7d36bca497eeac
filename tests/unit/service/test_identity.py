"""Who may do what: peers, roles, tokens."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta

import pytest

from duovisor.controlling.service.errors import NotAuthenticatedError, TokenNotFoundError
from duovisor.controlling.service.gate import Gatekeeper
from duovisor.controlling.service.identity import Role, identify_peer
from duovisor.controlling.service.peer import Peer, read_peer
from duovisor.controlling.service.tokens import Tokens, hash_token
from duovisor.controlling.store.memory import open_memory_store

GROUP = 4242
SERVICE = 1000


@pytest.mark.parametrize(
    ("peer", "role"),
    [
        (Peer(1, 0, frozenset({0})), Role.ADMINISTRATOR),
        (Peer(1, SERVICE, frozenset({SERVICE})), Role.ADMINISTRATOR),
        (Peer(1, 1001, frozenset({1001, GROUP})), Role.ADMINISTRATOR),
        (Peer(1, 1001, frozenset({1001})), None),
        (Peer(1, 1001, frozenset({0})), None),
    ],
)
def test_root_the_owner_and_the_group_are_administrators(peer: Peer, role: Role | None) -> None:
    assert identify_peer(peer, service_uid=SERVICE, admin_gid=GROUP).role is role


def test_without_the_group_nobody_is_in_it() -> None:
    peer = Peer(1, 1001, frozenset({1001}))
    assert identify_peer(peer, service_uid=SERVICE, admin_gid=None).role is None


def test_the_kernel_says_who_is_there() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        peer = read_peer(ours)
    assert peer == Peer(os.getpid(), os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))
    with socket.socket(socket.AF_INET) as other:
        assert read_peer(other) is None


def test_each_role_includes_those_below() -> None:
    assert [[role.includes(needed) for needed in Role] for role in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


async def test_a_token_lives_until_it_expires_and_survives_the_service() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    async with open_memory_store() as store:
        tokens = Tokens(store, now=lambda: now)
        made = await tokens.create("ci", Role.OPERATOR, timedelta(days=1), created_by="user:root")
        again = Tokens(store, now=lambda: now)
        await again.open()
        identity = again.find_identity(made.secret)
        assert identity is not None
        assert (identity.name, identity.role) == ("token:ci", Role.OPERATOR)
        assert again.find_identity(made.secret[:-1]) is None
        now += timedelta(days=1)
        assert again.find_identity(made.secret) is None
        assert not again.is_valid(hash_token(made.secret))


async def test_a_token_that_is_made_again_is_another() -> None:
    async with open_memory_store() as store:
        tokens = Tokens(store)
        first = await tokens.create("ci", Role.VIEWER, timedelta(days=1), created_by="x")
        await tokens.delete("ci")
        await tokens.create("ci", Role.VIEWER, timedelta(days=1), created_by="x")
        assert not tokens.is_valid(first.document.sha256)
        assert len(tokens.list()) == 1
        with pytest.raises(TokenNotFoundError):
            await tokens.delete("other")


async def test_a_token_decides_even_where_the_peer_would_be_let_in() -> None:
    async with open_memory_store() as store:
        tokens = Tokens(store)
        made = await tokens.create("low", Role.VIEWER, timedelta(days=1), created_by="x")
        gatekeeper = Gatekeeper(tokens, service_uid=SERVICE, admin_gid=None)
        root = Peer(1, 0, frozenset({0}))
        assert gatekeeper.identify(f"Bearer {made.secret}", root).role is Role.VIEWER
        assert gatekeeper.identify(None, root).role is Role.ADMINISTRATOR
        for header in ("Bearer nonsense", made.secret, ""):
            with pytest.raises(NotAuthenticatedError):
                gatekeeper.identify(header, root)
        with pytest.raises(NotAuthenticatedError):
            gatekeeper.identify(None, None)
