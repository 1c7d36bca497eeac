"""What a viewer may say to a VM's screen: which part is to be sent, and how; never a key or a click.

Source: RFC 6143, section 7.5, and the extensions that QEMU's server offers (ui/vnc.c).
"""

from __future__ import annotations

import struct

VERSION_BYTES = 12
HAS_SECURITY_CHOICE = b"RFB 003.007\n"  # from this version on, the client chooses
MAX_TEXT_BYTES = 1 << 20

_SET_ENCODINGS, _CUT_TEXT, _DESKTOP_SIZE, _QEMU = 2, 6, 251, 255
# type → length, of those that a viewer may send, and of those that are left out
_PASSED = {0: 20, 3: 10, 150: 10}
_LEFT_OUT = {4: 8, 5: 6}
_QEMU_KEY, _QEMU_AUDIO = 0, 1
_AUDIO_FORMAT = 2


class NotAMessageError(ValueError):
    """The viewer sent what no version of the protocol knows."""


class WatchingFilter:
    """Lets pass what a viewer may say; ``feed`` takes bytes as they come."""

    def __init__(self) -> None:
        self._pending = b""
        self._prelude = VERSION_BYTES
        self._is_version_read = False

    def feed(self, data: bytes) -> bytes:
        """What of it goes on, now that ``data`` has come. Raises ``NotAMessageError``."""
        self._pending += data
        passed = self._take_prelude()
        while not self._prelude and self._pending:
            length, is_passed = self._measure()
            if length is None or len(self._pending) < length:
                break
            if is_passed:
                passed += self._pending[:length]
            self._pending = self._pending[length:]
        return passed

    def _take_prelude(self) -> bytes:
        """The handshake: version, perhaps the choice of security, and whether the screen is shared."""
        passed = b""
        if not self._is_version_read and len(self._pending) >= VERSION_BYTES:
            self._is_version_read = True
            self._prelude += 2 if self._pending[:VERSION_BYTES] >= HAS_SECURITY_CHOICE else 1
        if self._is_version_read and self._prelude:
            passed = self._pending[: self._prelude]
            self._pending = self._pending[len(passed) :]
            self._prelude -= len(passed)
        return passed

    def _measure(self) -> tuple[int | None, bool]:
        """The length of the first message (None: not yet known), and whether it may pass."""
        kind, have = self._pending[0], len(self._pending)
        if kind in _PASSED:
            return _PASSED[kind], True
        if kind in _LEFT_OUT:
            return _LEFT_OUT[kind], False
        if kind == _SET_ENCODINGS:
            return (4 + 4 * self._read(">H", 2), True) if have >= 4 else (None, True)
        if kind == _CUT_TEXT:
            return (8 + self._read_text_length(), False) if have >= 8 else (None, False)
        if kind == _DESKTOP_SIZE:
            return (8 + 16 * self._pending[6], False) if have >= 8 else (None, False)
        if kind == _QEMU and have >= 4:
            return self._measure_qemu(), False
        if kind == _QEMU:
            return None, False
        raise NotAMessageError(f"the screen knows no message {kind}")

    def _measure_qemu(self) -> int:
        kind = self._pending[1]
        if kind == _QEMU_KEY:
            return 12
        if kind == _QEMU_AUDIO:
            return 10 if self._read(">H", 2) == _AUDIO_FORMAT else 4
        raise NotAMessageError(f"the screen knows no message 255.{kind}")

    def _read_text_length(self) -> int:
        length = abs(self._read(">i", 4))  # negative: the extended clipboard
        if length > MAX_TEXT_BYTES:
            raise NotAMessageError(f"a text of {length} bytes")
        return length

    def _read(self, layout: str, offset: int) -> int:
        number: int = struct.unpack_from(layout, self._pending, offset)[0]
        return number
