"""virtio-blk's numbers, and the configuration space as QEMU's own virtio-blk fills it; pure.

Sources: virtio 1.2, section 5.2; QEMU ``hw/block/virtio-blk.c`` (``virtio_blk_update_config``) and
``hw/block/hd-geometry.c``. A guest must not see a difference between the designs, so QEMU's values rule.
"""

from __future__ import annotations

from struct import Struct

DEVICE_ID = 2
SECTOR_BYTES = 512
SECTOR_SHIFT = 9
SERIAL_BYTES = 20

FEATURE_SEG_MAX = 1 << 2
FEATURE_GEOMETRY = 1 << 4
FEATURE_READ_ONLY = 1 << 5
FEATURE_BLK_SIZE = 1 << 6
FEATURE_FLUSH = 1 << 9
FEATURE_TOPOLOGY = 1 << 10
FEATURE_CONFIG_WCE = 1 << 11
FEATURE_MQ = 1 << 12
FEATURE_DISCARD = 1 << 13
FEATURE_WRITE_ZEROES = 1 << 14

REQUEST_IN, REQUEST_OUT, REQUEST_FLUSH, REQUEST_GET_ID = 0, 1, 4, 8
REQUEST_DISCARD, REQUEST_WRITE_ZEROES = 11, 13
STATUS_OK, STATUS_IO_ERROR, STATUS_UNSUPPORTED = 0, 1, 2
UNMAP = 1

REQUEST_HEADER = Struct("=IIQ")  # type, reserved, sector
REQUEST = Struct("=I4xQ")  # the same header: type and sector
RANGE = Struct("=QII")  # sector, number of sectors, flags: one segment of DISCARD or WRITE_ZEROES

WCE_OFFSET = 32
# QEMU's BDRV_REQUEST_MAX_SECTORS: what fits into an int, in sectors.
MAX_RANGE_SECTORS = 0x7FFFFFFF >> SECTOR_SHIFT

# capacity, size_max, seg_max, cylinders, heads, sectors, blk_size, physical_block_exp, alignment_offset,
# min_io_size, opt_io_size, writeback, unused, num_queues, then per discard (max sectors, max segments,
# alignment) and write zeroes (max sectors, max segments, may unmap), 3 unused bytes.
_CONFIG = Struct("<QIIHBBIBBHIBBHIIIIIB3x")


def offered_features(*, queues: int, read_only: bool, discards: bool = True) -> int:
    """The feature bits of virtio-blk that the driver offers."""
    features = (
        FEATURE_SEG_MAX | FEATURE_GEOMETRY | FEATURE_BLK_SIZE | FEATURE_FLUSH | FEATURE_TOPOLOGY
        | FEATURE_CONFIG_WCE
    )  # fmt: skip
    if discards:
        features |= FEATURE_DISCARD | FEATURE_WRITE_ZEROES
    if queues > 1:
        features |= FEATURE_MQ
    if read_only:
        features |= FEATURE_READ_ONLY
    return features


def guess_geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track, as QEMU guesses them without an old partition table."""
    return min(max(sectors // (16 * 63), 2), 16383), 16, 63


def build_block_config(
    *, sectors: int, queue_size: int, queues: int, block_bytes: int, write_cache: bool
) -> bytes:
    """The 60 bytes of configuration space of a disk of ``sectors`` × 512 bytes."""
    cylinders, heads, track = guess_geometry(sectors)
    if (sectors * SECTOR_BYTES // heads // track) % block_bytes:
        track &= ~(block_bytes // SECTOR_BYTES - 1)
    return _CONFIG.pack(
        sectors, 0, queue_size - 2, cylinders, heads, track, block_bytes, 0, 0, 0, 0,
        write_cache, 0, queues,
        MAX_RANGE_SECTORS, 1, block_bytes >> SECTOR_SHIFT,
        MAX_RANGE_SECTORS, 1, 1,
    )  # fmt: skip
