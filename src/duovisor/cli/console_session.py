"""A conversation with a VM's serial console: what is typed, what it prints, and what happens to the VM.

One loop waits for all of them. When the service is started again meanwhile, the VM runs on and so does the
conversation: the console's scroll-back begins with what was seen already, which is not shown twice.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING, Any, Protocol

from duovisor.client.errors import ApiError, ConnectionLostError
from duovisor.client.service import reconnect, vm_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.cli.terminal import Terminal
    from duovisor.client.events import EventStream, Message
    from duovisor.client.service import ServiceClient
    from duovisor.client.websocket import WebSocket

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDED = frozenset({"vm.stopped", "vm.crashed"})
SEEN_BYTES = 4096
SURE_BYTES = 256  # so much is hardly printed twice
# RFC 6455, 7.4.1: these endings come from the service's end, not from a decision about this viewer
_SERVICE_ENDED = frozenset({1001, 1006, 1011, 1012})


class Visitor(Protocol):
    """Who holds the conversation; each method says whether it is over."""

    def on_escape(self) -> bool:
        """Ctrl-] was pressed, or a signal came."""
        ...

    def on_event(self, event: dict[str, Any]) -> bool:
        """Something happened to the VM."""
        ...


class ConsoleSession:
    """``terminal`` None: nothing is shown or typed, only events and signals count."""

    def __init__(
        self, client: ServiceClient, name: str, visitor: Visitor, terminal: Terminal | None, after: int
    ) -> None:
        self._client = client
        self._name = name
        self._visitor = visitor
        self._terminal = terminal
        self._after = after
        self._seen = b""
        self._console: WebSocket | None = None

    def run(self) -> None:
        """Converse until the visitor leaves or the VM has ended. Raises ``ApiError`` or ``ClientError``."""
        with catch_signals() as wake:
            over = False
            while not over:
                with contextlib.ExitStack() as stack:
                    over = self._converse(self._connect(stack), wake)

    def _connect(self, stack: contextlib.ExitStack) -> EventStream:
        events = reconnect(lambda: self._client.open_events(after=self._after))
        stack.callback(events.close)
        self._console = None
        if self._terminal is not None:
            self._console = self._open_console()
        if self._console is not None:
            stack.callback(self._console.close)
        return events

    def _open_console(self) -> WebSocket | None:
        """The console, or None when the VM has ended, of which the events will tell."""
        try:
            return reconnect(lambda: self._client.open_console(self._name))
        except ApiError as error:
            if self._seen and error.code == "wrong-state":
                return None
            raise

    def _converse(self, events: EventStream, wake: int) -> bool:
        """Until the visitor leaves (true) or the service has gone (false)."""
        skip_seen = bool(self._seen)
        while not events.is_ended:
            ready = self._wait(events, wake)
            if wake in ready:
                os.read(wake, 64)
                if self._visitor.on_escape():
                    return True
            if self._console in ready and self._console is not None:
                skip_seen = self._show(self._console, skip_seen)
            if self._terminal is not None and self._terminal.stdin in ready and self._type(self._terminal):
                return True
            if events in ready and any([self._hear(message) for message in events.read()]):
                self._drain()
                return True
            if self._console is not None and self._console.closed is not None:
                if self._is_service_gone(self._console):
                    return False
                self._console = None
        return False

    def _wait(self, events: EventStream, wake: int) -> list[Any]:
        sources: list[Any] = [events, wake]
        if self._console is not None:
            sources.append(self._console)
            if self._terminal is not None and self._terminal.stdin is not None:
                sources.append(self._terminal.stdin)
        waiting = [source for source in (events, self._console) if source is not None and source.has_more]
        return [*waiting, *select.select(sources, [], [], 0 if waiting else None)[0]]

    def _show(self, console: WebSocket, skip_seen: bool) -> bool:
        """Print what the console printed; returns whether the scroll-back is still to come."""
        assert self._terminal is not None
        for data in console.read():
            fresh = skip(data, self._seen) if skip_seen else data
            skip_seen = False
            self._seen = (self._seen + fresh)[-SEEN_BYTES:]
            self._terminal.write(fresh)
        return skip_seen

    def _type(self, terminal: Terminal) -> bool:
        typed, escapes = terminal.read()
        if typed and self._console is not None:
            with contextlib.suppress(ConnectionLostError):  # reading will tell
                self._console.send(typed)
        return any([self._visitor.on_escape() for _ in range(escapes)])

    def _hear(self, message: Message) -> bool:
        if message.id:
            self._after = int(message.id)
        event = message.document
        if event.get("object") != f"vm/{self._name}":
            return False
        return self._visitor.on_event(event)

    def _drain(self) -> None:
        """Show what the guest printed last, which may have come together with its end."""
        if self._console is not None and select.select([self._console], [], [], 0)[0]:
            self._show(self._console, False)

    def _is_service_gone(self, console: WebSocket) -> bool:
        """Whether the console ended because the service did. Raises ``ApiError`` when we were shown out."""
        assert console.closed is not None
        if console.closed.code in _SERVICE_ENDED:
            state = reconnect(lambda: self._client.get(vm_path(self._name)))["status"]["state"]
            return state in ("running", "paused", "starting", "stopping")
        if console.closed.code == 1000:
            return False
        raise ApiError("not-allowed", console.closed.reason or "the service ended the console")


def skip(scrollback: bytes, seen: bytes) -> bytes:
    """What of a scroll-back comes after what was seen; all of it when that is no longer in it.

    The end of what was seen is enough, for the log may differ from what was shown: QEMU logs a byte that a
    full socket did not take, and logs it again when it has taken it (chardev/char.c, qemu_chr_write_buffer).
    """
    length = len(seen)
    while True:
        _, found, fresh = scrollback.rpartition(seen[-length:])
        if found:
            return fresh
        if length <= SURE_BYTES:
            return scrollback
        length = max(length // 2, SURE_BYTES)


@contextlib.contextmanager
def catch_signals() -> Iterator[int]:
    """A descriptor that becomes readable when a signal comes that would have ended us."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = {number: signal.signal(number, lambda number, frame: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(write)
    try:
        yield read
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)
