"""A raw image or block device behind one descriptor: whole reads and writes on lists of buffers.

Everything raises ``OSError``; a short transfer is continued, and one that makes no progress is EIO.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
from struct import Struct

from duovisor.controlling.drivers.block_layout import SECTOR_BYTES
from duovisor.controlling.drivers.errors import DriverError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_BLKDISCARD = 0x1277
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE, _FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10
_NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY)
_ZEROES_BYTES = 1 << 20


class Image:
    """``size`` is in bytes. With ``write_through`` set a write is on the medium when it returns.

    Up to ``inline_bytes`` a lone request is better not handed to a thread. ``nowait`` are the flags of a read
    that must not wait for the medium.
    """

    __slots__ = ("descriptor", "direct", "is_device", "nowait", "read_only", "size", "write_through")

    inline_bytes = 1 << 30

    def __init__(self, descriptor: int, size: int, *, is_device: bool, direct: bool, read_only: bool) -> None:
        self.descriptor = descriptor
        self.size = size
        self.is_device = is_device
        self.direct = direct
        self.read_only = read_only
        self.write_through = False
        self.nowait = os.RWF_NOWAIT

    def try_read(self, buffers: list[memoryview], offset: int, length: int) -> bool:
        """Fill the buffers, which have ``length`` bytes, if that needs no waiting; whether it was done."""
        for _ in range(2):
            try:
                return os.preadv(self.descriptor, buffers, offset, self.nowait) == length
            except OSError as error:
                if not self.note_refusal(error):
                    break
        return False

    def note_refusal(self, error: OSError) -> bool:
        """Whether a read without waiting failed because the file system has none: it is not asked again."""
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL) and self.nowait and not self.direct:
            self.nowait = 0
            return True
        return False

    def read(self, buffers: list[memoryview], offset: int) -> None:
        """Fill the buffers from ``offset``."""
        self._transfer(os.preadv, buffers, offset, 0)

    def write(self, buffers: list[memoryview], offset: int) -> None:
        """Write the buffers at ``offset``."""
        self._transfer(os.pwritev, buffers, offset, os.RWF_DSYNC if self.write_through else 0)

    def flush(self) -> None:
        """Return when all completed writes are on the medium."""
        os.fdatasync(self.descriptor)

    def discard(self, offset: int, length: int) -> None:
        """Give the space of a range back if the host can; its content becomes undefined."""
        try:
            if self.is_device:
                fcntl.ioctl(self.descriptor, _BLKDISCARD, Struct("=QQ").pack(offset, length))
            else:
                self._fallocate(_FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make a range read as zeros, by giving its space back where ``unmap`` allows that."""
        mode = _FALLOC_PUNCH_HOLE if unmap else _FALLOC_ZERO_RANGE
        try:
            self._fallocate(mode | _FALLOC_KEEP_SIZE, offset, length)
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                raise
            zeroes = memoryview(mmap.mmap(-1, min(length, _ZEROES_BYTES)))
            for position in range(offset, offset + length, len(zeroes)):
                self.write([zeroes[: offset + length - position]], position)
            return
        if self.write_through:
            self.flush()

    def _transfer(
        self,
        call: Callable[[int, list[memoryview], int, int], int],
        buffers: list[memoryview],
        offset: int,
        flags: int,
    ) -> None:
        remaining = sum(map(len, buffers))
        while remaining:
            try:
                done = call(self.descriptor, buffers, offset, flags)
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self._bounce(call, buffers, offset, flags)
                return
            if done <= 0:
                raise OSError(errno.EIO, "the image ends before its capacity")
            remaining -= done
            offset += done
            if remaining:
                buffers = skip_bytes(buffers, done)

    def _bounce(
        self,
        call: Callable[[int, list[memoryview], int, int], int],
        buffers: list[memoryview],
        offset: int,
        flags: int,
    ) -> None:
        """O_DIRECT refused the guest's buffers, which may lie anywhere: go through an aligned one."""
        total = sum(map(len, buffers))
        aligned = memoryview(mmap.mmap(-1, total))
        if call is os.pwritev:
            copy_pieces(buffers, aligned, into=True)
        done = 0
        while done < total:
            count = call(self.descriptor, [aligned[done:]], offset + done, flags)
            if count <= 0:
                raise OSError(errno.EIO, "the image ends before its capacity")
            done += count
        if call is os.preadv:
            copy_pieces(buffers, aligned, into=False)

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        from ctypes import CDLL, c_int, c_longlong, get_errno  # 5 ms, which most drivers never need

        fallocate = CDLL(None, use_errno=True).fallocate64
        fallocate.argtypes = [c_int, c_int, c_longlong, c_longlong]
        while fallocate(self.descriptor, mode, offset, length):
            number = get_errno()
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))


def skip_bytes(buffers: list[memoryview], count: int) -> list[memoryview]:
    """The buffers without their first ``count`` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def cut_pieces(buffers: list[memoryview], piece_bytes: int) -> Iterator[tuple[list[memoryview], int]]:
    """The buffers in groups of at most ``piece_bytes``, each with its size."""
    group: list[memoryview] = []
    size = 0
    for buffer in buffers:
        while buffer:
            part = buffer[: piece_bytes - size]
            group.append(part)
            size += len(part)
            buffer = buffer[len(part) :]
            if size == piece_bytes:
                yield group, size
                group, size = [], 0
    if group:
        yield group, size


def copy_pieces(pieces: list[memoryview], whole: memoryview, *, into: bool) -> None:
    """Copy the pieces one after the other into ``whole``, or ``whole`` out to them."""
    position = 0
    for piece in pieces:
        part = whole[position : position + len(piece)]
        if into:
            part[:] = piece
        else:
            piece[:] = part
        position += len(piece)


def open_image(descriptor: int, *, read_only: bool = False, direct: bool = False) -> Image:
    """Look at an inherited descriptor; raises ``DriverError`` if it is no image that can be served."""
    try:
        status = os.fstat(descriptor)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        is_device = stat.S_ISBLK(status.st_mode)
        if not is_device and not stat.S_ISREG(status.st_mode):
            raise DriverError(f"descriptor {descriptor} is neither a file nor a block device")
        size = os.lseek(descriptor, 0, os.SEEK_END) if is_device else status.st_size
    except OSError as error:
        raise DriverError(f"descriptor {descriptor} is no image: {error.strerror}") from error
    if size % SECTOR_BYTES or not size:
        raise DriverError(f"the image has {size} bytes, which is not a positive multiple of {SECTOR_BYTES}")
    mode = flags & os.O_ACCMODE
    if mode == os.O_WRONLY or (mode == os.O_RDONLY and not read_only):
        raise DriverError(
            f"descriptor {descriptor} is not open for {'reading' if read_only else 'reading and writing'}"
        )
    return Image(
        descriptor, size, is_device=is_device, direct=direct or bool(flags & os.O_DIRECT), read_only=read_only
    )
