"""How a VM boots from an image: the part of a specification that the image decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from duovisor.controlling.images.errors import ImageUseError
from duovisor.controlling.images.probe import PORT_NAME
from duovisor.spec.vm import Firmware, VmmKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from duovisor.controlling.images.image import Image

FROM_CLONE = {"disk": 0}  # where plan_instance puts it


def add_image(document: Mapping[str, Any], image: Image) -> dict[str, Any]:
    """Complete a specification document with an image: kernel, the image's disks after the user's, its port.

    What the document says itself (such as a kernel command line) goes before what the image says. Of an image
    with a disk to be cloned, only the kernel is wanted, and that where the document says so or the VMM has no
    firmware: it is taken from the clone, which is the first disk, at each start. What an image has an agent
    for, gets its port. Raises ``ImageUseError``.
    """
    if image.guest_agent:
        document = {"guest_agent": True, **document}
    if image.volume is not None and document.get("vmm") == VmmKind.THIN:
        document = {"firmware": Firmware.DIRECT_KERNEL.value, **document}
    if image.volume is not None and document.get("firmware") != Firmware.DIRECT_KERNEL:
        return dict(document)
    if image.kernel is None:
        raise ImageUseError(
            f"image {image.name!r} has no kernel on its disk that can be found from outside",
            remedy="leave firmware direct-kernel out",
        )
    if image.volume is not None:
        given = document.get("kernel", {})
        return {**document, "kernel": given if "path" in given else {**FROM_CLONE, **given}}
    kernel = {
        "path": str(image.kernel_path),
        "initrd": str(image.initrd_path),
        "command_line": image.command_line,
    }
    disks = [
        {"path": str(path), "read_only": disk.read_only, "serial": disk.serial}
        for disk, path in zip(image.disks, image.disk_paths, strict=True)
    ]
    return {
        "firmware": "direct-kernel",
        **document,
        "kernel": {**kernel, **document.get("kernel", {})},
        "disks": [*document.get("disks", ()), *disks],
        "ports": [PORT_NAME, *document.get("ports", ())],
    }
