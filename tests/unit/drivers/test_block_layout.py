"""The configuration space and geometry: the values that QEMU's virtio-blk shows for the same disks."""

from __future__ import annotations

import struct

import pytest

from duovisor.controlling.drivers.block_layout import build_block_config, guess_geometry, offered_features


@pytest.mark.parametrize(
    ("sectors", "geometry"),
    [
        (1, (2, 16, 63)),
        (2048, (2, 16, 63)),
        (524288, (520, 16, 63)),
        (16383 * 16 * 63, (16383, 16, 63)),
        (2**40, (16383, 16, 63)),
    ],
)
def test_geometry(sectors: int, geometry: tuple[int, int, int]) -> None:
    assert guess_geometry(sectors) == geometry


def test_the_space_is_the_specifications_60_bytes() -> None:
    config = build_block_config(sectors=2**33, queue_size=256, queues=4, block_bytes=512, write_cache=False)
    assert len(config) == 60
    assert struct.unpack_from("<QII", config) == (2**33, 0, 254)
    assert config[32] == 0
    assert struct.unpack_from("<H", config, 34) == (4,)


def test_blocks_of_4096_bytes_align_geometry_and_ranges() -> None:
    config = build_block_config(
        sectors=8 * 1001, queue_size=128, queues=1, block_bytes=4096, write_cache=True
    )
    assert struct.unpack_from("<I", config, 20) == (4096,)
    assert config[19] == 56  # 63 sectors per track, rounded down to whole blocks
    assert struct.unpack_from("<I", config, 44) == (8,)


def test_features_follow_the_disk() -> None:
    assert not offered_features(queues=1, read_only=False) & (1 << 5 | 1 << 12)
    assert offered_features(queues=2, read_only=True) & (1 << 5 | 1 << 12) == 1 << 5 | 1 << 12
