"""How the devices beside disks and network cards are served: by our entropy driver, or by users' own."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.driver_files import MANUAL, MEMORY_FILE, look_at_driver, open_driver
from duovisor.controlling.errors import DriverFileError
from duovisor.controlling.partitions.factory import Modules
from duovisor.controlling.partitions.limits import build_limits
from duovisor.controlling.supervision.adoption import is_memory_file, take_descriptor
from duovisor.controlling.supervision.plan import DevicePlan
from duovisor.hypervisor.qemu.devices import ENTROPY, device_socket
from duovisor.sandbox import uid_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack

    from duovisor.controlling.driver_files import OpenDriver
    from duovisor.spec.vm import DeviceSpec, VirtualMachineSpec

KIND = "device"
ENTROPY_ROLE = "entropy driver"
OWN_DRIVER = "own"


class OpenDevice(NamedTuple):
    """A device whose type is known; ``driver`` is the file of one's own, if it has one."""

    device_type: int
    driver: OpenDriver | None


def open_device(device: DeviceSpec, files: ExitStack) -> OpenDevice:
    """Look at what is to serve a device; ``files`` closes it. Raises ``DriverFileError``."""
    if device.file is None:
        return OpenDevice(ENTROPY, None)
    driver = files.enter_context(open_driver(device.file))
    if driver.device_type is None:
        raise DriverFileError(
            f"driver {device.file} has no class that says its type, as in device_id = 4", remedy=MANUAL
        )
    return OpenDevice(driver.device_type, driver)


def adopt_device(device: DeviceSpec, pids: Iterable[int], files: ExitStack) -> OpenDevice:
    """What serves a device, as one of these processes holds it, or as its file is now.

    Raises ``DriverFileError``.
    """
    for pid in pids if device.file is not None else ():
        descriptor = take_descriptor(pid, is_memory_file(MEMORY_FILE))
        if descriptor is not None:
            files.callback(os.close, descriptor)
            driver = look_at_driver(descriptor, device.driver)
            if driver.device_type is not None:
                return OpenDevice(driver.device_type, driver)
    return open_device(device, files)


def plan_device(spec: VirtualMachineSpec, index: int, opened: OpenDevice, files: ExitStack) -> DevicePlan:
    """How device ``index`` is served; ``files`` closes what is read for it later."""
    device, driver = spec.devices[index], opened.driver
    own = driver is not None
    return DevicePlan(
        device=device_socket(index),
        role=f"driver {Path(device.driver).name}" if own else ENTROPY_ROLE,
        driver=OWN_DRIVER if own else device.driver,
        words=build_own_words(device.driver, opened.device_type, device.options) if own else (),
        descriptors={"source": driver.descriptor} if driver is not None else {},
        hang_s=device.driver_hang_s,
        on_failure=device.on_driver_failure,
        uid=uid_of(spec.name),
        limits=build_limits(spec.memory_room_mib),
        kind=KIND,
        modules=Modules.LIBRARY if own else Modules.USUAL,
        source_code=driver.digest if driver is not None else "",
        reread=partial(_reread, spec, index, opened.device_type, files) if own else None,
    )


def build_own_words(
    path: str, device_type: int, options: dict[str, bool | int | float | str]
) -> tuple[str, ...]:
    """The words of a driver of one's own; a partition learns the file's name, not its path."""
    return Path(path).name, str(device_type), json.dumps(options)


def _reread(spec: VirtualMachineSpec, index: int, device_type: int, files: ExitStack) -> DevicePlan:
    """The plan with the driver's file as it is now. Raises ``DriverFileError``."""
    opened = open_device(spec.devices[index], files)
    if opened.device_type != device_type:
        raise DriverFileError(
            f"driver {spec.devices[index].driver} is for a device of type {opened.device_type} now; "
            f"the guest has one of type {device_type}",
            remedy="restart the VM",
        )
    return plan_device(spec, index, opened, files)
