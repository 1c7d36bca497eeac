"""Drivers that break the rules: the guest is not misled, and the next driver can do the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.channel.echo_device import EchoDevice, LateDevice, RunningBackend

from duovisor.channel.errors import ChannelError, DeviceError, QueueError
from duovisor.channel.frontend import FrontEnd

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duovisor.channel.chain import Chain
    from duovisor.channel.device import VirtioDevice
    from duovisor.channel.virtqueue import Virtqueue


@pytest.fixture
def front(no_leak: None) -> Iterator[FrontEnd]:
    with FrontEnd(memory_bytes=1 << 20, queue_size=8, timeout_s=60) as made:
        yield made


def ask(front: FrontEnd, text: bytes = b"abc", room: int = 16) -> int:
    """Submit one request and return its head."""
    address, view = front.allocate(len(text) + room)
    view[: len(text)] = text
    head = front.queues[0].prepare([(address, len(text))], [(address + len(text), room)])
    front.queues[0].submit(head)
    front.queues[0].kick()
    return head


def serve_and_fail(front: FrontEnd, device: VirtioDevice) -> BaseException:
    """Let a bad driver meet one request; how it ended."""
    running = RunningBackend(device)
    front.connect(running.peer)
    ask(front)
    running.wait()
    assert not front.queues[0].has_used(), "the guest was told something"
    front.disconnect()
    device.close()
    assert running.failure is not None
    return running.failure


def expect_success(front: FrontEnd, head_count: int = 1) -> None:
    """A good driver does what the bad one left."""
    running = RunningBackend(EchoDevice())
    front.connect(running.peer)
    done = front.queues[0].wait(5)
    assert [written for _, written in done] == [3] * head_count
    front.disconnect()
    assert running.close() is None


class Raising(EchoDevice):
    def handle_request(self, chain: Chain) -> int:
        raise ZeroDivisionError("one by none")


class Returning(EchoDevice):
    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def handle_request(self, chain: Chain) -> int:
        answer: int = self.answer
        return answer


class Twice(EchoDevice):
    """Completes a request that the guest has been told of already."""

    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        super().handle(queue, chains)
        queue.publish()
        queue.complete(chains[0], 0)


class TwiceAtOnce(EchoDevice):
    def handle(self, queue: Virtqueue, chains: list[Chain]) -> None:
        super().handle(queue, chains)
        super().handle(queue, chains)


def test_one_that_raises_ends_and_its_request_is_the_successors(front: FrontEnd) -> None:
    assert isinstance(serve_and_fail(front, Raising()), ZeroDivisionError)
    expect_success(front)


@pytest.mark.parametrize("answer", [None, "3", 3.0, True, -1, 17, 1 << 40, b"abc"], ids=repr)
def test_one_that_returns_nonsense_ends_before_the_guest_hears_of_it(front: FrontEnd, answer: Any) -> None:
    ended = serve_and_fail(front, Returning(answer))
    assert isinstance(ended, DeviceError)
    assert "its writable part has 16" in ended.message
    expect_success(front)


def test_one_that_completes_twice_in_a_batch_ends(front: FrontEnd) -> None:
    assert "completed twice" in str(serve_and_fail(front, TwiceAtOnce()))
    expect_success(front)


def test_one_that_completes_what_was_told_ends(front: FrontEnd) -> None:
    running = RunningBackend(Twice())
    front.connect(running.peer)
    head = ask(front)
    assert front.queues[0].wait(5) == [(head, 3)]
    assert isinstance(running.wait(), DeviceError)
    front.disconnect()
    expect_success_after = RunningBackend(EchoDevice())
    front.connect(expect_success_after.peer)
    assert not front.queues[0].has_used(), "the request is answered once"
    front.disconnect()
    assert expect_success_after.close() is None


class Polite(Raising):
    """Says what the guest is told of a request that it cannot do."""

    def fail_request(self, chain: Chain, error: Exception) -> int:
        chain.writable[0][:5] = b"sorry"
        return 5


def test_an_error_policy_answers_the_guest_and_the_driver_lives(front: FrontEnd) -> None:
    running = RunningBackend(Polite())
    front.connect(running.peer)
    for _ in range(3):
        head = ask(front)
        assert front.queues[0].wait(5) == [(head, 5)]
    assert running.backend.statistics()["queues"][0]["errors"] == 3  # type: ignore[index]
    front.disconnect()
    assert running.close() is None


def test_a_fault_of_the_guest_is_not_the_drivers(front: FrontEnd) -> None:
    class Strict(Polite):
        def handle_request(self, chain: Chain) -> int:
            raise QueueError("no guest may ask this")

    running = RunningBackend(Strict())
    front.connect(running.peer)
    ask(front)
    running.wait_report()
    front.get_config(0, 4)  # still there
    assert running.reports == ["no guest may ask this; the queue rests until the guest resets the device"]
    front.disconnect()
    assert running.close() is None


class Forgetful(EchoDevice):
    """Cannot say what its configuration is, after the first time."""

    def __init__(self, answer: Any = None) -> None:
        super().__init__()
        self.answer = answer
        self.asked = 0

    def read_config(self) -> bytes:
        self.asked += 1
        if self.asked == 1:
            return b"good"
        if self.answer is None:
            raise LookupError("where is it?")
        answer: bytes = self.answer
        return answer


@pytest.mark.parametrize("answer", [None, "text", 7, b"x" * 257], ids=["raises", "text", "number", "long"])
def test_the_last_good_configuration_stays(front: FrontEnd, answer: Any) -> None:
    running = RunningBackend(Forgetful(answer))
    front.connect(running.peer)
    assert front.get_config(0, 6) == b"good\0\0"
    assert "the front end is told what it was before" in running.reports[0]
    head = ask(front)
    assert front.queues[0].wait(5) == [(head, 3)]
    front.disconnect()
    assert running.close() is None


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("device_id", 0), ("device_id", "rng"), ("features", -1), ("features", 1 << 64), ("features", None),
        ("queues", 0), ("queues", 257), ("queues", 1.5), ("queues", "many"),
        ("completion_descriptor", "none"),
    ],
)  # fmt: skip
def test_what_a_driver_declares_is_checked_first(attribute: str, value: Any, no_leak: None) -> None:
    device = EchoDevice()
    setattr(device, attribute, value)
    with pytest.raises(DeviceError, match=f"{attribute} of a device is"):
        RunningBackend(device)


def test_a_configuration_that_cannot_be_is_refused_first(no_leak: None) -> None:
    device = Forgetful()
    device.asked = 1
    with pytest.raises(DeviceError, match="read_config failed: LookupError: where is it"):
        RunningBackend(device)


class Telling(EchoDevice):
    def __init__(self, told: Any) -> None:
        super().__init__()
        self.told = told

    def statistics(self) -> dict[str, object]:
        if self.told is KeyError:
            raise KeyError
        told: dict[str, object] = self.told
        return told


@pytest.mark.parametrize(
    ("told", "figures"),
    [({"rolls": 7, "mean": 3.5}, {"rolls": 7, "mean": 3.5}), (None, {}), ([1], {}), ({"a": {1}}, {}),
     ({"long": "x" * 9000}, {}), (KeyError, {})],
    ids=["good", "nothing", "list", "no JSON", "long", "raises"],
)  # fmt: skip
def test_figures_of_a_driver(told: Any, figures: dict[str, object]) -> None:
    running = RunningBackend(Telling(told))
    assert running.backend.statistics()["device"] == figures
    assert running.close() is None


def test_a_leak_is_seen_in_the_figures(front: FrontEnd) -> None:
    device = LateDevice()
    running = RunningBackend(device)
    front.connect(running.peer)
    ask(front)
    assert device.arrived.acquire(timeout=60)
    queues: Any = running.backend.statistics()["queues"]
    assert (queues[0]["in_flight"], queues[0]["completed"]) == (1, 0)
    front.disconnect()
    ended: ChannelError | None = running.close()
    assert ended is None
