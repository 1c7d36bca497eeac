"""A process beside the switch benchmark: asks the guest for the time, and streams to it, until stdin closes.

The questions are ICMP timestamp requests (RFC 792, type 13), which the guest's kernel itself answers, with
its own clock in milliseconds. When an answer came, the host's kernel notes (SO_TIMESTAMPNS), so that this
process may come late to read it. The TCP stream is a slow download of random bytes that never rests.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
import struct
import sys
import threading
import time

# not a whole number of ms: the guest's answers are, and a question should come at any part of one
INTERVAL_S = 0.0023
OPEN_MAX = 32  # a guest that is behind is not asked more: that would be a flood, and fill its queues
LATE_ANSWERS_S = 10.0
CHUNK_BYTES, CHUNK_EVERY_S = 16 << 10, 0.01
TIMESTAMP, TIMESTAMP_REPLY = 13, 14
SO_TIMESTAMPNS = 35  # include/uapi/asm-generic/socket.h
SOL_RAW, ICMP_FILTER = 255, 1  # include/uapi/linux/icmp.h
_MESSAGE = struct.Struct("!BBHHHIII")
_TIMESPEC = struct.Struct("qq")


def build_question(identity: int, number: int) -> bytes:
    """A timestamp request with its checksum (RFC 1071)."""
    empty = _MESSAGE.pack(TIMESTAMP, 0, 0, identity, number, 0, 0, 0)
    total = sum(struct.unpack("!10H", empty))
    total = (total & 0xFFFF) + (total >> 16)
    return empty[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + empty[4:]


def parse_answer(packet: bytes, identity: int) -> tuple[int, int] | None:
    """Which of our questions an IP packet answers, and the guest's clock; ``None`` if it answers none."""
    header = (packet[0] & 15) * 4
    if len(packet) < header + _MESSAGE.size:
        return None
    kind, _, _, asked_by, number, _, guest_ms, _ = _MESSAGE.unpack_from(packet, header)
    return (number, guest_ms) if (kind, asked_by) == (TIMESTAMP_REPLY, identity) else None


class Questions:
    """All questions and their answers; numbers on the wire have 16 bits, and come again after 150 s."""

    def __init__(self, guest: str) -> None:
        self._guest = guest
        self._identity = os.getpid() & 0xFFFF
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.setsockopt(SOL_RAW, ICMP_FILTER, struct.pack("I", ~(1 << TIMESTAMP_REPLY) & 0xFFFFFFFF))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._sent: list[int] = []
        self._answers: dict[int, tuple[int, int]] = {}

    def ask_until(self, end: threading.Event) -> None:
        """Ask, at a steady pace, and wait for the last answers."""
        following = time.monotonic()
        while not end.is_set():
            if len(self._sent) - len(self._answers) < OPEN_MAX:
                self._ask()
            following = max(following + INTERVAL_S, time.monotonic())  # what was missed is not made up for
            self._listen(following)
        deadline = time.monotonic() + LATE_ANSWERS_S
        while len(self._answers) < len(self._sent) and time.monotonic() < deadline:
            self._listen(time.monotonic() + INTERVAL_S)

    def _ask(self) -> None:
        question = build_question(self._identity, len(self._sent) & 0xFFFF)
        self._sent.append(time.time_ns())
        self._socket.sendto(question, (self._guest, 0))

    def _listen(self, until: float) -> None:
        while (left := until - time.monotonic()) > 0:
            if select.select([self._socket], [], [], left)[0]:
                self._take()

    def _take(self) -> None:
        packet, ancillary, _, _ = self._socket.recvmsg(256, 64)
        answer = parse_answer(packet, self._identity)
        if answer is None or not self._sent:
            return
        last = len(self._sent) - 1
        number = last - ((last - answer[0]) & 0xFFFF)
        seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
        self._answers.setdefault(number, (seconds * 10**9 + nanoseconds, answer[1]))

    def list_lines(self) -> list[str]:
        """Each question as ``sent received guest``: ns since 1970 twice, ms since midnight; or ``sent``."""
        lines = []
        for number, sent in enumerate(self._sent):
            answer = self._answers.get(number)
            lines.append(f"{sent} {answer[0]} {answer[1]}" if answer else str(sent))
        return lines


class Stream(threading.Thread):
    """Serves one download that lasts until ``end``."""

    def __init__(self, host: str, end: threading.Event) -> None:
        super().__init__()
        self.digest = hashlib.md5(usedforsecurity=False)
        self.sent_bytes = 0
        self.error = ""
        self._end = end
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]

    def run(self) -> None:
        try:
            with self._listener, self._listener.accept()[0] as stream:
                while not self._end.wait(CHUNK_EVERY_S):
                    chunk = os.urandom(CHUNK_BYTES)
                    stream.sendall(chunk)
                    self.digest.update(chunk)
                    self.sent_bytes += len(chunk)
        except OSError as error:
            self.error = str(error)


def main() -> None:
    """``HOST GUEST FILE``: prints the stream's port; at the end, its digest, and the questions into FILE."""
    host, guest, path = sys.argv[1:]
    end = threading.Event()
    stream = Stream(host, end)
    stream.daemon = True  # the guest may never have come
    stream.start()
    print(stream.port, flush=True)
    questions = Questions(guest)
    asking = threading.Thread(target=questions.ask_until, args=(end,))
    asking.start()
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    end.set()
    asking.join()
    stream.join(LATE_ANSWERS_S)
    with open(path, "w") as file:
        file.write("\n".join(questions.list_lines()))
    print(json.dumps({"md5": stream.digest.hexdigest(), "bytes": stream.sent_bytes, "error": stream.error}))


if __name__ == "__main__":
    main()
