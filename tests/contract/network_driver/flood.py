"""A sender on a bridge: numbered frames for a guest, some for all, never more than a window ahead.

``python flood.py TAP PAGE WINDOW`` is its own process: the frames come while the test is busy with others.
"""

from __future__ import annotations

import mmap
import os
import sys
import time
from struct import Struct

GUEST = bytes.fromhex("525400123456")
SENDER = bytes.fromhex("525400aabbcc")
ETHERTYPE = b"\x88\xb5"
HEADER = bytes(12)
PAYLOAD = b"\x5a" * 200
PAGE_BYTES = 4096
NUMBER = Struct("<Q")
SENT_AT, RECEIVED_AT, END_AT = 0, 8, 16  # places in the page


def is_for_all(number: int) -> bool:
    """Which of the frames are broadcasts."""
    return number % 50 == 0


def build_frame(number: int) -> bytes:
    """A frame, as a TAP wants it."""
    target = b"\xff" * 6 if is_for_all(number) else GUEST
    return HEADER + target + SENDER + ETHERTYPE + NUMBER.pack(number) + PAYLOAD


def find_number(frame: bytes) -> int | None:
    """The number of a frame with its header, if it is one of these."""
    if frame[len(HEADER) + 12 :][:2] != ETHERTYPE:
        return None
    number: int = NUMBER.unpack_from(frame, len(HEADER) + 14)[0]
    return number


def send(tap: int, page: mmap.mmap, window: int) -> None:
    """Send until the page says to end."""
    number = 0
    while not page[END_AT]:
        if number - NUMBER.unpack_from(page, RECEIVED_AT)[0] < window:
            number += 1
            os.write(tap, build_frame(number))
            NUMBER.pack_into(page, SENT_AT, number)
        else:
            time.sleep(0)


if __name__ == "__main__":
    given_tap, given_page, given_window = map(int, sys.argv[1:])
    with mmap.mmap(given_page, PAGE_BYTES) as shared:
        send(given_tap, shared, given_window)
