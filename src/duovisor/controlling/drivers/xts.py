"""AES-256-XTS over runs of sectors, as dm-crypt's ``aes-xts-plain64`` does it (IEEE 1619).

Needs the package ``cryptography``, which only the factory of encrypting drivers has imported. One context a
sector: the library's XTS mode takes one number of a sector, and cannot go on to the next
(docs/encrypted-disks.md has what that costs).
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from duovisor.controlling.drivers.block_layout import SECTOR_SHIFT
from duovisor.controlling.drivers.errors import DriverError

TWEAK_BYTES = 16


class Xts:
    """Encrypts and decrypts whole units of ``unit_bytes``; raises ``DriverError`` for a key that is none."""

    __slots__ = ("_algorithm", "_unit_bytes")

    def __init__(self, key: bytes, unit_bytes: int) -> None:
        if key[: len(key) // 2] == key[len(key) // 2 :]:
            raise DriverError("both halves of the key are the same, which AES-XTS does not allow")
        try:
            self._algorithm = algorithms.AES(key)
            Cipher(self._algorithm, modes.XTS(bytes(TWEAK_BYTES))).encryptor()
        except ValueError as error:
            raise DriverError(f"the key cannot be used: {error}") from error
        self._unit_bytes = unit_bytes

    def encrypt(self, data: bytes | memoryview, offset: int) -> bytes:
        """What is stored for ``data`` at ``offset`` of the disk; both are whole units."""
        algorithm, step = self._algorithm, self._unit_bytes
        return b"".join(
            [
                Cipher(algorithm, modes.XTS(_tweak(offset + position)))
                .encryptor()
                .update(data[position : position + step])
                for position in range(0, len(data), step)
            ]
        )

    def decrypt(self, data: bytes | memoryview, offset: int) -> bytes:
        """What ``encrypt`` was given."""
        algorithm, step = self._algorithm, self._unit_bytes
        return b"".join(
            [
                Cipher(algorithm, modes.XTS(_tweak(offset + position)))
                .decryptor()
                .update(data[position : position + step])
                for position in range(0, len(data), step)
            ]
        )


def _tweak(offset: int) -> bytes:
    """dm-crypt's plain64: the number of the first 512-byte sector, little-endian, whatever the unit."""
    return (offset >> SECTOR_SHIFT).to_bytes(TWEAK_BYTES, "little")
