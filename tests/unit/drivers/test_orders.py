"""What an owner's orders mean, and which are none."""

from __future__ import annotations

import os
from typing import Any

import pytest

from duovisor.controlling.drivers.control import Packet
from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.orders import parse_assignment, parse_name


def test_an_assignment_sorts_its_descriptors() -> None:
    names = ["page", "image", "channel", "replay"]
    order = {"do": "stand_by", "driver": "block", "options": ["--direct"], "poll_us": 50, "hang_s": 10,
             "descriptors": names}  # fmt: skip
    assignment = parse_assignment(Packet(order, [os.dup(0) for _ in names]))
    assert (assignment.stands_by, assignment.driver, assignment.options) == (True, "block", ["--direct"])
    assert (assignment.poll_us, assignment.hang_s) == (50, 10)
    others = assignment.take_others()
    assert set(others) == {"image", "replay"}
    page = assignment.find("page")
    assert assignment.take("active") is None
    with pytest.raises(DriverError, match="the descriptor succession is missing"):
        assignment.require_socket("succession")
    with pytest.raises(DriverError, match="the descriptor channel is no socket"):
        assignment.require_socket("channel")
    assignment.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(page)
    for descriptor in others.values():
        os.close(descriptor)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"options": "--direct"}, "options is not a list of words"),
        ({"options": ["--queues", 4]}, "options is not a list of words"),
        ({"poll_us": -1}, "poll_us is -1"),
        ({"poll_us": 1001}, "poll_us is 1001"),
        ({"poll_us": True}, "poll_us is True"),
        ({"poll_us": 1.5}, "poll_us is 1.5"),
        ({"hang_s": "10"}, "hang_s is '10'"),
        ({"hang_s": -0.1}, "hang_s is -0.1"),
        ({"hang_s": float("nan")}, "hang_s is nan"),
        ({"descriptors": ["page"]}, "0 descriptors came with the names"),
    ],
)
def test_an_assignment_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(DriverError, match=said):
        parse_assignment(Packet({"do": "serve", "driver": "block", **fields}, []))


@pytest.mark.parametrize("name", [None, "", 5, ["spare"]])
def test_a_successor_has_a_name(name: object) -> None:
    with pytest.raises(DriverError, match=r"to is .* not a name"):
        parse_name(Packet({"to": name}, []), "to")
    assert parse_name(Packet({"to": "spare"}, []), "to") == "spare"
