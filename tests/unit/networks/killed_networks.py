"""Kills networks with -9 at step after step of their lives, and looks at what the next ones make of it.

A program: ``python -m tests.unit.networks.killed_networks FOLDER FIRST EVERY``. It prints one JSON object:
how many were ``killed``, ``kinds`` of recovery seen, ``violations`` (``tests.unit.killing``).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.networks import BRIDGE, enter_network
from tests.unit.killing import KillTrials, Steps
from tests.unit.networks.conftest import list_interfaces, list_tables, passes_on

from duovisor.controlling.networks.documents import Forward
from duovisor.controlling.networks.networks import Networks
from duovisor.controlling.networks.records import NetworkKind, NetworkState, Wanted
from duovisor.controlling.networks.views import list_networks
from duovisor.directories import Directories
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

MAC = "52:54:00:00:00:01"
FORWARD = Forward(protocol="tcp", host_address=None, host_port=2222, mac=MAC, guest_port=22)
WEB = build_spec({"name": "web", "nics": [{"network": "lan", "mac": MAC}]})


class Trials(KillTrials):
    """One host on which networks are killed."""

    def __init__(self, root: Path) -> None:
        self.directories = Directories(root / "state", root / "run", root / "cache")
        self.directories.state.mkdir(parents=True)
        self.folder = self.directories.runtime / "networks"
        super().__init__(root, self.directories.state)
        self.before = self.look()

    def look(self) -> dict[str, object]:
        """What networks change on a host."""
        return {
            "interfaces": list_interfaces(),
            "tables": list_tables(),
            "passes on": passes_on(BRIDGE),
            "servers": list(find_servers()),
        }

    def open_networks(self, store: object) -> Networks:
        return Networks(store, self.directories, lambda name, said: None)  # type: ignore[arg-type]  # a store

    async def live(self, steps: Steps) -> None:
        """The lives of some networks, with a note of what was acknowledged."""
        async with self.open_store(steps) as store:
            networks = self.open_networks(store)
            await networks.recover()
            await networks.create("lan", Wanted(kind=NetworkKind.NAT))
            self.acknowledged.write_text("lan")
            await networks.create("quiet", Wanted(kind=NetworkKind.ISOLATED, dhcp=False))
            self.acknowledged.write_text("lan quiet")
            await networks.place(WEB)
            await networks.add_forward("lan", FORWARD, "web")
            self.acknowledged.write_text("lan quiet +")
            await networks.remove_forward("lan", "tcp", 2222, None)
            for name, left in (("quiet", "lan"), ("lan", "")):
                self.acknowledged.write_text(left)
                await networks.delete(name)
            await networks.close()

    async def recover(self, step: int) -> None:
        """What the next ones make of it."""
        async with self.open_store() as store:
            networks = self.open_networks(store)
            report = await networks.recover()
            self.kinds.update(what for what, names in report._asdict().items() if names)
            self.violations += [f"step {step}: {line}" for line in report.problems]
            found = {view.name: view for view in await list_networks(networks)}
            promised = set(self.acknowledged.read_text().split())
            if lost := promised - {"+"} - set(found):
                self.violations.append(f"step {step}: {lost} were there and are not")
            for view in found.values():
                if view.state is not NetworkState.READY:
                    self.violations.append(f"step {step}: {view.name}: {view.state} {view.problem}")
            servers = sorted(find_servers())
            if servers != sorted(view.interface for view in found.values() if view.dhcp):
                self.violations.append(f"step {step}: servers of {servers}")
            for name in found:
                await networks.delete(name)
            left = self.look()
            if left != self.before:
                self.violations.append(f"step {step}: {left} is left, not {self.before}")
            if self.folder.exists() and any(self.folder.iterdir()):
                self.violations.append(f"step {step}: {list(self.folder.iterdir())} are left")


def find_servers() -> Iterator[str]:
    """The interfaces that servers in this network namespace are for, but for their sandboxes' keepers."""
    here = os.readlink("/proc/thread-self/ns/net")
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = path.joinpath("cmdline").read_bytes().decode().split("\0")
            if words[0].endswith("/dnsmasq") and os.readlink(path / "ns/net") == here:
                yield next(word for word in words if word.startswith("--interface=")).partition("=")[2]


def main() -> None:
    """Run trials until a life is over before its step comes."""
    importlib.import_module("pyroute2")  # its files would be steps of each life
    with enter_network():
        outcome = Trials(Path(sys.argv[1])).run(int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
