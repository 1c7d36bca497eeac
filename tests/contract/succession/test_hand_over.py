"""An active driver lets go on purpose, under load: nothing is lost, nothing is done twice, and briefly."""

from __future__ import annotations

import random
import signal
import socket
import time
from typing import TYPE_CHECKING

from tests.contract.succession.crew import wait_until
from tests.contract.succession.disk import Disk, make_disk

from duovisor.channel.page import Page

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.contract.succession.crew import Driver, Nursery


def drive(disk: Disk, until: Callable[[], bool]) -> float:
    """Keep everything in flight until ``until``; the longest time in ms without an answer."""
    last = time.perf_counter()
    longest = 0.0
    deadline = last + 60
    while not until():
        disk.submit()
        now = time.perf_counter()
        if any([load.collect() for load in disk.loads]):
            longest, last = max(longest, now - last), now
        assert now < deadline
    return 1000 * longest


def hand_over(disk: Disk) -> tuple[Driver, float]:
    """Let the spare go on, with load before, meanwhile and after; the old driver, and the pause in ms."""
    crew = disk.crew
    old, spare = crew.active, crew.spare
    assert old is not None
    assert spare is not None
    pauses: list[float] = []
    begin(old)
    pauses.append(drive(disk, old.has_event))
    assert old.next_event() == {"reply": True}
    pauses.append(drive(disk, spare.has_event))
    assert crew.promote()["event"] == "took-over"
    done = sum(load.done for load in disk.loads)
    pauses.append(drive(disk, lambda: sum(load.done for load in disk.loads) > done + 100))
    assert old.next_event()["event"] == "handed-over"
    return old, max(pauses)


def begin(driver: Driver) -> None:
    driver.control.send(b'{"do": "hand_over", "name": "spare"}')


def test_handed_over_again_and_again_under_load(nursery: Nursery) -> None:
    pauses = []
    with make_disk(nursery, depth=32, image_bytes=4 << 20) as disk:
        disk.connect()
        for _ in range(20):
            drive(disk, random_deadline())
            old, pause_ms = hand_over(disk)
            pauses.append(pause_ms)
            assert disk.crew.active is not None
            assert disk.crew.active.ask("statistics")["resubmitted"] == 0
            wait_until(lambda old=old: old.gone, "the old driver lives on")
            disk.crew.add_spare()
        disk.answer_all()
        disk.check()
    pauses.sort()
    print(f"pause of a hand-over under load: {pauses[10]:.1f} ms in the median, {pauses[-1]:.1f} ms at most")


def random_deadline() -> Callable[[], bool]:
    deadline = time.perf_counter() + random.uniform(0, 0.02)
    return lambda: time.perf_counter() > deadline


def test_without_a_spare_it_goes_on(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        disk.connect(spare=False)
        assert disk.crew.active is not None
        assert disk.crew.active.ask("hand_over", name="spare") is False
        disk.submit()
        disk.answer_all()
        disk.check()


def test_with_a_dead_spare_it_goes_on(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        disk.connect()
        active, spare = disk.crew.active, disk.crew.spare
        assert active is not None
        assert spare is not None
        disk.submit()
        spare.kill()
        assert active.ask("hand_over", name="spare") is False
        assert active.ask("statistics")["successors"] == []
        disk.answer_all()
        disk.check()
        disk.crew.add_spare()
        hand_over(disk)


def test_with_a_spare_that_hangs_it_goes_on_and_the_spare_is_out(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        disk.connect()
        active, stopped = disk.crew.active, disk.crew.spare
        assert active is not None
        assert stopped is not None
        stopped.send_signal(signal.SIGSTOP)
        started = time.perf_counter()
        assert active.ask("hand_over", name="spare") is False
        assert 0.4 < time.perf_counter() - started < 30
        disk.crew.add_spare()
        stopped.send_signal(signal.SIGCONT)
        disk.submit()
        active.kill()
        # Both saw the death, but only one of them holds the state as it is.
        assert stopped.next_event()["event"] == "interrupted"


def test_two_spares_never_both_take_over(nursery: Nursery) -> None:
    """The replaced one is out of date even before it notices."""
    with make_disk(nursery) as disk:
        disk.connect()
        first, active = disk.crew.spare, disk.crew.active
        assert first is not None
        assert active is not None
        first.send_signal(signal.SIGSTOP)
        disk.crew.add_spare()
        disk.submit()
        active.kill()
        disk.settle()
        assert disk.outcomes == ["took-over"]
        disk.answer_all()
        disk.check()


def test_the_owner_resumes_from_what_it_holds(nursery: Nursery) -> None:
    with make_disk(nursery, depth=16) as disk:
        disk.connect(spare=False)
        for _ in range(5):
            heir = disk.crew.add_heir()
            held = heir.receive()
            assert held is not None
            disk.submit()
            assert disk.crew.active is not None
            disk.crew.active.kill()
            assert disk.crew.resume_from(held)["event"] == "took-over"
            held.close()
        disk.answer_all()
        disk.check()


def test_an_old_snapshot_is_refused(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        disk.connect(spare=False)
        held = disk.crew.add_heir().receive()
        assert held is not None
        disk.front.set_config(32, b"\0")
        assert disk.crew.active is not None
        disk.crew.active.kill()
        assert Page.open(disk.crew.page).serial == held.serial + 1
        assert disk.crew.resume_from(held)["event"] == "interrupted"
        held.close()
        assert disk.crew.disconnected


def test_a_snapshot_of_an_earlier_connection_is_refused(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        disk.connect(spare=False)
        held = disk.crew.add_heir().receive()
        assert held is not None
        assert disk.crew.active is not None
        disk.crew.active.kill()
        channel = disk.crew.start_active()
        assert disk.crew.active.ask("statistics")["inherited"] is False
        disk.crew.active.kill()  # before the first message
        channel.close()
        assert disk.crew.resume_from(held)["event"] == "interrupted"
        held.close()


def test_a_closed_front_end_leaves_nothing_to_serve(nursery: Nursery) -> None:
    with make_disk(nursery) as disk:
        disk.connect()
        active, spare = disk.crew.active, disk.crew.spare
        assert active is not None
        assert spare is not None
        disk.front.disconnect()
        assert disk.crew.channel is not None
        disk.crew.channel.shutdown(socket.SHUT_RDWR)
        assert active.next_event()["event"] == "closed"
        assert spare.next_event()["event"] == "closed"
