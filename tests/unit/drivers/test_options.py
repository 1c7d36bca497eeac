"""The storage driver's options (the errors are tested with the process)."""

from __future__ import annotations

import pytest

from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.options import parse_block_options, parse_standalone_options

REQUIRED = ["--channel-fd", "5", "--image-fd", "6"]


def test_defaults() -> None:
    options = parse_standalone_options(REQUIRED)
    assert {name: getattr(options, name) for name in options.__slots__} == {
        "channel_fd": 5, "image_fd": 6, "read_only": False, "direct": False, "serial": "", "queues": 1,
        "queue_size": 128, "threads": 0, "poll_us": 0, "block_bytes": 512, "size_bytes": 0,
    }  # fmt: skip


def test_every_option_has_an_effect() -> None:
    options = parse_standalone_options(
        [*REQUIRED, "--read-only", "--direct", "--serial", "s", "--queues", "3", "--queue-size", "256",
         "--threads", "7", "--poll-us", "20", "--block-size", "4096", "--size", "1024"]
    )  # fmt: skip
    default = parse_standalone_options(REQUIRED)
    same = {name for name in options.__slots__ if getattr(options, name) == getattr(default, name)}
    assert same == {"channel_fd", "image_fd"}


@pytest.mark.parametrize("value", ["", "1.0", "0x10", "²", "1_0", " 1", "999999999999999999999"])
def test_numbers_are_plain(value: str) -> None:
    with pytest.raises(DriverError, match="option --queues is"):
        parse_block_options(["--queues", value])


def test_block_sizes_are_powers_of_two() -> None:
    with pytest.raises(DriverError, match="--block-size is 520, which is not a power of two"):
        parse_block_options(["--block-size", "520"])


@pytest.mark.parametrize("word", ["--channel-fd", "--image-fd", "--poll-us"])
def test_a_partition_is_given_descriptors_in_another_way(word: str) -> None:
    with pytest.raises(DriverError, match=f"option {word} is unknown"):
        parse_block_options([word, "5"])
