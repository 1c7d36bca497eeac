"""Pools and volumes over REST; raw ones, for which no program is needed."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.running import Api, RunningService

MIB = 1 << 20
CONTENT = bytes(range(256)) * (3 * MIB // 256)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def volume(api: Api, name: str) -> Iterator[str]:
    """The path of a volume of 1 MiB."""
    done = api.finish(api.post("/v1/volumes", json={"name": name, "size_bytes": MIB, "format": "raw"}))
    assert (done["state"], done["object"]) == ("done", f"volume/default/{name}")
    path = f"/v1/volumes/default/{name}"
    yield path
    if api.get(path).status_code == 200:
        assert api.finish(api.delete(path))["state"] == "done"


def refuse(api: Api, method: str, path: str, **options: object) -> tuple[int, str]:
    """The status and code of a refusal, at once or by its operation."""
    reply = api.request(method, path, **options)  # type: ignore[arg-type]  # as a request has them
    if reply.status_code == 202:
        return 202, api.finish(reply)["error"]["code"]
    return reply.status_code, reply.json()["code"]


def test_a_pool_is_made_shown_and_forgotten(api: Api, service: RunningService, name: str) -> None:
    folder = service.folder / name
    made = api.post("/v1/pools", json={"name": name, "path": str(folder)})
    assert (made.status_code, made.json()["path"]) == (201, str(folder))
    assert api.get(made.headers["location"]).json()["volumes"] == 0
    assert name in [pool["name"] for pool in api.get("/v1/pools").json()["items"]]
    api.finish(api.post("/v1/volumes", json={"pool": name, "name": "a", "size_bytes": 512, "format": "raw"}))
    path = f"/v1/pools/{name}"
    assert refuse(api, "DELETE", path) == (409, "pool-in-use")
    assert api.delete(path, params={"forget": True}).status_code == 204
    assert refuse(api, "GET", path) == (404, "pool-not-found")
    assert refuse(api, "GET", f"/v1/volumes/{name}/a") == (404, "volume-not-found")
    assert (folder / "a.raw").stat().st_size == 512


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ({"path": "relative"}, "pool-refused"),
        ({"path": "/etc/passwd"}, "pool-refused"),
        ({"path": "/"}, "pool-refused"),
        ({"path": "/dev/loop0", "kind": "lvm-thin"}, "pool-refused"),
        ({"path": "/srv", "kind": "nfs"}, "pool-refused"),
        ({"path": "/tmp/x", "name": "../x"}, "request-invalid"),
    ],
)
def test_a_place_that_cannot_be_a_pool(api: Api, name: str, wanted: dict[str, str], code: str) -> None:
    reply = api.post("/v1/pools", json={"name": name, **wanted})
    assert reply.json()["code"] == code
    assert name not in [pool["name"] for pool in api.get("/v1/pools").json()["items"]]


def test_pools_lie_beside_each_other(api: Api, service: RunningService, volume: str) -> None:
    for folder in ("state/volumes/inside", "state"):
        wanted = {"name": "other", "path": str(service.folder / folder)}
        assert refuse(api, "POST", "/v1/pools", json=wanted) == (409, "pool-refused")


def test_a_volume_is_listed_grown_and_deleted(api: Api, volume: str) -> None:
    assert api.get(volume).json()["state"] == "ready"
    assert api.finish(api.post(f"{volume}/resize", json={"size_bytes": 2 * MIB}))["state"] == "done"
    (listed,) = api.get("/v1/volumes", params={"pool": "default"}).json()["items"]
    assert (listed["size_bytes"], listed["allocated_bytes"]) == (2 * MIB, 0)
    assert refuse(api, "POST", f"{volume}/resize", json={"size_bytes": MIB}) == (202, "volume-refused")
    assert api.finish(api.delete(volume))["state"] == "done"
    assert refuse(api, "DELETE", volume) == (404, "volume-not-found")


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", ".x", "x" * 64, ""])
def test_a_name_that_leaves_the_pool(api: Api, name: str) -> None:
    wanted = {"name": name, "size_bytes": MIB}
    assert refuse(api, "POST", "/v1/volumes", json=wanted) == (422, "request-invalid")
    wanted = {"name": "a", "pool": name, "size_bytes": MIB}
    assert refuse(api, "POST", "/v1/volumes", json=wanted) == (422, "request-invalid")


def test_what_was_uploaded_comes_back(api: Api, service: RunningService, name: str) -> None:
    path = f"/v1/volumes/default/{name}"
    done = api.finish(api.put(f"{path}/content", content=CONTENT, params={"sha256": SHA256, "to": "raw"}))
    assert (done["state"], done["message"]) == ("done", "3 MiB, raw")
    got = api.get(f"{path}/content")
    assert (got.content == CONTENT, "repr-digest" in got.headers) == (True, False)
    assert api.finish(api.post(f"{path}/checksum"))["message"] == f"sha256 {SHA256}"
    assert api.get(path).json()["sha256"] == SHA256
    digest = base64.b64encode(bytes.fromhex(SHA256)).decode()
    assert api.get(f"{path}/content").headers["repr-digest"] == f"sha-256=:{digest}:"
    assert api.finish(api.delete(path))["state"] == "done"


def test_an_upload_that_is_refused_leaves_nothing(api: Api, service: RunningService, name: str) -> None:
    path = f"/v1/volumes/default/{name}"
    for params, code in (({"sha256": "0" * 64}, "volume-content"), ({"format": "qcow2"}, "volume-content")):
        assert refuse(api, "PUT", f"{path}/content", content=CONTENT, params=params) == (202, code)
    chunks = iter([CONTENT])
    assert refuse(api, "PUT", f"{path}/content", content=chunks) == (422, "request-invalid")
    assert api.get(path).status_code == 404
    assert list((service.folder / "state/volumes").glob(f"*{name}*")) == []


def test_an_upload_where_a_volume_is(api: Api, volume: str) -> None:
    assert refuse(api, "PUT", f"{volume}/content", content=CONTENT) == (202, "volume-exists")
    assert api.get(volume).json()["size_bytes"] == MIB


def test_a_viewer_sees_and_takes_nothing(api: Api, service: RunningService, volume: str) -> None:
    token = api.post("/v1/tokens", json={"name": "v", "role": "viewer"}).json()["token"]
    with service.connect(token) as viewer:
        assert viewer.get(volume).status_code == 200
        for method, path in (("GET", "/content"), ("DELETE", ""), ("PUT", "/content"), ("POST", "/checksum")):
            assert viewer.request(method, volume + path).status_code == 403
    api.delete("/v1/tokens/v")
