"""A guest's device state from one design to the other: pure, bytes to bytes.

Both VMMs have the same hardware but for the disks: QEMU's virtio-blk saves its state under its own name,
version 2, with a list of requests that wait for a broken image (one byte 0 when there are none);
vhost-user-blk under another name, version 1, without that list. Network cards are QEMU's virtio-net in both
designs.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from duovisor.hypervisor.migration import features, virtio
from duovisor.hypervisor.migration.errors import TranslationError
from duovisor.hypervisor.migration.reader import Reader
from duovisor.hypervisor.migration.stream import parse_stream
from duovisor.hypervisor.migration.virtio_net import read_card
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from collections.abc import Iterable

    from duovisor.hypervisor.migration.stream import Section, Stream

INSIDE, OUTSIDE = "virtio-blk", "vhost-user-blk"
ENTROPY, USER_NETWORK = "virtio-rng", "slirp"
VERSIONS = {INSIDE: 2, OUTSIDE: 1}
_DISK_OF = {Design.MONOLITHIC: INSIDE, Design.MICROKERNELIZED: OUTSIDE}
_NO_REQUESTS = b"\0"
_NAME_OFFSET, _FOOTER_BYTES = 5, 5  # in a section: after its type and number


class AllowedFeatures(NamedTuple):
    """The feature bits that devices may have negotiated to be carried to the other design."""

    disk: int = features.DISK
    bridged_nic: int = features.BRIDGED_NIC


ALLOWED = AllowedFeatures()


class _Change(NamedTuple):
    start: int
    end: int
    replacement: bytes


def translate(
    data: bytes,
    target: Design,
    *,
    allowed: AllowedFeatures = ALLOWED,
    drop_user_network: bool = False,
) -> bytes:
    """The stream for a VMM of the design ``target``; the same bytes if it comes from one of that design.

    ``drop_user_network``: of a card on user networking, leave out what only QEMU's own has, the guest's open
    connections; it is refused otherwise. Raises ``StreamError`` (not understood), ``TranslationError``.
    """
    stream = parse_stream(data)
    if not crosses_border(stream, target):
        return data
    changes: list[_Change] = []
    for section in stream.sections:
        changes += _carry(stream, section, target, allowed, drop_user_network=drop_user_network)
    return _apply(data, stream, changes)


def crosses_border(stream: Stream, target: Design) -> bool:
    """Whether the stream comes from the other design. Raises ``TranslationError`` if it is of both."""
    disks = {kind for section in stream.sections if (kind := _kind(section)) in VERSIONS}
    if len(disks) == 2:
        raise TranslationError(f"the guest has disks of both designs, {INSIDE} and {OUTSIDE}")
    if disks:
        return disks != {_DISK_OF[target]}
    # nothing tells the designs apart but what only the monolithic one has
    kinds = {_kind(section) for section in stream.sections}
    return target is Design.MICROKERNELIZED and bool(kinds & {ENTROPY, USER_NETWORK})


def _kind(section: Section) -> str:
    """The device's model: what follows its place, as in ``0000:00:10.0/virtio-blk``."""
    return section.name.rpartition("/")[2]


def _carry(
    stream: Stream, section: Section, target: Design, allowed: AllowedFeatures, *, drop_user_network: bool
) -> Iterable[_Change]:
    match _kind(section):
        case "virtio-blk" | "vhost-user-blk":
            return _carry_disk(stream, section, target, allowed.disk)
        case "virtio-net":
            _check_nic(stream, section, allowed.bridged_nic)
        case "virtio-rng":
            raise TranslationError(
                f"{section.name}: an entropy source cannot change the design under a running VM: "
                "QEMU does not migrate vhost-user-rng",
                remedy="stop the VM to change its design",
            )
        case "slirp":
            return _drop_user_network(stream, section, drop_user_network=drop_user_network)
        case "virtio-console":
            pass
        case kind if kind.startswith(("virtio-", "vhost-")):
            raise TranslationError(f"{section.name}: nobody has tried to carry a {kind} to the other design")
    return ()


def _carry_disk(stream: Stream, section: Section, target: Design, allowed: int) -> list[_Change]:
    old, new = _kind(section), _DISK_OF[target]
    if section.version != VERSIONS[old]:
        raise TranslationError(f"{section.name}: version {section.version} is unknown, not {VERSIONS[old]}")
    reader = Reader(stream.data, section.body, section.end)
    head = virtio.read_head(reader)
    requests = reader.at
    if old == INSIDE:
        _check_idle(reader, section.name)
    negotiated = head.features | virtio.read_tail(reader)
    if unknown := negotiated & ~allowed:
        raise TranslationError(
            f"{section.name}: the guest uses what a disk has in one design only: "
            f"{features.name_disk_features(unknown)}"
        )
    name = section.name.removesuffix(old) + new
    header = _build_name(name) + section.instance_id.to_bytes(4, "big") + VERSIONS[new].to_bytes(4, "big")
    removed, added = (1, b"") if old == INSIDE else (0, _NO_REQUESTS)
    content = _Change(requests, requests + removed, added)
    size = section.end - section.body + len(added) - removed
    document = {
        **section.description.document, "name": name, "vmsd_name": new, "version": VERSIONS[new],
        "fields": [{"name": "virtio", "type": "virtio", "size": size}],
    }  # fmt: skip
    return [
        _Change(section.start + _NAME_OFFSET, section.body, header),
        content,
        _change_description(stream, section, json.dumps(document).encode()),
    ]


def _check_idle(reader: Reader, name: str) -> None:
    """Read the list of requests, which must be empty; 1 before each of them, and 0 after the last."""
    mark = reader.u8("list of requests")
    if mark == 1:
        raise TranslationError(
            f"{name}: requests wait for a disk that failed them",
            remedy="resume the VM when its image is sound again",
        )
    reader.expect(0, mark, "the end of the list of requests")


def _check_nic(stream: Stream, section: Section, allowed: int) -> None:
    """A card on a bridge has its back end in either design; one on user networking is QEMU's in both."""
    reader = Reader(stream.data, section.body, section.end)
    head = virtio.read_head(reader)
    bridged = read_card(reader, head)
    negotiated = head.features | virtio.read_tail(reader)
    if bridged and (unknown := negotiated & ~allowed):
        raise TranslationError(
            f"{section.name}: the guest uses what a network card has in one design only: "
            f"{features.name_nic_features(unknown)}"
        )


def _drop_user_network(stream: Stream, section: Section, *, drop_user_network: bool) -> list[_Change]:
    if not drop_user_network:
        raise TranslationError(
            f"{section.name}: the guest's connections through user networking would be lost",
            remedy="use a bridged card, or agree to lose them",
        )
    return [
        _Change(section.start, section.end + _FOOTER_BYTES, b""),
        _change_description(stream, section, b""),
    ]


def _build_name(name: str) -> bytes:
    return bytes((len(name),)) + name.encode()


def _change_description(stream: Stream, section: Section, replacement: bytes) -> _Change:
    """Replace a device's description; it must stand there exactly once and as QEMU writes it."""
    text = json.dumps(section.description.document).encode()
    start = stream.data.find(text, stream.description)
    if start < 0 or stream.data.find(text, start + 1) >= 0:
        raise TranslationError(f"{section.name}: its description is not written as QEMU writes it")
    end = start + len(text)
    if not replacement:  # of a list, take the comma as well; our hardware never ends with such a device
        end += len(", ")
    return _Change(start, end, replacement)


def _apply(data: bytes, stream: Stream, changes: list[_Change]) -> bytes:
    """The stream with all changes, and the length of its description set right."""
    grown = sum(
        len(change.replacement) - (change.end - change.start)
        for change in changes
        if change.start >= stream.description
    )
    length = len(data) - stream.description + grown
    changes.append(_Change(stream.description - 4, stream.description, length.to_bytes(4, "big")))
    view = memoryview(data)
    parts: list[bytes | memoryview] = []
    at = 0
    for change in sorted(changes):
        parts += [view[at : change.start], change.replacement]
        at = change.end
    return b"".join([*parts, view[at:]])
