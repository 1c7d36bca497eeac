"""What a card's move relies on in QEMU, how it treats its own TAP and another one before its guest runs."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.contract.network_driver import flood
from tests.contract.network_driver.card_moves import (
    MAC,
    enter_quiet_network,
    open_sender,
    open_taps,
    read_all,
)
from tests.networks import run_ip, why_no_namespace

from duovisor.controlling.networks import interfaces
from duovisor.controlling.networks.moving import prepare_move
from duovisor.controlling.networks.offloads import Offloads, set_offloads

if TYPE_CHECKING:
    from collections.abc import Iterator

QEMU = "qemu-system-x86_64"
LEGACY_HEADER_BYTES = 10
CHECKSUM, TCP_V4, TCP_V6 = 1, 2, 4
FRAMES = 100
TIMEOUT_S = 60.0

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(bool(why_no_namespace()), reason=why_no_namespace() or "none"),
    pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"there is no {QEMU}"),
]


@pytest.fixture(autouse=True)
def network() -> Iterator[None]:
    with enter_quiet_network():
        yield


@contextmanager
def waiting_qemu(tap: int) -> Iterator[None]:
    """A QEMU that has opened a TAP and waits for a stream to come in."""
    words = [QEMU, "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "64"]
    words += ["-netdev", f"tap,id=net,fd={tap},vhost=off", "-incoming", "defer"]
    words += ["-device", f"virtio-net-pci,netdev=net,mac={MAC},romfile=", "-qmp", "stdio"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, pass_fds=[tap], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert "QMP" in process.stdout.readline()
            for command in ("qmp_capabilities", "query-status"):
                process.stdin.write(f'{{"execute": "{command}"}}\n')
                process.stdin.flush()
                assert "return" in process.stdout.readline()
            yield
        finally:
            process.kill()


def flood_guest(sender: int) -> None:
    for number in range(FRAMES):
        os.write(sender, flood.build_frame(number))


def wait_taken(tap: int) -> None:
    """Wait until somebody has read a frame from a TAP, which counts as sent then (tun_put_user)."""
    deadline = time.monotonic() + TIMEOUT_S
    name = interfaces.read_tap_name(tap)
    while not json.loads(run_ip("-s", "-j", "link", "show", "dev", name))[0]["stats64"]["tx"]["packets"]:
        assert time.monotonic() < deadline, "QEMU has taken no frame"
        time.sleep(0.05)


def count_waiting(tap: int) -> int:
    return sum(frame.endswith(flood.PAYLOAD) for frame in read_all(tap))  # the bridge speaks, too


def test_the_source_is_left_alone() -> None:
    with open_taps() as (old, new), closing(prepare_move(old, new, MAC)):
        name = interfaces.read_tap_name(old)
        with closing(Offloads(name)) as offloads:
            set_offloads(old, CHECKSUM | TCP_V4 | TCP_V6)
            with waiting_qemu(new):
                assert interfaces.read_header_bytes(new) == LEGACY_HEADER_BYTES
                assert offloads.read(interfaces.read_tap_name(new)) == 0
                assert interfaces.read_header_bytes(old) == 12
                assert offloads.read(name) == CHECKSUM | TCP_V4 | TCP_V6


def test_qemu_keeps_one_frame_and_takes_the_dummy_for_it() -> None:
    with open_sender() as sender, open_taps() as (old, new), closing(prepare_move(old, new, MAC)) as move:
        with waiting_qemu(new):
            asyncio.run(move.occupy())
            move.divert()
            flood_guest(sender)
            time.sleep(0.2)
            assert count_waiting(new) == FRAMES


def test_without_the_dummy_a_frame_is_missing() -> None:
    with open_sender() as sender, open_taps() as (old, new), closing(prepare_move(old, new, MAC)) as move:
        with waiting_qemu(new):
            move.divert()
            flood_guest(sender)
            wait_taken(new)
            assert count_waiting(new) == FRAMES - 1
