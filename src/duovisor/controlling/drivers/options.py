"""The driver's command line, parsed by hand: ``argparse`` alone takes 8 ms to import, of a start of 30 ms."""

from __future__ import annotations

from duovisor.controlling.drivers.block_protocol import Disk
from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from duovisor.controlling.drivers.image import Image


class BlockOptions:
    """Options of the storage driver; a number that was not given has the value here."""

    __slots__ = (
        "block_bytes", "channel_fd", "direct", "image_fd", "poll_us", "queue_size", "queues", "read_only",
        "serial", "size_bytes", "threads",
    )  # fmt: skip

    def __init__(self) -> None:
        self.channel_fd = -1
        self.image_fd = -1
        self.read_only = False
        self.direct = False
        self.serial = ""
        self.queues = 1
        self.queue_size = 128
        self.threads = 0  # 8 for a direct image, whose requests wait for the medium; else 4
        self.poll_us = 0
        self.block_bytes = 512
        self.size_bytes = 0  # of a formatted image; a raw one says it itself


# option: attribute, lowest and highest value
_NUMBERS = {
    "--queues": ("queues", 1, 256),
    "--queue-size": ("queue_size", 4, 1024),
    "--threads": ("threads", 0, 64),
    "--block-size": ("block_bytes", 512, 4096),
    "--size": ("size_bytes", 0, 1 << 62),
}
# what a partition is told in other ways
_STANDALONE_NUMBERS = {
    "--channel-fd": ("channel_fd", 0, 1 << 20),
    "--image-fd": ("image_fd", 0, 1 << 20),
    "--poll-us": ("poll_us", 0, 1000),
}
_SWITCHES = {"--read-only": "read_only", "--direct": "direct"}


def parse_block_options(arguments: Sequence[str]) -> BlockOptions:
    """The words that describe the device; raises ``DriverError`` naming the option that is wrong."""
    return _parse(arguments, _NUMBERS)


def parse_standalone_options(arguments: Sequence[str]) -> BlockOptions:
    """The whole command line of a driver without a partition, with its descriptors; raises as above."""
    options = _parse(arguments, _NUMBERS | _STANDALONE_NUMBERS)
    if options.channel_fd < 0 or options.image_fd < 0:
        raise DriverError("options --channel-fd and --image-fd are required")
    return options


def build_disk(options: BlockOptions, image: Image | None = None) -> Disk:
    """What the options say of the disk itself; pure."""
    return Disk(
        image,
        read_only=options.read_only,
        serial=options.serial,
        queues=options.queues,
        queue_size=options.queue_size,
        block_bytes=options.block_bytes,
    )


def _parse(arguments: Sequence[str], numbers: dict[str, tuple[str, int, int]]) -> BlockOptions:
    options = BlockOptions()
    words = iter(arguments)
    for word in words:
        if word in _SWITCHES:
            setattr(options, _SWITCHES[word], True)
            continue
        if word not in numbers and word != "--serial":
            raise DriverError(f"option {word} is unknown")
        value = next(words, None)
        if value is None:
            raise DriverError(f"option {word} needs a value")
        if word == "--serial":
            options.serial = value
        else:
            _set_number(options, word, value, *numbers[word])
    for word, number in (("--queue-size", options.queue_size), ("--block-size", options.block_bytes)):
        if number & (number - 1):
            raise DriverError(f"option {word} is {number}, which is not a power of two")
    return options


def _set_number(
    options: BlockOptions, word: str, value: str, attribute: str, lowest: int, highest: int
) -> None:
    if not value.isascii() or not value.isdigit() or not lowest <= int(value) <= highest:
        raise DriverError(f"option {word} is {value!r}, not a number from {lowest} to {highest}")
    setattr(options, attribute, int(value))
