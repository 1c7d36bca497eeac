"""The two guests that are compared: booted when they are needed, and again when one has died.

The VMs are this process's own, beside those of the service: they end with it, whatever ends it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING, Any

from duovisor.comparison.errors import ComparisonError, SkippedError
from duovisor.comparison.guest import Guest
from duovisor.comparison.own_network import BRIDGE
from duovisor.comparison.shell import SCRATCH_SERIAL
from duovisor.controlling.images.boot import add_image
from duovisor.controlling.images.tools_disk import build_program_disk
from duovisor.controlling.machine import Machine
from duovisor.controlling.probe_vm import GUEST_MEMORY_MIB, make_scratch_disk
from duovisor.controlling.supervision.factories import Factories
from duovisor.spec.loading import build_spec
from duovisor.spec.vm import Design, VmmKind

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from duovisor.controlling.images.image import Image
    from duovisor.directories import Directories
    from duovisor.hardware.capabilities import HostCapabilities
    from duovisor.spec.vm import VirtualMachineSpec

SCRATCH_MIB = 128
BOOT_TIMEOUT_S = 120.0
BOOT_FAILURES_MAX = 2
PROGRAMS_SERIAL = "programs"


class Rig:
    """An asynchronous context manager.

    Guests have a card on the comparison's own bridge, unless ``no_network`` says why there is none.
    """

    def __init__(
        self,
        directories: Directories,
        capabilities: HostCapabilities,
        image: Image,
        folder: Path,
        *,
        no_network: SkippedError | None,
    ) -> None:
        self.directories = directories
        self.capabilities = capabilities
        self.image = image
        self.folder = folder
        self.no_network = no_network
        self.booted: set[Design] = set()
        self._factories = Factories(directories.runtime, end_with_owner=True)
        self._guests: dict[Design, Guest] = {}
        self._failures = dict.fromkeys(Design, 0)
        self._files = ExitStack()
        self._scratch: dict[Design, Path] = {}

    async def __aenter__(self) -> Rig:
        return self

    async def __aexit__(self, *_: object) -> None:
        async with AsyncExitStack() as stack:
            stack.callback(self._files.close)
            stack.push_async_callback(self._factories.close)
            for design in Design:
                stack.push_async_callback(self.drop, design)

    async def guest(self, design: Design) -> Guest:
        """The guest of a design; it is booted if there is none.

        Raises ``ComparisonError`` when it failed to boot too often, and what starting a VM raises.
        """
        found = self._guests.get(design)
        if found is not None and not found.has_ended:
            return found
        return await self.boot(design)

    async def boot(self, design: Design) -> Guest:
        """A fresh guest in the place of the one that there is. Raises as ``guest``."""
        await self.drop(design)
        if self._failures[design] >= BOOT_FAILURES_MAX:
            raise ComparisonError(f"the {design} guest failed to boot {BOOT_FAILURES_MAX} times in a row")
        self._failures[design] += 1
        factory = await self._factories.get()
        spec = self.build_spec(design)
        started = time.monotonic()
        machine = await Machine.start(
            spec, self.capabilities, self.directories, self._factories, die_with_owner=True
        )
        start_s = time.monotonic() - started
        number = list(Design).index(design) + 2
        guest = Guest(machine, factory.process.pid, f"10.77.0.{number}", start_s=start_s)
        try:
            await guest.wait_booted(BOOT_TIMEOUT_S)
        except BaseException:
            await machine.clean_up()
            raise
        guest.boot_s = time.monotonic() - started
        self._guests[design] = guest
        self._failures[design] = 0
        return guest

    async def drop(self, design: Design) -> None:
        """End a guest, if there is one, and take all of it off the host."""
        guest = self._guests.pop(design, None)
        if guest is not None:
            await guest.machine.clean_up()

    async def find_dead(self, design: Design, wait_s: float) -> Guest | None:
        """The guest of a design if its VM has ended, or does within so many seconds."""
        guest = self._guests.get(design)
        if guest is None:
            return None
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await guest.machine.wait_ended()
        return guest if guest.has_ended else None

    def build_spec(self, design: Design) -> VirtualMachineSpec:
        """The same VM in either design, with QEMU as VMM in both, so that the design alone differs."""
        scratch = self.find_scratch(design)
        if self.no_network is not None:
            return build_compared_spec(design, self.image, scratch, nics=[{"network": "user"}])
        programs = {"path": str(self._find_programs()), "serial": PROGRAMS_SERIAL, "read_only": True}
        return build_compared_spec(
            design, self.image, scratch, nics=[{"bridge": BRIDGE}], more_disks=[programs]
        )

    def find_scratch(self, design: Design) -> Path:
        """The design's scratch disk, full of data."""
        if design not in self._scratch:
            disk = make_scratch_disk(self.folder, f"scratch-{design}", SCRATCH_MIB)
            self._scratch[design] = self._files.enter_context(disk)
        return self._scratch[design]

    def _find_programs(self) -> Path:
        path = self.folder / "programs.raw"
        if not path.exists():
            build_program_disk(path, self.folder, "iperf3", label=PROGRAMS_SERIAL)
        return path


def build_compared_spec(
    design: Design,
    image: Image,
    scratch: Path,
    *,
    nics: list[dict[str, str]],
    more_disks: Iterable[dict[str, Any]] = (),
) -> VirtualMachineSpec:
    """The VM that is compared; QEMU is its VMM in both designs, so that the design alone differs."""
    document = {
        "name": f"compare-{design}",
        "design": design,
        "vmm": VmmKind.QEMU,
        "memory_mib": GUEST_MEMORY_MIB,
        "disks": [{"path": str(scratch), "serial": SCRATCH_SERIAL}, *more_disks],
        "nics": nics,
    }
    return build_spec(add_image(document, image))
