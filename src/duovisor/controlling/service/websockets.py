"""What WebSockets that pass bytes on have in common: how they close, and how both directions end together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from fastapi import WebSocket

    from duovisor.controlling.service.context import Service

# RFC 6455, 7.4.1 and the IANA registry
CLOSE_GOING_AWAY = 1001
CLOSE_POLICY = 1008
CLOSE_TRY_LATER = 1013


async def converse(socket: WebSocket, service: Service, *directions: Coroutine[None, None, None]) -> None:
    """Run the directions until one ends or the service stops; what ended one is raised."""
    parts = {asyncio.create_task(each) for each in (*directions, _wait_stopping(socket, service))}
    try:
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            part.result()
    finally:
        for part in parts:
            part.cancel()
        await asyncio.gather(*parts, return_exceptions=True)


async def _wait_stopping(socket: WebSocket, service: Service) -> None:
    await service.stopping.wait()
    await socket.close(CLOSE_GOING_AWAY, "the service is being stopped; the VM runs on")
