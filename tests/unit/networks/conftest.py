"""Networks over a store and folders of their own, in a network namespace of its own."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from tests.networks import enter_network, run_ip, why_no_namespace

from duovisor.controlling.networks.networks import Networks
from duovisor.controlling.networks.views import get_network
from duovisor.controlling.store.memory import open_memory_store
from duovisor.controlling.vms.definitions import Definitions
from duovisor.controlling.vms.records import Autostart
from duovisor.directories import Directories
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from duovisor.controlling.networks.records import NetworkView
    from duovisor.controlling.store.interface import Store
    from duovisor.spec.vm import VirtualMachineSpec


class Host:
    """A store, folders, and the networks over them, of which there may be one life after another."""

    def __init__(self, root: Path, store: Store) -> None:
        self.store = store
        self.directories = Directories(root / "state", root / "run", root / "cache")
        self.directories.state.mkdir(exist_ok=True)
        self.told: list[str] = []
        self.networks = self.begin()

    def begin(self) -> Networks:
        """Networks as a service that starts has them."""
        return Networks(self.store, self.directories, lambda name, said: self.told.append(f"{name}: {said}"))

    async def restart(self) -> None:
        """Let go of what runs, and find it again."""
        await self.networks.close()
        self.networks = self.begin()
        report = await self.networks.recover()
        assert report.problems == ()

    async def define(self, name: str, *nics: object) -> VirtualMachineSpec:
        spec = build_spec({"name": name, "nics": list(nics)})
        await Definitions(self.store).create(spec, Autostart())
        return spec

    async def forget(self, name: str) -> None:
        definitions = Definitions(self.store)
        await definitions.delete(await definitions.get(name), None)

    async def view(self, name: str) -> NetworkView:
        return await get_network(self.networks, name)


def list_tables() -> list[str]:
    """The tables of the packet filter."""
    done = subprocess.run(["nft", "list", "tables"], check=True, capture_output=True, text=True)
    return [line.removeprefix("table ") for line in done.stdout.splitlines()]


def list_interfaces() -> list[str]:
    return [line.split(": ")[1].partition("@")[0] for line in run_ip("-oneline", "link").splitlines()]


def passes_on(interface: str) -> bool:
    return Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").read_text() == "1\n"


@pytest.fixture
def namespace() -> Iterator[None]:
    """A network namespace of this test alone, in which nothing is left."""
    if reason := why_no_namespace():
        pytest.skip(reason)
    with enter_network():
        before = (list_interfaces(), list_tables(), passes_on("br-test"))
        yield
        tables = [table for table in list_tables() if table != "bridge duovisor"]
        assert (list_interfaces(), tables, passes_on("br-test")) == before


@pytest_asyncio.fixture
async def host(namespace: None, tmp_path: Path) -> AsyncIterator[Host]:
    tmp_path.chmod(0o755)
    async with open_memory_store() as store:
        host = Host(tmp_path, store)
        yield host
        for network in await host.networks.known.read_all():
            for vm in (await host.networks.known.read_users()).get(network.id, ()):
                await host.forget(vm)
            await host.networks.delete(network.id)
        assert list((host.directories.runtime / "networks").glob("*")) == []
