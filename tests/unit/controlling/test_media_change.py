"""What is written down of a drive while its medium is changed, and what a successor makes of each of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from duovisor.controlling.media.change import change_medium, settle_drive
from duovisor.hypervisor.drives import TrayLockedError
from duovisor.hypervisor.errors import QmpError
from duovisor.spec.cdrom import CdromSpec
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from duovisor.controlling.incarnation import Incarnation
    from duovisor.hardware.capabilities import HostCapabilities

OLD, NEW, EMPTY = CdromSpec(path="/old.iso"), CdromSpec(path="/new.iso"), CdromSpec()
NOTHING = cast("HostCapabilities", None)  # a monolithic VM needs no program


class FakeDrive:
    """An incarnation with one drive; ``steps`` is what was done and written down, in order."""

    def __init__(self) -> None:
        self.name, self.run_dir = "vm", Path("/run/vm/1")
        self.spec = build_spec({"name": "vm", "design": "monolithic", "cdroms": [{"path": OLD.path}]})
        self.changing_drive: int | None = None
        self.steps: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.vmm = SimpleNamespace(eject_medium=self._eject, insert_medium=self._insert)
        self.media = SimpleNamespace(eject=self._end_server)

    @property
    def incarnation(self) -> Incarnation:
        return cast("Incarnation", self)

    def record(self) -> None:
        medium = self.spec.cdroms[0].path or "empty"
        self.steps.append(f"{medium}, {'at rest' if self.changing_drive is None else 'changing'}")

    async def _eject(self, drive: str, node: str, *, force: bool) -> None:
        self._do("eject by force" if force else "eject")

    async def _insert(self, drive: str, medium: dict[str, Any]) -> None:
        self._do(f"insert {medium['filename']}")

    async def _end_server(self, index: int) -> None:
        self.steps.append("end server")

    def _do(self, step: str) -> None:
        self.steps.append(step)
        if step in self.fails:
            raise self.fails[step]


async def test_what_is_to_be_is_written_down_before_it_is_done() -> None:
    drive = FakeDrive()
    await change_medium(drive.incarnation, 0, NEW, NOTHING, force=False)
    assert drive.steps == [
        "/old.iso, changing", "eject", "end server",
        "/new.iso, changing", "insert /new.iso", "/new.iso, at rest",
    ]  # fmt: skip
    drive.steps.clear()
    await change_medium(drive.incarnation, 0, EMPTY, NOTHING, force=True)
    assert drive.steps == [
        "/new.iso, changing", "eject by force", "end server", "empty, changing", "empty, at rest",
    ]  # fmt: skip


async def test_a_tray_that_is_held_shut_leaves_everything_as_it_was() -> None:
    drive = FakeDrive()
    drive.fails["eject"] = TrayLockedError("locked")
    with pytest.raises(TrayLockedError):
        await change_medium(drive.incarnation, 0, NEW, NOTHING, force=False)
    assert drive.steps == ["/old.iso, changing", "eject", "/old.iso, at rest"]


@pytest.mark.parametrize("wanted", [OLD, NEW, EMPTY])
async def test_a_successor_puts_in_what_is_written_down(wanted: CdromSpec) -> None:
    drive = FakeDrive()
    drive.spec = drive.spec.model_copy(update={"cdroms": (wanted,)})
    drive.changing_drive = 0
    await settle_drive(drive.incarnation, lambda: NOTHING)
    put_in = [] if wanted.is_empty else [f"insert {wanted.path}"]
    assert drive.steps == ["eject by force", "end server", *put_in, f"{wanted.path or 'empty'}, at rest"]
    drive.steps.clear()
    await settle_drive(drive.incarnation, lambda: NOTHING)
    assert drive.steps == []


async def test_what_cannot_be_put_in_any_more_leaves_the_drive_empty() -> None:
    drive = FakeDrive()
    drive.fails["insert /old.iso"] = QmpError("it is gone")
    drive.changing_drive = 0
    await settle_drive(drive.incarnation, lambda: NOTHING)
    assert drive.steps[-1] == "empty, at rest"
    assert drive.spec.cdroms == (EMPTY,)
