"""A QEMU for the manager's tests: a real process that speaks QMP to client after client, and has no guest.

It keeps its state between connections, greets whoever is on the console, prints there when it is reset, and
ends on the power button, unless there is a file ``ignores-power`` beside the program; with ``ends-at-once``
it ends before it answers. All that it prints is in the console's log, whether or not somebody listens.

It has the devices of its command line and those that are plugged in, with what is behind them; a file
``devices.json`` beside the program tells. With ``keeps-devices`` its guest lets go of none until it is
resumed, with ``refuses-devices`` it takes none. What its guest says of each memory module that came is in
``memory-answer``: what it was told of, and how that went; without that file it took them.

It hands its state, which is none, over to another: with ``cannot-load`` that one ends with words, and with
``never-greets`` it only sleeps. ``version`` holds another version than it says otherwise.

If it has a port, the guest's agent is on it. What that is asked is in the file ``agent-asked``; there is a
file ``frozen`` while the guest is, and with ``agent-silent`` it does not answer. ``memory-offline`` has the
memory blocks that it has switched off.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[3]))  # it is run by its path

from tests.unit.vms.fake_agent import FakeAgent

BANNER = b"fake guest: login: "
RESET_MESSAGE = b"fake guest: reset\r\n"
IGNORES_POWER = "ignores-power"
ENDS_AT_ONCE = "ends-at-once"
CANNOT_LOAD = "cannot-load"
NEVER_GREETS = "never-greets"
VERSION = "version"
AGENT_ASKED = "agent-asked"
AGENT_SILENT = "agent-silent"
FROZEN = "frozen"
AGENT_PORT = "port0"
KEEPS_DEVICES = "keeps-devices"
REFUSES_DEVICES = "refuses-devices"
MEMORY_ANSWER = "memory-answer"
MEMORY_OFFLINE = "memory-offline"
DEVICES = "devices.json"
NO_SLOT = "the slot is full of dust"
NO_ROOM = "no room in the attic"
MIGRATION_CAPABILITIES = ("x-ignore-shared", "late-block-activate", "events")


FOLDER = Path(os.environ.get("FAKE_FOLDER", "/none"))


def write_fake_qemu(folder: Path) -> Path:
    """The fake as a program."""
    program = folder / "qemu-system-x86_64"
    program.write_text(f'#!/bin/sh\nFAKE_FOLDER="{folder}" exec "{sys.executable}" -S -E "{__file__}" "$@"\n')
    program.chmod(0o755)
    return program


def find_listener(name: str) -> socket.socket:
    """The listening socket that the command line names for a character device."""
    match = re.search(rf"socket,id={name},fd=(\d+),server=on", " ".join(sys.argv))
    assert match is not None, sys.argv
    return socket.socket(fileno=int(match[1]))


def find_console_log() -> int:
    """The descriptor that the command line names for the console's log."""
    match = re.search(r"-add-fd fd=(\d+),set=1 .*logfile=/dev/fdset/1,logappend=on", " ".join(sys.argv))
    assert match is not None, sys.argv
    return int(match[1])


def build_greeting() -> dict[str, Any]:
    """What a monitor says first."""
    numbers = [7, 2, 0]
    with contextlib.suppress(FileNotFoundError):
        numbers = [int(number) for number in (FOLDER / VERSION).read_text().split(".")]
    version = dict(zip(("major", "minor", "micro"), numbers, strict=True))
    return {"QMP": {"version": {"qemu": version, "package": ""}, "capabilities": []}}


def build_stream() -> bytes:
    """The state of a machine without memory and devices, as QEMU would write it."""
    number, end, footer = (2).to_bytes(4, "big"), (0x10).to_bytes(8, "big"), b"\x7e"
    description = json.dumps({"page_size": 4096, "devices": []}).encode()
    return b"".join(
        (
            b"QEVM", (3).to_bytes(4, "big"), b"\x07", (3).to_bytes(4, "big"), b"q35",
            b"\x01", number, b"\x03ram", bytes(4), (4).to_bytes(4, "big"), (4).to_bytes(8, "big"), end,
            footer, number, b"\x03", number, end, footer, number, b"\x00",
            b"\x06", len(description).to_bytes(4, "big"), description,
        )
    )  # fmt: skip


class Parts:
    """Devices and what is behind them, by the commands that add and remove each kind."""

    ADDING: ClassVar = {
        "object-add": ("objects", "id"), "blockdev-add": ("nodes", "node-name"),
        "chardev-add": ("chardevs", "id"), "netdev_add": ("netdevs", "id"), "device_add": ("devices", "id"),
    }  # fmt: skip
    REMOVING: ClassVar = {
        "object-del": ("objects", "id"), "blockdev-del": ("nodes", "node-name"),
        "chardev-remove": ("chardevs", "id"), "netdev_del": ("netdevs", "id"),
    }  # fmt: skip

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {kind: [] for kind, _ in self.ADDING.values()}
        self.modules: dict[int, int] = {}  # memory modules: their sizes in bytes, by their slots
        self.backends: dict[str, int] = {}
        self.leaving: list[str] = []
        self.limits: dict[str, list[int]] = {}
        words = " ".join(sys.argv)
        self.names["devices"] = re.findall(r"-device \S+?,id=([^, ]+)", words)
        self.names["netdevs"] = re.findall(r"-netdev \S+?,id=([^, ]+)", words)
        self.names["nodes"] = re.findall(r'"node-name": "([^"]+)"', words)
        self.names["objects"] = re.findall(r'"id": "([^"]+)"', words)
        for name, size in re.findall(r'"id": "(\S+-ram)", "size": (\d+)', words):
            self.backends[name] = int(size)
        for name, slot in re.findall(r"-device pc-dimm,\S*memdev=([^, ]+),slot=(\d+)", words):
            self.modules[int(slot)] = self.backends[name]
        self.write()

    def write(self) -> None:
        """For tests."""
        if FOLDER.is_dir():
            fresh = FOLDER / f"{DEVICES}.{os.getpid()}"
            fresh.write_text(json.dumps(self.names | {"limits": self.limits}))
            fresh.replace(FOLDER / DEVICES)

    def add(self, command: str, arguments: dict[str, Any]) -> str:
        """What is wrong with it."""
        kind, key = self.ADDING[command]
        if command == "device_add" and (FOLDER / REFUSES_DEVICES).exists():
            return NO_SLOT
        if arguments[key] in self.names[kind]:
            return f"Duplicate ID '{arguments[key]}'"
        self.names[kind].append(arguments[key])
        if arguments.get("qom-type") == "memory-backend-file":
            if os.stat(arguments["mem-path"]).st_size != arguments["size"]:
                return f"the file of {arguments[key]} has another size"
            self.backends[arguments[key]] = arguments["size"]
        if arguments.get("driver") == "pc-dimm":
            self.modules[arguments["slot"]] = self.backends[arguments["memdev"]]
        self.write()
        return ""

    def remove(self, kind: str, name: str) -> str:
        """What is wrong with it."""
        if name not in self.names[kind]:
            return f"'{name}' not found"
        users = [*self.names["devices"], *(self.names["nodes"] if kind == "objects" else ())]
        if kind != "devices" and name.partition("-")[0] in users:
            return f"'{name}' is in use"
        self.names[kind].remove(name)
        self.write()
        return ""


class FakeQemu:
    """The VMM: one monitor, one console, no guest."""

    def __init__(self) -> None:
        self.status = "prelaunch"
        self.selector = selectors.DefaultSelector()
        self.monitor: socket.socket | None = None
        self.console: socket.socket | None = None
        self.console_log = find_console_log()
        self.text = ""
        self.given: list[int] = []
        self.parts = Parts()
        self.agent = FakeAgent()
        self.agent.is_frozen = (FOLDER / FROZEN).exists()
        with contextlib.suppress(FileNotFoundError):
            self.agent.offline = {int(n) for n in (FOLDER / MEMORY_OFFLINE).read_text().split()}
        with_agent = (AGENT_PORT,) if f"id={AGENT_PORT}," in " ".join(sys.argv) else ()
        for name in ("qmp", "console", *with_agent):
            self.selector.register(find_listener(name), selectors.EVENT_READ, name)

    def serve(self) -> None:
        while True:
            for key, _ in self.selector.select():
                assert isinstance(key.fileobj, socket.socket)
                match key.data:
                    case "qmp":
                        self.monitor, self.text = key.fileobj.accept()[0], ""
                        self.selector.register(self.monitor, selectors.EVENT_READ, "request")
                        self.say(build_greeting())
                    case "console":
                        self.console = key.fileobj.accept()[0]
                        self.selector.register(self.console, selectors.EVENT_READ, "typed")
                        self.print(BANNER)
                    case "request":
                        self.read(key.fileobj)
                    case "port0":
                        self.selector.register(key.fileobj.accept()[0], selectors.EVENT_READ, "asked")
                    case "asked":
                        self.ask_agent(key.fileobj)
                    case _:
                        self.echo(key.fileobj)

    def ask_agent(self, client: socket.socket) -> None:
        data, _ = receive(client)
        if not data:
            self.selector.unregister(client)
            client.close()
            return
        answer = b"" if (FOLDER / AGENT_SILENT).exists() else self.agent.feed(data)
        (FOLDER / AGENT_ASKED).write_text("\n".join(self.agent.asked))
        if self.agent.is_frozen:
            (FOLDER / FROZEN).touch()
        else:
            (FOLDER / FROZEN).unlink(missing_ok=True)
        send(client, answer)
        if self.agent.wants_to_shut_down and not (FOLDER / IGNORES_POWER).exists():
            self.tell("SHUTDOWN", guest=True, reason="guest-shutdown")
            os._exit(0)

    def echo(self, console: socket.socket) -> None:
        data, _ = receive(console)
        if data:
            self.print(data)
        else:
            self.selector.unregister(console)
            if console is self.console:
                self.console = None

    def print(self, data: bytes) -> None:
        os.write(self.console_log, data)
        if self.console is not None:
            send(self.console, data)

    def say(self, message: dict[str, Any]) -> None:
        if self.monitor is not None:
            send(self.monitor, json.dumps(message).encode() + b"\r\n")

    def tell(self, event: str, **data: object) -> None:
        self.say({"event": event, "data": data, "timestamp": {"seconds": 0, "microseconds": 0}})

    def read(self, monitor: socket.socket) -> None:
        data, given = receive(monitor)
        self.given += given
        if not data:
            self.selector.unregister(monitor)
            if monitor is self.monitor:
                self.monitor = None
            return
        self.text = (self.text + data.decode()).lstrip()
        while self.text:
            try:
                request, end = json.JSONDecoder().raw_decode(self.text)
            except ValueError:
                return  # its end is still on the way
            self.text = self.text[end:].lstrip()
            self.answer(request)

    def answer(self, request: dict[str, Any]) -> None:
        command = request["execute"]
        if command == "system_powerdown" and (FOLDER / ENDS_AT_ONCE).exists():
            os._exit(0)  # a guest may be faster than the monitor's answer
        self.status = {"cont": "running", "stop": "paused"}.get(command, self.status)
        arguments = request.get("arguments", {})
        if wrong := self.change_parts(command, arguments):
            self.say({"error": {"class": "GenericError", "desc": wrong}, "id": request.get("id")})
            return
        self.say({"return": self.result_of(command, arguments), "id": request.get("id")})
        match command:
            case "cont":
                self.tell("RESUME")
                self.let_devices_go()
            case "device_del":
                self.parts.leaving.append(arguments["id"])
                if not (FOLDER / KEEPS_DEVICES).exists():
                    self.let_devices_go()
            case "stop":
                self.tell("STOP")
            case "system_reset":
                if self.status == "paused":
                    self.status = "prelaunch"  # as QEMU's main loop does, softmmu/runstate.c
                self.print(RESET_MESSAGE)
                self.tell("RESET")
            case "system_powerdown" if not (FOLDER / IGNORES_POWER).exists():
                self.tell("SHUTDOWN", guest=True, reason="guest-shutdown")
                os._exit(0)
            case "migrate":
                with self.open_pipe("wb") as pipe:
                    pipe.write(build_stream())
                self.tell("MIGRATION", status="completed")
            case "migrate-incoming":
                self.load()

    def change_parts(self, command: str, arguments: dict[str, Any]) -> str:
        """Add or remove a part; what is wrong with that."""
        if command in Parts.ADDING:
            return self.parts.add(command, arguments)
        if command in Parts.REMOVING:
            kind, key = Parts.REMOVING[command]
            return self.parts.remove(kind, arguments[key])
        if command == "device_del" and arguments["id"] in self.parts.leaving:
            return f"Device {arguments['id']} is already in the process of unplug"
        if command == "device_del" and arguments["id"] not in self.parts.names["devices"]:
            return f"Device '{arguments['id']}' not found"
        return ""

    def let_devices_go(self) -> None:
        """As the guest does; QEMU tells of the virtio device in it, too."""
        for device in self.parts.leaving:
            self.parts.remove("devices", device)
            self.tell("DEVICE_DELETED", path=f"/machine/peripheral/{device}/virtio-backend")
            self.tell("DEVICE_DELETED", device=device, path=f"/machine/peripheral/{device}")
        self.parts.leaving.clear()

    def list_cpus(self) -> list[dict[str, Any]]:
        """The places of processors, the last one first, as QEMU does."""
        match = re.search(r"-smp (\d+),(?:maxcpus=(\d+),)?", " ".join(sys.argv))
        assert match is not None
        places = []
        for core in range(int(match[2] or match[1])):
            place = {"props": {"core-id": core, "thread-id": 0, "socket-id": 0}, "type": "x-x86_64-cpu"}
            if core < int(match[1]) or f"cpu{core}" in self.parts.names["devices"]:
                place["qom-path"] = f"/machine/cpu{core}"
            places.append(place)
        return places[::-1]

    def result_of(self, command: str, arguments: dict[str, Any]) -> Any:
        names = self.parts.names
        match command:
            case "block_set_io_throttle":
                place = re.fullmatch(r"/machine/peripheral/(\w+)/virtio-backend", arguments["id"])
                assert place is not None, arguments
                self.parts.limits[place[1]] = [arguments["iops"], arguments["bps"]]
                self.parts.write()
            case "qom-list":
                kind = "devices" if arguments["path"] == "/machine/peripheral" else "objects"
                return [{"name": name, "type": "child<x>"} for name in names[kind]]
            case "query-hotpluggable-cpus":
                return self.list_cpus()
            case "query-memory-devices":
                sizes = self.parts.modules.items()
                return [{"type": "dimm", "data": {"slot": slot, "size": size}} for slot, size in sizes]
            case "query-acpi-ospm-status":
                answer = (FOLDER / MEMORY_ANSWER).read_text() if (FOLDER / MEMORY_ANSWER).exists() else "1 0"
                source, status = map(int, answer.split())
                free = {"slot-type": "DIMM", "source": 0, "status": 0}
                told = {"slot-type": "DIMM", "source": source, "status": status}
                slots = range(8)
                return [(told if n in self.parts.modules else free) | {"slot": str(n)} for n in slots]
            case "query-chardev":
                return [{"label": name} for name in names["chardevs"]]
            case "query-named-block-nodes":
                return [{"node-name": name, "image": {"virtual-size": 512}} for name in names["nodes"]]
            case "human-monitor-command":
                return "".join(f"{name}: index=0,type=user\r\n" for name in names["netdevs"])
            case "query-status":
                return {"status": self.status}
            case "query-named-block-nodes":
                return []
            case "query-migrate-capabilities":
                return [{"capability": name, "state": False} for name in MIGRATION_CAPABILITIES]
        return {}

    def open_pipe(self, mode: str) -> IO[bytes]:
        """The descriptor that was given last."""
        descriptor = self.given.pop()
        os.set_blocking(descriptor, True)
        return open(descriptor, mode)

    def load(self) -> None:
        """Take over from another, as one that was started with ``-incoming defer`` does."""
        if (FOLDER / CANNOT_LOAD).exists():
            os.write(2, NO_ROOM.encode())
            os._exit(1)
        with self.open_pipe("rb") as pipe:
            assert pipe.read(len(build_stream())) == build_stream()  # no end follows, as of QEMU itself
        self.status = "paused"
        self.tell("MIGRATION", status="completed")


def send(connection: socket.socket, data: bytes) -> None:
    """Send to who may be gone by now, as QEMU does."""
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """What came with which descriptors, or nothing when the other side is gone."""
    try:
        return socket.recv_fds(connection, 4096, 4)[:2]
    except ConnectionError:
        return b"", []


if __name__ == "__main__":
    if "-incoming" in sys.argv and (FOLDER / NEVER_GREETS).exists():
        time.sleep(600)
    FakeQemu().serve()
