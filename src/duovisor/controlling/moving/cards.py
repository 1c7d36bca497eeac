"""The bridged cards of a VM that moves: each has a TAP beside the old one, which takes over its place."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import TYPE_CHECKING

from duovisor.controlling.machine_networks import find_taps, prepare_moves
from duovisor.controlling.moving.errors import MoveRefusedError
from duovisor.spec.vm import Design

if TYPE_CHECKING:
    from duovisor.controlling.incarnation import Incarnation
    from duovisor.controlling.networks.moving import CardMove


class CardMoves:
    """The moves of all cards from ``old`` to ``new``, whose TAPs are open and not read yet.

    In the order of ``networks.moving.CardMove``. Raises ``MoveRefusedError`` when a TAP of the old VMM cannot
    be found, and what ``prepare_moves`` raises.
    """

    def __init__(self, old: Incarnation, new: Incarnation) -> None:
        self._inside = new.spec.design is Design.MONOLITHIC
        self._moves: tuple[CardMove, ...] = ()
        with ExitStack() as held:
            taps = dict(old.taps)
            process = old.vmm.process
            if new.taps.keys() - taps.keys() and process is not None:
                taps |= find_taps(old.spec, [process.program_pid()], held)
            if missing := sorted(new.taps.keys() - taps.keys()):
                raise MoveRefusedError(f"{old.name}: the TAP of {missing[0]} cannot be found in its VMM")
            self._moves = tuple(prepare_moves(old.spec, taps, new.taps, held).values())
            self._held = held.pop_all()

    async def occupy(self) -> None:
        """The new VMM is there and cannot run its guest yet."""
        if self._inside:
            await asyncio.gather(*(each.occupy() for each in self._moves))

    async def divert(self) -> None:
        """The old VMM is about to be paused: from now on frames wait for the new one."""
        for each in self._moves:
            each.divert()
        await asyncio.gather(*(each.wait_drained() for each in self._moves))

    def settle(self) -> None:
        """The old VMM is paused, and the new one about to go on."""
        for each in self._moves:
            each.settle()

    def finish(self) -> None:
        """The new VMM has gone on."""
        for each in self._moves:
            each.finish()

    def back(self) -> None:
        """The old VMM is about to go on."""
        for each in self._moves:
            each.back()

    async def close(self) -> None:
        """Let go of all TAPs."""
        if self._moves:
            await asyncio.to_thread(self._held.close)
        else:
            self._held.close()
