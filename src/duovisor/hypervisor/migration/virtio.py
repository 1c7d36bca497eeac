"""The state of a virtio device on PCI, as QEMU saves it: one opaque field of its section, read here in full.

::

    PCI: version, configuration space, lines · MSI-X table · registers · configuration · queues
    · what the device itself saves · subsections

Sources: QEMU ``hw/virtio/virtio.c`` (``virtio_save``), ``hw/virtio/virtio-pci.c``, ``hw/pci/pci.c``,
``hw/pci/msix.c``; the same in 7.2 and 10.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from duovisor.hypervisor.migration.description import SUBSECTION

if TYPE_CHECKING:
    from duovisor.hypervisor.migration.reader import Reader

QUEUES_MAX = 1024  # VIRTIO_QUEUE_MAX; these subsections have an entry for each possible queue
_PCI_VERSION = 2
_PCI_CONFIGURATION_BYTES, _PCI_LINES_BYTES = 256, 16
_PCI_STATUS, _PCI_HAS_CAPABILITIES, _PCI_FIRST_CAPABILITY = 0x06, 0x10, 0x34
_PCI_HEADER_BYTES = 0x40
_CAPABILITY_EXPRESS, _CAPABILITY_MSIX = 0x10, 0x11
_MSIX_ENTRY_BYTES, _MSIX_SIZE_MASK = 16, 0x7FF

_MODERN_STATE = "virtio_pci/modern_state"
_MODERN_STATE_BYTES = 16 + QUEUES_MAX * 28
# subsection of version 1 → its bytes. Not here: virtio/device_endian and virtio/packed_virtqueues, which
# nothing of ours negotiates, and virtio/broken, of a device that only a reset helps
_SUBSECTIONS = {
    "virtio/64bit_features": 8,
    "virtio/virtqueues": QUEUES_MAX * 16,
    "virtio/ringsize": QUEUES_MAX * 4,
    "virtio/extra_state": 0,
    "virtio/started": 1,
    "virtio/disabled": 1,
}


class VirtioHead(NamedTuple):
    """What comes before the device's own state: the low 32 feature bits and the number of queues in use."""

    features: int
    queues: int


def read_head(reader: Reader) -> VirtioHead:
    """Read up to the device's own state. Raises ``StreamError``."""
    vectors = _read_pci(reader)
    if vectors is not None:
        reader.skip(vectors * _MSIX_ENTRY_BYTES + (vectors + 7) // 8, "MSI-X table")
        reader.skip(2, "vector of configuration changes")
    reader.skip(1 + 1 + 2, "status, interrupt status and selected queue")
    features = reader.u32("features")
    reader.skip(reader.u32("size of the configuration"), "configuration")
    start = reader.at
    queues = reader.u32("number of queues")
    if queues > QUEUES_MAX:
        raise reader.fail(f"{queues} queues", start)
    reader.skip(queues * (4 + 8 + 2 + (2 if vectors is not None else 0)), "queues")
    return VirtioHead(features, queues)


def _read_pci(reader: Reader) -> int | None:
    """Read the PCI part; the number of MSI-X vectors, ``None`` for a device that has none."""
    reader.expect(_PCI_VERSION, reader.u32("PCI state"), "the version of the PCI state")
    start = reader.at
    configuration = reader.take(_PCI_CONFIGURATION_BYTES, "PCI configuration space")
    reader.skip(_PCI_LINES_BYTES, "PCI interrupt lines")
    vectors = None
    for capability, place in _list_capabilities(reader, configuration, start):
        if capability == _CAPABILITY_EXPRESS:
            raise reader.fail("a PCI Express device: its configuration space has another size", start)
        if capability == _CAPABILITY_MSIX:
            control = int.from_bytes(configuration[place + 2 : place + 4], "little")
            vectors = (control & _MSIX_SIZE_MASK) + 1
    return vectors


def _list_capabilities(reader: Reader, configuration: bytes, start: int) -> list[tuple[int, int]]:
    """Capability number and place of each, along the chain that begins in the header."""
    found: list[tuple[int, int]] = []
    if not configuration[_PCI_STATUS] & _PCI_HAS_CAPABILITIES:
        return found
    place = configuration[_PCI_FIRST_CAPABILITY]
    while place:
        if not _PCI_HEADER_BYTES <= place <= len(configuration) - 4 or len(found) > len(configuration) // 4:
            raise reader.fail(f"the chain of PCI capabilities leads to {place:#x}", start)
        found.append((configuration[place], place))
        place = configuration[place + 1]
    return found


def read_tail(reader: Reader) -> int:
    """Read the subsections, to the end; feature bits 32 to 63, in their places. Raises ``StreamError``."""
    features = 0
    seen = set()
    while reader.at < reader.end:
        start = reader.at
        name = _read_subsection_name(reader)
        if name not in _SUBSECTIONS or name in seen:
            raise reader.fail(f"subsection {name}, which we do not know there", start)
        seen.add(name)
        if name == "virtio/64bit_features":
            features = reader.u64(name) >> 32 << 32
            continue
        reader.skip(_SUBSECTIONS[name], name)
        if name == "virtio/extra_state":
            _read_modern_state(reader)
    return features


def _read_modern_state(reader: Reader) -> None:
    start = reader.at
    name = _read_subsection_name(reader)
    if name != _MODERN_STATE:
        raise reader.fail(f"subsection {name}, not {_MODERN_STATE}", start)
    reader.skip(_MODERN_STATE_BYTES, name)


def _read_subsection_name(reader: Reader) -> str:
    reader.expect(SUBSECTION, reader.u8("subsection"), "the mark of a subsection")
    name = reader.name("subsection")
    reader.expect(1, reader.u32(name), f"the version of {name}")
    return name
