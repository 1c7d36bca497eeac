"""The TAPs of a whole VM: found in the processes that hold them, and moved together."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack

import pytest
from tests.networks import BRIDGE, enter_network, list_ports, why_no_namespace

from duovisor.controlling.machine_networks import find_taps, open_taps, prepare_moves
from duovisor.controlling.networks.interfaces import read_tap_name
from duovisor.spec.loading import build_spec

pytestmark = pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none")

SPEC = build_spec(
    {
        "name": "web1",
        "nics": [{"bridge": BRIDGE}, {"network": "user"}, {"bridge": BRIDGE}],
    }
)


def test_each_card_has_its_own() -> None:
    with enter_network():
        with ExitStack() as held:
            taps = open_taps(SPEC, held)
            assert list(taps) == ["nic0", "nic2"]
            holder = subprocess.Popen(["sleep", "60"], pass_fds=tuple(taps.values()))
            try:
                found = find_taps(SPEC, [holder.pid], held)
            finally:
                holder.kill()
                holder.wait()
            assert sorted(found) == ["nic0", "nic2"]
            for name, tap in taps.items():
                assert read_tap_name(found[name]) == read_tap_name(tap)
            assert find_taps(SPEC, [holder.pid], held) == {}
        assert list_ports() == []


def test_all_cards_move() -> None:
    with enter_network():
        with ExitStack() as held:
            old, new = open_taps(SPEC, held), open_taps(SPEC, held)
            moves = prepare_moves(SPEC, old, new, held)
            assert list(moves) == ["nic0", "nic2"]
            for move in moves.values():
                assert move.divert().addresses == 1
                assert move.settle().addresses == 1
            assert len({read_tap_name(each) for each in (*old.values(), *new.values())}) == 4
            descriptors = len(os.listdir("/proc/self/fd"))
        assert list_ports() == []
        assert len(os.listdir("/proc/self/fd")) < descriptors - 8
