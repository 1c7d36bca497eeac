"""Errors of the client.

::

    DuovisorError
    └── ClientError
        ├── EndpointError            the address or token of a service cannot be meant
        ├── ServiceUnreachableError  nobody answers there
        ├── ServiceStartError        the service was started here and did not come up
        ├── ServiceStopError         it cannot be ended
        ├── ConnectionLostError      the service went away in the middle of something
        ├── ReplyError               what answered does not speak this API
        ├── TransferError            a file cannot be read, written, or is not what was sent
        └── ApiError                 the service refused or failed; has the code that the service gave
"""

from __future__ import annotations

from duovisor.errors import DuovisorError


class ClientError(DuovisorError):
    """Root of what the client can raise."""

    code = "client"


class EndpointError(ClientError):
    """The address or the token of a service cannot be meant."""

    code = "service-address"


class ServiceUnreachableError(ClientError):
    """Nobody answers at the service's address; ``is_absent``: because no service runs there."""

    code = "service-unreachable"

    def __init__(self, message: str, *, remedy: str = "", is_absent: bool = False) -> None:
        super().__init__(message, remedy=remedy)
        self.is_absent = is_absent


class ServiceStartError(ClientError):
    """The service was started and did not come up."""

    code = "service-start-failed"


class ServiceStopError(ClientError):
    """The service cannot be ended."""

    code = "service-stop-failed"


class ConnectionLostError(ClientError):
    """The connection broke before the answer was complete: what was asked for may have happened."""

    code = "service-connection-lost"


class ReplyError(ClientError):
    """The answer is not one that this API gives."""

    code = "service-reply"


class TransferError(ClientError):
    """A file cannot be read or written, or what came is not what was sent."""

    code = "transfer"


class ApiError(ClientError):
    """What the service said instead of doing it; ``code`` is the service's, ``status`` that of HTTP.

    ``field`` is the part of the request that it did not like, if it is one.
    """

    def __init__(
        self, code: str, message: str, *, remedy: str = "", status: int = 0, field: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code  # type: ignore[misc]  # known only when the service has spoken
        self.status = status
        self.field = field
