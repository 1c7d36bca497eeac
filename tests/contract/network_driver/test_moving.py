"""A card moves from one TAP to another on a real bridge, under frames that never end."""

from __future__ import annotations

import os
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from tests.contract.network_driver.card_moves import (
    MAC,
    QUEUE,
    enter_quiet_network,
    find_place,
    flooded,
    open_taps,
    run_source,
)
from tests.networks import why_no_namespace

from duovisor.controlling.networks import interfaces
from duovisor.controlling.networks.moving import prepare_move

if TYPE_CHECKING:
    from collections.abc import Iterator

MOVES = int(os.environ.get("DUOVISOR_MOVES", "70"))
# of frames that come at the moment itself, where the source does not read: one move in 300 has any
OVERTAKEN_SHARE = 0.002


pytestmark = pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none")


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    with enter_quiet_network():
        yield


@pytest.mark.parametrize("window", [1, 16, 400])
def test_nothing_is_lost_garbled_or_reordered(window: int) -> None:
    with open_taps() as taps, flooded(window) as guest:
        old, new = taps
        for _ in range(MOVES):
            run_source(guest, old)
            with closing(prepare_move(old, new, MAC)) as move:
                run_source(guest, old, for_s=0.0005)
                move.divert()
                run_source(guest, old, for_s=0.0005)
                guest.read(old, QUEUE)
                move.settle()
                guest.read(new)
                move.finish()
            old, new = new, old
        guest.drain(old)


@pytest.mark.parametrize("window", [1, 400])
def test_a_failed_move_loses_nothing(window: int) -> None:
    with open_taps() as (old, new), flooded(window, OVERTAKEN_SHARE) as guest:
        for turn in range(MOVES // 2):
            run_source(guest, old)
            with closing(prepare_move(old, new, MAC)) as move:
                move.divert()
                guest.read(old, QUEUE)
                time.sleep(0.001)
                if turn % 2:
                    move.settle()
                move.back()
                guest.read(old)
                move.finish()
            assert find_place()["ifname"] == interfaces.read_tap_name(old)
        guest.drain(old)


@pytest.mark.parametrize("window", [1, 400])
def test_a_paused_guest_moves(window: int) -> None:
    with open_taps() as taps, flooded(window, OVERTAKEN_SHARE) as guest:
        old, new = taps
        for _ in range(MOVES // 4):
            run_source(guest, old)
            with closing(prepare_move(old, new, MAC)) as move:
                time.sleep(0.001)
                move.divert(source_reads=False)
                move.settle()
                guest.read(new)
                move.finish()
            old, new = new, old
        guest.drain(old)
