"""The specification of a virtual machine: what a user asks for, checked without looking at the host."""

from __future__ import annotations

import re
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    model_validator,
)

from duovisor.spec.cdrom import BOOT_ORDER, MAX_CDROMS, BootDevice, CdromSpec
from duovisor.spec.cloud_init import CloudInitSpec
from duovisor.spec.firewall import Firewall
from duovisor.spec.kernel import KernelSpec
from duovisor.spec.limits import Bandwidth, CardLimits
from duovisor.spec.model import SpecModel
from duovisor.spec.names import Text, VolumeName, check_name, check_text
from duovisor.spec.processors import CpuModel
from duovisor.spec.resources import Resources

MAX_DISKS = 12  # PCI slots 0x10 to 0x1b of the root bus, see hypervisor/qemu/pci.py
MAX_NICS = 8  # PCI slots 0x08 to 0x0f
MAX_DEVICES = 5  # PCI slots 0x03 to 0x07
ENTROPY_DRIVER = "rng"
AGENT_PORT = "org.qemu.guest_agent.0"
USER_NETWORK, BRIDGE_NETWORK = "user", "bridge"
BLOCK_DRIVER, ENCRYPTED_DRIVER = "block", "encrypted"
DRIVER_SUFFIX = ".py"
QUEUE_SIZE_MAX = 1024  # VIRTQUEUE_MAX_SIZE in QEMU's include/hw/virtio/virtio.h

_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
_PORT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
_INTERFACE = re.compile(r"^[^\s/:.][^\s/:]{0,14}$")  # IFNAMSIZ
_SERIAL = re.compile(r"^[A-Za-z0-9_.-]{0,20}$")


class Design(StrEnum):
    """Where the device drivers are: inside the hypervisor layer, or in the controlling layer."""

    MONOLITHIC = "monolithic"
    MICROKERNELIZED = "microkernelized"


class Accelerator(StrEnum):
    """What runs the guest's instructions; ``auto`` lets the hardware layer decide by trying."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class VmmKind(StrEnum):
    """The program that is the VMM; ``auto``: the thin one where it can run the VM, else QEMU."""

    AUTO = "auto"
    THIN = "thin"
    QEMU = "qemu"


class Firmware(StrEnum):
    """What the guest's processor runs first."""

    BIOS = "bios"
    UEFI = "uefi"
    DIRECT_KERNEL = "direct-kernel"


class DiskFormat(StrEnum):
    """How a disk's bytes lie in its file."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHDX = "vhdx"
    VDI = "vdi"


class CacheMode(StrEnum):
    """``writeback``: through the host's page cache; ``none``: O_DIRECT. Both honour the guest's flushes."""

    WRITEBACK = "writeback"
    NONE = "none"


class DriverFailure(StrEnum):
    """What becomes of a device whose drivers keep dying: the VM is paused, or the guest told of errors."""

    PAUSE = "pause"
    REPORT = "report"


def _check_mac(mac: str) -> str:
    mac = mac.lower()
    if not _MAC.match(mac):
        raise ValueError(f"{mac!r} is not a MAC address; write for example 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1:
        raise ValueError(f"{mac!r} is a multicast address, which a NIC cannot have")
    return mac


def check_interface(name: str) -> str:
    """Return an interface's name, or raise ``ValueError``."""
    if not _INTERFACE.match(name):
        raise ValueError(f"{name!r} is not an interface's name: up to 15 characters; write for example br0")
    return name


def _check_serial(serial: str) -> str:
    # virtio 1.1, 5.2.6: VIRTIO_BLK_T_GET_ID returns at most 20 bytes
    if not _SERIAL.match(serial):
        raise ValueError(f"{serial!r} is not a disk serial: at most 20 letters, digits, '-', '_' and '.'")
    return serial


def check_address(address: str) -> str:
    """Return an IPv4 address, or raise ``ValueError``."""
    try:
        return str(IPv4Address(address))
    except ValueError as error:
        raise ValueError(f"{address!r} is not an IPv4 address; write for example 127.0.0.1") from error


def _check_power_of_two(number: int) -> int:
    if number & (number - 1):
        raise ValueError(f"{number} is not a power of two")
    return number


def _check_sector(number: int) -> int:
    if number not in (512, 4096):
        raise ValueError(f"{number} is neither 512 nor 4096")
    return number


def _check_port(name: str) -> str:
    if not _PORT.match(name):
        raise ValueError(f"{name!r} is not a port name; write for example org.qemu.guest_agent.0")
    return name


def _check_driver(driver: str) -> str:
    if driver != ENTROPY_DRIVER and not driver.endswith(DRIVER_SUFFIX):
        raise ValueError(f"{driver!r} is neither {ENTROPY_DRIVER} nor a Python file, as in ./my_driver.py")
    return check_text(driver)


def _check_disk_driver(driver: str) -> str:
    if driver not in (BLOCK_DRIVER, ENCRYPTED_DRIVER) and not driver.endswith(DRIVER_SUFFIX):
        raise ValueError(
            f"{driver!r} is neither {BLOCK_DRIVER} nor {ENCRYPTED_DRIVER} nor a Python file, as in ./mine.py"
        )
    return check_text(driver)


PortName = Annotated[str, AfterValidator(_check_port)]
DriverName = Annotated[str, AfterValidator(_check_driver)]
DiskDriverName = Annotated[str, AfterValidator(_check_disk_driver)]
OptionName = Annotated[str, StringConstraints(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]
OptionValue = bool | int | float | Annotated[str, StringConstraints(max_length=4096)]


class DiskSpec(SpecModel):
    """A disk: an image file, block device or volume of a pool, seen by the guest as a virtio block device.

    A ``volume`` (``POOL/NAME``) takes the place of ``path`` and ``format``, which are found at each start;
    so does ``cloud_init``, of which a small read-only disk is made for the guest's first boot.
    Microkernelized design: ``on_driver_failure`` is what happens when its drivers keep dying; one that
    completes no request of a waiting guest for ``driver_hang_s`` seconds is replaced (0: never).

    ``slot`` is its number among the VM's disks, by default its position in their list: it names the disk
    (``disk3``) and gives it its PCI address, so it stays what it is when another disk goes.

    ``iops_limit`` and ``bandwidth_limit`` are how many requests and bytes (``50M``) a second it does at most.

    ``driver`` is ``block``; or ``encrypted``, with a key in ``key_file`` and in units of ``sector_bytes``; or
    a Python file of yours, which gets ``options`` and may do without a ``path``.
    """

    slot: int | None = Field(default=None, ge=0, lt=MAX_DISKS)
    path: Text = ""
    volume: VolumeName | None = None
    cloud_init: CloudInitSpec | None = None
    driver: DiskDriverName = BLOCK_DRIVER
    key_file: Annotated[Text, StringConstraints(min_length=1)] | None = None
    sector_bytes: Annotated[int, AfterValidator(_check_sector)] = 512
    options: dict[OptionName, OptionValue] = Field(default={}, max_length=32)
    format: DiskFormat = DiskFormat.RAW
    cache: CacheMode = CacheMode.WRITEBACK
    read_only: bool = False
    serial: Annotated[str, AfterValidator(_check_serial)] = ""
    queues: int = Field(default=1, ge=1, le=16)
    queue_size: Annotated[int, AfterValidator(_check_power_of_two)] = Field(
        default=256, ge=16, le=QUEUE_SIZE_MAX
    )
    iops_limit: int | None = Field(default=None, ge=1, le=10_000_000)
    bandwidth_limit: Bandwidth | None = None
    on_driver_failure: DriverFailure = DriverFailure.PAUSE
    driver_hang_s: float = Field(default=30.0, ge=0, le=86400, allow_inf_nan=False)

    @property
    def driver_file(self) -> str | None:
        """The file of a driver that does not come with duovisor."""
        return self.driver if self.driver.endswith(DRIVER_SUFFIX) else None

    @property
    def is_found(self) -> bool:
        """Whether its path is not given but found at each start."""
        return self.volume is not None or self.cloud_init is not None

    @model_validator(mode="before")
    @classmethod
    def _read_seed(cls, value: Any) -> Any:
        """What duovisor makes for the guest, the guest only reads."""
        if isinstance(value, dict) and value.get("cloud_init") is not None and "read_only" not in value:
            return {**value, "read_only": True}
        return value

    @model_validator(mode="after")
    def _check_seed(self) -> DiskSpec:
        if self.cloud_init is None:
            return self
        if self.volume is not None or self.driver != BLOCK_DRIVER or self.format is not DiskFormat.RAW:
            raise ValueError(
                "a disk with cloud_init is made by duovisor; leave volume, driver and format out"
            )
        if not self.read_only:
            raise ValueError("a disk with cloud_init is read-only")
        return self

    @model_validator(mode="after")
    def _check_own_driver(self) -> DiskSpec:
        own = self.driver_file is not None
        if not self.path and not own and not self.is_found:
            raise ValueError("path is missing: name the disk's image file or block device, or a volume")
        if self.volume is not None and not self.path and self.format is not DiskFormat.RAW:
            raise ValueError(f"volume {self.volume} has a format of its own; leave format out")
        if self.options and not own:
            raise ValueError(f"driver {self.driver} takes no options")
        if self.driver != BLOCK_DRIVER and self.format is not DiskFormat.RAW:
            raise ValueError(f"driver {self.driver} works on raw images, not on {self.format}")
        return self

    @model_validator(mode="after")
    def _check_encryption(self) -> DiskSpec:
        encrypted = self.driver == ENCRYPTED_DRIVER
        if encrypted and self.key_file is None:
            raise ValueError("driver encrypted needs a key_file; duovisor disk-key new FILE makes one")
        if not encrypted and self.key_file is not None:
            raise ValueError(f"key_file is for driver {ENCRYPTED_DRIVER}, not {self.driver}")
        if not encrypted and self.sector_bytes != 512:
            raise ValueError(f"sector_bytes is for driver {ENCRYPTED_DRIVER}, not {self.driver}")
        return self


class PortForward(SpecModel):
    """A TCP or UDP port of the host that leads to one of the guest; loopback unless an address is given."""

    protocol: Literal["tcp", "udp"] = "tcp"
    host_address: Annotated[str, AfterValidator(check_address)] = "127.0.0.1"
    host_port: int = Field(ge=1, le=65535)
    guest_port: int = Field(ge=1, le=65535)

    @model_validator(mode="before")
    @classmethod
    def _read_short_form(cls, value: Any) -> Any:
        """Accept ``[tcp:|udp:][ADDRESS:]HOST_PORT:GUEST_PORT``."""
        if not isinstance(value, str):
            return value
        match = re.match(r"^(?:(tcp|udp):)?(?:(\d+(?:\.\d+){3}):)?(\d+):(\d+)$", value)
        if match is None:
            raise ValueError(f"{value!r} is not a port forward; write for example 2222:22 or udp:5353:53")
        protocol, address, host_port, guest_port = match.groups()
        return {
            "protocol": protocol or "tcp",
            "host_address": address or "127.0.0.1",
            "host_port": int(host_port),
            "guest_port": int(guest_port),
        }


class NicSpec(CardLimits):
    """A virtio network card.

    ``user``: outgoing connections through the host's own sockets, no privilege. ``bridge``: a port of the
    host's bridge of that name; naming one is enough. Any other name is that of a network that duovisor
    manages, whose ``bridge``, and the card's ``address`` there, are found at each start. For these two:
    ``vlan`` is the VLAN of the bridge that the card is on; of what the guest sends, only frames from the
    card's MAC, and IPv4 ``address`` if there is one, get through; with a ``firewall``, what it lists may
    come in, besides answers, and all or what it lists may go out. ``in_limit`` and ``out_limit``: so many
    bytes (``5M``) a second the guest gets and sends at most.

    In the microkernelized design: with ``mac_filter`` the driver, too, drops what the guest sends from
    another MAC (by default it does); ``on_driver_failure`` and ``driver_hang_s`` are a disk's, but "report"
    takes the link down. ``slot`` is as with disks; a card without a ``mac`` of its own has one that depends
    on it.
    """

    slot: int | None = Field(default=None, ge=0, lt=MAX_NICS)
    network: Annotated[str, AfterValidator(check_name)] = USER_NETWORK
    bridge: Annotated[str, AfterValidator(check_interface)] | None = None
    vlan: int | None = Field(default=None, ge=1, le=4094)
    mac: Annotated[str, AfterValidator(_check_mac)] | None = None
    mac_filter: bool | None = None
    address: Annotated[str, AfterValidator(check_address)] | None = None
    firewall: Firewall | None = None
    forward: tuple[PortForward, ...] = ()
    on_driver_failure: DriverFailure = DriverFailure.REPORT
    driver_hang_s: float = Field(default=30.0, ge=0, le=86400, allow_inf_nan=False)

    @property
    def is_bridged(self) -> bool:
        """Whether it is a port of a bridge, the host's or that of a managed network."""
        return self.network != USER_NETWORK

    @property
    def managed_network(self) -> str | None:
        """The name of its network, if duovisor manages that."""
        return self.network if self.network not in (USER_NETWORK, BRIDGE_NETWORK) else None

    @property
    def is_filtered(self) -> bool:
        """Whether there are rules for what its frames may be, on the host."""
        rules = self.managed_network is not None or self.address is not None or self.firewall is not None
        return self.is_bridged and rules

    @model_validator(mode="before")
    @classmethod
    def _read_bridge(cls, value: Any) -> Any:
        """``bridge: br0`` alone means a card on that bridge."""
        if isinstance(value, dict) and value.get("bridge") is not None and "network" not in value:
            return {**value, "network": BRIDGE_NETWORK}
        return value

    @model_validator(mode="after")
    def _check_network(self) -> NicSpec:
        if self.network == BRIDGE_NETWORK and self.bridge is None:
            raise ValueError("network bridge needs the bridge's name: add for example bridge: br0")
        if self.network == USER_NETWORK and self.bridge is not None:
            raise ValueError(f"network user has no bridge; leave network out to use {self.bridge}")
        if self.network == BRIDGE_NETWORK and self.forward:
            raise ValueError("a bridged card has an address of its own; forward is for network user")
        if self.managed_network is not None and self.forward:
            raise ValueError("forward is for network user; duovisor network forward adds a port of a network")
        if self.network == USER_NETWORK:
            for key in ("mac_filter", "vlan", "address", "firewall", "in_limit", "out_limit"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is for a bridged card")
        return self


class DeviceSpec(SpecModel):
    """Another virtio device: ``rng``, an entropy source, or what a Python file of yours makes of it.

    ``options`` are the keyword arguments of that driver. Microkernelized design: when its drivers keep dying,
    its requests wait (``report``) or the VM is paused; ``driver_hang_s`` is as with disks.
    """

    driver: DriverName
    options: dict[OptionName, OptionValue] = Field(default={}, max_length=32)
    on_driver_failure: DriverFailure = DriverFailure.REPORT
    driver_hang_s: float = Field(default=30.0, ge=0, le=86400, allow_inf_nan=False)

    @property
    def file(self) -> str | None:
        """The file of a driver that does not come with duovisor."""
        return None if self.driver == ENTROPY_DRIVER else self.driver

    @model_validator(mode="after")
    def _check_options(self) -> DeviceSpec:
        if self.file is None and self.options:
            raise ValueError(f"driver {self.driver} takes no options")
        return self


class VirtualMachineSpec(Resources):
    """Everything that a user asks for in one virtual machine."""

    name: Annotated[str, AfterValidator(check_name)]
    design: Design = Design.MONOLITHIC
    accelerator: Accelerator = Accelerator.AUTO
    vmm: VmmKind = VmmKind.AUTO
    cpu_model: CpuModel = CpuModel.HOST
    firmware: Firmware = Firmware.BIOS
    secure_boot: bool = False
    tpm: bool = False
    graphics: bool = False
    kernel: KernelSpec | None = None
    disks: tuple[DiskSpec, ...] = Field(default=(), max_length=MAX_DISKS)
    cdroms: tuple[CdromSpec, ...] = Field(default=(), max_length=MAX_CDROMS)
    boot_order: tuple[BootDevice, ...] = Field(default=BOOT_ORDER, max_length=len(BootDevice))
    nics: tuple[NicSpec, ...] = Field(default=(), max_length=MAX_NICS)
    devices: tuple[DeviceSpec, ...] = Field(default=(), max_length=MAX_DEVICES)
    ports: tuple[PortName, ...] = Field(default=(), max_length=8)
    guest_agent: bool = False

    @model_validator(mode="after")
    def _check_kernel(self) -> VirtualMachineSpec:
        if self.firmware is Firmware.DIRECT_KERNEL and self.kernel is None:
            raise ValueError("firmware direct-kernel needs a kernel: add kernel.path, or kernel.disk")
        if self.firmware is not Firmware.DIRECT_KERNEL and self.kernel is not None:
            raise ValueError(f"a kernel is loaded only with firmware direct-kernel, not {self.firmware}")
        if self.secure_boot and self.firmware is not Firmware.UEFI:
            raise ValueError(f"secure_boot is for firmware uefi, not {self.firmware}")
        if len(set(self.boot_order)) < len(self.boot_order):
            raise ValueError(f"boot_order names a kind of device twice: {', '.join(self.boot_order)}")
        if sum(disk.cloud_init is not None for disk in self.disks) > 1:
            raise ValueError("two disks have cloud_init; a guest reads one")
        places = [disk.volume or disk.path for disk in self.disks]
        for place, disk in zip(places, self.disks, strict=True):
            if place and not disk.read_only and places.count(place) > 1:
                raise ValueError(f"{place!r} is given for two disks and one of them writes to it")
        return self

    @model_validator(mode="after")
    def _check_slots(self) -> VirtualMachineSpec:
        for kind, numbered in (("disks", self.numbered_disks()), ("nics", self.numbered_nics())):
            numbers = [number for number, _ in numbered]
            twice = next((number for number in numbers if numbers.count(number) > 1), None)
            if twice is not None:
                raise ValueError(f"two {kind} have the slot {twice}; give one of them another")
        return self

    @model_validator(mode="after")
    def _check_ports(self) -> VirtualMachineSpec:
        if self.guest_agent and AGENT_PORT in self.ports:
            raise ValueError(f"guest_agent has the port {AGENT_PORT}; leave it out of ports")
        return self

    @property
    def all_ports(self) -> tuple[str, ...]:
        """The named ports: those that were asked for, and the guest agent's behind them."""
        return (*self.ports, AGENT_PORT) if self.guest_agent else self.ports

    @property
    def media(self) -> tuple[DiskSpec | CdromSpec, ...]:
        """All that may name an image or a volume."""
        return (*self.disks, *self.cdroms)

    def numbered_disks(self) -> tuple[tuple[int, DiskSpec], ...]:
        """Each disk with its slot."""
        return tuple((at if d.slot is None else d.slot, d) for at, d in enumerate(self.disks))

    def numbered_nics(self) -> tuple[tuple[int, NicSpec], ...]:
        """Each network card with its slot."""
        return tuple((at if nic.slot is None else nic.slot, nic) for at, nic in enumerate(self.nics))

    def disk_at(self, slot: int) -> DiskSpec:
        """The disk with this slot. Raises ``KeyError``."""
        return dict(self.numbered_disks())[slot]

    def nic_at(self, slot: int) -> NicSpec:
        """The network card with this slot. Raises ``KeyError``."""
        return dict(self.numbered_nics())[slot]

    def without_places(self) -> VirtualMachineSpec:
        """The same without the places that each start finds, as a definition has it."""
        nowhere = {"path": "", "format": DiskFormat.RAW}
        disks = tuple(disk.model_copy(update=nowhere) if disk.is_found else disk for disk in self.disks)
        lent = {"bridge": None, "address": None}
        nics = tuple(nic.model_copy(update=lent) if nic.managed_network else nic for nic in self.nics)
        cdroms = tuple(CdromSpec(volume=each.volume) if each.volume else each for each in self.cdroms)
        kernel = self.kernel.without_places() if self.kernel is not None else None
        found = {"disks": disks, "cdroms": cdroms, "nics": nics, "kernel": kernel}
        return self.model_copy(update=found)
