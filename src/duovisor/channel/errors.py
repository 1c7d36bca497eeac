"""Errors of the channel package; the tree is drawn in ``duovisor.errors``.

::

    ChannelError
    ├── PeerClosedError     the peer closed the connection between two messages: an orderly end
    ├── ProtocolError       the peer broke the vhost-user protocol; the connection ends
    ├── GuestMemoryError    an address or range lies outside the guest's memory
    ├── QueueError          the guest broke a virtqueue; that queue ends, the others go on
    └── DeviceError         the driver broke the rules of its back end; the driver ends
"""

from __future__ import annotations

from duovisor.errors import DuovisorError


class ChannelError(DuovisorError):
    """Root of what channel can raise."""

    code = "channel"


class PeerClosedError(ChannelError):
    """The peer closed the connection between two messages."""

    code = "channel-closed"


class ProtocolError(ChannelError):
    """A message that the vhost-user specification does not allow."""

    code = "channel-protocol"


class GuestMemoryError(ChannelError):
    """A range that is not inside the memory which the front end shared."""

    code = "channel-memory"


class QueueError(ChannelError):
    """A descriptor, index or length in a virtqueue that the virtio specification does not allow."""

    code = "channel-queue"


class DeviceError(ChannelError):
    """A driver told its back end what cannot be: the guest must not be told, nor a successor misled."""

    code = "channel-device"
