"""A QEMU that can only migrate: a QMP server on a real Unix socket, which takes real descriptors.

What it does with a state, ``behaviour`` says:

===========  =============================================================================================
``works``    writes its ``state``, or reads as many bytes
``fails``    goes half-way and says why it failed
``stalls``   goes half-way, and no further until it is told to cancel
``dies``     goes half-way and ends
``refuses``  answers the command with an error
===========  =============================================================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}
ABILITIES = ("xbzrle", "events", "x-ignore-shared", "late-block-activate")
PART_BYTES = 65536


def do_nothing(**_: Any) -> dict[str, Any]:
    """Answer a command that changes nothing here."""
    return {}


class FakeMigration:
    """Serves one client; ``done`` has what it was asked for, in order, and ``received`` what it read."""

    def __init__(
        self,
        path: Path,
        *,
        behaviour: str = "works",
        state: bytes = b"",
        abilities: tuple[str, ...] = ABILITIES,
    ) -> None:
        self.behaviour = behaviour
        self.state = state
        self.done: list[str] = []
        self.settings: dict[str, Any] = {}
        self.received = b""
        self.descriptors: dict[str, int] = {}
        self._abilities = abilities
        self._status: dict[str, str] = {}
        self._passed: list[int] = []
        self._taken: int | None = None
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self._worker: threading.Thread | None = None
        self._monitor = threading.Thread(target=self._serve, daemon=True)
        self._monitor.start()

    def close(self) -> None:
        """Wait until the client has gone and nothing of it is left."""
        self._listener.close()
        self._monitor.join(10)
        self._cancelled.set()
        if self._worker is not None:
            self._worker.join(10)
            assert not self._worker.is_alive()
        assert not self._monitor.is_alive()

    def _say(self, message: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\r\n")

    def _tell(self, status: str, **more: str) -> None:
        self._status = {"status": status, **more}
        now = time.time_ns() // 1000
        stamp = {"seconds": now // 10**6, "microseconds": now % 10**6}
        self._say({"event": "MIGRATION", "data": {"status": status}, "timestamp": stamp})

    def _serve(self) -> None:
        self._connection, _ = self._listener.accept()
        with self._connection:
            self._say(GREETING)
            for request in self._read_requests():
                self.done.append(request["execute"])
                handle = getattr(self, "_" + request["execute"].replace("-", "_"), do_nothing)
                answer = handle(**request.get("arguments", {}))
                kind = "error" if answer is None else "return"
                refusal = {"class": "GenericError", "desc": "State blocked by non-migratable device"}
                echo = {"id": request["id"]} if "id" in request else {}
                self._say({kind: refusal if answer is None else answer, **echo})
                if self._taken is not None:
                    taken, self._taken = self._taken, None
                    self._worker = threading.Thread(target=self._work, args=(taken,), daemon=True)
                    self._worker.start()
        for descriptor in self._passed:
            os.close(descriptor)

    def _read_requests(self) -> Iterator[dict[str, Any]]:
        text = ""
        while True:
            try:
                data, passed, _, _ = socket.recv_fds(self._connection, 65536, 4)
            except OSError:
                return
            if not data:
                return
            self._passed += passed
            text = (text + data.decode()).lstrip()
            while text:
                try:
                    request, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                yield request
                text = text[end:].lstrip()

    def _getfd(self, fdname: str) -> dict[str, Any]:
        self.descriptors[fdname] = self._passed.pop()
        return {}

    def _closefd(self, fdname: str) -> dict[str, Any] | None:
        if fdname not in self.descriptors:
            return None
        os.close(self.descriptors.pop(fdname))
        return {}

    def _query_migrate_capabilities(self) -> list[dict[str, Any]]:
        return [{"capability": each, "state": False} for each in self._abilities]

    def _migrate_set_capabilities(self, capabilities: list[dict[str, Any]]) -> dict[str, Any]:
        self.settings |= {each["capability"]: each["state"] for each in capabilities}
        return {}

    def _migrate_set_parameters(self, **parameters: int) -> dict[str, Any]:
        self.settings |= parameters
        return {}

    def _query_migrate(self) -> dict[str, str]:
        return self._status

    def _migrate(self, uri: str) -> dict[str, Any] | None:
        """As QEMU: a migration is under way and has its descriptor before the command is answered."""
        if self.behaviour == "refuses":
            return None
        self._taken = self.descriptors.pop(uri.removeprefix("fd:"))
        self._status = {"status": "setup"}
        return {}

    _migrate_incoming = _migrate

    def _migrate_cancel(self) -> dict[str, Any]:
        self._cancelled.set()
        return {}

    def _work(self, descriptor: int) -> None:
        os.set_blocking(descriptor, True)
        self._tell("setup")
        self._tell("active")
        try:
            self._move(descriptor, len(self.state) if self.behaviour == "works" else len(self.state) // 2)
        except BrokenPipeError:
            self._tell("failed", **{"error-desc": "broken pipe"})
            return
        finally:
            if self.behaviour == "stalls":
                self._cancelled.wait(20)
            os.close(descriptor)
        match self.behaviour:
            case "works":
                self._tell("completed")
            case "fails":
                self._tell("failed", **{"error-desc": "the moon is in the way"})
            case "stalls":
                self._tell("cancelled")
            case "dies":
                self._connection.shutdown(socket.SHUT_RDWR)

    def _move(self, descriptor: int, count: int) -> None:
        if "migrate-incoming" in self.done:
            while len(self.received) < count:
                part = os.read(descriptor, PART_BYTES)
                if not part:
                    raise BrokenPipeError
                self.received += part
            return
        for start in range(0, count, PART_BYTES):
            os.write(descriptor, self.state[start : min(start + PART_BYTES, count)])
