"""kill -9 of the active driver, anywhere: each request is answered once, each byte is right."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from tests.contract.succession.crew import wait_until
from tests.contract.succession.disk import ALL, Disk, make_disk
from tests.contract.succession.load import finish

from duovisor.channel import features as bits
from duovisor.channel.errors import ChannelError
from duovisor.controlling.drivers import block_layout as layout

if TYPE_CHECKING:
    from tests.contract.succession.crew import Nursery


def live_and_die(disk: Disk, die_at: int) -> bool:
    """One life: set-up, a round of requests, a message, another round; False if the driver outlived it."""
    disk.again = False
    disk.connect(die_at=die_at)
    mortal = disk.crew.all[0]
    for turn in range(2):
        disk.submit()
        disk.answer_all()
        try:
            disk.front.set_config(layout.WCE_OFFSET, bytes([turn]))
        except ChannelError:
            disk.settle()
    disk.settle()
    disk.check()
    died = mortal.gone
    if died:  # perhaps only just now, at rest
        disk.settle()
    return died


def test_every_step_is_a_safe_place_to_die(nursery: Nursery) -> None:
    outcomes: list[str] = []
    for die_at in range(1, 3000):
        with make_disk(nursery) as disk:
            print(f"step {die_at}")
            died = live_and_die(disk, die_at)
            outcomes += disk.outcomes
        if not died:
            break
    print(f"{die_at - 1} places to die: {outcomes.count('took-over')} times the spare took over, "
          f"{outcomes.count('interrupted')} times the front end connected anew")  # fmt: skip
    assert die_at > 200
    assert not died
    assert len(outcomes) == die_at - 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_lives_and_deaths(nursery: Nursery, data: st.DataObject) -> None:
    """Any number of queues, depth, features, and drivers that die after so many steps, or not at all."""
    without = data.draw(st.sampled_from([0, bits.PROTOCOL_REPLY_ACK, bits.PROTOCOL_CONFIGURE_MEM_SLOTS]))
    rings = data.draw(st.sampled_from([0, bits.RING_EVENT_IDX, bits.RING_INDIRECT_DESC]))
    with make_disk(
        nursery, queues=data.draw(st.integers(1, 3), "queues"), depth=data.draw(st.integers(1, 32), "depth"),
        protocol=ALL & ~without, features=(1 << 64) - 1 & ~rings,
    ) as disk:  # fmt: skip
        disk.connect(die_at=data.draw(st.integers(0, 250), "steps"))
        for _ in range(data.draw(st.integers(1, 4), "rounds")):
            disk.settle()
            active = disk.crew.active
            assert active is not None
            if data.draw(st.booleans(), "kill while it rests"):
                active.kill()
            disk.submit()
            if data.draw(st.booleans(), "kill while it works"):
                active.kill()
            disk.answer_all()
        note(str(disk.outcomes))
        disk.check()


@pytest.mark.parametrize("without", [bits.PROTOCOL_INFLIGHT_SHMFD, ALL])
def test_a_front_end_without_a_log_of_its_own_loses_nothing(nursery: Nursery, without: int) -> None:
    """The driver's own log travels in the snapshot."""
    outcomes: list[str] = []
    for die_at in range(1, 40):
        queues, features = (1, bits.VERSION_1) if without == ALL else (2, (1 << 64) - 1)
        with make_disk(nursery, queues=queues, protocol=ALL & ~without, features=features, depth=16) as disk:
            disk.connect(mortal=True)
            disk.front.get_config(0, 1)  # all messages before, which nobody acknowledged, are served
            assert disk.crew.active is not None
            disk.crew.active.ask("die", at=die_at)
            disk.submit()
            disk.answer_all()
            disk.check()
            outcomes += disk.outcomes
    assert set(outcomes) == {"took-over"}
    assert len(outcomes) > 15  # a batch has that many steps, and may be all


def test_the_spare_may_die_at_every_step_of_taking_over(nursery: Nursery) -> None:
    """Active driver and spare are dead: the owner starts another one from the snapshot that it holds."""
    for die_at in range(1, 1000):
        with make_disk(nursery) as disk:
            disk.connect(mortal=True, spare=False)
            crew = disk.crew
            crew.add_spare(mortal=True)
            heir = crew.add_heir()
            active, spare = crew.active, crew.spare
            assert active is not None
            assert spare is not None
            spare.ask("die", at=die_at)
            active.ask("die", at=12)
            disk.submit()
            wait_until(lambda active=active: active.gone, "the active driver lives")
            took_over = spare.next_event()["event"] == "took-over"
            wait_until(lambda spare=spare, disk=disk: spare.gone or is_served(disk), "nothing happens")
            if spare.gone:
                held = heir.receive()
                assert held is not None
                assert crew.resume_from(held)["event"] == "took-over"
                held.close()
            finish(disk.loads)
            disk.check()
            if not spare.gone:
                break
    print(f"{die_at - 1} places to die")
    assert took_over
    assert die_at > 30


def is_served(disk: Disk) -> bool:
    for load in disk.loads:
        load.collect()
    return not any(load.flying for load in disk.loads)


@pytest.mark.parametrize(("length", "depth", "queues", "kills"), [(4096, 32, 1, 25), (262144, 8, 3, 10)])
def test_killed_at_random_under_load(
    nursery: Nursery, length: int, depth: int, queues: int, kills: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    source = random.Random(seed)
    size = depth * queues * 2 * length
    with make_disk(nursery, image_bytes=size, queues=queues, length=length, depth=depth) as disk:
        disk.connect()
        disk.submit()
        disk.answer_all()  # so that no message is being answered any more
        for _ in range(kills):
            deadline = time.perf_counter() + source.uniform(0.0, 0.03)
            while time.perf_counter() < deadline:
                disk.submit()
                for load in disk.loads:
                    load.collect()
            assert disk.crew.active is not None
            disk.crew.active.kill()
            disk.settle()
        disk.answer_all()
        disk.check()
        assert disk.outcomes == ["took-over"] * kills
        assert sum(load.done for load in disk.loads) > kills * depth
