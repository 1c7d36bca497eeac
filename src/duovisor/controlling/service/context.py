"""What the routes work with: everything that one running service has."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends
from starlette.requests import HTTPConnection  # noqa: TC002  # FastAPI reads the annotation at run time

from duovisor.controlling.service.metrics import RequestCounts
from duovisor.controlling.service.tickets import Tickets

if TYPE_CHECKING:
    from datetime import datetime

    from duovisor.controlling.cloning import Cloner
    from duovisor.controlling.images.library import Library
    from duovisor.controlling.networks.networks import Networks
    from duovisor.controlling.service.autodestroy import Autodestroy
    from duovisor.controlling.service.events import EventLog
    from duovisor.controlling.service.gate import Gatekeeper
    from duovisor.controlling.service.manager import VmManager
    from duovisor.controlling.service.operations import Operations
    from duovisor.controlling.service.tokens import Tokens
    from duovisor.controlling.storage.storage import Storage
    from duovisor.controlling.vms.records import RecoveryReport
    from duovisor.directories import Directories


@dataclass(frozen=True)
class Service:
    """The parts of a running service; ``stopping`` ends the streams that would never end by themselves."""

    manager: VmManager
    storage: Storage
    library: Library
    cloner: Cloner
    networks: Networks
    events: EventLog
    operations: Operations
    autodestroy: Autodestroy
    tokens: Tokens
    gatekeeper: Gatekeeper
    directories: Directories
    recovery: RecoveryReport
    started_at: datetime
    start_s: float
    requests: RequestCounts = field(default_factory=RequestCounts)
    tickets: Tickets = field(default_factory=Tickets)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)


def get_service(connection: HTTPConnection) -> Service:
    """The service behind the application that was asked."""
    service = connection.app.state.service
    assert isinstance(service, Service)
    return service


ServiceDep = Annotated[Service, Depends(get_service)]
