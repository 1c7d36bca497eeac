"""The content of volumes over HTTP: in as a request's body, out as a reply's."""

from __future__ import annotations

import asyncio
import base64
import os
from typing import TYPE_CHECKING

from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from duovisor.controlling.service.errors import RequestInvalidError
from duovisor.controlling.storage.steps import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from duovisor.controlling.service.operations import Operation, Operations
    from duovisor.controlling.storage.inbox import Inbox
    from duovisor.controlling.storage.storage import Content

BLOCK_BYTES = 1 << 20


def read_length(request: Request) -> int:
    """How many bytes the body has. Raises ``RequestInvalidError`` when that is not said."""
    said = request.headers.get("content-length", "")
    if not said.isdecimal() or len(said) > 18:
        raise RequestInvalidError(
            "an upload must say how long it is", remedy="send Content-Length", field="Content-Length"
        )
    return int(said)


async def feed(operations: Operations, id: str, request: Request, inbox: Inbox) -> None:
    """Pass a request's body on until it ends, or the operation that takes it does."""
    ended = asyncio.create_task(operations.wait(id))

    def abandon(_: asyncio.Task[Operation]) -> None:
        inbox.abandon()

    ended.add_done_callback(abandon)
    try:
        async for chunk in request.stream():
            if chunk and not await inbox.put(chunk):
                return
    except ClientDisconnect:
        pass  # the operation finds that something is missing
    finally:
        await inbox.put(None)
        ended.remove_done_callback(abandon)
        ended.cancel()  # only the waiting


class ContentReply(StreamingResponse):
    """A file, closed when it was sent or nobody wants it any more."""

    media_type = "application/octet-stream"

    def __init__(self, content: Content) -> None:
        self._content = content
        headers = {"Content-Length": str(content.size_bytes)}
        if content.sha256 is not None:
            digest = base64.b64encode(bytes.fromhex(content.sha256)).decode()
            headers["Repr-Digest"] = f"sha-256=:{digest}:"  # RFC 9530
        super().__init__(_read(content), headers=headers, media_type=self.media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._content.files.close()


async def _read(content: Content) -> AsyncIterator[bytes]:
    offset = 0
    while block := await in_thread(os.pread, content.descriptor, BLOCK_BYTES, offset):
        offset += len(block)
        yield block
