"""Which ``Backend`` a pool has, by its kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from duovisor.controlling.storage.folder import Folder
from duovisor.controlling.storage.places import prepare_folder
from duovisor.controlling.storage.records import PoolKind
from duovisor.controlling.storage.thin_pool import ThinPool, prepare_thin_pool

if TYPE_CHECKING:
    from duovisor.controlling.storage.backend import Backend
    from duovisor.controlling.storage.documents import PoolDocument


def open_backend(name: str, document: PoolDocument) -> Backend:
    """That of a pool; nothing is looked at yet."""
    match document.type:
        case PoolKind.LVM_THIN:
            return ThinPool(name, document.path)
        case PoolKind.DIRECTORY | PoolKind.NFS:
            return Folder(name, document.path, document.type)


def prepare_place(path: str, kind: PoolKind) -> str:
    """Have a place ready to be a pool; returns where it really is. It may block.

    Raises ``PoolRefusedError``, or ``HostLacksError`` without LVM.
    """
    return prepare_thin_pool(path) if kind is PoolKind.LVM_THIN else prepare_folder(path, kind)
