"""Guests of a few bytes for the thin VMM: a file that looks like a bzImage, around code of our own."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duovisor

if TYPE_CHECKING:
    from collections.abc import Sequence

DEBUG_PORT, POWER_PORT, PANIC_PORT = 0x3F8, 0x600, 0x505
OFF, RESET = 0x34, 1
MEMORY_MIB = 32
# counts in rbx and says 'a' + count % 16 at each 4,096th
TICKING = (
    b"\x31\xdb\x48\xff\xc3\x66\xf7\xc3\xff\x0f\x75\xf6"  # xor ebx, ebx; 1: inc rbx; test bx, 4095; jnz 1b
    b"\x48\x89\xd8\x48\xc1\xe8\x0c\x24\x0f\x04\x61"  # mov rax, rbx; shr rax, 12; and al, 15; add al, 'a'
    b"\x66\xba\xf8\x03\xee\xeb\xe4"  # mov dx, 0x3f8; out dx, al; jmp 1b
)
# writes its address into each page from 2 to 34 MiB; then, again and again, compares those below 32 MiB,
# writes beside it and says 'a' + count % 16, or '!' when one is not what it was
REMEMBERING_FROM, REMEMBERING_TO, WRITTEN_TO = 2 << 20, 32 << 20, 34 << 20
REMEMBERING = (
    b"\xbf\x00\x00\x20\x00\x48\x89\x3f"  # mov edi, 2 MiB; 1: mov [rdi], rdi
    b"\x48\x81\xc7\x00\x10\x00\x00"  # add rdi, 4096
    b"\x48\x81\xff\x00\x00\x20\x02\x72\xed"  # cmp rdi, 34 MiB; jb 1b
    b"\x31\xdb\xbf\x00\x00\x20\x00"  # xor ebx, ebx; 2: mov edi, 2 MiB
    b"\x48\x39\x3f\x75\x23\x48\x89\x5f\x08"  # 3: cmp [rdi], rdi; jne 4f; mov [rdi + 8], rbx
    b"\x48\x81\xc7\x00\x10\x00\x00"  # add rdi, 4096
    b"\x48\x81\xff\x00\x00\x00\x02\x72\xe7"  # cmp rdi, 32 MiB; jb 3b
    b"\xff\xc3\x89\xd8\x24\x0f\x04\x61"  # inc ebx; mov eax, ebx; and al, 15; add al, 'a'
    b"\x66\xba\xf8\x03\xee\xeb\xd3"  # mov dx, 0x3f8; out dx, al; jmp 2b
    b"\xb0\x21\x66\xba\xf8\x03\xee\xfa\xf4\xeb\xfc"  # 4: mov al, '!'; out dx, al; cli; hlt
)
TIMEOUT_S = 120.0


def out(port: int, value: int) -> bytes:
    """mov dx, port; mov al, value; out dx, al."""
    return b"\x66\xba" + struct.pack("<H", port) + bytes((0xB0, value, 0xEE))


def say(text: str) -> bytes:
    return b"".join(out(DEBUG_PORT, byte) for byte in text.encode())


def power_off() -> bytes:
    return out(POWER_PORT, OFF)


def reset() -> bytes:
    return out(POWER_PORT + 2, RESET)


def spin() -> bytes:
    """jmp to itself."""
    return b"\xeb\xfe"


def halt() -> bytes:
    """cli; hlt, for ever."""
    return b"\xfa\xf4\xeb\xfc"


def build_image(code: bytes) -> bytes:
    """A bzImage by the boot protocol 2.15 whose 64-bit entry is ``code``."""
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1  # setup sectors beside the first
    setup[0x200:0x202] = b"\xeb\x6a"  # the jump, whose length says where the header ends
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)  # initrd_addr_max
    setup[0x234] = 1  # relocatable
    struct.pack_into("<H", setup, 0x236, 1)  # XLF_KERNEL_64
    struct.pack_into("<QI", setup, 0x258, 0x100000, 0x10000)  # preferred address, room
    return bytes(setup) + bytes(0x200) + code


class MicroVmm:
    """A thin VMM's process with such a guest; what the guest says and what the VMM tells is kept."""

    def __init__(
        self,
        folder: Path,
        code: bytes,
        *,
        cpus: int = 1,
        state: Path | None = None,
        control: str = "qmp",
        incoming: bool = False,
        kernel: Path | None = None,
        **config: Any,
    ) -> None:
        image, memory, self.path = folder / "image", folder / "memory", folder / f"{control}.sock"
        image.write_bytes(build_image(code))
        if state is None and not incoming:
            memory.write_bytes(b"")
            os.truncate(memory, MEMORY_MIB << 20)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.path.unlink(missing_ok=True)
        listener.bind(str(self.path))
        listener.listen()
        self._debug, debug = os.pipe()
        fields = {
            "name": "micro", "cpus": cpus, "cpu_model": "host", "memory_mib": MEMORY_MIB, "command_line": "",
            "devices": [], **config,
        }  # fmt: skip
        files = {"kvm": Path("/dev/kvm"), "memory": memory, "kernel": kernel or image}
        if state is not None:
            files["state"] = state
        opened = {
            name: os.open(path, os.O_RDWR if name in ("kvm", "memory") else os.O_RDONLY)
            for name, path in files.items()
        }
        inherited: dict[str, int] = {"qmp": listener.fileno(), "debug": debug, **opened}
        self.process = subprocess.Popen(
            [
                sys.executable, "-S", "-m", "duovisor.hypervisor.thin", "--config", json.dumps(fields),
                *(word for item in inherited.items() for word in ("--descriptor", "=".join(map(str, item)))),
                *(("-incoming", "defer") if incoming else ()),
            ],
            pass_fds=list(inherited.values()),
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(Path(duovisor.__file__).parents[1])},
        )  # fmt: skip
        for descriptor in (debug, *opened.values()):
            os.close(descriptor)
        listener.close()
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control.settimeout(TIMEOUT_S)
        self.control.connect(str(self.path))
        self._lines = self.control.makefile("rb")
        self.events: list[str] = []
        self.said = b""

    def greet(self) -> None:
        """Raises ``AssertionError`` with the process's last words when it ended."""
        line = self._lines.readline()
        assert line, self.last_words()
        assert "QMP" in json.loads(line)
        self.ask("qmp_capabilities")

    def ask(self, command: str, descriptors: Sequence[int] = (), **arguments: Any) -> Any:
        """Run a command; what it returns, or the text of its error."""
        line = json.dumps({"execute": command, "arguments": arguments, "id": 7}).encode() + b"\n"
        socket.send_fds(self.control, [line], list(descriptors))
        while True:
            answer = self._read_message()
            if answer.get("id") == 7:
                return answer["return"] if "return" in answer else answer["error"]["desc"]

    def wait_event(self, name: str) -> dict[str, Any]:
        """Read until the event comes; its data."""
        while True:
            message = self._read_message()
            if message.get("event") == name:
                data: dict[str, Any] = message["data"]
                return data

    def _read_message(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, f"the VMM has gone: {self.last_words()}"
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self.events.append(message["event"])
        return message

    def wait_said(self, text: bytes) -> None:
        """Wait until the guest has said ``text`` after what was waited for before."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.said:
            left = deadline - time.monotonic()
            assert select.select([self._debug], [], [], max(left, 0))[0], f"it said only {self.said!r}"
            data = os.read(self._debug, 4096)
            assert data, f"it said only {self.said!r}: {self.last_words()}"
            self.said += data
        self.said = self.said[self.said.index(text) + len(text) :]

    def read_rest(self) -> bytes:
        """All that the guest has said and nobody waited for; ends when the VMM does."""
        self.said += b"".join(iter(self.read_debug, b""))
        return self.said

    def disconnect(self) -> None:
        """Leave the control socket to another client."""
        self._lines.close()
        self.control.close()

    def read_debug(self) -> bytes:
        """What the guest says next; nothing when the VMM has gone."""
        return os.read(self._debug, 1 << 16)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)

    def last_words(self) -> str:
        self.process.wait(TIMEOUT_S)
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.disconnect()
        os.close(self._debug)
