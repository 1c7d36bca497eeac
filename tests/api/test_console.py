"""The console over a WebSocket: several viewers, typing, detaching."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, unix_connect

if TYPE_CHECKING:
    from tests.api.running import Api, RunningService


def attach(service: RunningService, name: str, token: str | None = None) -> ClientConnection:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return unix_connect(
        str(service.socket), f"ws://duovisord/v1/vms/{name}/console", additional_headers=headers
    )


def test_several_viewers_see_the_same_and_one_may_leave(service: RunningService, api: Api, name: str) -> None:
    api.make_vm(name)
    prompt = f"{name} login: ".encode()
    with attach(service, name) as one:
        assert one.recv(timeout=60) == prompt
        with attach(service, name) as two:
            assert two.recv(timeout=60) == prompt
            one.send(b"root")
            assert one.recv(timeout=60) == two.recv(timeout=60) == b"ROOT"
        one.send("!")  # as text
        assert one.recv(timeout=60) == b"!"
    log = api.get(f"/v1/vms/{name}/console/log")
    assert log.content == prompt + b"ROOT!"
    assert api.get(f"/v1/vms/{name}/console/log", params={"max_bytes": 5}).content == b"ROOT!"


def test_a_viewer_watches_and_may_not_type(service: RunningService, api: Api, name: str) -> None:
    api.make_vm(name)
    token = api.post("/v1/tokens", json={"name": name, "role": "viewer"}).json()["token"]
    with attach(service, name, token) as viewer:
        viewer.recv(timeout=60)
        viewer.send(b"rm -rf /")
        with pytest.raises(ConnectionClosed) as closed:
            viewer.recv(timeout=60)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, f"token:{name} may only watch")
    assert b"RM" not in api.get(f"/v1/vms/{name}/console/log").content


@pytest.mark.parametrize(
    ("vm", "token", "status", "code"),
    [("nobody", None, 404, "vm-not-found"), ("nobody", "wrong", 401, "not-authenticated")],
)
def test_a_refusal_has_the_shape_of_every_error(
    service: RunningService, vm: str, token: str | None, status: int, code: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        attach(service, vm, token)
    assert refused.value.response.status_code == status
    assert f'"code":"{code}"'.encode() in (refused.value.response.body or b"")


def test_a_deleted_token_no_longer_sees_what_is_printed(service: RunningService, api: Api, name: str) -> None:
    api.make_vm(name)
    token = api.post("/v1/tokens", json={"name": name, "role": "viewer"}).json()["token"]
    with attach(service, name, token) as viewer, attach(service, name) as operator:
        viewer.recv(timeout=60)
        api.delete(f"/v1/tokens/{name}")
        operator.send(b"secret")
        with pytest.raises(ConnectionClosed):
            viewer.recv(timeout=60)
