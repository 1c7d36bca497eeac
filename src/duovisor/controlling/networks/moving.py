"""A network card's place on its bridge moves from one TAP to another while its VMM or driver changes.

Two cannot share a TAP: whoever opens one sets header and offloads for all. So the successor has a TAP of its
own on the same bridge, which gets nothing until ``divert``; then the bridge sends the guest's frames there,
where they wait, in order, while the old reader empties the old queue. docs/network-driver.md has the figure.
"""

from __future__ import annotations

import asyncio
import errno
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from duovisor.controlling.errors import HostLacksError, NetworkError
from duovisor.controlling.networks import bridge_ports as ports
from duovisor.controlling.networks.frames import HEADER_BYTES, FrameQueue, is_for_group
from duovisor.controlling.networks.netlink import Netlink
from duovisor.controlling.networks.offloads import Offloads

if TYPE_CHECKING:
    from collections.abc import Iterator

# For nobody, and the same wherever a reader takes its header to end
DUMMY = bytes(HEADER_BYTES) + bytes([2]) * 60
OCCUPIED_WITHIN_S = 0.5
DRAINED_WITHIN_S = 0.005
LOOK_EVERY_S = 0.0002


class Carried(NamedTuple):
    """How many frames, and how many addresses, a step has moved; ``lost`` frames found the queue full."""

    frames: int = 0
    lost: int = 0
    addresses: int = 0


class CardMove:
    """The move of one card from its TAP to another one; ``prepare_move`` makes it.

    In this order: ``occupy`` if QEMU reads the new one; ``divert`` before the source stops; ``settle`` when
    it has, or ``back`` at any time; ``finish`` when the one or the other runs; ``close``. They raise
    ``NetworkError``; then, too, ``back`` is right.
    """

    def __init__(self, netlink: Netlink, offloads: Offloads, old: FrameQueue, new: FrameQueue) -> None:
        self._netlink = netlink
        self._offloads = offloads
        self._old = old
        self._new = new
        self._places: set[ports.Learned] = set()
        self._is_diverted = False
        self._is_drained = False

    async def occupy(self) -> None:
        """Give QEMU, which reads the new TAP and cannot run its guest yet, a frame for nobody.

        A QEMU whose guest cannot receive takes one frame and keeps it, and with a header size that it changes
        later: the guest would miss that frame.
        """
        self._new.put([DUMMY])
        deadline = time.monotonic() + OCCUPIED_WITHIN_S
        while not self._new.is_empty:
            if time.monotonic() > deadline:  # it does not take any: all the better
                self._new.discard()
            await asyncio.sleep(LOOK_EVERY_S)

    def divert(self, *, source_reads: bool = True) -> Carried:
        """From now on what is for the guest waits in the new TAP, even if the guest speaks on the old one.

        Without ``source_reads``, as of a VM that is paused, what waits in the old TAP goes there first; a
        frame that comes at that very moment may be overtaken.
        """
        with _explained():
            self._is_diverted = True
            self._offloads.copy(self._old.name, self._new.name, self._new.descriptor)
            self._places = set(ports.list_learned(self._netlink, self._old.index))
            places = [ports.build_place(each, self._new.index, sticky=True) for each in self._places]
            carried = Carried() if source_reads else _carry(self._old, self._new)
            self._netlink.change([ports.build_state(self._new.index, ports.FORWARDING), *places])
        self._is_drained = source_reads and self._old.is_empty
        return carried._replace(addresses=len(places))

    async def wait_drained(self, timeout_s: float = DRAINED_WITHIN_S) -> bool:
        """Whether the source has read what waited for it before ``divert``, or does within that time."""
        deadline = time.monotonic() + timeout_s
        while not self._is_drained and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_EVERY_S)
            self._is_drained = self._old.is_empty
        return self._is_drained

    def settle(self) -> Carried:
        """The source reads and sends no more: what it has left goes to the new TAP, as does its place."""
        with _explained():
            self._places |= set(ports.list_learned(self._netlink, self._old.index))
            self._netlink.change([ports.build_place(each, self._new.index) for each in self._places])
        # if it was drained, what is left and for a group came after divert: the new TAP has it, too
        carried = _carry(self._old, self._new, unicast_only=self._is_drained)
        self._is_drained = False  # from now on only the new TAP has it
        return carried._replace(addresses=len(self._places))

    def back(self) -> Carried:
        """The source goes on: the old TAP is the card's place again, and gets what waits in the new one.

        A frame that comes at that very moment may be overtaken.
        """
        if not self._is_diverted:
            return Carried()
        self._is_diverted = False
        # the new port's state stays as it is: a frame that is on its way there would be dropped
        places = [ports.build_place(each, self._old.index) for each in self._places]
        # if the source has read all by itself, it has, or will get, what is for a group
        first = _carry(self._new, self._old, unicast_only=self._is_drained)
        with _explained():
            self._netlink.change(places)
        rest = _carry(self._new, self._old, unicast_only=self._is_drained)
        return Carried(first.frames + rest.frames, first.lost + rest.lost, len(places))

    def finish(self) -> Carried:
        """Successor or source runs: carry what was on its way when the place moved."""
        source, target = (self._old, self._new) if self._is_diverted else (self._new, self._old)
        return _carry(source, target, unicast_only=True)

    def close(self) -> None:
        """Let go of both TAPs, which are the caller's; the kernel takes 20 ms for it. Once is enough."""
        for each in (self._netlink, self._offloads, self._old, self._new):
            each.close()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise HostLacksError(
            "to move a network card to another TAP needs the right to do so (CAP_NET_ADMIN and CAP_NET_RAW)",
            remedy="let the service run as root",
        ) from error
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise NetworkError(
                "a network card cannot move on a bridge that runs STP: a new port would be deaf for seconds",
                remedy="ip link set BRIDGE type bridge stp_state 0",
            ) from error
        raise NetworkError(f"a network card cannot move to another TAP: {error.strerror or error}") from error


@_explained()
def prepare_move(old: int, new: int, mac: str) -> CardMove:
    """The move of the card with the address ``mac`` from one TAP to another on the same bridge.

    ``new`` is fresh: nobody reads it yet. It gets the settings that ``old`` has as a port, and no frames.
    Raises ``NetworkError`` or ``HostLacksError``; nothing has changed for the card then.
    """
    with ExitStack() as stack:
        netlink = stack.enter_context(closing(Netlink()))
        source, target = (stack.enter_context(closing(FrameQueue(each))) for each in (old, new))
        offloads = stack.enter_context(closing(Offloads(source.name)))
        netlink.change([ports.build_state(target.index, ports.LISTENING)])
        target.discard()
        settings, plain = (ports.read_port(netlink, each.index) for each in (source, target))
        netlink.change(ports.build_copy(settings, plain, target.index))
        netlink.change([ports.build_multicast_wish(target.index)])
        address = bytes.fromhex(mac.replace(":", ""))
        if all(each.address != address for each in ports.list_learned(netlink, source.index)):
            with suppress(FileExistsError):  # the bridge would send what it knows no place for to both
                netlink.change([ports.build_first_place(address, source.index)])
        stack.pop_all()
        return CardMove(netlink, offloads, source, target)


def _carry(source: FrameQueue, target: FrameQueue, *, unicast_only: bool = False) -> Carried:
    frames = source.read()
    return Carried(*target.put(each for each in frames if not (unicast_only and is_for_group(each))))
