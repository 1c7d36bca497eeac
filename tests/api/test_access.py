"""Who may do what: peers of the Unix socket, tokens, roles, and nobody else."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.api.document import DOCUMENT
from tests.api.running import Api, start_service

from duovisor.controlling.service.gate import PUBLIC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.running import RunningService

TLS = Path(__file__).parent / "tls"
ROLES = ("viewer", "operator", "administrator")
NOBODY = 65534

# every operation that a viewer may not do, and the least role that may
NEEDS = {
    "start_vm": "operator",
    "shut_vm_down": "operator",
    "stop_vm": "operator",
    "pause_vm": "operator",
    "resume_vm": "operator",
    "reset_vm": "operator",
    "update_vmm": "operator",
    "freeze_guest": "operator",
    "thaw_guest": "operator",
    "create_snapshot": "operator",
    "cancel_operation": "operator",
    "restart_driver": "operator",
    "update_driver": "operator",
    "compute_checksum": "operator",
    "download_volume": "operator",
    "create_vm": "administrator",
    "update_vm": "administrator",
    "delete_vm": "administrator",
    "rename_vm": "administrator",
    "switch_vm": "administrator",
    "reset_nvram": "administrator",
    "attach_disk": "administrator",
    "limit_disk": "operator",
    "limit_nic": "operator",
    "set_limits": "administrator",
    "set_cpus": "administrator",
    "set_memory": "administrator",
    "attach_nic": "administrator",
    "detach_disk": "administrator",
    "detach_nic": "administrator",
    "restore_snapshot": "administrator",
    "delete_snapshot": "administrator",
    "insert_medium": "administrator",
    "eject_medium": "operator",
    "build": "administrator",
    "pull_image": "administrator",
    "upload_image": "administrator",
    "instantiate": "administrator",
    "clone_vm": "administrator",
    "delete_image": "administrator",
    "create_pool": "administrator",
    "delete_pool": "administrator",
    "create_volume": "administrator",
    "clone_volume": "administrator",
    "resize_volume": "administrator",
    "upload_volume": "administrator",
    "delete_volume": "administrator",
    "create_network": "administrator",
    "delete_network": "administrator",
    "add_forward": "administrator",
    "remove_forward": "administrator",
    "list_tokens": "administrator",
    "create_token": "administrator",
    "delete_token": "administrator",
}

OPERATIONS = [
    (operation["operationId"], method.upper(), path)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    if path not in PUBLIC
]


def make_token(api: Api, name: str, role: str, **options: Any) -> str:
    """A new token's secret."""
    reply = api.post("/v1/tokens", json={"name": name, "role": role, **options})
    assert reply.status_code == 201, reply.text
    secret: str = reply.json()["token"]
    return secret


@pytest.fixture(scope="module")
def tokens(service: RunningService) -> dict[str, str]:
    with service.connect() as api:
        return {role: make_token(api, f"the-{role}", role) for role in ROLES}


def ask(client: Api, method: str, path: str) -> int:
    """The status of a request whose body means nothing, so that nothing can happen."""
    path = re.sub(r"\{\w+\}", "nobody", path)
    if path.endswith("/stream"):
        with client.stream(method, path) as reply:
            return reply.status_code
    return client.request(method, path, json={"nonsense": 1}).status_code


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("operation", "method", "path"), OPERATIONS)
def test_each_role_may_do_what_it_may_and_no_more(
    service: RunningService, tokens: dict[str, str], operation: str, method: str, path: str, role: str
) -> None:
    with service.connect(tokens[role]) as client:
        status = ask(client, method, path)
    is_allowed = ROLES.index(role) >= ROLES.index(NEEDS.get(operation, "viewer"))
    assert (status != 403) is is_allowed, status


@pytest.mark.parametrize(("operation", "method", "path"), OPERATIONS)
def test_a_wrong_token_opens_nothing(service: RunningService, operation: str, method: str, path: str) -> None:
    with service.connect("duovisor_wrong") as client:
        assert ask(client, method, path) == 401


@pytest.mark.parametrize("header", ["Bearer", "Basic cm9vdDpyb290", "bearer  x", "x"])
def test_a_header_that_is_no_token_opens_nothing(service: RunningService, header: str) -> None:
    with service.connect() as client:
        reply = client.get("/v1/vms", headers={"Authorization": header})
    assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")


def test_a_token_is_shown_once_and_stored_hashed(service: RunningService, api: Api) -> None:
    secret = make_token(api, "hidden", "viewer")
    assert len(secret) >= 43
    assert "token" not in api.get("/v1/tokens").json()["items"][0]
    stored = b"".join(path.read_bytes() for path in service.folder.joinpath("state").glob("store*"))
    assert b"hidden" in stored
    assert secret.encode() not in stored


def test_a_token_ends_when_it_expires_or_is_deleted(service: RunningService, api: Api) -> None:
    short = make_token(api, "short", "viewer", expires_in_days=1e-9)
    with service.connect(short) as client:
        assert client.get("/v1/vms").json()["code"] == "not-authenticated"
    assert next(t for t in api.get("/v1/tokens").json()["items"] if t["name"] == "short")["expired"]
    secret = make_token(api, "doomed", "viewer")
    with service.connect(secret) as client:
        assert client.get("/v1/vms").status_code == 200
        assert api.post("/v1/tokens", json={"name": "doomed", "role": "viewer"}).status_code == 409
        assert api.delete("/v1/tokens/doomed").status_code == 204
        assert client.get("/v1/vms").status_code == 401
    assert api.delete("/v1/tokens/doomed").json()["code"] == "token-not-found"


def test_the_events_name_the_token(service: RunningService, api: Api, tokens: dict[str, str]) -> None:
    with service.connect(tokens["administrator"]) as client:
        client.make_vm("made-by-token")
    events = api.get("/v1/events", params={"limit": 1000}).json()["items"]
    assert [e["actor"] for e in events if e["object"] == "vm/made-by-token"] == ["token:the-administrator"]


def test_the_socket_is_for_its_owner_and_group(service: RunningService) -> None:
    assert stat.S_IMODE(service.socket.stat().st_mode) in (0o600, 0o660)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_of_the_host_may_do_nothing(service: RunningService) -> None:
    """Even when the socket's mode lets it connect."""
    os.chmod(service.folder, 0o755)
    os.chmod(service.socket, 0o666)
    script = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(b'GET /v1/vms HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')\n"
        "print(b''.join(iter(lambda: s.recv(4096), b'')).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(service.socket)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("HTTP/1.1 403")
    assert '"code":"not-allowed"' in done.stdout


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningService, str]]:
    folder = tmp_path_factory.mktemp("https")
    shutil.copy(TLS / "key.pem", folder)
    (folder / "key.pem").chmod(0o600)  # a clone's files are for everybody
    config = (
        f'[https]\naddress = "127.0.0.1"\nport = 0\n'
        f'certificate = "{TLS / "certificate.pem"}"\nkey = "{folder / "key.pem"}"\n'
    )
    with start_service(config, folder) as service:
        found = re.search(r"https://[0-9.]+:\d+", service.log.read_text())
        assert found is not None
        yield service, found[0]


def connect_https(url: str, token: str | None) -> Api:
    return Api(
        base_url=url,
        verify=ssl.create_default_context(cafile=str(TLS / "certificate.pem")),
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )


def test_https_takes_tokens_and_nothing_else(https: tuple[RunningService, str]) -> None:
    service, url = https
    with service.connect() as local:
        token = make_token(local, "remote", "viewer")
    with connect_https(url, None) as stranger:
        assert stranger.get("/v1/vms").json()["code"] == "not-authenticated"
        assert stranger.get("/v1/health").json() == {"status": "ok"}
    with connect_https(url, token) as remote:
        assert remote.get("/v1/service").json()["who"] == "token:remote"
        assert remote.post("/v1/vms/x/start").status_code == 403


def test_https_takes_no_plain_http(https: tuple[RunningService, str]) -> None:
    url = https[1].replace("https", "http")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{url}/v1/health", timeout=60)
