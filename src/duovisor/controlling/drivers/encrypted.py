"""A disk whose image holds nothing but AES-256-XTS: encrypted on the way in, decrypted on the way out.

Guest memory is copied before it is encrypted: the guest may look at it, and change it, at any time.
"""

from __future__ import annotations

import errno
import mmap
import os

from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.image import Image, copy_pieces, cut_pieces, open_image
from duovisor.controlling.drivers.image_device import LARGE_BYTES, ImageDevice
from duovisor.controlling.drivers.options import build_disk, parse_block_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from duovisor.channel.device import VirtioDevice
    from duovisor.controlling.drivers.xts import Xts

KEY_BYTES = 64  # two keys of AES-256
PIECE_BYTES = 256 * 1024  # what is copied and encrypted at once of a large request


class EncryptedImage(Image):
    """An image in units of ``unit_bytes``; buffers and offsets that are no whole units are EINVAL."""

    __slots__ = ("_cipher", "_unit_bytes")

    inline_bytes = LARGE_BYTES  # the rest would hold up what else the loop has to do

    def __init__(self, plain: Image, cipher: Xts, unit_bytes: int) -> None:
        super().__init__(
            plain.descriptor,
            plain.size,
            is_device=plain.is_device,
            direct=plain.direct,
            read_only=plain.read_only,
        )
        self._cipher = cipher
        self._unit_bytes = unit_bytes

    def try_read(self, buffers: list[memoryview], offset: int, length: int) -> bool:
        """As with a plain image, if it is one piece."""
        if length > PIECE_BYTES or self._is_uneven(offset, length):
            return False
        stored = self._make_buffer(length)
        if not super().try_read([stored], offset, length):
            return False
        copy_pieces(buffers, memoryview(self._cipher.decrypt(stored, offset)), into=False)
        return True

    def read(self, buffers: list[memoryview], offset: int) -> None:
        """Fill the buffers with what is decrypted, piece by piece."""
        self._check(buffers, offset)
        for pieces, size in cut_pieces(buffers, PIECE_BYTES):
            stored = self._make_buffer(size)
            super().read([stored], offset)
            copy_pieces(pieces, memoryview(self._cipher.decrypt(stored, offset)), into=False)
            offset += size

    def write(self, buffers: list[memoryview], offset: int) -> None:
        """Encrypt a copy of the buffers and write it, piece by piece."""
        self._check(buffers, offset)
        for pieces, size in cut_pieces(buffers, PIECE_BYTES):
            stored = memoryview(self._cipher.encrypt(b"".join(pieces), offset))
            if self.direct:
                aligned = self._make_buffer(size)
                aligned[:] = stored
                stored = aligned
            super().write([stored], offset)
            offset += size

    def _make_buffer(self, length: int) -> memoryview:
        """Room for what is stored; O_DIRECT wants it aligned."""
        return memoryview(mmap.mmap(-1, length) if self.direct else bytearray(length))

    def _is_uneven(self, offset: int, length: int) -> bool:
        return bool((offset | length) & (self._unit_bytes - 1)) or not length

    def _check(self, buffers: list[memoryview], offset: int) -> None:
        length = sum(map(len, buffers))
        if length and self._is_uneven(offset, length):
            raise OSError(
                errno.EINVAL, f"{length} bytes at {offset} are no whole units of {self._unit_bytes}"
            )


class EncryptedDevice(ImageDevice):
    """Discards are not offered: they would tell which parts of the disk are empty, and of zeros as well."""

    discards = False


def create_encrypted_device(words: list[str], descriptors: dict[str, int]) -> VirtioDevice:
    """From the words of the storage driver, its ``image``, and the ``key`` in a file. Raises ``DriverError``.

    ``--block-size`` is the unit of encryption too.
    """
    from duovisor.controlling.drivers.xts import Xts  # other factories do without OpenSSL

    options = parse_block_options(words)
    for name in ("image", "key"):
        if name not in descriptors:
            raise DriverError(f"the descriptor {name} is missing")
    key = os.pread(descriptors["key"], KEY_BYTES + 1, 0)
    if len(key) != KEY_BYTES:
        raise DriverError(f"the key has {len(key)} bytes instead of {KEY_BYTES}")
    plain = open_image(descriptors["image"], read_only=options.read_only, direct=options.direct)
    if plain.size % options.block_bytes:
        raise DriverError(f"the image has {plain.size} bytes, which is no multiple of {options.block_bytes}")
    image = EncryptedImage(plain, Xts(key, options.block_bytes), options.block_bytes)
    return EncryptedDevice(image, build_disk(options, image), threads=options.threads or 4)
