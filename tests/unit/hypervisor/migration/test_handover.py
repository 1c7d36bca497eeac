"""Saving and loading over QMP, against a fake that takes real descriptors."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.hypervisor.migration.fake_migration import FakeMigration

from duovisor.hypervisor.errors import QmpError, VmmGoneError
from duovisor.hypervisor.migration import handover
from duovisor.hypervisor.migration.errors import HandoverError
from duovisor.hypervisor.migration.handover import await_state, load, prepare, save
from duovisor.hypervisor.qmp import Qmp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

STATE = os.urandom(3 << 20)  # more than a pipe holds
SMALL = STATE[: 1 << 18]


@asynccontextmanager
async def connect(**behaviour: Any) -> AsyncIterator[tuple[FakeMigration, Qmp]]:
    """A fake and a connection to it; that neither leaks a descriptor is part of every test."""
    before = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory(prefix="dvt-", dir="/tmp") as folder:
        fake = FakeMigration(Path(folder) / "qmp", **behaviour)
        qmp = Qmp("vm")
        try:
            await qmp.connect(Path(folder) / "qmp")
            yield fake, qmp
        finally:
            await qmp.disconnect()
            fake.close()
    assert fake.descriptors == {}
    assert len(os.listdir("/proc/self/fd")) == before


async def test_prepare_switches_on_what_is_needed() -> None:
    async with connect() as (fake, qmp):
        await prepare(qmp)
        assert fake.settings == {
            "x-ignore-shared": True, "late-block-activate": True, "events": True, "max-bandwidth": 0,
        }  # fmt: skip


async def test_a_qemu_that_cannot_is_refused() -> None:
    async with connect(abilities=("events", "xbzrle")) as (fake, qmp):
        with pytest.raises(HandoverError, match="this QEMU has no late-block-activate, x-ignore-shared"):
            await prepare(qmp)
        assert fake.settings == {}


@pytest.mark.parametrize("state", [SMALL, STATE, b""], ids=len)
async def test_a_state_is_saved_whole(state: bytes) -> None:
    async with connect(state=state) as (fake, qmp):
        assert await save(qmp) == state
        assert await save(qmp) == state  # and once more
        assert fake.done.count("migrate") == 2
        assert "migrate_cancel" not in fake.done


@pytest.mark.parametrize("state", [SMALL, STATE], ids=len)
async def test_a_state_is_loaded_whole(state: bytes) -> None:
    async with connect(state=state) as (fake, qmp):
        await load(qmp, state)
        assert fake.received == state


async def test_who_waits_is_given_a_state_later() -> None:
    async with connect(state=SMALL) as (fake, qmp):
        waiting = await await_state(qmp)
        assert fake.done[-1] == "migrate-incoming"
        await waiting.load(SMALL)
        waiting.close()
        waiting.close()
        assert fake.received == SMALL


async def test_when_the_source_was_ready_to_stop_is_known() -> None:
    async with connect(state=SMALL) as (_, qmp):
        before = time.time()
        await save(qmp)
        assert before - 1e-6 <= qmp.migration_active_at <= time.time()  # it tells whole µs


async def test_a_failure_is_told_in_qemus_words() -> None:
    async with connect(behaviour="fails", state=SMALL) as (fake, qmp):
        with pytest.raises(HandoverError, match="the state was not saved, it failed: the moon is in the way"):
            await save(qmp)
        assert fake.done[-3:] == ["migrate_cancel", "query-migrate", "closefd"]


async def test_what_stalls_is_cancelled() -> None:
    async with connect(behaviour="stalls", state=SMALL) as (fake, qmp):
        with pytest.raises(HandoverError, match=r"its state was not saved within 0\.2 s"):
            await save(qmp, timeout_s=0.2)
        assert "migrate_cancel" in fake.done
        assert (await qmp.query_migrate())[0] == "cancelled"


async def test_a_cancelled_save_leaves_no_migration_behind() -> None:
    async with connect(behaviour="stalls", state=SMALL) as (fake, qmp):
        saving = asyncio.create_task(save(qmp))
        while "migrate" not in fake.done:
            await asyncio.sleep(0.01)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert (await qmp.query_migrate())[0] == "cancelled"


async def test_a_refused_migration_leaves_no_descriptor_behind() -> None:
    async with connect(behaviour="refuses", state=SMALL) as (_, qmp):
        with pytest.raises(QmpError, match="non-migratable device"):
            await save(qmp)


async def test_a_state_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "MAX_STREAM_BYTES", 1 << 16)
    async with connect(state=STATE) as (_, qmp):
        with pytest.raises(HandoverError, match="the state has more than 65536 bytes"):
            await save(qmp)
        assert (await qmp.query_migrate())[0] == "failed"  # the fake saw its reader go


async def test_a_source_that_dies_is_gone() -> None:
    async with connect(behaviour="dies", state=SMALL) as (_, qmp):
        with pytest.raises(VmmGoneError, match="in the middle of a migration"):
            await save(qmp)


async def test_a_destination_that_dies_has_last_words() -> None:
    async with connect(behaviour="dies", state=SMALL) as (_, qmp):
        with pytest.raises(HandoverError, match="vm: cannot load the state: Features 0x1 unsupported"):
            await load(qmp, SMALL, last_words=lambda: "Features 0x1 unsupported")


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [("fails", "was not loaded, it failed: the moon"), ("stalls", r"was not loaded within 0\.2 s")],
)
async def test_a_destination_that_does_not_load_is_given_up(behaviour: str, said: str) -> None:
    async with connect(behaviour=behaviour, state=STATE) as (_, qmp):
        with pytest.raises(HandoverError, match=said):
            await load(qmp, STATE, timeout_s=0.2)
