"""What a TAP leaves undone in frames for its reader (checksums, segmentation): read, and copied.

The kernel has a request to set that, and none to ask: the interface's active features say it. Sources: Linux
``ethtool.h``, ``if_tun.h``, ``drivers/net/tun.c`` (set_offload).
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
from struct import Struct

_SIOCETHTOOL = 0x8946
_GET_SET_INFO, _GET_STRINGS, _GET_FEATURES = 0x37, 0x1B, 0x3A
_FEATURE_NAMES = 4  # ETH_SS_FEATURES
_NAME_BYTES = 32
_TUNSETOFFLOAD = 0x400454D0

_REQUEST = Struct("@16sP16x")  # struct ifreq with ifr_data
_SET_INFO = Struct("=IIQI")
_STRINGS = Struct("=III")
_FEATURES = Struct("=II")
_BLOCK = Struct("=IIII")  # available, requested, active, never changed

# TUN_F_*, each with the feature that is active when it was asked for
OFFLOADS = {
    "tx-checksum-ip-generic": 0x01,
    "tx-tcp-segmentation": 0x02,
    "tx-tcp6-segmentation": 0x04,
    "tx-tcp-ecn-segmentation": 0x08,
    "tx-udp-segmentation": 0x20 | 0x40,  # the kernel takes both or none
}


class Offloads:
    """The offloads of TAPs; a kernel's names for them are asked for once. Raises ``OSError``."""

    def __init__(self, name: str) -> None:
        """``name`` is any interface: the names are the same for all."""
        self._control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._names = self._read_names(name)
        except BaseException:
            self.close()
            raise

    def read(self, name: str) -> int:
        """What the TAP ``name`` leaves undone, as TUN_F_* flags."""
        blocks = (len(self._names) + 31) // 32
        answer = self._ask(name, _FEATURES.pack(_GET_FEATURES, blocks) + bytes(blocks * _BLOCK.size))
        active = [
            _BLOCK.unpack_from(answer, _FEATURES.size + _BLOCK.size * each)[2] for each in range(blocks)
        ]
        return find_offloads(self._names, active)

    def copy(self, source: str, target: str, descriptor: int) -> None:
        """Let the TAP ``target``, which is behind ``descriptor``, leave undone what ``source`` does."""
        wanted = self.read(source)
        if wanted != self.read(target):
            set_offloads(descriptor, wanted)

    def close(self) -> None:
        """Close what the questions are asked through."""
        self._control.close()

    def _read_names(self, name: str) -> list[str]:
        info = self._ask(name, _SET_INFO.pack(_GET_SET_INFO, 0, 1 << _FEATURE_NAMES, 0))
        count = _SET_INFO.unpack(info)[3]
        answer = self._ask(
            name, _STRINGS.pack(_GET_STRINGS, _FEATURE_NAMES, count) + bytes(count * _NAME_BYTES)
        )
        starts = range(_STRINGS.size, len(answer), _NAME_BYTES)
        return [answer[start : start + _NAME_BYTES].rstrip(b"\0").decode() for start in starts]

    def _ask(self, name: str, question: bytes) -> bytes:
        buffer = ctypes.create_string_buffer(question, len(question))
        fcntl.ioctl(self._control, _SIOCETHTOOL, _REQUEST.pack(name.encode(), ctypes.addressof(buffer)))
        return buffer.raw


def set_offloads(descriptor: int, flags: int) -> None:
    """Let the TAP behind a descriptor leave undone what the TUN_F_* flags say. Raises ``OSError``."""
    fcntl.ioctl(descriptor, _TUNSETOFFLOAD, flags)


def find_offloads(names: list[str], active: list[int]) -> int:
    """TUN_F_* flags from the kernel's names of features and, 32 to a block, which of them are active."""
    flags = 0
    for name, flag in OFFLOADS.items():
        if name in names:
            index = names.index(name)
            flags |= flag if active[index // 32] >> index % 32 & 1 else 0
    return flags
