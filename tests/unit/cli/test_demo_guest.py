"""The demo ends when its VM does, and goes on without the service."""

from __future__ import annotations

import asyncio
import json
import socket
from http.client import HTTPMessage
from typing import TYPE_CHECKING

import pytest

from duovisor.cli.demo_guest import unless_lost
from duovisor.client.errors import ApiError
from duovisor.client.events import EventStream
from duovisor.client.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, EventStream]]:
    """The service's end of a stream of events, and the client's."""
    service, ours = socket.socketpair()
    ours.setblocking(False)
    with service, ours:
        yield service, EventStream(Stream(ours, b"", HTTPMessage()))


def event(action: str, vm: str) -> bytes:
    return f"data: {json.dumps({'action': action, 'object': vm, 'message': 'gone'})}\n\n".encode()


async def test_the_works_result_counts(ends: tuple[socket.socket, EventStream]) -> None:
    service, events = ends
    service.sendall(event("vm.started", "vm/demo") + event("vm.fault", "vm/other"))
    assert await unless_lost(asyncio.sleep(0.05, "result"), events, "vm/demo") == "result"


async def test_a_lost_driver_ends_the_work(ends: tuple[socket.socket, EventStream]) -> None:
    service, events = ends
    service.sendall(event("vm.fault", "vm/demo"))
    with pytest.raises(ApiError, match="gone") as caught:
        await unless_lost(asyncio.sleep(60), events, "vm/demo")
    assert caught.value.code == "partition-failed"


async def test_the_service_may_go(ends: tuple[socket.socket, EventStream]) -> None:
    service, events = ends
    service.close()
    assert await unless_lost(asyncio.sleep(0.05, "result"), events, "vm/demo") == "result"
    assert events.is_ended
