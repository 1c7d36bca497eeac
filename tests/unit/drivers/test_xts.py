"""AES-256-XTS against the vectors of IEEE 1619-2007, annex B, and against its own structure."""

from __future__ import annotations

import hashlib
import os

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from duovisor.controlling.drivers.errors import DriverError
from duovisor.controlling.drivers.xts import Xts

# vectors 10, 11 and 12: one key, a unit of 512 bytes each, by its number; the ciphertexts' first 32 bytes
KEY = bytes.fromhex(
    "2718281828459045235360287471352662497757247093699959574966967627"
    "3141592653589793238462643383279502884197169399375105820974944592"
)
PLAIN = bytes(range(256)) * 2
VECTORS = {
    0xFF: "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b",
    0xFFFF: "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11",
    0xFFFFFF: "e387aaa58ba483afa7e8eb469778317ecf4cf573aa9d4eac23f2cdf914e4e200",
}
FIRST_WHOLE = (  # of vector 10
    "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44"
    "680a86ac35adfc3345befecb4bb188fd5776926c49a3095eb108fd1098baec70aaa66999a72a82f27d848b21d4a741b0"
    "c5cd4d5fff9dac89aeba122961d03a757123e9870f8acf1000020887891429ca2a3e7a7d7df7b10355165c8b9a6d0a7d"
    "e8b062c4500dc4cd120c0f7418dae3d0b5781c34803fa75421c790dfe1de1834f280d7667b327f6c8cd7557e12ac3a0f"
    "93ec05c52e0493ef31a12d3d9260f79a289d6a379bc70c50841473d1a8cc81ec583e9645e07b8d9670655ba5bbcfecc6"
    "dc3966380ad8fecb17b6ba02469a020a84e18e8f84252070c13e9f1f289be54fbc481457778f616015e1327a02b140f1"
    "505eb309326d68378f8374595c849d84f4c333ec4423885143cb47bd71c5edae9be69a2ffeceb1bec9de244fbe15992b"
    "11b77c040f12bd8f6a975a44a0f90c29a9abc3d4d893927284c58754cce294529f8614dcd2aba991925fedc4ae74ffac"
    "6e333b93eb4aff0479da9a410e4450e0dd7ae4c6e2910900575da401fc07059f645e8b7e9bfdef33943054ff84011493"
    "c27b3429eaedb4ed5376441a77ed43851ad77f16f541dfd269d50d6a5f14fb0aab1cbb4c1550be97f7ab4066193c4caa"
    "773dad38014bd2092fa755c824bb5e54c4f36ffda9fcea70b9c6e693e148c151"
)


@pytest.mark.parametrize("sector", VECTORS)
def test_the_standards_vectors(sector: int) -> None:
    cipher = Xts(KEY, 512)
    stored = cipher.encrypt(PLAIN, sector * 512)
    assert stored[:32].hex() == VECTORS[sector]
    assert cipher.decrypt(stored, sector * 512) == PLAIN


def test_a_whole_vector() -> None:
    assert Xts(KEY, 512).encrypt(PLAIN, 0xFF * 512).hex() == FIRST_WHOLE


@pytest.mark.parametrize(
    ("unit_bytes", "digest"),
    [
        (512, "4251904eb02dac9e5650b1cd850cfa6692d86c4b0ea6f54c80c3e71f413c2821"),
        (4096, "775c04946d83312e2766f20c87890b294affdb8697f1d3b9868977652f1d75bb"),
    ],
)
def test_what_dm_crypt_wrote(unit_bytes: int, digest: str) -> None:
    """Recorded in a guest: Linux 6.1, cryptsetup 2.6.1, ``open --type plain --cipher aes-xts-plain64
    --key-size 512 --sector-size UNIT``, then 64 KiB written at 3 MiB."""
    plain = bytes((7 * at + at // 256) & 255 for at in range(65536))
    assert hashlib.sha256(Xts(bytes(range(64)), unit_bytes).encrypt(plain, 3 << 20)).hexdigest() == digest


def test_a_run_is_its_sectors_each_with_its_number() -> None:
    cipher, data = Xts(os.urandom(64), 512), os.urandom(4096)
    apart = [cipher.encrypt(data[at : at + 512], 7 * 512 + at) for at in range(0, 4096, 512)]
    assert cipher.encrypt(data, 7 * 512) == b"".join(apart)
    assert len(set(cipher.encrypt(bytes(4096), 0)[at : at + 16] for at in range(0, 4096, 16))) == 256


def test_larger_units_are_numbered_by_their_first_sector() -> None:
    """As dm-crypt does with ``sector_size:4096`` and without ``iv_large_sectors``."""
    key, data = os.urandom(64), os.urandom(8192)
    stored = Xts(key, 4096).encrypt(data, 4096 * 5)
    tweak = (8 * 6).to_bytes(16, "little")
    second = Cipher(algorithms.AES(key), modes.XTS(tweak)).encryptor().update(data[4096:])
    assert stored[4096:] == second


def test_numbers_beyond_32_bits_count_whole() -> None:
    cipher, data = Xts(os.urandom(64), 512), bytes(512)
    assert cipher.encrypt(data, 1 << 41) != cipher.encrypt(data, 0)
    assert cipher.decrypt(cipher.encrypt(data, 1 << 61), 1 << 61) == data


@pytest.mark.parametrize(
    ("key", "said"),
    [(os.urandom(32) * 2, "both halves of the key are the same"), (os.urandom(63), "the key cannot be used")],
    ids=["equal halves", "a byte less"],
)
def test_keys_that_are_none(key: bytes, said: str) -> None:
    with pytest.raises(DriverError, match=said):
        Xts(key, 512)
