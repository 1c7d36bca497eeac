"""A client of the service that is killed: it makes and deletes a network, and knows what it was told."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from bench.kill_clients import POLL_S, UNDER_WAY, BaseClient

from duovisor.client.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.kill_clients import Pause
    from bench.kill_ledger import Ledger
    from bench.service_process import ServiceProcess

NETWORKS = "/v1/networks"
PREFIX = "dv-"
# with a server and an address; and a bridge alone
KINDS: tuple[dict[str, Any], ...] = ({"kind": "nat"}, {"kind": "isolated", "dhcp": False})
EXPECTED = frozenset({"operation-interrupted"})
REST_S = (0.0, 0.3)


class NetworkClient(BaseClient):
    """One that has a network of its own.

    ``may_be`` holds whether its network may be there: both, while an answer is missing.
    """

    what = "a client of networks"

    def __init__(self, service: ServiceProcess, ledger: Ledger, pause: Pause, seed: int, name: str) -> None:
        super().__init__(service, ledger, pause, f"{seed}-{name}")
        self.name = name
        self.may_be = {False}

    def judge(self, networks: Mapping[str, Any]) -> list[str]:
        """What is not as this client was told; afterwards, what is there is what it knows."""
        is_there = self.name in networks
        found = (
            [] if is_there in self.may_be else [f"network {self.name}: there {is_there}, not {self.may_be}"]
        )
        self.may_be = {is_there}
        return found

    def _act(self) -> None:
        (is_there,) = self.may_be
        self.may_be = {True, False}
        if is_there:
            operation = self._send("DELETE", f"{NETWORKS}/{self.name}")
        else:
            operation = self._send("POST", NETWORKS, {"name": self.name, **self._random.choice(KINDS)})
        self._ledger.accepted(operation)
        while operation["state"] in UNDER_WAY:
            time.sleep(POLL_S)
            operation = self._send("GET", f"/v1/operations/{operation['id']}")
        self._ledger.finished(operation)
        if operation["state"] == "done":
            self.may_be = {not is_there}
        elif operation["error"]["code"] not in EXPECTED:
            self._ledger.report(f"{operation['action']} of {self.name} failed: {operation['error']}")
        if len(self.may_be) > 1:  # only the next service knows
            self._connection.close()
            self._pause.wait()
        time.sleep(self._random.uniform(*REST_S))


def read_networks(connection: Any) -> dict[str, Any]:
    """The service's networks by name."""
    return {each["name"]: each for each in connection.request("GET", NETWORKS).document["items"]}


def find_network_faults(networks: Mapping[str, Any]) -> list[str]:
    """Where the service's networks and this host's bridges differ, one line each."""
    found = [
        f"network {name} is {each['state']}: {each['problem']}"
        for name, each in networks.items()
        if each["state"] != "ready"
    ]
    bridges = {name for _, name in socket.if_nameindex() if name.startswith(PREFIX)}
    wanted = {each["interface"] for each in networks.values()}
    return found + ([] if bridges == wanted else [f"bridges {bridges}, networks {wanted}"])


def delete_networks(connection: Any) -> None:
    """Delete all of them."""
    for name in read_networks(connection):
        operation = connection.request("DELETE", f"{NETWORKS}/{name}").document
        while operation["state"] in UNDER_WAY:
            time.sleep(POLL_S)
            operation = connection.request("GET", f"/v1/operations/{operation['id']}").document
        if operation["state"] != "done":
            raise ApiError(operation["error"]["code"], operation["error"]["message"])
