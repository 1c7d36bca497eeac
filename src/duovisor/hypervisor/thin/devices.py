"""The machine's devices: PCI bus 0, and on it one virtio function for each channel."""

from __future__ import annotations

from threading import RLock

from duovisor.hypervisor.thin.pci.bus import CONFIG_PORTS, CONFIG_PORTS_BYTES, PciBus
from duovisor.hypervisor.thin.pci.msix import Msix
from duovisor.hypervisor.thin.ports import WINDOW_START
from duovisor.hypervisor.thin.virtio.channel_device import ChannelDevice
from duovisor.hypervisor.thin.virtio.function import BAR_BYTES, MAX_QUEUES, VirtioFunction
from duovisor.hypervisor.thin.virtio.registers import Registers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from duovisor.hypervisor.thin.ports import Device, DeviceConfig, Platform


def build_devices(configs: Sequence[DeviceConfig], platform: Platform) -> list[Device]:
    """Put the bus into the machine and the devices on it; raises ``ValueError`` for what does not fit."""
    bus = PciBus(platform.memory_space)
    platform.io_space.add(CONFIG_PORTS, CONFIG_PORTS_BYTES, bus)
    return [VirtioDevice(config, platform, bus) for config in configs]


class VirtioDevice:
    """One device: the function that the guest sees, and the channel to its driver, under one lock."""

    def __init__(self, config: DeviceConfig, platform: Platform, bus: PciBus) -> None:
        if not 0 < config.queues <= MAX_QUEUES:
            raise ValueError(
                f"device {config.name} shall have {config.queues} queues, not up to {MAX_QUEUES}"
            )
        self.name = config.name
        self._lock = RLock()
        self._channel = ChannelDevice(
            config, platform.memory, platform.loop, self._lock, lambda what: platform.tell(config.name, what)
        )
        msix = Msix(config.queues + 1, platform.interrupts)
        self._registers = Registers(self._channel, msix, self._channel.config_call)
        self._function = VirtioFunction(
            self._channel,
            self._registers,
            msix,
            address=WINDOW_START + config.slot * BAR_BYTES,
            bus=bus,
            notifications=platform.notifications,
            lock=self._lock,
        )
        bus.add(config.slot, self._function)

    def wait_driver(self, timeout_s: float) -> None:
        """Wait for the first driver; raises ``ChannelError``."""
        self._channel.wait_driver(timeout_s)

    def reset(self) -> None:
        """As after power-on; the driver stays connected."""
        with self._lock:
            self._function.reset()

    def pause(self) -> None:
        """Stop the queues."""
        with self._lock:
            self._channel.pause()

    def resume(self) -> None:
        """Let the queues go on."""
        with self._lock:
            self._channel.resume()

    def set_log(self, log: tuple[int, int] | None) -> None:
        """Let drivers note the pages that they write in a log, size and descriptor, or no longer."""
        with self._lock:
            self._channel.set_log(log)

    def save(self) -> dict[str, Any]:
        """The state of a paused device, as JSON can hold it."""
        with self._lock:
            return {**self._function.save(), "channel": self._channel.save()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take on a saved state; raises ``ValueError`` for one that is not this device's."""
        with self._lock:
            try:
                self._function.restore(state)
                registers = self._registers
                self._channel.restore(state["channel"], registers.features, started=registers.started)
            except (KeyError, TypeError, AttributeError, OverflowError) as error:
                raise ValueError(f"the state of {self.name} is not one: {error!r}") from error

    def release(self) -> int | None:
        """Give the driver's connection away, for ``adopt`` in another process; the caller closes it."""
        with self._lock:
            return self._channel.release()

    def adopt(self, descriptor: int, state: dict[str, Any]) -> None:
        """After ``restore`` of this state: go on with the connection that belongs to it.

        Raises ``ValueError``, and takes nothing, for what is none.
        """
        with self._lock:
            try:
                self._channel.adopt(descriptor, state["channel"])
            except (KeyError, TypeError) as error:
                raise ValueError(f"the state of {self.name} is not one: {error!r}") from error

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._function.close()
            self._channel.close()
