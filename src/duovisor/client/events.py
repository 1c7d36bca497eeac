"""The service's events as they happen: server-sent events, and following them across restarts of the service.

Source: WHATWG HTML, 9.2.6, "Interpreting an event stream"; the service writes one ``data`` line an event.
"""

from __future__ import annotations

import json
import select
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from duovisor.client.errors import ReplyError
from duovisor.client.stream import open_stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from duovisor.client.connection import Call
    from duovisor.client.endpoint import Endpoint
    from duovisor.client.stream import Stream

STREAM = "/v1/events/stream"
GAP = "gap"
MAX_EVENT_BYTES = 1 << 20
SILENCE_S = 45.0  # the service says something every 15 s


class Message(NamedTuple):
    """One message: ``kind`` is ``message`` for an event, ``gap`` where events are no longer kept."""

    kind: str
    id: str
    document: Any


class EventParser:
    """Cuts the bytes of a stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that are complete now. Raises ``ReplyError``."""
        self._rest += data
        while b"\n\n" in self._rest:
            block, _, self._rest = self._rest.partition(b"\n\n")
            if message := parse_block(block.decode(errors="replace")):
                yield message
        if len(self._rest) > MAX_EVENT_BYTES:
            raise ReplyError("an event of the service is longer than any can be")


def parse_block(block: str) -> Message | None:
    """One block of a stream; None for a comment. Raises ``ReplyError``."""
    fields = {"event": "message", "id": ""}
    data = []
    for line in block.splitlines():
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif name:
            fields[name] = value.removeprefix(" ")
    if not data:
        return None
    try:
        return Message(fields["event"], fields["id"], json.loads("\n".join(data)))
    except ValueError as error:
        raise ReplyError(f"an event of the service is not JSON: {error}") from error


class EventStream:
    """An open stream of events."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._parser = EventParser()
        self.is_ended = False

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def has_more(self) -> bool:
        """Whether ``read`` has something without waiting for the descriptor."""
        return bool(self._stream.pending)

    def read(self) -> list[Message]:
        """What has come, without waiting; ``is_ended`` says that nothing more will."""
        data = self._stream.read()
        if data == b"":
            self.is_ended = True
        return list(self._parser.feed(data or b""))

    def wait(self, timeout_s: float) -> list[Message]:
        """The next messages; none when the time is over or the stream has ended."""
        deadline = time.monotonic() + timeout_s
        while not self.is_ended:
            left_s = deadline - time.monotonic()
            if not self.has_more and (left_s <= 0 or not select.select([self], [], [], left_s)[0]):
                break
            if messages := self.read():
                return messages
        return []

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_events(
    endpoint: Endpoint, *, after: int | None = None, observe: Callable[[Call], None] = lambda call: None
) -> EventStream:
    """Follow events from now on, or all that came after a number; raises what ``open_stream`` raises."""
    path = STREAM if after is None else f"{STREAM}?after={after}"
    headers = {"Accept": "text/event-stream"}
    return EventStream(open_stream(endpoint, path, headers, version="HTTP/1.0", observe=observe))
