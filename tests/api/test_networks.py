"""Networks over REST, in the service's own network namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.api.test_volumes import refuse
from tests.networks import why_no_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.running import Api

NETWORKS = "/v1/networks"

pytestmark = pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none")


def make(api: Api, name: str, **wanted: object) -> str:
    """Make a network; its path."""
    done = api.finish(api.post(NETWORKS, json={"name": name, **wanted}))
    assert (done["state"], done["object"]) == ("done", f"network/{name}"), done
    return f"{NETWORKS}/{name}"


@pytest.fixture
def network(api: Api, name: str) -> Iterator[str]:
    """The path of a NAT network."""
    path = make(api, name)
    yield path
    for vm in api.get(path).json()["vms"]:
        api.delete(f"/v1/vms/{vm}", headers={"If-Match": "*"})
    assert api.finish(api.delete(path))["state"] == "done"
    assert refuse(api, "GET", path) == (404, "network-not-found")


def add_port(api: Api, network: str, **changes: Any) -> tuple[int, str]:
    """The status, and the code of a refusal."""
    wanted = {"host_port": 2222, "vm": "has-a-card", "guest_port": 22, **changes}
    reply = api.post(f"{network}/forwards", json=wanted)
    return reply.status_code, reply.json().get("code", "")


def test_a_network_is_made_shown_and_deleted(api: Api, network: str, name: str) -> None:
    view = api.get(network).json()
    assert (view["kind"], view["state"], view["problem"]) == ("nat", "ready", "")
    assert view["server_pid"] is not None
    assert view in api.get(NETWORKS).json()["items"]
    assert refuse(api, "POST", NETWORKS, json={"name": name}) == (202, "network-exists")


def test_a_port_leads_to_a_vm(api: Api, network: str, name: str) -> None:
    api.make_vm("has-a-card", nics=[{"network": name}])
    api.make_vm("has-none")
    assert add_port(api, network) == (201, "")
    assert add_port(api, network) == (409, "forward-exists")
    assert add_port(api, network, host_port=1, vm="has-none") == (409, "network-refused")
    assert add_port(api, network, host_port=1, vm="nobody") == (404, "vm-not-found")
    assert add_port(api, network, host_port=1, host_address="x") == (422, "request-invalid")
    assert add_port(api, f"{NETWORKS}/none") == (404, "network-not-found")
    (forward,) = api.get(network).json()["forwards"]
    (lease,) = api.get(network).json()["leases"]
    assert (forward["vm"], forward["address"]) == (lease["vm"], lease["address"])
    path = f"{network}/forwards/tcp/2222"
    assert api.delete(path, params={"host_address": "10.77.0.1"}).json()["code"] == "forward-not-found"
    assert api.delete(path).status_code == 204
    assert api.get(network).json()["forwards"] == []
    api.delete("/v1/vms/has-a-card", headers={"If-Match": "*"})


@pytest.mark.parametrize(
    ("wanted", "refusal"),
    [
        ({"subnet": "10.77.0.0/24"}, (202, "subnet-refused")),
        ({"subnet": "1.2.3.0/24"}, (202, "subnet-refused")),
        ({"subnet": "a subnet"}, (202, "subnet-refused")),
        ({"kind": "bridged"}, (202, "network-refused")),
        ({"kind": "bridged", "bridge": "lo"}, (202, "network-refused")),
        ({"kind": "bridged", "bridge": "a/b"}, (422, "request-invalid")),
        ({"kind": "nat", "vlans": True}, (202, "network-refused")),
        ({"kind": "mesh"}, (422, "request-invalid")),
        ({"name": "../x"}, (422, "request-invalid")),
        ({"name": "user"}, (202, "network-refused")),
    ],
)
def test_what_is_no_network(api: Api, name: str, wanted: dict[str, object], refusal: tuple[int, str]) -> None:
    before = api.get(NETWORKS).json()
    assert refuse(api, "POST", NETWORKS, json={"name": name, **wanted}) == refusal
    assert api.get(NETWORKS).json() == before


def test_a_definition_says_nothing_that_a_start_finds(api: Api, name: str) -> None:
    for nic, code in (
        ({"network": "lan", "forward": ["1:2"]}, "request-invalid"),
        ({"vlan": 4}, "request-invalid"),
        ({"network": "lan", "vlan": 4095}, "request-invalid"),
        ({"network": "lan", "firewall": ["in tcp 99999"]}, "request-invalid"),
    ):
        reply = api.post("/v1/vms", json={"spec": {"name": name, "nics": [nic]}})
        assert reply.json()["code"] == code, reply.text
