"""When a guest is asked through its agent, and what is done where none answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.vms.fake_host import build_vm
from tests.unit.vms.fake_qemu import AGENT_ASKED, AGENT_SILENT, FROZEN, IGNORES_POWER

from duovisor.controlling.agent import client
from duovisor.controlling.agent.errors import AgentSilentError
from duovisor.controlling.vms.errors import ShutdownTimeoutError
from duovisor.controlling.vms.records import Autostart
from duovisor.hypervisor.errors import WrongStateError
from duovisor.hypervisor.lifecycle import State

if TYPE_CHECKING:
    from tests.unit.vms.conftest import Host

    from duovisor.controlling.vms.manager import VmManager


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SYNC_S", "REFUSAL_S"):
        monkeypatch.setattr(client, name, 0.3)


def asked(host: Host) -> list[str]:
    try:
        return (host.root / AGENT_ASKED).read_text().splitlines()
    except FileNotFoundError:
        return []


async def start(manager: VmManager, **document: Any) -> None:
    await manager.create(build_vm(**{"guest_agent": True, **document}), Autostart())
    await manager.start("vm")


async def test_a_guest_is_shut_down_by_its_agent(host: Host, manager: VmManager) -> None:
    await start(manager)
    assert (await manager.read_guest("vm")).hostname == "web"
    said: list[str] = []
    await manager.shutdown("vm", 20, lambda percent, message: said.append(message))
    assert (await manager.get("vm")).status.state is State.STOPPED
    assert asked(host)[-1] == "guest-shutdown"
    assert said == ["the guest's agent was asked", "stopped"]


async def test_where_no_agent_answers_the_power_button_is_pressed(host: Host, manager: VmManager) -> None:
    (host.root / AGENT_SILENT).touch()
    await start(manager)
    with pytest.raises(AgentSilentError, match=r"the agent of vm did not answer within 0\.3 s"):
        await manager.read_guest("vm")
    said: list[str] = []
    await manager.shutdown("vm", 20, lambda percent, message: said.append(message))
    assert said[0].startswith("the agent of vm did not answer")
    assert said[1:] == ["power button pressed", "stopped"]


async def test_a_guest_that_only_says_yes_has_the_button_pressed_too(host: Host, manager: VmManager) -> None:
    (host.root / IGNORES_POWER).touch()
    await start(manager)
    said: list[str] = []
    with pytest.raises(ShutdownTimeoutError):
        await manager.shutdown("vm", 2, lambda percent, message: said.append(message))
    assert said == ["the guest's agent was asked", "power button pressed"]
    assert (await manager.get("vm")).status.state is State.RUNNING


async def test_a_vm_without_an_agent_says_so(manager: VmManager) -> None:
    await start(manager, guest_agent=False)
    with pytest.raises(AgentSilentError) as caught:
        await manager.read_guest("vm")
    assert caught.value.remedy == "duovisor vm edit vm --set guest_agent=true"
    await manager.stop("vm")
    with pytest.raises(WrongStateError):
        await manager.read_guest("vm")


async def test_a_paused_guest_is_not_asked_and_its_clock_is_set_after(host: Host, manager: VmManager) -> None:
    await start(manager)
    await manager.pause("vm")
    with pytest.raises(WrongStateError, match="cannot ask the guest of vm: it is paused"):
        await manager.read_guest("vm")
    await manager.resume("vm")
    async with asyncio.timeout(10):
        while "guest-set-time" not in asked(host):
            await asyncio.sleep(0.02)


async def test_file_systems_are_frozen_and_thawed(host: Host, manager: VmManager) -> None:
    await start(manager)
    said: list[str] = []
    await manager.freeze("vm", 60, lambda percent, message: said.append(message))
    assert (host.root / FROZEN).exists()
    await manager.thaw("vm", lambda percent, message: said.append(message))
    assert not (host.root / FROZEN).exists()
    assert said == ["2 file systems are frozen", "2 file systems are thawed"]
    assert [kind for kind in host.kinds if kind in ("frozen", "thawed")] == ["frozen", "thawed"]


async def test_nobody_stays_frozen_for_longer_than_was_asked_for(host: Host, manager: VmManager) -> None:
    await start(manager)
    await manager.freeze("vm", 0.1)
    await host.wait_for("thawed")
    assert not (host.root / FROZEN).exists()


async def test_what_a_killed_service_had_frozen_its_successor_thaws(host: Host) -> None:
    async with host.managed() as manager:
        await start(manager)
        await manager.freeze("vm", 60)
    assert (host.root / FROZEN).exists()
    async with host.managed():
        await host.wait_for("thawed")
        assert not (host.root / FROZEN).exists()
