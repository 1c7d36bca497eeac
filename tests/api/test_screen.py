"""A VM's screen: pictures, tickets, and VNC over a WebSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, unix_connect

if TYPE_CHECKING:
    from tests.api.running import Api, RunningService

VERSION, CHOICE, SHARED = b"RFB 003.008\n", b"\x01", b"\x01"
KEY = b"\x04\x01\x00\x00\x00\x00\x00\x61"
REQUEST = b"\x03\x00\x00\x00\x00\x00\x02\xd0\x01\x90"


def look(service: RunningService, path: str) -> ClientConnection:
    """As a browser does: with nothing but the address."""
    return unix_connect(str(service.socket), f"ws://duovisord{path}", subprotocols=["binary"])


def get_path(api: Api, name: str, **headers: str) -> str:
    reply = api.post(f"/v1/vms/{name}/vnc-ticket", headers=headers)
    assert reply.status_code == 201, reply.text
    path: str = reply.json()["path"]
    return path


def receive(connection: ClientConnection, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = connection.recv(timeout=60)
        assert isinstance(part, bytes)
        data += part
    return data


def test_who_has_a_ticket_sees_and_types(service: RunningService, api: Api, name: str) -> None:
    api.make_vm(name, graphics=True)
    with look(service, get_path(api, name)) as screen:
        assert screen.subprotocol == "binary"
        assert receive(screen, 12) == VERSION
        screen.send(VERSION + CHOICE + SHARED + KEY)
        assert receive(screen, 22) == VERSION + CHOICE + SHARED + KEY


def test_a_viewers_keys_go_nowhere(service: RunningService, api: Api, name: str) -> None:
    api.make_vm(name, graphics=True)
    token = api.post("/v1/tokens", json={"name": name, "role": "viewer"}).json()["token"]
    path = get_path(api, name, Authorization=f"Bearer {token}")
    with look(service, path) as screen:
        receive(screen, 12)
        screen.send(VERSION + CHOICE + SHARED + KEY + REQUEST)
        assert receive(screen, 24) == VERSION + CHOICE + SHARED + REQUEST
        screen.send(b"\x63")
        with pytest.raises(ConnectionClosed) as closed:
            screen.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "the screen knows no message 99")


def test_a_ticket_is_good_once(service: RunningService, api: Api, name: str) -> None:
    api.make_vm(name, graphics=True)
    path = get_path(api, name)
    with look(service, path):
        pass
    for wrong in (path, path.replace(name, "other"), f"/v1/vms/{name}/vnc?ticket=guessed"):
        with pytest.raises(InvalidStatus) as refused:
            look(service, wrong)
        assert refused.value.response.status_code == 401


def test_a_ticket_is_for_one_vm(service: RunningService, api: Api, name: str) -> None:
    for each in (name, f"{name}-2"):
        api.make_vm(each, graphics=True)
    path = get_path(api, name)
    with pytest.raises(InvalidStatus) as refused:
        look(service, path.replace(name, f"{name}-2"))
    assert refused.value.response.status_code == 401
    path = get_path(api, name)
    api.delete(f"/v1/vms/{name}", headers={"If-Match": "*"})
    api.make_vm(name, graphics=True)
    with pytest.raises(InvalidStatus) as refused:
        look(service, path)
    assert refused.value.response.status_code == 401


def test_it_closes_when_the_vm_ends(service: RunningService, api: Api, name: str) -> None:
    api.make_vm(name, graphics=True)
    with look(service, get_path(api, name)) as screen:
        receive(screen, 12)
        screen.send(b"Q")
        with pytest.raises(ConnectionClosed) as closed:
            screen.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


def test_pictures_and_vms_without_a_screen(api: Api, name: str) -> None:
    api.make_vm(name, graphics=True)
    picture = api.get(f"/v1/vms/{name}/screenshot")
    assert (picture.headers["content-type"], picture.content[:4]) == ("image/png", b"\x89PNG")
    api.make_vm(f"{name}-2")
    assert api.get(f"/v1/vms/{name}-2/screenshot").json()["code"] == "no-graphics"
    assert api.post(f"/v1/vms/{name}-2/vnc-ticket").json()["code"] == "no-graphics"
