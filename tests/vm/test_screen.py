"""A real screen: firmware's own, no system is booted. A picture, VNC by ticket, a key, and a move."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.vm.service_host import ANY
from websockets.sync.client import unix_connect

from duovisor.client.service import vm_path
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.vm.service_host import ServiceHost
    from websockets.sync.client import ClientConnection

pytestmark = pytest.mark.vm

OTHER = {Design.MONOLITHIC: Design.MICROKERNELIZED, Design.MICROKERNELIZED: Design.MONOLITHIC}
BYTES_PER_PIXEL = 4
RAW = 0  # RFC 6143, 7.7.1


class Viewer:
    """A VNC client, as much of one as sees a screen: RFC 6143."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._pending = b""
        assert self.read(12) == b"RFB 003.008\n"
        connection.send(b"RFB 003.008\n")
        assert 1 in self.read(self.read(1)[0])  # no security: the ticket was it
        connection.send(b"\x01")
        assert self.read(4) == bytes(4)
        connection.send(b"\x01")
        self.width, self.height = struct.unpack(">HH", self.read(4))
        bits = self.read(16)[0]
        assert bits == 8 * BYTES_PER_PIXEL
        self.name = self.read(*struct.unpack(">I", self.read(4))).decode()
        connection.send(struct.pack(">BxHi", 2, 1, RAW))

    def read(self, count: int) -> bytes:
        while len(self._pending) < count:
            part = self._connection.recv(timeout=120)
            assert isinstance(part, bytes)
            self._pending += part
        data, self._pending = self._pending[:count], self._pending[count:]
        return data

    def type(self, key: int) -> None:
        for down in (1, 0):
            self._connection.send(struct.pack(">BBxxI", 4, down, key))

    def look(self) -> bytes:
        """The pixels of all rectangles of one update of the whole screen."""
        self._connection.send(struct.pack(">BBHHHH", 3, 0, 0, 0, self.width, self.height))
        assert self.read(1) == b"\x00"
        pixels = b""
        for _ in range(struct.unpack(">xH", self.read(3))[0]):
            _, _, width, height, encoding = struct.unpack(">HHHHi", self.read(12))
            assert encoding == RAW
            pixels += self.read(width * height * BYTES_PER_PIXEL)
        return pixels


@contextmanager
def looking_at(host: ServiceHost, name: str) -> Iterator[Viewer]:
    with host.connect() as client:
        path = client.request("POST", f"{vm_path(name)}/vnc-ticket").document["path"]
    with unix_connect(str(host.endpoint.socket), f"ws://duovisord{path}", max_size=None) as connection:
        yield Viewer(connection)


@pytest.mark.parametrize("design", Design)
def test_a_firmwares_screen(host: ServiceHost, design: Design) -> None:
    spec = {"name": "web", "design": design, "memory_mib": 64, "accelerator": "tcg", "graphics": True}
    with host.connect() as client:
        client.request("POST", "/v1/vms", {"spec": spec})
        client.follow(client.act("web", "start"))
        with looking_at(host, "web") as viewer:
            assert (viewer.width > 300, viewer.height > 200) == (True, True)
            while not any(viewer.look()):  # SeaBIOS says who it is as soon as it has set the card up
                pass
            viewer.type(ord("a"))
        picture = client.request("GET", f"{vm_path('web')}/screenshot").body
        assert picture.startswith(b"\x89PNG")
        host.kill_and_restart()
        client.close()
        with looking_at(host, "web") as viewer:
            assert any(viewer.look())
        client.follow(client.act("web", "switch", {"design": OTHER[design]}))
        with looking_at(host, "web") as viewer:
            assert any(viewer.look())
        client.follow(client.act("web", "stop"))
        client.request("DELETE", vm_path("web"), headers=ANY)
