"""Errors of the service; ``duovisor.error_table`` has the HTTP status and exit code of each.

::

    ServiceError
    ├── ServiceConfigError            duovisord.toml cannot be meant
    ├── ListenError                   the socket, address or certificate cannot be used
    ├── StoppingError                 the service is being stopped and takes no new work
    ├── NotAuthenticatedError         nobody knows who asks
    ├── NotAllowedError               who asks has not the role for this
    ├── NoSuchPathError, MethodNotAllowedError, RequestInvalidError, RequestTooLargeError
    ├── PreconditionRequiredError     a change without If-Match
    ├── OperationNotFoundError, OperationFinishedError, OperationCancelledError,
    │   OperationInterruptedError, TooManyOperationsError
    ├── TokenNotFoundError, TokenExistsError
    └── InternalError                 a fault of duovisor itself; the service's log has the traceback
"""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError


class ServiceError(ControllingError):
    """Root of what the service itself can raise."""

    code = "service"


class ServiceConfigError(ServiceError):
    """The configuration file cannot be read, or says what cannot be done."""

    code = "service-config"


class ListenError(ServiceError):
    """The service cannot listen where it was told to."""

    code = "listen-failed"


class StoppingError(ServiceError):
    """The service is being stopped."""

    code = "stopping"


class NotAuthenticatedError(ServiceError):
    """No token, or one that is unknown or has expired."""

    code = "not-authenticated"


class NotAllowedError(ServiceError):
    """Whoever asks is known, and may not do this."""

    code = "not-allowed"


class NoSuchPathError(ServiceError):
    """The API has nothing under this path."""

    code = "no-such-path"


class MethodNotAllowedError(ServiceError):
    """The path exists, but not with this method."""

    code = "method-not-allowed"


class RequestInvalidError(ServiceError):
    """The request's parameters, headers or body are not what the API takes; ``field`` says which."""

    code = "request-invalid"

    def __init__(self, message: str, *, remedy: str = "", field: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.field = field


class RequestTooLargeError(ServiceError):
    """The request's body is larger than any that could be meant."""

    code = "request-too-large"


class PreconditionRequiredError(ServiceError):
    """A change must say which revision it was made from."""

    code = "precondition-required"


class OperationNotFoundError(ServiceError):
    """There is no operation of that id, or it is no longer kept."""

    code = "operation-not-found"


class OperationFinishedError(ServiceError):
    """The operation has ended already and cannot be cancelled."""

    code = "operation-finished"


class OperationCancelledError(ServiceError):
    """Somebody cancelled the operation."""

    code = "operation-cancelled"


class OperationInterruptedError(ServiceError):
    """The service ended while the operation was under way."""

    code = "operation-interrupted"


class TooManyOperationsError(ServiceError):
    """More operations are under way than the service takes at once."""

    code = "too-many-operations"


class TokenNotFoundError(ServiceError):
    """There is no token of that name."""

    code = "token-not-found"


class TokenExistsError(ServiceError):
    """There is a token of that name already."""

    code = "token-exists"


class InternalError(ServiceError):
    """A fault of duovisor itself."""

    code = "internal"
