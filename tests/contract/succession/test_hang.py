"""A driver that stopped working is noticed by its spare; one that has nothing to do is not."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from tests.contract.succession.disk import Disk, make_disk

from duovisor.channel.messages import Request, build_header

if TYPE_CHECKING:
    from tests.contract.succession.crew import Driver, Nursery

HANG_S = 0.4


def stop_active(disk: Disk) -> tuple[Driver, Driver]:
    """Freeze the active driver under the eyes of its spare; both."""
    disk.connect(spare=False)
    disk.crew.add_spare(hang_s=HANG_S)
    active, spare = disk.crew.active, disk.crew.spare
    assert active is not None
    assert spare is not None
    disk.submit()
    disk.answer_all()
    active.send_signal(signal.SIGSTOP)
    return active, spare


def test_requests_that_nobody_works_on_are_noticed_once(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        active, spare = stop_active(disk)
        started = time.monotonic()
        disk.loads[1].submit(disk.source)
        event = spare.next_event()
        assert event["event"] == "hung"
        assert event["queue"] == 1
        assert HANG_S <= event["seconds"] < HANG_S + 30
        assert time.monotonic() - started >= HANG_S
        time.sleep(2 * HANG_S)
        assert not spare.has_event()
        active.kill()  # as the owner would
        disk.settle()
        assert disk.outcomes == ["took-over"]
        disk.answer_all()
        disk.check()


def test_progress_after_a_stall_makes_it_watchful_again(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        active, spare = stop_active(disk)
        for _ in range(2):
            disk.loads[0].submit(disk.source)
            assert spare.next_event()["queue"] == 0
            active.send_signal(signal.SIGCONT)
            disk.answer_all()
            time.sleep(HANG_S / 2)
            active.send_signal(signal.SIGSTOP)
        active.send_signal(signal.SIGCONT)


def test_an_idle_driver_is_never_accused(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        active, spare = stop_active(disk)
        time.sleep(4 * HANG_S)
        assert not spare.has_event()
        active.send_signal(signal.SIGCONT)


def test_a_message_that_nobody_reads_is_noticed(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        active, spare = stop_active(disk)
        assert disk.crew.channel is not None
        disk.crew.channel.send(build_header(Request.GET_FEATURES, 0, 0))
        event = spare.next_event()
        assert (event["event"], event["queue"]) == ("hung", None)
        active.send_signal(signal.SIGCONT)
