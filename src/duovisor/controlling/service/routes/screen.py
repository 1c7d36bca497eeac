"""A VM's screen: a picture of it, and VNC (RFC 6143) over a WebSocket for who has a ticket."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, WebSocket
from starlette.requests import HTTPConnection

from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.errors import NotAuthenticatedError
from duovisor.controlling.service.gate import TICKET_KEY, Require, Viewer
from duovisor.controlling.service.identity import Identity, Role
from duovisor.controlling.service.replies import ApiModel, Name
from duovisor.controlling.service.rfb import NotAMessageError, WatchingFilter
from duovisor.controlling.service.tickets import LIFE_S, Ticket
from duovisor.controlling.service.websockets import CLOSE_GOING_AWAY, CLOSE_POLICY, converse

router = APIRouter(prefix="/v1/vms", tags=["console"])

BLOCK_BYTES = 256 << 10
SUBPROTOCOL = "binary"  # noVNC asks for it


class VncTicket(ApiModel):
    """Where the screen can be looked at, once, and for how long that can be begun.

    `path` is a WebSocket's and holds the ticket; whoever has it needs no token.
    """

    path: str
    expires_in_s: float
    may_type: bool


@router.post("/{name}/vnc-ticket", status_code=201, summary="A one-time ticket for a running VM's screen")
async def create_ticket(service: ServiceDep, who: Viewer, name: Name) -> VncTicket:
    vm = await service.manager.get(name)
    await service.manager.require_screen(name)
    secret = service.tickets.issue(name, vm.record.uuid, who)
    may_type = who.role is not None and who.role.includes(Role.OPERATOR)
    return VncTicket(path=f"/v1/vms/{name}/vnc?ticket={secret}", expires_in_s=LIFE_S, may_type=may_type)


@router.get(
    "/{name}/screenshot",
    summary="What a running VM's screen shows",
    response_class=Response,
    responses={200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}},
)
async def get_screenshot(service: ServiceDep, _: Viewer, name: Name) -> Response:
    return Response(await service.manager.take_screenshot(name), media_type="image/png")


@router.websocket("/{name}/vnc")
async def attach_screen(
    socket: WebSocket,
    name: Name,
    service: ServiceDep,
    _: Annotated[Identity, Depends(Require(Role.VIEWER))],
    ticket: Annotated[str, Query(max_length=100)],
) -> None:
    """Binary messages both ways, as the VNC server and its client send them; the gate has read the ticket."""
    found = _read_ticket(socket)
    vm = await service.manager.get(name)
    if vm.record.uuid != found.uuid:
        raise NotAuthenticatedError("the ticket is for a VM that is no more")
    connection = await service.manager.open_screen(name)
    connection.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        offered = socket.scope.get("subprotocols") or ()
        await socket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        await converse(
            socket, service, _send(socket, reader, service, found), _receive(socket, writer, found)
        )
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def _read_ticket(connection: HTTPConnection) -> Ticket:
    """What the gate let in."""
    ticket = getattr(connection.state, TICKET_KEY)
    assert isinstance(ticket, Ticket)
    return ticket


async def _send(socket: WebSocket, reader: asyncio.StreamReader, service: Service, ticket: Ticket) -> None:
    """A slow viewer slows the VNC server down, which draws less then; the guest does not notice."""
    with contextlib.suppress(ConnectionError):  # the VM has ended
        while data := await reader.read(BLOCK_BYTES):
            if not service.gatekeeper.is_valid(ticket.who):
                await socket.close(CLOSE_POLICY, "the token is no longer valid")
                return
            await socket.send_bytes(data)
    await socket.close(CLOSE_GOING_AWAY, "the VM has ended, or has another VMM")


async def _receive(socket: WebSocket, writer: asyncio.StreamWriter, ticket: Ticket) -> None:
    may_type = ticket.who.role is not None and ticket.who.role.includes(Role.OPERATOR)
    watching = None if may_type else WatchingFilter()
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        data = message.get("bytes") or b""
        try:
            writer.write(watching.feed(data) if watching is not None else data)
            await writer.drain()
        except NotAMessageError as error:
            await socket.close(CLOSE_POLICY, str(error))
            return
        except ConnectionError:
            return  # of which the other direction will tell
