"""A VM's serial console: what it printed, and a WebSocket for those who watch and type."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response, WebSocket

from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.gate import Require, Viewer
from duovisor.controlling.service.identity import Identity, Role
from duovisor.controlling.service.manager import Console
from duovisor.controlling.service.replies import Name
from duovisor.controlling.service.websockets import CLOSE_POLICY, CLOSE_TRY_LATER, converse

router = APIRouter(prefix="/v1/vms", tags=["console"])

DEFAULT_LOG_BYTES = 64 << 10
MAX_LOG_BYTES = 8 << 20
MAX_BEHIND_BYTES = 4 << 20


@router.get(
    "/{name}/console/log",
    summary="What the guest printed, the end of it",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_console_log(
    service: ServiceDep,
    _: Viewer,
    name: Name,
    max_bytes: Annotated[int, Query(ge=1, le=MAX_LOG_BYTES)] = DEFAULT_LOG_BYTES,
) -> Response:
    log = await service.manager.read_console_log(name, max_bytes)
    return Response(log, media_type="text/plain; charset=utf-8")


class Viewing:
    """One viewer: what it has not been sent yet, in order, and whether it fell too far behind."""

    def __init__(self) -> None:
        self.chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self.behind_bytes = 0
        self.is_lost = False

    def show(self, data: bytes) -> None:
        """Take what the console printed; the console itself never waits for a viewer."""
        if self.behind_bytes > MAX_BEHIND_BYTES:
            self.is_lost = True
            return
        self.behind_bytes += len(data)
        self.chunks.put_nowait(data)

    async def next(self) -> bytes:
        """What is to be sent next."""
        data = await self.chunks.get()
        self.behind_bytes -= len(data)
        return data


@router.websocket("/{name}/console")
async def attach_console(
    socket: WebSocket,
    name: Name,
    service: ServiceDep,
    who: Annotated[Identity, Depends(Require(Role.VIEWER))],
) -> None:
    """Binary messages both ways: what the guest prints, and from an operator on, what is typed."""
    await service.manager.get(name)  # says that there is no such VM, rather than that it does not run
    console = service.manager.console(name)
    await socket.accept()
    viewing = Viewing()
    detach = console.attach(viewing.show)
    try:
        await converse(socket, service, _send(socket, viewing, service, who), _receive(socket, console, who))
    finally:
        detach()


async def _send(socket: WebSocket, viewing: Viewing, service: Service, who: Identity) -> None:
    while not viewing.is_lost:
        data = await viewing.next()
        if not service.gatekeeper.is_valid(who):
            await socket.close(CLOSE_POLICY, "the token is no longer valid")
            return
        await socket.send_bytes(data)
    await socket.close(CLOSE_TRY_LATER, "too slow for this console")


async def _receive(socket: WebSocket, console: Console, who: Identity) -> None:
    may_type = who.role is not None and who.role.includes(Role.OPERATOR)
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if not may_type:
            await socket.close(CLOSE_POLICY, f"{who.name} may only watch")
            return
        console.write(message.get("bytes") or (message.get("text") or "").encode())
