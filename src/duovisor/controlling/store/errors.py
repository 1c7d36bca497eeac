"""Errors of the store.

::

    ControllingError
    └── StoreError                    store
        ├── StoreRequestError         store-request-invalid   a key, value or transaction that cannot be
        ├── StoreCompactedError       store-compacted         the revision is no longer kept
        ├── StoreFutureRevisionError  store-revision-future   the revision does not exist yet
        ├── LeaseNotFoundError        lease-not-found         never granted, revoked or expired
        ├── StoreClosedError          store-closed            used after it was closed
        ├── StoreInUseError           store-in-use            another process has it
        ├── StoreCorruptError         store-corrupt           the file is damaged
        ├── StoreFormatError          store-format            not a store, or one of a newer duovisor
        ├── StoreReadOnlyError        store-read-only         the file or its file system is read-only
        ├── StoreFullError            store-full              no room, on the disk or under the quota
        ├── StoreIoError              store-io                the file cannot be opened, read or written
        └── DocumentError             document-invalid        a value that is not what its kind says
            ├── DocumentTooNewError   document-too-new        written by a newer duovisor
            ├── DocumentExistsError   document-exists         created when it was there already
            ├── DocumentNotFoundError document-not-found      changed when it was not there
            └── DocumentConflictError document-conflict       somebody else changed it first

Whichever is raised by a write, the write changed nothing. The one exception is ``store-io``: when a disk
fails to say that data has reached it, only opening the store again tells whether it has.
"""

from __future__ import annotations

from duovisor.controlling.errors import ControllingError


class StoreError(ControllingError):
    """Root of what the store can raise."""

    code = "store"


class StoreRequestError(StoreError):
    """The request cannot be: a malformed key, a value too large, one key written twice in a transaction."""

    code = "store-request-invalid"


class StoreCompactedError(StoreError):
    """The history asked for is no longer kept; list again and watch from there.

    ``compacted_revision`` is the oldest revision that can still be read.
    """

    code = "store-compacted"

    def __init__(self, revision: int, compacted_revision: int) -> None:
        super().__init__(
            f"revision {revision} is no longer kept: the history was compacted up to {compacted_revision}",
            remedy="list again and watch from the revision of that list",
        )
        self.compacted_revision = compacted_revision


class StoreFutureRevisionError(StoreError):
    """The revision asked for does not exist yet."""

    code = "store-revision-future"


class LeaseNotFoundError(StoreError):
    """The lease was never granted, was revoked, or has expired with its keys."""

    code = "lease-not-found"


class StoreClosedError(StoreError):
    """The store was closed."""

    code = "store-closed"


class StoreInUseError(StoreError):
    """Another process has the store open."""

    code = "store-in-use"


class StoreCorruptError(StoreError):
    """The store's file is damaged."""

    code = "store-corrupt"


class StoreFormatError(StoreError):
    """The file is not a duovisor store, or one that a newer duovisor wrote."""

    code = "store-format"


class StoreReadOnlyError(StoreError):
    """The store's file, folder or file system is read-only."""

    code = "store-read-only"


class StoreFullError(StoreError):
    """There is no room for the write, on the disk or under the store's quota."""

    code = "store-full"


class StoreIoError(StoreError):
    """The operating system could not open, read or write the store's file."""

    code = "store-io"


class DocumentError(StoreError):
    """A stored value is not what its kind says; ``key`` says where it is."""

    code = "document-invalid"


class DocumentTooNewError(DocumentError):
    """A newer duovisor wrote the document; this one must not touch it."""

    code = "document-too-new"


class DocumentExistsError(DocumentError):
    """A document was to be created where there is one already."""

    code = "document-exists"


class DocumentNotFoundError(DocumentError):
    """There is no document where one was to be changed or deleted."""

    code = "document-not-found"


class DocumentConflictError(DocumentError):
    """Somebody else changed the document since it was read."""

    code = "document-conflict"
