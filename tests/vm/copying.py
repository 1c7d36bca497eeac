"""A guest that QEMU's ordinary migration takes to another VMM: its memory is copied while it runs.

The copy is held after its first pass, when every page was sent once. What is written from then on reaches
the other side only if somebody says so: the VMM of its processors, our drivers through the dirty log.

QEMU before 9.0 can miss what its own processors write under TCG after it looked for written pages (fixed by
"physmem: Fix migration dirty bitmap coherency with TCG memory access"; it breaks guests of either design).
So it looks only while the guest has nothing to do, or is stopped.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from duovisor.controlling.images.probe import PORT_NAME
from duovisor.controlling.images.probe_client import connect_probe
from duovisor.hypervisor.migration.handover import FINAL

if TYPE_CHECKING:
    from tests.bare_vmm import BareVmm
    from tests.vm.conftest import Guest

    from duovisor.controlling.supervision.device import DeviceSupervisor

TIMEOUT_S = 180.0
AT_FIRST_BYTES_S = 1 << 20
FIRST_PASS_BYTES_S = 64 << 20
HELD_BYTES_S = 40 << 10  # a page each tenth of a second
UNLIMITED = 0
# what the second pass has to send, so that it takes long enough to be held
WORK = "dd if=/dev/vda of=/tmp/work bs=1M count=48 2>/dev/null"
_DESCRIPTOR = "copy"


class Journey:
    """A booted ``guest``, and the VMM that waits for it: its own memory, its own drivers, the same image."""

    def __init__(self, guest: Guest, destination: BareVmm) -> None:
        self.guest = guest
        self._source = guest.machine.vmm._qmp
        self._destination = destination

    @property
    def disk(self) -> DeviceSupervisor:
        """The supervisor of the drivers of the guest's disk, as long as it has not left."""
        return self.guest.machine.devices["disk0"]

    async def begin(self) -> None:
        """Copy all memory once, then hold; the guest must be idle, and may work afterwards."""
        ends = socket.socketpair()
        for qmp, end in zip((self._source, self._destination.qmp), ends, strict=True):
            await qmp.set_migration(("events",), **_build_limits(AT_FIRST_BYTES_S, downtime_ms=1))
            await qmp.getfd(_DESCRIPTOR, end.fileno())
            end.close()
        await self._destination.qmp.migrate_incoming(f"fd:{_DESCRIPTOR}")
        await self._source.migrate(f"fd:{_DESCRIPTOR}")
        await self.guest.output(WORK)
        await self._limit(FIRST_PASS_BYTES_S, downtime_ms=1)
        async with asyncio.timeout(TIMEOUT_S):
            while await self._count_passes() < 2:
                await asyncio.sleep(0.02)
        await self._limit(HELD_BYTES_S, downtime_ms=1)

    async def arrive(self) -> None:
        """Stop the guest wherever it is, copy the rest, and let it go on at the destination."""
        assert await self._count_passes() == 2
        await self.guest.machine.vmm.pause()
        await self._limit(UNLIMITED, downtime_ms=1000)
        async with asyncio.timeout(TIMEOUT_S):
            for qmp in (self._source, self._destination.qmp):
                while (status := await qmp.next_migration_status()) not in FINAL:
                    pass
                assert status == "completed", (qmp.name, await qmp.query_migrate())
        await self._destination.qmp.cont()

    async def ask(self, command: str) -> str:
        """What a command prints in the guest, which has arrived."""
        async with connect_probe(self._destination.port_path(PORT_NAME)) as probe:
            done = await probe.run(command, timeout_s=TIMEOUT_S)
            assert done.exit == 0, done.output
            return done.output.decode()

    async def _count_passes(self) -> int:
        """How often QEMU looked for pages to send, the pass under way included. Fails when none is."""
        answer = await self._source.execute("query-migrate")
        assert answer["status"] in ("setup", "active"), answer
        return int(answer.get("ram", {}).get("dirty-sync-count", 0))

    async def _limit(self, bytes_s: int, *, downtime_ms: int) -> None:
        limits = _build_limits(bytes_s, downtime_ms=downtime_ms)
        await self._source.execute("migrate-set-parameters", **limits)


def _build_limits(bytes_s: int, *, downtime_ms: int) -> dict[str, int]:
    return {"max-bandwidth": bytes_s, "downtime-limit": downtime_ms}
