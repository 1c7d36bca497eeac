"""Bytes of a migration stream, read from front to back and never beyond the end; big endian, as QEMU's."""

from __future__ import annotations

from struct import Struct

from duovisor.hypervisor.migration.errors import StreamError

_U16, _U32, _U64 = Struct(">H"), Struct(">I"), Struct(">Q")


class Reader:
    """A place in ``data``; ``end`` is the offset after the last byte that may be read.

    Every method but ``fail`` moves on by what it read, and raises ``StreamError`` if that is not there.
    ``what`` says in the error's text what was being read.
    """

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data = data
        self.at = at
        self.end = len(data) if end is None else end

    def fail(self, message: str, at: int | None = None) -> StreamError:
        """The error for what stands here, or ``at`` another offset."""
        return StreamError(self.at if at is None else at, message)

    def skip(self, count: int, what: str) -> int:
        """Pass ``count`` bytes over; where they begin."""
        start = self.at
        if not 0 <= count <= self.end - start:
            raise StreamError(start, f"{what}: {count} bytes announced, {self.end - start} left")
        self.at = start + count
        return start

    def take(self, count: int, what: str) -> bytes:
        start = self.skip(count, what)
        return self.data[start : start + count]

    def u8(self, what: str) -> int:
        return self.data[self.skip(1, what)]

    def u16(self, what: str) -> int:
        start = self.skip(2, what)
        return int(_U16.unpack_from(self.data, start)[0])

    def u32(self, what: str) -> int:
        start = self.skip(4, what)
        return int(_U32.unpack_from(self.data, start)[0])

    def u64(self, what: str) -> int:
        start = self.skip(8, what)
        return int(_U64.unpack_from(self.data, start)[0])

    def name(self, what: str) -> str:
        """A text after one byte with its length; printable ASCII, as all of QEMU's names are."""
        start = self.at
        text = self.take(self.u8(what), what)
        if not text or not all(0x20 <= byte < 0x7F for byte in text):
            raise StreamError(start, f"{what}: {text[:32]!r} is no name")
        return text.decode("ascii")

    def expect(self, value: int, found: int, what: str) -> None:
        """Compare what was just read with the only value that we know."""
        if found != value:
            raise StreamError(self.at, f"{what} is {found:#x}, not {value:#x}")
