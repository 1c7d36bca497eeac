"""A VMM that speaks QMP and runs no guest: a real process, started through a real plan's command line.

It serves on the listening socket it inherits for ``-chardev socket,id=qmp,fd=N,…``, and prints ``PRINTED``
into the console's log whenever it is told to run. Its first argument says how it behaves:

==================  ======================================================================================
``works``           answers as QEMU does; the power button ends it
``dies``            ends with words on standard error before it looks at its socket
``dies-connected``  accepts a connection, then ends with words and without a greeting
``dies-at-cont``    greets, and ends with words when it is told to run
``brief``           ends at once when it is told to run, as by a guest that switches itself off
``silent``          lives, and never greets
``deaf``            greets, and never answers a command
``refuses``         answers ``cont`` with an error
``ignores``         answers the power button and goes on
``garbage``         greets with something that is no JSON
==================  ======================================================================================
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

PRINTED = b"the guest runs\r\n"
WORDS = "first words\nqemu: could not open the moon\n"
GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}
# what QEMU reports when a command has been carried out
EVENTS = {
    "cont": ["RESUME"],
    "stop": ["STOP"],
    "system_reset": ["RESET"],
    "system_powerdown": ["POWERDOWN", "SHUTDOWN"],
    "quit": ["SHUTDOWN"],
}


def die() -> None:
    """End as QEMU does at a fatal error."""
    sys.stderr.write(WORDS)
    sys.exit(1)


def echo_id(request: dict[str, Any]) -> dict[str, Any]:
    """The request's identifier, which it may lack."""
    return {"id": request["id"]} if "id" in request else {}


def find_listener(argv: list[str]) -> socket.socket:
    """The socket that the command line names for QMP."""
    match = re.search(r"socket,id=qmp,fd=(\d+),server=on", " ".join(argv))
    assert match is not None, argv
    return socket.socket(fileno=int(match[1]))


def log_console(argv: list[str], data: bytes) -> None:
    """Write into the console's log, as QEMU does whether or not somebody listens."""
    match = re.search(r"-add-fd fd=(\d+),set=1 .*logfile=/dev/fdset/1,logappend=on", " ".join(argv))
    assert match is not None, argv
    os.write(int(match[1]), data)


class Monitor:
    """One QMP connection."""

    def __init__(self, behaviour: str, connection: socket.socket) -> None:
        self._behaviour = behaviour
        self._connection = connection
        self._status = "prelaunch"

    def say(self, message: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\r\n")

    def serve(self) -> None:
        """Answer until a command ends the VMM or the connection."""
        self.say(GREETING)
        for request in self._read_requests():
            if self._behaviour != "deaf" or request["execute"] == "qmp_capabilities":
                self._answer(request)

    def _read_requests(self) -> Iterator[dict[str, Any]]:
        """The peer's JSON objects; nothing need stand between two of them."""
        text = ""
        while data := self._connection.recv(4096):
            text = (text + data.decode()).lstrip()
            while text:
                try:
                    request, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break  # its end is still on the way
                yield request
                text = text[end:].lstrip()

    def _answer(self, request: dict[str, Any]) -> None:
        command = request["execute"]
        if command == "cont" and self._behaviour == "dies-at-cont":
            die()
        if command == "cont" and self._behaviour == "refuses":
            self.say({"error": {"class": "GenericError", "desc": "not today"}, **echo_id(request)})
            return
        self._status = {"cont": "running", "stop": "paused"}.get(command, self._status)
        self.say({"return": self._return(command), **echo_id(request)})
        if command == "cont":
            log_console(sys.argv, PRINTED)
        for event in EVENTS.get(command, ()):
            if event == "SHUTDOWN" and self._behaviour == "ignores" and command != "quit":
                return
            data = {"guest": command == "system_powerdown", "reason": "x"} if event == "SHUTDOWN" else {}
            self.say({"event": event, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})
            if event == "SHUTDOWN":
                sys.exit(0)
        if command == "cont" and self._behaviour == "brief":
            self._answer({"execute": "quit"})

    def _return(self, command: str) -> dict[str, Any]:
        return (
            {"status": self._status, "running": self._status == "running"}
            if command == "query-status"
            else {}
        )


def main() -> None:
    """Behave."""
    behaviour = sys.argv[1]
    if behaviour == "dies":
        die()
    listener = find_listener(sys.argv)
    if behaviour == "silent":
        time.sleep(600)
    while True:
        connection, _ = listener.accept()
        if behaviour == "dies-connected":
            die()
        if behaviour == "garbage":
            connection.sendall(b"220 this is a mail server\r\n")
            time.sleep(600)
        Monitor(behaviour, connection).serve()


if __name__ == "__main__":
    main()
