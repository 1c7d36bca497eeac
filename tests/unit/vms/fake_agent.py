"""The agent of a guest without a guest: bytes in, bytes out. Imports nothing but the standard library.

Like qemu-ga it answers no shutdown that it begins, and refuses all but a few commands while frozen.
"""

from __future__ import annotations

import json
from typing import Any

WHILE_FROZEN = ("guest-sync-delimited", "guest-fsfreeze-status", "guest-fsfreeze-thaw", "guest-info")
INTERFACES = [
    {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "prefix": 8}]},
    {
        "name": "eth0",
        "hardware-address": "52:54:00:12:34:56",
        "ip-addresses": [{"ip-address": "192.0.2.7", "prefix": 24}, {"ip-address": "fe80::1", "prefix": 64}],
    },
]
CAN_BE_ONLINE = {0, 1, 2}
ANSWERS: dict[str, Any] = {
    "guest-info": {"version": "7.2.22", "supported_commands": []},
    "guest-get-host-name": {"host-name": "web"},
    "guest-get-osinfo": {"pretty-name": "Debian GNU/Linux 12 (bookworm)", "kernel-release": "6.1.0-1"},
    "guest-network-get-interfaces": INTERFACES,
    "guest-set-time": {},
}


class FakeAgent:
    """``asked`` are the commands that it got, ``was_told`` is what came with each."""

    def __init__(self) -> None:
        self.is_frozen = False
        self.wants_to_shut_down = False
        self.asked: list[str] = []
        self.was_told: dict[str, Any] = {}
        self.answers = dict(ANSWERS)
        self.offline: set[int] = set()
        self._text = b""

    def feed(self, data: bytes) -> bytes:
        """The answer to what came."""
        self._text += data
        said = b""
        while b"\n" in self._text:
            line, _, self._text = self._text.partition(b"\n")
            said += self._answer(json.loads(line.rpartition(b"\xff")[2]))
        return said

    def _answer(self, request: dict[str, Any]) -> bytes:
        command, told = request["execute"], request.get("arguments", {})
        self.asked.append(command)
        self.was_told[command] = told
        if command == "guest-sync-delimited":
            return b"\xff" + _line({"return": told["id"]})
        if self.is_frozen and command not in WHILE_FROZEN:
            return _refuse(f"Command {command} has been disabled: frozen")
        match command:
            case "guest-shutdown":
                self.wants_to_shut_down = True
                return b""
            case "guest-fsfreeze-status":
                return _line({"return": "frozen" if self.is_frozen else "thawed"})
            case "guest-fsfreeze-freeze" | "guest-fsfreeze-thaw":
                self.is_frozen = command.endswith("freeze")
                return _line({"return": 2})
            case "guest-get-memory-blocks":
                blocks = [{"phys-index": n, "online": n not in self.offline} for n in range(4)]
                return _line({"return": blocks})
            case "guest-set-memory-blocks":
                self.offline -= {each["phys-index"] for each in told["mem-blks"]} & CAN_BE_ONLINE
                return _line({"return": []})
        if command in self.answers:
            return _line({"return": self.answers[command]})
        return _refuse(f"The command {command} has not been found")


def _line(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply).encode() + b"\n"


def _refuse(description: str) -> bytes:
    return _line({"error": {"class": "GenericError", "desc": description}})
