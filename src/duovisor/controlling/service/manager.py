"""What the service needs of whoever manages the VMs; ``controlling.vms`` has the real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from duovisor.controlling.anatomy import Anatomy
    from duovisor.controlling.supervision.records import Replacement
    from duovisor.controlling.vms.records import (
        Autostart,
        MoveResult,
        Page,
        Progress,
        RecoveryReport,
        VmView,
    )
    from duovisor.spec.vm import Design, VirtualMachineSpec


class Console(Protocol):
    """The serial console of a running VM, which several may watch."""

    def attach(self, show: Callable[[bytes], None]) -> Callable[[], None]:
        """Call ``show`` with the scroll-back and all that follows; returns the function that detaches."""
        ...

    def write(self, data: bytes) -> None:
        """Type into the console."""
        ...


class VmManager(Protocol):
    """Every method raises ``DuovisorError``; ``if_revision`` is the revision that the caller saw."""

    async def open(self) -> None: ...

    async def recover(self) -> RecoveryReport: ...

    async def start_autostart_vms(self) -> None: ...

    async def close(self) -> None:
        """Let go of the VMs; they run on."""
        ...

    async def list(self, limit: int = 100, after: str | None = None) -> Page[VmView]: ...

    async def get(self, name: str) -> VmView: ...

    async def create(self, spec: VirtualMachineSpec, autostart: Autostart) -> VmView: ...

    async def update(
        self, name: str, spec: VirtualMachineSpec, autostart: Autostart, if_revision: int
    ) -> VmView: ...

    async def rename(self, name: str, new: str, if_revision: int) -> VmView: ...

    async def delete(self, name: str, if_revision: int) -> None: ...

    async def reset_nvram(self, name: str) -> None: ...

    async def start(self, name: str, progress: Progress) -> object: ...

    async def shutdown(self, name: str, timeout_s: float, progress: Progress) -> object: ...

    async def stop(self, name: str) -> object: ...

    async def pause(self, name: str) -> object: ...

    async def resume(self, name: str) -> object: ...

    async def reset(self, name: str) -> object: ...

    async def switch(self, name: str, design: Design, progress: Progress) -> MoveResult | None: ...

    async def update_vmm(self, name: str, progress: Progress) -> MoveResult: ...

    async def resize_volume(self, volume: str, size_bytes: int) -> None: ...

    async def replace_driver(self, name: str, device: str, *, latest: bool) -> Replacement: ...

    async def read_counters(self, name: str) -> dict[str, dict[str, int]]: ...

    async def anatomy(self, name: str) -> Anatomy: ...

    def console(self, name: str) -> Console: ...

    async def read_console_log(self, name: str, max_bytes: int) -> bytes: ...
