"""The service as the CLI sees it: requests, pages, operations followed to their end, events, consoles."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

from duovisor.client.connection import Connection
from duovisor.client.errors import ApiError, ConnectionLostError, ServiceUnreachableError
from duovisor.client.events import SILENCE_S, open_events
from duovisor.client.websocket import open_websocket

if TYPE_CHECKING:
    import http.client
    from collections.abc import Callable, Generator, Iterator, Mapping

    from duovisor.client.connection import Call, Reply
    from duovisor.client.endpoint import Endpoint
    from duovisor.client.events import EventStream, Message
    from duovisor.client.websocket import WebSocket

    Document = dict[str, Any]

T = TypeVar("T")

PAGE = 1000
PROGRESS_S = 0.25  # how often progress is asked for; the end of an operation is an event
RECONNECT_S = 30.0
RETRY_S = 0.1
UNDER_WAY = frozenset({"pending", "running"})


class ServiceClient:
    """Speaks with one service; starts it if it is this host's own and absent when it is first asked."""

    def __init__(self, endpoint: Endpoint, observe: Callable[[Call], None] = lambda call: None) -> None:
        self.endpoint = endpoint
        self._observe = observe
        self._connection = Connection(endpoint, observe)
        self._may_start = endpoint.is_default

    def close(self) -> None:
        """End the connection; the next request opens another."""
        self._connection.close()

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self, method: str, path: str, document: Any = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send a request; raises what ``Connection.request`` raises, and ``ServiceStartError``."""
        try:
            reply = self._connection.request(method, path, document, headers)
        except ServiceUnreachableError as error:
            if not (self._may_start and error.is_absent):
                raise
            self.ensure_service()
            reply = self._connection.request(method, path, document, headers)
        self._may_start = False
        return reply

    def ensure_service(self) -> None:
        """Start the service of this host if it is absent. Raises ``ServiceStartError``."""
        from duovisor.client.starting import ensure_service

        if self.endpoint.socket is not None:
            ensure_service(self.endpoint.socket)

    def open_connection(self) -> http.client.HTTPConnection:
        """A connection for one long request, which the caller closes. Raises ``ServiceUnreachableError``."""
        return self._connection.open_another()

    def get(self, path: str, **query: Any) -> Any:
        """The document at a path."""
        return self.request("GET", build_path(path, query)).document

    def list_all(self, path: str, **query: Any) -> Iterator[Document]:
        """Every item of a list, page after page."""
        after: Any = None
        while True:
            page = self.get(path, limit=PAGE, after=after, **query)
            yield from page["items"]
            after = page.get("after")
            if after is None:
                return

    def act(self, name: str, action: str, document: Any = None) -> Document:
        """Begin an action on a VM; returns the operation."""
        operation: Document = self.request("POST", f"{vm_path(name)}/{action}", document).document
        return operation

    def follow(
        self, operation: Document, show: Callable[[Document], None] = lambda operation: None
    ) -> Document:
        """Follow an operation to its end, across restarts of the service; ``show`` gets each change.

        Raises ``ApiError`` with the operation's code when it did not do what it was for.
        """
        for current in self._states_of(operation):
            if current != operation:
                operation = current
                show(operation)
        if operation["error"] is not None:
            fault = operation["error"]
            raise ApiError(fault["code"], fault["message"], remedy=fault["remedy"])
        return operation

    def _states_of(self, operation: Document) -> Iterator[Document]:
        yield operation
        path = f"/v1/operations/{operation['id']}"
        while operation["state"] in UNDER_WAY:
            with reconnect(self.open_events) as events:
                while not events.is_ended:
                    operation = reconnect(lambda: self.get(path))
                    yield operation
                    if operation["state"] not in UNDER_WAY:
                        return
                    events.wait(PROGRESS_S)

    def events(self, after: int | None = None) -> Generator[Message | None, None, None]:
        """Every event after a number, by default those from now on, across restarts of the service.

        None says that nothing has come for a while.
        """
        if after is None:
            after = int(self.get("/v1/events", limit=1)["last"])
        while True:
            with reconnect(functools.partial(self.open_events, after=after)) as events:
                while not events.is_ended:
                    messages = events.wait(SILENCE_S)
                    for message in messages:
                        after = int(message.id) if message.id else after
                        yield message
                    if not messages and not events.is_ended:
                        yield None

    def open_events(self, *, after: int | None = None) -> EventStream:
        """A stream of events, which ends with the service."""
        return open_events(self.endpoint, after=after, observe=self._observe)

    def open_console(self, name: str) -> WebSocket:
        """A VM's serial console."""
        return open_websocket(self.endpoint, f"{vm_path(name)}/console", observe=self._observe)


def reconnect(connect: Callable[[], T]) -> T:
    """Do it again while the service is being started again; raises the last error after ``RECONNECT_S``."""
    deadline = time.monotonic() + RECONNECT_S
    while True:
        try:
            return connect()
        except (ConnectionLostError, ServiceUnreachableError):
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)  # nothing tells when a socket will be there


def vm_path(name: str) -> str:
    """Where a VM is in the API."""
    return f"/v1/vms/{quote(name, safe='')}"


def build_path(path: str, query: Mapping[str, Any]) -> str:
    """A path with its query; what is None is left out."""
    given = {key: str(value).lower() if isinstance(value, bool) else value for key, value in query.items()}
    text = urlencode({key: value for key, value in given.items() if value is not None})
    return f"{path}?{text}" if text else path
