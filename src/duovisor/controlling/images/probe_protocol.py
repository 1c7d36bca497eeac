"""What the host and the probe guest say to each other over the virtio-serial port, one line each.

::

    host → guest   report
    guest → host   {"event":"booted","kernel":"6.1.0-…","uptime_s":1.93,"cpus":1,"memory_mib":210,
                    "disks":[{"name":"vda","size_bytes":1073741824,"serial":"data"}],"nics":["eth0"]}
    host → guest   7 dW5hbWUgLXI=                                  number, shell command in base64
    guest → host   {"event":"done","id":7,"exit":0,"output":"Ni4xLj…"}   stdout and stderr in base64

QEMU keeps the request for the report until the guest has opened its port, so that the answer is the signal
that the guest is up. Commands run one after the other.
"""

from __future__ import annotations

import base64
from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from duovisor.controlling.images.errors import GuestProtocolError

REPORT_REQUEST = b"report\n"
LINE_BYTES_MAX = 16 << 20
_SHOWN_CHARACTERS = 80


class _Message(BaseModel):
    """Frozen; the guest may be of a newer recipe, so keys that are not known are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class GuestDisk(_Message):
    """A disk as the guest sees it."""

    name: str
    size_bytes: int
    serial: str


class BootReport(_Message):
    """The guest is up; ``uptime_s`` counts from its kernel's start to the signal."""

    event: Literal["booted"] = "booted"
    kernel: str
    uptime_s: float
    cpus: int
    memory_mib: int
    disks: tuple[GuestDisk, ...]
    nics: tuple[str, ...]

    def find_disk(self, serial: str) -> str | None:
        """The device path, ``/dev/vda`` for example, of the disk with this serial."""
        return next((f"/dev/{disk.name}" for disk in self.disks if disk.serial == serial), None)


class CommandDone(_Message):
    """A command has ended; ``output`` is what it printed, standard error among it."""

    event: Literal["done"] = "done"
    id: int
    exit: int
    output: Base64Bytes


GuestMessage = BootReport | CommandDone
_ADAPTER: TypeAdapter[GuestMessage] = TypeAdapter(Annotated[GuestMessage, Field(discriminator="event")])


def build_request(number: int, command: str) -> bytes:
    """The line that asks the guest to run a shell command."""
    return f"{number} {base64.b64encode(command.encode()).decode()}\n".encode()


def parse_message(line: bytes) -> GuestMessage:
    """Read one line of the guest; raises ``GuestProtocolError``."""
    try:
        return _ADAPTER.validate_json(line)
    except ValidationError as error:
        shown = line[:_SHOWN_CHARACTERS].decode(errors="replace").strip()
        raise GuestProtocolError(
            f"the guest said {shown!r}, which is not in its protocol",
            remedy="duovisor image build probe --force",
        ) from error
