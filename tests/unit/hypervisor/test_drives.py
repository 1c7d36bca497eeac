"""Changing the medium of a drive: the steps, and what is left when one fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from duovisor.hypervisor import drives
from duovisor.hypervisor.drives import TrayLockedError, eject, insert
from duovisor.hypervisor.errors import QmpError
from duovisor.hypervisor.qemu.cdroms import build_medium
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.hypervisor.qmp import Qmp


class FakeDrive:
    """A VMM with one drive, as far as QMP shows it.

    ``locked``: so many requests until the guest lets go; ``shuts``: so often it shuts the tray by itself.
    """

    name = "vm"

    def __init__(self, *nodes: str, locked: int = 0, shuts: int = 0, broken: str = "") -> None:
        self.nodes = set(nodes)
        self.inside = nodes[0] if nodes else ""
        self.is_open = False
        self.locked = locked
        self.shuts = shuts
        self.broken = broken

    async def query_node_sizes(self) -> dict[str, int]:
        return dict.fromkeys(self.nodes, 0)

    async def execute(self, command: str, **arguments: Any) -> None:
        if command == self.broken:
            raise QmpError(f"{command} does not work")
        match command:
            case "blockdev-open-tray":
                if self.inside and self.locked and not arguments.get("force"):
                    self.locked -= 1
                    raise QmpError("Device 'cdrom0' is locked and force was not specified")
                self.is_open = True
            case "blockdev-close-tray":
                self.is_open = False
            case "blockdev-remove-medium" | "blockdev-insert-medium" if self.shuts:
                self.shuts, self.is_open = self.shuts - 1, False
                raise QmpError("Tray of device 'cdrom0' is not open")
            case "blockdev-remove-medium":
                assert self.is_open
                self.inside = ""
            case "blockdev-add":
                self.nodes.add(arguments["node-name"])
            case "blockdev-insert-medium":
                assert self.is_open
                assert not self.inside
                self.inside = arguments["node-name"]
            case "blockdev-del":
                assert self.inside != arguments["node-name"]
                self.nodes.remove(arguments["node-name"])
            case _:
                raise AssertionError(command)


def as_qmp(drive: FakeDrive) -> Qmp:
    return cast("Qmp", drive)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drives, "OPEN_S", 0.2)
    monkeypatch.setattr(drives, "RETRY_S", 0.01)


MEDIUM = build_medium(Design.MONOLITHIC, 0, "/srv/disc.iso")


async def test_a_medium_is_changed() -> None:
    drive = FakeDrive("cdrom0-medium")
    await eject(as_qmp(drive), "cdrom0", "cdrom0-medium", force=False)
    assert (drive.nodes, drive.inside, drive.is_open) == (set(), "", False)
    await insert(as_qmp(drive), "cdrom0", MEDIUM)
    assert (drive.nodes, drive.inside, drive.is_open) == ({"cdrom0-medium"}, "cdrom0-medium", False)


async def test_an_empty_drive_can_be_emptied() -> None:
    drive = FakeDrive()
    await eject(as_qmp(drive), "cdrom0", "cdrom0-medium", force=False)
    assert (drive.nodes, drive.is_open) == (set(), False)


async def test_a_tray_that_the_guest_shuts_is_opened_again() -> None:
    drive = FakeDrive("cdrom0-medium", shuts=2)
    await eject(as_qmp(drive), "cdrom0", "cdrom0-medium", force=False)
    assert (drive.inside, drive.shuts) == ("", 0)
    drive.shuts = 1
    await insert(as_qmp(drive), "cdrom0", MEDIUM)
    assert (drive.inside, drive.shuts, drive.is_open) == ("cdrom0-medium", 0, False)


async def test_one_that_is_shut_always_is_given_up() -> None:
    drive = FakeDrive(shuts=10**6)
    with pytest.raises(QmpError, match="is not open"):
        await insert(as_qmp(drive), "cdrom0", MEDIUM)
    assert drive.nodes == set()


async def test_a_guest_has_time_to_let_go() -> None:
    drive = FakeDrive("cdrom0-medium", locked=3)
    await eject(as_qmp(drive), "cdrom0", "cdrom0-medium", force=False)
    assert not drive.inside


@pytest.mark.parametrize("force", [False, True])
async def test_a_guest_that_does_not_let_go_is_forced_only_if_asked_for(*, force: bool) -> None:
    drive = FakeDrive("cdrom0-medium", locked=10**6)
    if force:
        await eject(as_qmp(drive), "cdrom0", "cdrom0-medium", force=True)
        assert not drive.inside
        return
    with pytest.raises(TrayLockedError) as caught:
        await eject(as_qmp(drive), "cdrom0", "cdrom0-medium", force=False)
    assert caught.value.message == "vm: the guest holds the tray of cdrom0 shut"
    assert (drive.inside, drive.is_open) == ("cdrom0-medium", False)


async def test_what_is_not_inserted_is_not_kept_open() -> None:
    drive = FakeDrive(broken="blockdev-insert-medium")
    with pytest.raises(QmpError):
        await insert(as_qmp(drive), "cdrom0", MEDIUM)
    assert drive.nodes == set()


async def test_another_refusal_is_told_at_once() -> None:
    drive = FakeDrive("cdrom0-medium", broken="blockdev-open-tray")
    with pytest.raises(QmpError, match="does not work"):
        await eject(as_qmp(drive), "cdrom0", "cdrom0-medium", force=False)
