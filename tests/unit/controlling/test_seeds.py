"""Seed disks: there while the VM runs, and not longer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from duovisor.controlling.errors import DiskFileError
from duovisor.controlling.seeds import Seeds
from duovisor.controlling.vms.records import EventKind, VmEvent
from duovisor.controlling.vms.volumes import check_places, lend_none
from duovisor.spec.loading import build_spec

if TYPE_CHECKING:
    from pathlib import Path

SPEC = build_spec({"name": "web", "disks": [{"path": "/srv/a.raw"}, {"cloud_init": {"user": "ada"}}]})


async def lend(folder: Path) -> Seeds:
    seeds = Seeds(folder)
    async with seeds.around(lend_none)(SPEC) as found:
        assert found.disks[0] == SPEC.disks[0]
        assert found.disks[1].path == str(folder / "web.iso")
        assert found.without_places() == SPEC
    return seeds


async def test_a_seed_is_made_at_each_start_for_its_owner_alone(tmp_path: Path) -> None:
    await lend(tmp_path / "seeds")
    seed = tmp_path / "seeds/web.iso"
    seed.write_bytes(b"of another start")
    await lend(tmp_path / "seeds")
    assert b"local-hostname" in seed.read_bytes()
    assert seed.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("kind", "stays"),
    [
        (EventKind.STOPPED, False),
        (EventKind.CRASHED, False),
        (EventKind.START_FAILED, False),
        (EventKind.ROLLED_BACK, False),
        (EventKind.PAUSED, True),
        (EventKind.SWITCHED, True),
    ],
)
async def test_it_goes_with_the_vms_end(tmp_path: Path, kind: EventKind, stays: bool) -> None:
    seeds = await lend(tmp_path / "seeds")
    seeds.on_event(VmEvent(kind=kind, name="web", uuid="u"))
    assert (tmp_path / "seeds/web.iso").exists() is stays


async def test_what_belongs_to_no_running_vm_is_swept(tmp_path: Path) -> None:
    seeds = await lend(tmp_path / "seeds")
    seeds.sweep(["web"])
    assert (tmp_path / "seeds/web.iso").exists()
    seeds.sweep([])
    assert not (tmp_path / "seeds/web.iso").exists()


async def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "seeds").write_text("in the way")
    with pytest.raises(DiskFileError, match="cannot write the cloud-init disk"):
        await lend(tmp_path / "seeds")


def test_a_definition_does_not_say_where_it_is() -> None:
    disk = SPEC.disks[1].model_copy(update={"path": "/etc/passwd"})
    with pytest.raises(DiskFileError, match="both cloud_init and the path"):
        check_places(SPEC.model_copy(update={"disks": (disk,)}))
