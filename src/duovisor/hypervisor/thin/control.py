"""The control socket: QMP, the protocol that QEMU speaks too, so that both VMMs are driven by the same code.

One client at a time; the next one waits until it has gone. Source: QEMU docs/interop/qmp-spec.rst.
"""

from __future__ import annotations

import array
import json
import os
import socket
import time

from duovisor import __version__
from duovisor.hypervisor.errors import HypervisorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from duovisor.channel.event_loop import EventLoop

    Command = Callable[[dict[str, Any]], Any]

REQUEST_MAX = 64 << 10  # characters
READ_BYTES = 16 << 10
SEND_TIMEOUT_S = 2.0
DESCRIPTORS_MAX = 8
# "package" is free text (qapi/control.json); the numbers are QEMU's, of which there is none
GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 0, "minor": 0, "micro": 0}, "package": f"duovisor {__version__}"},
        "capabilities": [],
    }
}


class ControlServer:
    """Serves ``commands`` on a listening socket; ``emit`` tells the client of an event.

    ``descriptors`` is where those go that a client sends and names with ``getfd``; they outlive it.
    """

    def __init__(
        self,
        listener: socket.socket,
        loop: EventLoop,
        commands: Mapping[str, Command],
        descriptors: dict[str, int],
    ) -> None:
        self._descriptors = descriptors
        self._listener = listener
        self._loop = loop
        self._commands = {**commands, "getfd": self._take_descriptor}
        self._client: socket.socket | None = None
        self._negotiated = False
        self._buffer = ""
        self._received: list[int] = []
        self._decoder = json.JSONDecoder()

    def start(self) -> None:
        """From now on, greet whoever connects."""
        self._listener.setblocking(False)
        self._loop.watch(self._listener.fileno(), self._accept)

    def emit(self, event: str, data: dict[str, Any]) -> None:
        """Tell the client; without one, nobody is told."""
        if self._client is not None and self._negotiated:
            now_us = time.time_ns() // 1000
            stamp = {"seconds": now_us // 1_000_000, "microseconds": now_us % 1_000_000}
            self._send({"event": event, "data": data, "timestamp": stamp})

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except BlockingIOError:
            return
        self._loop.unwatch(self._listener.fileno())
        client.settimeout(SEND_TIMEOUT_S)
        self._client, self._negotiated, self._buffer = client, False, ""
        self._loop.watch(client.fileno(), self._read)
        self._send(GREETING)

    def _drop(self) -> None:
        if self._client is not None:
            self._loop.unwatch(self._client.fileno())
            self._client.close()
            self._client = None
            while self._received:
                os.close(self._received.pop())
            self._loop.watch(self._listener.fileno(), self._accept)

    def _read(self) -> None:
        assert self._client is not None
        space = socket.CMSG_SPACE(DESCRIPTORS_MAX * 4)
        try:
            data, ancillary, *_ = self._client.recvmsg(READ_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data, ancillary = b"", []
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self._received.extend(numbers)
        self._buffer += data.decode(errors="surrogateescape")
        while (request := self._take_request()) is not None:
            self._answer(request)
        if not data or len(self._buffer) > REQUEST_MAX:
            self._drop()

    def _take_request(self) -> Any | None:
        """The next whole JSON value; requests need not end with a line. What is none ends with its line."""
        text = self._buffer.lstrip()
        try:
            request, end = self._decoder.raw_decode(text)
        except (ValueError, RecursionError):
            line, newline, rest = text.partition("\n")
            self._buffer = rest if newline else text
            return line if newline else None
        self._buffer = text[end:]
        return request if request is not None else "null"

    def _answer(self, request: Any) -> None:
        identity = None
        try:
            identity = request.get("id")
            reply = {"return": self._execute(request["execute"], request.get("arguments") or {})}
        except HypervisorError as error:
            reply = _build_error(str(error))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reply = _build_error(f"not a request: {error}")
        if identity is not None:
            reply["id"] = identity
        self._send(reply)

    def _execute(self, command: str, arguments: dict[str, Any]) -> Any:
        if command == "qmp_capabilities":
            self._negotiated = True
            return {}
        if not self._negotiated:
            raise HypervisorError("capabilities were not negotiated: qmp_capabilities comes first")
        if command not in self._commands:
            raise HypervisorError(f"there is no command {command}")
        return self._commands[command](arguments)

    def _take_descriptor(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """``getfd``: name the descriptor that came with this command."""
        if not self._received:
            raise HypervisorError("no descriptor came with getfd")
        name = str(arguments["fdname"])
        if (old := self._descriptors.pop(name, None)) is not None:
            os.close(old)
        self._descriptors[name] = self._received.pop(0)
        return {}

    def _send(self, message: dict[str, Any]) -> None:
        if self._client is None:
            return
        try:
            self._client.sendall(json.dumps(message).encode() + b"\r\n")
        except OSError:  # it has gone, or does not read
            self._drop()

    def close(self) -> None:
        """Say goodbye to the client: what was sent is delivered."""
        if self._client is not None:
            self._client.close()
        self._listener.close()


def _build_error(description: str) -> dict[str, Any]:
    return {"error": {"class": "GenericError", "desc": description}}
