"""A device on trial: what its author's tests see of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.unit.channel.echo_device import EchoDevice

from duovisor.channel.errors import ChannelError, DeviceError
from duovisor.channel.trial import Trial

if TYPE_CHECKING:
    from duovisor.channel.chain import Chain


class Failing(EchoDevice):
    def handle_request(self, chain: Chain) -> int:
        data = bytes(chain.readable[0])
        if data == b"raise":
            raise LookupError("as told")
        return 99 if data == b"lie" else super().handle_request(chain)


def test_requests_are_answered(no_leak: None) -> None:
    with Trial(EchoDevice(queues=2)) as trial:
        for _ in range(200):
            assert trial.ask(b"abc", room=5) == b"cba"
        assert trial.ask(b"other", room=5, queue=1) == b"rehto"
        assert trial.front.get_config(0, 4) == b"echo"


@pytest.mark.parametrize(("request_", "error"), [(b"raise", LookupError), (b"lie", DeviceError)])
def test_what_the_driver_raises_is_the_tests(request_: bytes, error: type[Exception], no_leak: None) -> None:
    with pytest.raises(error), Trial(Failing()) as trial:
        trial.ask(request_, room=5)


def test_a_queue_that_rests_says_why(no_leak: None) -> None:
    with (
        pytest.raises(ChannelError, match="the echo is offended"),
        Trial(EchoDevice(), timeout_s=0.3) as trial,
    ):
        trial.ask(b"!", room=5)


def test_no_answer_is_an_error(no_leak: None) -> None:
    class Silent(EchoDevice):
        def handle(self, *_: object) -> None:
            """Leak it."""

    with pytest.raises(ChannelError, match="does not answer"), Trial(Silent(), timeout_s=0.3) as trial:
        trial.ask(b"abc", room=5)
