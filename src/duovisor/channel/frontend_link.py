"""One connection of a front end to a back end: each request that a front end makes, and its answer checked.

Knows messages and what was negotiated; whose memory and rings they are about is the caller's matter: a VMM's
guest, or ``FrontEnd`` itself. Every method raises ``ChannelError`` when the back end is gone, breaks the
protocol, refuses, or does not answer within ``timeout_s`` seconds.
"""

from __future__ import annotations

from duovisor.channel import features as bits
from duovisor.channel.connection import Connection, request_name
from duovisor.channel.errors import ProtocolError
from duovisor.channel.inflight import map_inflight
from duovisor.channel.messages import (
    FLAG_NEED_REPLY,
    FLAG_REPLY,
    InflightDescription,
    Request,
    build_config,
    build_inflight,
    build_log,
    build_memory_region,
    build_memory_table,
    build_u64,
    build_vring_address,
    build_vring_state,
    parse_config,
    parse_inflight,
    parse_u64,
    parse_vring_state,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from duovisor.channel.connection import Message
    from duovisor.channel.messages import RegionDescription, VringAddress

    Inflight = tuple[int, InflightDescription]
    """A log of requests in flight: its descriptor, and what it was made for."""

ROW_MAX = 32  # of requests without an answer: a socket holds some hundred such messages


class FrontEndLink:
    """The requests of a front end on one connected socket, which ``close`` closes."""

    def __init__(self, connected: socket.socket, timeout_s: float) -> None:
        self.connection = Connection(connected)
        self.timeout_s = timeout_s
        self.protocol_features = 0
        self._in_a_row = False
        self._unanswered: list[Request] = []

    def close(self) -> None:
        """Close the connection as a VMM that ends does; what is in flight stays so."""
        self.connection.close()

    # Features

    def negotiate(self, wanted_protocol_features: int, queues: int) -> int:
        """Agree on the protocol with a back end of so many queues; return the features that it offers."""
        self.request(Request.SET_OWNER)
        offered = parse_u64(self.ask(Request.GET_FEATURES))
        if offered & bits.PROTOCOL_FEATURES:
            available = parse_u64(self.ask(Request.GET_PROTOCOL_FEATURES))
            self.protocol_features = available & wanted_protocol_features
            self.request(Request.SET_PROTOCOL_FEATURES, build_u64(self.protocol_features))
        if self.protocol_features & bits.PROTOCOL_MQ:
            possible = parse_u64(self.ask(Request.GET_QUEUE_NUM))
            if possible < queues:
                raise ProtocolError(f"the back end has {possible} queues; {queues} are wanted")
        return offered

    def set_features(self, features: int) -> None:
        """Say what was chosen of the offered features."""
        self.request(Request.SET_FEATURES, build_u64(features))

    def reset_device(self) -> None:
        """Let the device be as no guest has touched it; its queues must be stopped."""
        if self.protocol_features & bits.PROTOCOL_RESET_DEVICE:
            self.request(Request.RESET_DEVICE)

    # Configuration space

    def get_config(self, offset: int, size: int) -> bytes:
        """Read the device's configuration space."""
        answer = parse_config(self.ask(Request.GET_CONFIG, build_config(offset, 0, bytes(size))))
        if (answer[0], len(answer[2])) != (offset, size):
            raise ProtocolError(
                f"the back end answers with {len(answer[2])} bytes of configuration, not {size}"
            )
        return answer[2]

    def set_config(self, offset: int, data: bytes, flags: int = 0) -> None:
        """Write to the device's configuration space."""
        self.request(Request.SET_CONFIG, build_config(offset, flags, data))

    # Memory and logs

    def set_memory(self, regions: list[RegionDescription], descriptors: Sequence[int]) -> None:
        """Share the guest's memory: each region in the file behind its descriptor."""
        if self.protocol_features & bits.PROTOCOL_CONFIGURE_MEM_SLOTS:
            slots = parse_u64(self.ask(Request.GET_MAX_MEM_SLOTS))
            if slots < len(regions):
                raise ProtocolError(f"the back end takes {slots} memory regions, not {len(regions)}")
            for region, descriptor in zip(regions, descriptors, strict=True):
                self.request(Request.ADD_MEM_REG, build_memory_region(region), (descriptor,))
        else:
            self.request(Request.SET_MEM_TABLE, build_memory_table(regions), descriptors)

    def get_inflight(self, queues: int, queue_size: int) -> Inflight | None:
        """A fresh log for so many queues, made by the back end; the caller closes its descriptor.

        ``None`` where that was not negotiated.
        """
        if not self.protocol_features & bits.PROTOCOL_INFLIGHT_SHMFD:
            return None
        self._settle()
        self.send(Request.GET_INFLIGHT_FD, build_inflight(InflightDescription(0, 0, queues, queue_size)))
        message = self._receive(Request.GET_INFLIGHT_FD)
        try:
            description = parse_inflight(message.payload)
            message.expect_descriptors(1)
            _check_inflight(description, message.descriptors[0], queues, queue_size)
            return message.take_descriptor(), description
        finally:
            message.close()

    def set_inflight(self, held: Inflight) -> None:
        """Give the back end the log that is to be kept, where that was negotiated."""
        if self.protocol_features & bits.PROTOCOL_INFLIGHT_SHMFD:
            self.request(Request.SET_INFLIGHT_FD, build_inflight(held[1]), (held[0],))

    def set_log(self, size: int, descriptor: int) -> None:
        """Share a dirty log of ``size`` bytes; ``set_features`` with LOG_ALL begins its use."""
        answer = self.ask(Request.SET_LOG_BASE, build_log(size, 0), (descriptor,))
        if len(answer) not in (0, 8):  # the specification does not say what is in it
            raise ProtocolError(f"the back end answers SET_LOG_BASE with {len(answer)} bytes")

    # Queues

    def start_queue(self, address: VringAddress, size: int, base: int, kick: int, call: int) -> None:
        """Start a queue at index ``base`` of its available ring; ``kick`` and ``call`` are eventfds."""
        index = address.index
        self.request(Request.SET_VRING_NUM, build_vring_state(index, size))
        self.request(Request.SET_VRING_BASE, build_vring_state(index, base))
        self.set_address(address)
        self.request(Request.SET_VRING_KICK, build_u64(index), (kick,))
        self.request(Request.SET_VRING_CALL, build_u64(index), (call,))

    def enable_queue(self, index: int) -> None:
        """Let a started queue be served; only where protocol features were negotiated and acknowledged."""
        self.request(Request.SET_VRING_ENABLE, build_vring_state(index, 1))

    def set_address(self, address: VringAddress) -> None:
        """Say where a ring lies, and whether its used ring is logged."""
        self.request(Request.SET_VRING_ADDR, build_vring_address(address))

    def stop_queue(self, index: int) -> int:
        """Stop a queue in an orderly way; return its available index."""
        answer = parse_vring_state(self.ask(Request.GET_VRING_BASE, build_vring_state(index, 0)))
        if answer[0] != index or answer[1] > 0xFFFF:
            raise ProtocolError(
                f"the back end says that queue {answer[0]} is at {answer[1]}, asked for {index}"
            )
        return answer[1]

    # Messages

    def begin_row(self) -> None:
        """Send what follows without a wait for each acknowledgement, until ``end_row``."""
        self._in_a_row = True

    def end_row(self) -> None:
        """Wait for the acknowledgements of what was sent in a row."""
        self._in_a_row = False
        self._settle()

    def send(self, request: Request, payload: bytes, descriptors: Sequence[int] = (), flags: int = 0) -> None:
        """Send a request and wait for nothing."""
        self.connection.send(request, payload, flags, tuple(descriptors))

    def ask(self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()) -> bytes:
        """Send a request that has an answer of its own, and return it."""
        self._settle()
        self.send(request, payload, descriptors)
        message = self._receive(request)
        message.close()
        return message.payload

    def request(self, request: Request, payload: bytes = b"", descriptors: Sequence[int] = ()) -> None:
        """Send a request and, where that was negotiated, wait for its acknowledgement."""
        acknowledged = bool(self.protocol_features & bits.PROTOCOL_REPLY_ACK)
        self.send(request, payload, descriptors, FLAG_NEED_REPLY if acknowledged else 0)
        if acknowledged:
            self._unanswered.append(request)
            if not self._in_a_row or len(self._unanswered) == ROW_MAX:
                self._settle()

    def _settle(self) -> None:
        """Take the acknowledgements that are due; they come in the order of the requests."""
        unanswered, self._unanswered = self._unanswered, []
        for request in unanswered:
            message = self._receive(request)
            message.close()
            if parse_u64(message.payload):
                raise ProtocolError(f"the back end refuses {request.name}")

    def _receive(self, request: Request) -> Message:
        message = self.connection.wait(self.timeout_s)
        if message.request != request or not message.flags & FLAG_REPLY:
            message.close()
            raise ProtocolError(f"the back end answers {request.name} with {request_name(message.request)}")
        return message


def _check_inflight(description: InflightDescription, descriptor: int, queues: int, queue_size: int) -> None:
    """A log that no successor could use must not be kept: the device would never come up again."""
    if (description.queues, description.queue_size) != (queues, queue_size):
        raise ProtocolError(
            f"the back end's in-flight log is for {description.queues} queues of {description.queue_size}"
        )
    map_inflight(description, descriptor, queues)
