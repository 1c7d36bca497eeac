"""Events: what has happened, as a list and as a stream that resumes where it broke off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from duovisor.controlling.service.context import Service, ServiceDep
from duovisor.controlling.service.errors import RequestInvalidError
from duovisor.controlling.service.events import EventDocument
from duovisor.controlling.service.gate import Viewer
from duovisor.controlling.service.identity import Identity
from duovisor.controlling.service.replies import ApiModel, Limit

router = APIRouter(prefix="/v1/events", tags=["events"])

KEEP_ALIVE_S = 15.0
LAST_EVENTS = 1000  # that a stopping service still sends
MAX_ID = 10**15

EventId = Annotated[int, Query(ge=0, le=MAX_ID, description="the number of the last event that was seen")]


class EventList(ApiModel):
    """Events, oldest first; `oldest` is the first that is still kept, `after` asks for the next part."""

    items: tuple[EventDocument, ...]
    oldest: int
    last: int
    after: int | None = None


@router.get("", summary="List events, oldest first")
async def list_events(service: ServiceDep, _: Viewer, limit: Limit = 100, after: EventId = 0) -> EventList:
    page = await service.events.read(after=after, limit=limit)
    return EventList(
        items=page.events,
        oldest=service.events.oldest,
        last=service.events.last,
        after=page.events[-1].id if page.more else None,
    )


@router.get(
    "/stream",
    summary="Stream events as they happen (server-sent events)",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def stream_events(
    service: ServiceDep,
    who: Viewer,
    after: Annotated[EventId | None, Query()] = None,
    last_event_id: Annotated[
        str | None, Header(max_length=20, description="where a stream that broke off is to go on")
    ] = None,
) -> StreamingResponse:
    """Begins with the next event, or after `Last-Event-ID` or `after`. Each event has its number as `id` and
    an event document as `data`. `event: gap` says that events in between are no longer kept.
    """
    begin = service.events.last if after is None else after
    if last_event_id is not None:
        begin = _parse_id(last_event_id)
    return StreamingResponse(
        _stream(service, who, begin), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


def _parse_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= MAX_ID):
        raise RequestInvalidError(f"Last-Event-ID: {text!r} is not an event's number", field="Last-Event-ID")
    return int(text)


def _format(event: EventDocument) -> str:
    return f"id: {event.id}\ndata: {event.model_dump_json()}\n\n"


async def _stream(service: Service, who: Identity, after: int) -> AsyncIterator[str]:
    """The text of the stream; it ends when the service stops or the token is no longer valid."""
    if after + 1 < service.events.oldest:
        yield f'event: gap\ndata: {{"oldest": {service.events.oldest}}}\n\n'
    yield ": hello\n\n"  # so that the client has its headers at once
    stopping = asyncio.create_task(service.stopping.wait())
    events = service.events.follow(after=after)
    coming: asyncio.Task[EventDocument] | None = None
    try:
        while service.gatekeeper.is_valid(who):
            coming = coming or asyncio.ensure_future(anext(events))
            await asyncio.wait({coming, stopping}, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                event, coming = coming.result(), None
                after = event.id
                yield _format(event)
            elif stopping.done():
                for event in (await service.events.read(after=after, limit=LAST_EVENTS)).events:
                    yield _format(event)
                return
            else:
                yield ": still here\n\n"
    finally:
        stopping.cancel()
        if coming is not None:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await coming
