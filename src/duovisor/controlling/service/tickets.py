"""One-time tickets for a VM's screen: a browser's WebSocket can carry no token, but an address with one.

A ticket is good once, for a short time, for one VM and for what its owner may do; it lives in memory alone.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.service.errors import NotAuthenticatedError
from duovisor.controlling.service.tokens import hash_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.service.identity import Identity

LIFE_S = 30.0
MOST = 1000


class Ticket(NamedTuple):
    """Which VM, by its uuid too: a name may be another VM's by then; and for whom, until when."""

    name: str
    uuid: str
    who: Identity
    ends_at: float


class Tickets:
    """The tickets that are out."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._tickets: dict[str, Ticket] = {}

    def issue(self, name: str, uuid: str, who: Identity) -> str:
        """A new ticket's secret."""
        now = self._now()
        self._tickets = {key: ticket for key, ticket in self._tickets.items() if ticket.ends_at > now}
        while len(self._tickets) >= MOST:
            del self._tickets[next(iter(self._tickets))]
        secret = secrets.token_urlsafe(32)
        self._tickets[hash_token(secret)] = Ticket(name, uuid, who, now + LIFE_S)
        return secret

    def redeem(self, secret: str, name: str) -> Ticket:
        """Take a ticket for a VM, which is used up then. Raises ``NotAuthenticatedError``."""
        ticket = self._tickets.pop(hash_token(secret), None)
        if ticket is None or ticket.ends_at <= self._now() or ticket.name != name:
            raise NotAuthenticatedError(
                "this ticket is unknown, used or too old",
                remedy=f"POST /v1/vms/{name}/vnc-ticket gives another",
            )
        return ticket
