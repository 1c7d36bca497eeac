"""A screen over QMP: what is handed to the VMM, and what is left when it refuses."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, cast

import pytest

from duovisor.hypervisor.errors import QmpError
from duovisor.hypervisor.screen import PNG, open_screen, take_picture

if TYPE_CHECKING:
    from duovisor.hypervisor.qmp import Qmp


class FakeVmm:
    """Takes descriptors as QEMU does; ``draws`` is what it makes of a screen, None: it refuses."""

    name = "web"

    def __init__(self, draws: bytes | None = PNG + b"picture") -> None:
        self.draws = draws
        self.named: dict[str, int] = {}
        self.sets: dict[int, int] = {}
        self.clients: list[int] = []

    async def getfd(self, name: str, descriptor: int) -> None:
        self.named[name] = os.dup(descriptor)

    async def add_fd(self, fdset: int, descriptor: int) -> None:
        self.sets[fdset] = os.dup(descriptor)

    async def execute(self, command: str, **arguments: Any) -> Any:
        match command:
            case "add_client":
                assert (arguments["protocol"], arguments["skipauth"]) == ("vnc", True)
                self.clients.append(self.named.pop(arguments["fdname"]))
            case "screendump":
                if self.draws is None:
                    raise QmpError("it has no screen")
                os.write(self.sets[int(arguments["filename"].removeprefix("/dev/fdset/"))], self.draws)
            case "remove-fd":
                os.close(self.sets.pop(arguments["fdset-id"]))
        return {}

    def as_qmp(self) -> Qmp:
        return cast("Qmp", self)


async def test_each_viewer_has_a_connection_of_its_own() -> None:
    vmm = FakeVmm()
    with await open_screen(vmm.as_qmp()) as one, await open_screen(vmm.as_qmp()) as two:
        for number, (mine, theirs) in enumerate(zip((one, two), vmm.clients, strict=True)):
            with socket.socket(fileno=theirs) as server:
                server.sendall(bytes([number]))
                assert mine.recv(1) == bytes([number])
    assert vmm.named == {}


async def test_a_picture_leaves_no_descriptor() -> None:
    vmm = FakeVmm()
    assert await take_picture(vmm.as_qmp()) == PNG + b"picture"
    assert vmm.sets == {}


@pytest.mark.parametrize("draws", [None, b"", b"GIF89a"])
async def test_a_vmm_that_draws_none_is_an_error_and_nothing_is_left(draws: bytes | None) -> None:
    vmm = FakeVmm(draws)
    with pytest.raises(QmpError):
        await take_picture(vmm.as_qmp())
    assert vmm.sets == {}
